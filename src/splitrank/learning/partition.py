"""Partition the training rows: the split of the training rows over the clients of a federation.

IID here means stratified: every client gets the same share of every class, so that what a study compares is not the
luck of the draw (the paper gives every client the same number of samples of one data set).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitrank import streams
from splitrank.errors import InputError


def partition_iid(labels: NDArray[np.int64], num_clients: int, seed: int) -> list[NDArray[np.int64]]:
    """Deal the rows to the clients, class by class, like a pack of shuffled cards.

    The rows of each class are shuffled by the stream (seed, "partition", client = class); the shuffled classes are
    laid one after the other and card j goes to client j mod ``num_clients``. So no two clients differ by more than
    one row, neither in total nor in any class.

    Args:
        labels: class of every training row, shape (num_rows,).
        num_clients: number of clients, at least 1.
        seed: the run's seed.

    Returns:
        one array of row indices for each client, ascending; together they hold every row once.

    Raises:
        InputError: fewer rows than clients, so that a client would be left without data.
    """
    if num_clients < 1:
        raise InputError(f"federation.num_clients must be at least 1, got {num_clients}")
    if len(labels) < num_clients:
        raise InputError(
            f"federation.num_clients must be at most the number of training rows ({len(labels)}), so that every "
            f"client has data, got {num_clients}; lower it or give more rows (data.train_rows)"
        )
    dealt = np.concatenate(
        [
            streams.generator(seed, "partition", client=int(label)).permutation(np.flatnonzero(labels == label))
            for label in np.unique(labels)
        ]
    ).astype(np.int64)
    return [np.sort(dealt[client::num_clients]) for client in range(num_clients)]
