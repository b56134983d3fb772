"""Flower's own aggregation strategies on our adapters, without a federation around them."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter


def arrays_of(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in tensors.items()})


def replies_of(updates: Mapping[int, Adapter], samples: Mapping[int, int]) -> list[Any]:
    """Return what clients of one scaling would answer, as far as a strategy looks at it."""
    return [
        SimpleNamespace(
            has_error=lambda: False,
            content=RecordDict(
                {
                    "arrays": arrays_of(update.tensors),
                    "metrics": MetricRecord({"num-examples": samples[client]}),
                }
            ),
        )
        for client, update in updates.items()
    ]
