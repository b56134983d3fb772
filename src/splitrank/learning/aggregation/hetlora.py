"""HetLoRA: Cho et al., "Heterogeneous LoRA for federated fine-tuning of on-device foundation models", EMNLP 2024,
arXiv 2401.06432.

Each client trains the first directions of one basis, as many as its rank, and is pressed to do without the last of
them; a client whose last directions have become smaller gives them up for good. Factors are padded with zeros and
averaged, each client counting by the size of its product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter, is_ranked, kind_of
from splitrank.learning.adapters.method import Parameters
from splitrank.learning.aggregation.fedavg import factor_averaging_error
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of, on_scaling
from splitrank.learning.aggregation.slices import slice_sums
from splitrank.traits import RANK_AXIS

# Under the root of a norm that is differentiated: at 0 it has no gradient.
_TINY = 1e-12


def hetlora(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Pad factors with zeros and average A and B apart, by size: θ = Σ S_i·θ_i / Σ S_i, S_i = ‖ΔW_i‖ = ‖s_i·B_i·A_i‖.

    All else is averaged by samples, and so is everything while all products are zero. Direction j of the product
    shrinks by w_j², w_j being the weight of its owners; this is the paper's rule. The error is what averaging loses of
    Σ S_i·s_i·B_i·A_i / Σ S_i, the shrinking in it.

    Args:
        starts: directions that nobody has trained this round keep the whole's values. Of one that all who trained it
            have pruned B is 0, and A stays, so that a client of a larger rank could still learn it.
        updates: at least one, of the ranks that the clients have kept.
        weights: n_i/Σn.
        memory: not used.
    """
    whole = starts.whole
    updates = on_scaling(updates, whole.scaling)
    sizes = {client: product_norm(update) for client, update in updates.items()}
    total = sum(sizes.values())
    by_size = {client: size / total for client, size in sizes.items()} if total else weights
    tensors = mean_of((name for name in whole.tensors if not is_ranked(name)), updates, weights)
    ends = {
        "lora_A": max(update.rank for update in updates.values()),
        "lora_B": max(starts.of[client].rank for client in updates),
    }
    for name, start in whole.tensors.items():
        if is_ranked(name):
            axis, end = RANK_AXIS[kind_of(name)], ends[kind_of(name)]
            padded = slice_sums(name, start, updates, by_size).to(start.dtype)
            kept = start.narrow(axis, end, whole.rank - end)
            tensors[name] = torch.cat([padded.narrow(axis, 0, end), kept], dim=axis)
    averaged = whole.with_tensors(tensors)
    return Combined(averaged, {}, factor_averaging_error(updates, by_size, averaged))


def product_norm(adapter: Adapter) -> float:
    """Return ‖s·B·A‖, Frobenius, over all linears, by ‖B·A‖² = Σ (Bᵀ·B)∘(A·Aᵀ)."""
    squared = 0.0
    for path, lora_A in adapter.of_kind("lora_A").items():
        a, b = lora_A.double(), adapter.tensors[f"lora_B/{path}"].double()
        squared += float(((b.T @ b) * (a @ a.T)).sum())
    return adapter.scaling * math.sqrt(max(squared, 0.0))


def directions_before_tail(rank: int, gamma: float) -> int:
    """Return ⌊γ·r⌋, the directions before the tail, whatever the last digit of γ·r."""
    return math.floor(gamma * rank + 1e-9)


@dataclass(frozen=True)
class TailPenalty:
    """A term of a client's loss that presses the tail of its directions: λ·Σ ‖B[:, ⌊γr⌋:]‖·‖A[⌊γr⌋:]‖ over linears.

    A product of two norms, not the norm of a product.

    Attributes:
        gamma: γ, share of the directions that are left alone, above 0 and at most 1.
        weight: λ, 0 or greater.
    """

    gamma: float
    weight: float

    def __call__(self, parameters: Parameters, start: Adapter) -> Tensor:
        first = directions_before_tail(start.rank, self.gamma)
        terms = [
            _norm(b[:, first:]) * _norm(parameters[f"lora_A/{name.removeprefix('lora_B/')}"][first:])
            for name, b in parameters.items()
            if kind_of(name) == "lora_B" and first < start.rank
        ]
        return self.weight * torch.stack(terms).sum() if terms else torch.zeros(())


def _norm(tensor: Tensor) -> Tensor:
    return (tensor.square().sum() + _TINY).sqrt()


@dataclass(frozen=True)
class SelfPruning:
    """The rank that a client keeps after training: max(1, ⌊γ·r⌋) if its tail has become smaller, else r.

    Attributes:
        gamma: γ, as in :class:`TailPenalty`.
    """

    gamma: float

    def __call__(self, start: Adapter, trained: Adapter) -> int:
        first = directions_before_tail(trained.rank, self.gamma)
        if self._tail(trained, first) < self._tail(start, first):
            return min(trained.rank, max(1, first))
        return trained.rank

    @staticmethod
    def _tail(adapter: Adapter, first: int) -> float:
        lora_B = adapter.of_kind("lora_B")
        return sum(
            adapter.scaling * float(lora_B[path][:, first:].double().norm() * a[first:].double().norm())
            for path, a in adapter.of_kind("lora_A").items()
        )
