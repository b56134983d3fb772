"""The content of a message: a header of plain values and at most one flat float32 array.

One array, because Flower fetches arrays one request at a time. The header is JSON in one text field, since Flower's
records know no nesting and no None. Nothing is ever unpickled. This module needs no torch.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeGuard

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

Header = dict[str, Any]
Floats = NDArray[np.float32]

MAX_HEADER_CHARACTERS = 1_000_000
NO_FLOATS: Floats = np.zeros(0, dtype=np.float32)

_HEADER, _FLOATS = "header", "floats"


class PayloadError(ValueError):
    """A message that is not what splitrank sends."""


def pack(header: Header, floats: Floats = NO_FLOATS) -> RecordDict:
    """Make the content of a message."""
    return RecordDict(
        {
            _HEADER: ConfigRecord({"json": json.dumps(header)}),
            _FLOATS: ArrayRecord({_FLOATS: Array(np.ascontiguousarray(floats, dtype=np.float32))}),
        }
    )


def unpack(content: RecordDict) -> tuple[Header, Floats]:
    """Read the content of a message back, trusting nothing in it.

    Raises:
        PayloadError: other records than :func:`pack` makes, a header that is no JSON object, or an array that is not
            flat or not of float32.
    """
    if set(content) != {_HEADER, _FLOATS}:
        raise PayloadError(f"a message must hold the records {_HEADER} and {_FLOATS}, got {sorted(map(str, content))}")
    text = content[_HEADER].get("json")
    arrays = content[_FLOATS]
    if not isinstance(text, str) or len(text) > MAX_HEADER_CHARACTERS:
        raise PayloadError("a message's header must be a text of at most a million characters")
    try:
        header = json.loads(text, parse_int=_whole_number)
    except (ValueError, RecursionError):
        raise PayloadError("a message's header must be JSON, its whole numbers of 64 bits at most") from None
    if not isinstance(header, dict):
        raise PayloadError(f"a message's header must be a JSON object, got {type(header).__name__}")
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {_FLOATS}:
        raise PayloadError(f"a message must hold one array called {_FLOATS}")
    array = arrays[_FLOATS]
    if array.dtype != "float32" or len(array.shape) != 1:
        raise PayloadError(f"a message's array must be flat and of float32, got {array.dtype} of shape {array.shape}")
    try:
        floats = array.numpy()  # reads NumPy's own format with pickling switched off
    except Exception:  # which one depends on what the bytes pretend to be
        raise PayloadError("a message's array cannot be read") from None
    if not isinstance(floats, np.ndarray) or floats.dtype != np.float32 or floats.shape != tuple(array.shape):
        raise PayloadError("a message's array is not what its description says")
    return header, floats


def is_count(value: Any) -> TypeGuard[int]:
    """Return whether a value of a header is a whole number, 0 or greater, that a float holds exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_finite(value: Any) -> TypeGuard[float]:
    """Return whether a value of a header is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole_number(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:  # no float holds every whole number
        raise ValueError
    return number
