"""Quantities as a person gives them, one number for all clients or one for each: made arrays, and checked all at once.

A broken rule is one sentence: what must hold of what, what was found, what to try.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Range:
    """The range of a quantity: finite and at least 0, unless said otherwise.

    Attributes:
        hint: what to try.
        is_positive: whether it must be above 0.
        no_limit: whether it may be infinite, as a budget that limits nothing.
        least: of a whole number; None for a quantity that is measured, not counted.
    """

    hint: str
    is_positive: bool = False
    no_limit: bool = False
    least: int | None = None

    @property
    def rule(self) -> str:
        """Return the rule in words."""
        if self.least is not None:
            return f"a whole number >= {self.least}"
        bound = "> 0" if self.is_positive else ">= 0"
        return f"{bound}, inf for no limit" if self.no_limit else f"finite and {bound}"

    def allows(self, values: Array) -> NDArray[np.bool_]:
        """Return which of the values are allowed."""
        if self.least is not None:
            is_whole = values.dtype.kind == "i" or ((values == np.floor(values)) & (values < 2**53))
            return (values >= self.least) & is_whole
        in_range: NDArray[np.bool_] = values > 0 if self.is_positive else values >= 0
        return in_range if self.no_limit else in_range & np.isfinite(values)


def as_array(value: object) -> Array | None:
    """Return a number, or one number for each client, as int64 or float64; None for what is neither."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        return None
    if array.dtype.kind not in "fiu" or array.ndim > 1 or array.size == 0:
        return None
    return array.astype(np.int64 if array.dtype.kind == "i" else np.float64, copy=False)


def as_arrays(given: Mapping[str, object]) -> tuple[dict[str, Array], list[str]]:
    """Return quantities as arrays of one shape, numbers shared by all clients.

    Args:
        given: name → a number, or one number for each of I clients. I is the length of the first that is no number, and
            1 where all are.

    Returns:
        the arrays, int64 or float64, shape (I,), read-only; and a sentence for each quantity that is none.
    """
    found, problems = dict[str, Array](), list[str]()
    for name, value in given.items():
        array = as_array(value)
        if array is None:
            problems.append(f"{name} must be a number, or one number for each client, got {reprlib.repr(value)}")
        else:
            found[name] = array
    first = next((name for name, array in found.items() if array.ndim), None)
    shape = found[first].shape if first else (1,)
    for name, array in list(found.items()):
        if array.shape in ((), shape):
            found[name] = np.broadcast_to(array, shape)
        else:
            problems.append(f"{name} must have one number for each of {shape[0]} clients, as {first}, got {len(array)}")
            del found[name]
    return found, problems


def broken(name: str, values: Array, allowed: NDArray[np.bool_], rule: str, hint: str) -> list[str]:
    """Return one sentence about the first of the values that is not allowed; none if all are."""
    if np.all(allowed):
        return []
    clients = np.flatnonzero(~allowed)
    others = f" and {len(clients) - 1:,} more" if len(clients) > 1 else ""
    is_shared = values.strides == (0,)  # a number given once for all is stored once
    where = "" if is_shared or len(values) == 1 else f" for client {clients[0]}{others}"
    return [f"{name} must be {rule}, got {values[clients[0]]:.12g}{where}; {hint}"]
