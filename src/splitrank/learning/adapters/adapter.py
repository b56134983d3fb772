"""Adapters, which training changes and clients share: named tensors without a model.

A tensor's name is ``"<kind>/<path>"``. Its first word, the kind, is what methods, rules and costs speak of: ``lora_A``,
``lora_B``, ``magnitude``, ``weight``, ``bias``, ``head``, and ``merged_A``, ``merged_B``, ``merged_W`` for frozen parts
that a rule has put aside. A and B are told apart by name, never by shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splitrank.traits import RANK_AXIS

Shapes = dict[str, tuple[int, ...]]
"""Name → shape, in the order of the adapter's tensors."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Everything that training changes and clients share.

    Attributes:
        rank: r; 0 is the adapter before any training, whose product is zero. 1 for a method without a rank.
        scaling: s of the product s·B·A at this rank.
        tensors: ``"<kind>/<path>"`` → float32 tensor, in the order in which they are trained.
    """

    rank: int
    scaling: float
    tensors: Mapping[str, Tensor]

    def of_kind(self, kind: str) -> dict[str, Tensor]:
        """Path → tensor for one kind."""
        start = f"{kind}/"
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def only(self, *kinds: str) -> dict[str, Tensor]:
        """Name → tensor for some kinds."""
        return {name: tensor for name, tensor in self.tensors.items() if kind_of(name) in kinds}

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of its tensors."""
        return frozenset(map(kind_of, self.tensors))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Adapter:
        """Return the same adapter with some tensors replaced or added."""
        return replace(self, tensors={**self.tensors, **tensors})

    def shapes(self, rank: int) -> Shapes:
        """Return the shapes of its tensors at another rank."""
        return {name: shape_at_rank(name, tuple(tensor.shape), rank) for name, tensor in self.tensors.items()}

    def to_vector(self) -> Tensor:
        """Return all tensors as one float32 vector, in the order of their sorted names."""
        return to_vector(self.tensors)

    def from_vector(self, vector: Tensor) -> Adapter:
        """Build an adapter of the same shapes from its vector; the inverse of :meth:`to_vector`."""
        return replace(self, tensors=from_vector(vector, self.shapes(self.rank)))


def kind_of(name: str) -> str:
    """Return the first word of a tensor's name."""
    return name.partition("/")[0]


def is_ranked(name: str) -> bool:
    """Return whether a tensor grows with the rank."""
    return kind_of(name) in RANK_AXIS


def shape_at_rank(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return what a tensor's shape becomes at another rank, by its kind."""
    axis = RANK_AXIS.get(kind_of(name))
    return shape if axis is None else (*shape[:axis], rank, *shape[axis + 1 :])


def to_vector(tensors: Mapping[str, Tensor]) -> Tensor:
    """Lay tensors out as one float32 vector, in the order of their sorted names."""
    return torch.cat([torch.zeros(0), *(tensors[name].flatten() for name in sorted(tensors))])


def from_vector(vector: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Cut a vector into tensors; the inverse of :func:`to_vector`.

    Args:
        vector: float32, of as many numbers as the shapes have together.
        shapes: of the tensors; the result keeps their order.
    """
    ordered = sorted(shapes)
    parts = torch.split(vector, [math.prod(shapes[name]) for name in ordered])
    tensors = {name: part.reshape(shapes[name]).clone() for name, part in zip(ordered, parts, strict=True)}
    return {name: tensors[name] for name in shapes}
