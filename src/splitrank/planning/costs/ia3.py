"""IA3: the reference forward pass, and no product for the gradients of its vectors.

Liu et al., "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning", NeurIPS 2022.
There is no rank: all costs are constant.
"""

from __future__ import annotations

import numpy as np

from splitrank.planning.costs.cost import Count, Flops, MethodCost, TrainedPart
from splitrank.planning.costs.full import no_rank
from splitrank.planning.costs.reference import frozen_matrices_flops


def ia3_flops(part: TrainedPart) -> Flops:
    """Count the passes with frozen matrices; scaling, and the gradient of a scale, are no products of matrices."""
    return Flops(frozen_matrices_flops(part, frozenset({"key", "value"})), np.zeros(3))


def ia3_numbers(part: TrainedPart) -> dict[str, Count]:
    """Count the scales of keys, values and inner activations in each trained layer: l·(2·h + m)."""
    layer = 2 * part.shape.hidden_size + part.shape.intermediate_size
    return {"scale": Count(constant=len(set(part.layers)) * layer)}


IA3 = MethodCost(flops=ia3_flops, numbers=ia3_numbers, rank_cap=no_rank)
