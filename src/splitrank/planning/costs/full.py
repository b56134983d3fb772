"""Full fine-tuning of the trained layers: the reference forward pass, and a weight gradient for each of their linears.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017. There is no
rank: all costs are constant, and the rank counts as 1.
"""

from __future__ import annotations

import numpy as np

from splitrank.planning.costs.cost import Count, Flops, MethodCost, TrainedPart
from splitrank.planning.costs.reference import frozen_matrices_flops
from splitrank.planning.flops import ALL_TOKENS


def full_flops(part: TrainedPart) -> Flops:
    """Count the passes with frozen matrices, and Σ 2·d·k·L of weight gradients for every trained layer.

    The gradients of biases and norms are no products and do not count.
    """
    sizes = part.shape.linears()
    weight_gradients = len(set(part.layers)) * sum(2 * d * k for d, k in sizes.values())
    return Flops(frozen_matrices_flops(part, frozenset(sizes)) + weight_gradients * ALL_TOKENS, np.zeros(3))


def full_numbers(part: TrainedPart) -> dict[str, Count]:
    """Count the weights, biases and two layer norms of the trained layers: l·(Σ(d·k + d) + 4·h)."""
    layer = sum(d * k + d for d, k in part.shape.linears().values()) + 4 * part.shape.hidden_size
    return {"weight": Count(constant=len(set(part.layers)) * layer)}


def no_rank(part: TrainedPart) -> int:
    """Return 1: there is no rank to choose."""
    return 1


FULL = MethodCost(flops=full_flops, numbers=full_numbers, rank_cap=no_rank)
