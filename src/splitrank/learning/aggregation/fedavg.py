"""Federated averaging: McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, applied to LoRA's factors one by one, as the paper does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from splitrank.learning.adapters.lora import Adapter


def fedavg(adapters: Sequence[Adapter], num_samples: Sequence[int]) -> Adapter:
    """Average A, B and the head separately: θ = Σ_i n_i·θ_i / Σ_i n_i.

    Sums run in float64 in the order given, so the result does not depend on who finished first.

    Args:
        adapters: one per client, all of the same rank and scaling.
        num_samples: n_i, samples that client i trained on, at least 1 each.
    """
    weights = _weights(num_samples)

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(tensors[0].shape, dtype=torch.float64)
        for weight, tensor in zip(weights, tensors, strict=True):
            total.add_(tensor, alpha=weight)  # computes in total's float64
        return total.to(tensors[0].dtype)

    first = adapters[0]
    return replace(
        first,
        lora_A={path: mean([adapter.lora_A[path] for adapter in adapters]) for path in first.lora_A},
        lora_B={path: mean([adapter.lora_B[path] for adapter in adapters]) for path in first.lora_B},
        head={path: mean([adapter.head[path] for adapter in adapters]) for path in first.head},
    )


def factor_averaging_error(adapters: Sequence[Adapter], num_samples: Sequence[int], averaged: Adapter) -> float:
    """What averaging the factors loses: ‖mean(B)·mean(A) − mean(B·A)‖ / ‖mean(B·A)‖, Frobenius, over all maps.

    The mean of products is what the clients learnt together; the product of means is what :func:`fedavg` keeps of it.

    Args:
        adapters: one per client.
        num_samples: n_i, samples that client i trained on.
        averaged: what :func:`fedavg` makes of them.

    Returns:
        a dimensionless error, 0 for a single client and where nothing was learnt yet.
    """
    weights = _weights(num_samples)
    difference_squared = norm_squared = 0.0
    for path in averaged.lora_A:
        stacked_b = torch.cat(
            [weight * adapter.lora_B[path].double() for weight, adapter in zip(weights, adapters, strict=True)], dim=1
        )
        stacked_a = torch.cat([adapter.lora_A[path].double() for adapter in adapters], dim=0)
        mean_product = stacked_b @ stacked_a
        product_of_means = averaged.lora_B[path].double() @ averaged.lora_A[path].double()
        difference_squared += float((product_of_means - mean_product).square().sum())
        norm_squared += float(mean_product.square().sum())
    if len(adapters) == 1 or norm_squared == 0.0:
        return 0.0
    return float((difference_squared / norm_squared) ** 0.5)


def _weights(num_samples: Sequence[int]) -> list[float]:
    total = sum(num_samples)
    return [count / total for count in num_samples]
