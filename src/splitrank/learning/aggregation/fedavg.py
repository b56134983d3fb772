"""Federated averaging: McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, applied to LoRA's factors one by one, as the paper does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of, on_scaling


def fedavg(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Average every tensor by itself, A and B too: θ = Σ_i n_i·θ_i / Σ_i n_i.

    What averaging the factors loses is in the result: a covariance, Σ w_i (B_i − B̄)(A_i − Ā).

    Args:
        starts: the whole's scaling becomes the result's.
        updates: at least one, all of one rank.
        weights: n_i/Σn.
        memory: not used.
    """
    updates = on_scaling(updates, starts.whole.scaling)
    first = next(iter(updates.values()))
    averaged = first.with_tensors(mean_of(first.tensors, updates, weights))
    return Combined(averaged, {}, factor_averaging_error(updates, weights, averaged))


def factor_averaging_error(
    updates: Mapping[int, Adapter], weights: Mapping[int, float | Tensor], averaged: Adapter
) -> float | None:
    """Return what averaging factors loses: ‖mean(B)·mean(A) − mean(B·A)‖ / ‖mean(B·A)‖, Frobenius, over all linears.

    The mean of products is what the clients learnt together; the product of means is what averaging keeps of it.

    Args:
        updates: client → adapter.
        weights: n_i/Σn; or of each of a client's directions, shape (r_i,).
        averaged: the adapter that averaging their factors made; directions that nobody has trained do not count.

    Returns:
        a dimensionless error, 0 for a single client and where nothing was learnt yet; None without factors.
    """
    pairs = {client: (update.of_kind("lora_A"), update.of_kind("lora_B")) for client, update in updates.items()}
    mean_A, mean_B = averaged.of_kind("lora_A"), averaged.of_kind("lora_B")
    if not mean_A:
        return None
    trained = max(update.rank for update in updates.values())
    difference_squared = norm_squared = 0.0
    for path in mean_A:
        stacked_b = torch.cat([weights[client] * b[path].double() for client, (_, b) in pairs.items()], dim=1)
        stacked_a = torch.cat([a[path].double() for a, _ in pairs.values()], dim=0)
        mean_product = stacked_b @ stacked_a
        product_of_means = mean_B[path][:, :trained].double() @ mean_A[path][:trained].double()
        difference_squared += float((product_of_means - mean_product).square().sum())
        norm_squared += float(mean_product.square().sum())
    if len(updates) == 1 or norm_squared == 0.0:
        return 0.0
    return float((difference_squared / norm_squared) ** 0.5)
