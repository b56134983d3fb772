"""Sums over clients of unequal ranks who share one basis: slice j of a factor, a row of A or a column of B, belongs to
the clients whose rank is above j."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.traits import RANK_AXIS


def owned_weights(updates: Mapping[int, Adapter], weights: Mapping[int, float], rank: int) -> Tensor:
    """Return Σ w_i over the owners of each slice, float64, shape (rank,)."""
    owned = torch.zeros(rank, dtype=torch.float64)
    for client, update in updates.items():
        owned[: update.rank] += weights[client]
    return owned


def slice_sums(name: str, like: Tensor, updates: Mapping[int, Adapter], weights: Mapping[int, float]) -> Tensor:
    """Return Σ w_i·θ_i of a factor, where a client adds nothing to the slices that it does not own; float64.

    Args:
        name: of the factor.
        like: the factor at the largest rank.
        updates: client → adapter, of any ranks up to that.
        weights: client → w_i.
    """
    total = torch.zeros(like.shape, dtype=torch.float64)
    for client, update in updates.items():
        total.narrow(RANK_AXIS[kind_of(name)], 0, update.rank).add_(update.tensors[name], alpha=weights[client])
    return total


def mean_over_owners(name: str, start: Tensor, updates: Mapping[int, Adapter], weights: Mapping[int, float]) -> Tensor:
    """Return the mean of each slice of a factor over its owners, Σ w_i·θ_ij / Σ w_i over clients i with r_i > j.

    A slice that has no owner keeps the value of ``start``, the factor at the largest rank.
    """
    axis = RANK_AXIS[kind_of(name)]
    owned = owned_weights(updates, weights, start.shape[axis])
    has_owner = owned > 0
    shape = [1, 1]
    shape[axis] = -1
    mean = slice_sums(name, start, updates, weights) / owned.where(has_owner, 1.0).reshape(shape)
    return torch.where(has_owner.reshape(shape), mean.to(start.dtype), start)
