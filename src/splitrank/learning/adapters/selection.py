"""Select the numbers of a tensor that are trained, sent, counted and checked: one function for all four.

A selection maps a tensor's name, the tensor, a client and a turn to an index: None for the whole tensor, else what
stands between its brackets, such as ``(slice(None), columns)``. All others keep the value they started from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Shapes, kind_of
from splitrank.traits import RuleTraits

Index = Any
Select = Callable[[str, Tensor, int, int], Index | None]
"""(name, tensor, client, turn) → index of the selected numbers, None for all of them."""

NOTHING = slice(0, 0)
"""The index of no number at all."""


def everything(name: str, tensor: Tensor, client: int, turn: int) -> Index | None:
    """Select all of every tensor."""
    return None


def by_kind(traits: RuleTraits) -> Select:
    """Return the selection of a rule that trains whole tensors or none, by their kind."""

    def select(name: str, tensor: Tensor, client: int, turn: int) -> Index | None:
        return None if traits.trained({kind_of(name)}, turn) else NOTHING

    return select


def is_nothing(index: Index | None) -> bool:
    """Return whether an index is that of no number at all."""
    return isinstance(index, slice) and index == NOTHING


def selected(tensors: Mapping[str, Tensor], select: Select, client: int, turn: int) -> dict[str, Tensor]:
    """Return the selected part of each tensor; tensors without one are left out."""
    parts = {}
    for name, tensor in tensors.items():
        index = select(name, tensor, client, turn)
        if not is_nothing(index):
            parts[name] = tensor if index is None else tensor[index]
    return parts


def with_selected(
    start: Mapping[str, Tensor], parts: Mapping[str, Tensor], select: Select, client: int, turn: int
) -> dict[str, Tensor]:
    """Put selected parts in the place of what they were selected from; the inverse of :func:`selected`."""
    whole = dict(start)
    for name, part in parts.items():
        index = select(name, start[name], client, turn)
        if index is None:
            whole[name] = part
        else:
            whole[name] = start[name].clone()
            whole[name][index] = part
    return whole


def selected_shapes(tensors: Mapping[str, Tensor], select: Select, client: int, turn: int) -> Shapes:
    """Return the shapes of :func:`selected`."""
    return {name: tuple(part.shape) for name, part in selected(tensors, select, client, turn).items()}


def outside(tensor: Tensor, index: Index) -> Tensor:
    """Return where a tensor is not selected, bool, of its shape."""
    mask = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
    mask[index] = False
    return mask
