"""Draw rows with the class shares of the whole: what is held out for testing, and smaller samples of a split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitrank import streams
from splitrank.errors import InputError


def hold_out(labels: NDArray[np.int64], test_share: float, seed: int, name: str) -> NDArray[np.int64]:
    """Draw rows for testing, stratified, so that every class keeps a row for training."""
    if not 0 < test_share < 1:
        raise InputError(f"data.test_share must lie between 0 and 1, both excluded, got {test_share}")
    spare = len(labels) - len(np.unique(labels))
    if spare == 0:
        raise InputError(
            f"{name}: a class must have at least 2 rows for holding out a test split, got 1 row for each; "
            "give a test file beside it"
        )
    total = min(max(round(test_share * len(labels)), 1), spare)
    return stratified_draw(labels, total, streams.generator(seed, "test-split"), leave_one=True)


def stratified_draw(
    labels: NDArray[np.int64],
    total: int,
    generator: np.random.Generator,
    *,
    at_least_one: bool = False,
    leave_one: bool = False,
) -> NDArray[np.int64]:
    """Draw ``total`` row indices, ascending, with the class shares of ``labels`` (method of the largest remainder).

    Args:
        labels: class of every row, shape (num_rows,).
        total: number of rows to draw.
        generator: the stream to draw from.
        at_least_one: draw at least one row of every class.
        leave_one: leave at least one row of every class.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    counts = total * sizes // len(labels)
    by_remainder = np.argsort(-(total * sizes % len(labels)), kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    least = np.ones_like(sizes) if at_least_one else np.zeros_like(sizes)
    most = sizes - 1 if leave_one else sizes
    counts = np.clip(counts, least, most)
    while (surplus := int(counts.sum()) - total) != 0:  # only for classes so rare that clipping moved them
        step = -1 if surplus > 0 else 1
        free = counts > least if step < 0 else counts < most
        counts[np.argmax(np.where(free, (counts if step < 0 else most - counts), -1))] += step
    drawn = [
        generator.choice(np.flatnonzero(labels == label), int(count), replace=False)
        for label, count in zip(classes, counts, strict=True)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)
