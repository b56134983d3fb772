"""BitFit: the reference forward pass, and no product for the gradients of biases.

Ben Zaken et al., "BitFit: simple parameter-efficient fine-tuning for transformer-based masked language-models", ACL
2022. There is no rank: all costs are constant.
"""

from __future__ import annotations

import numpy as np

from splitrank.planning.costs.cost import Count, Flops, MethodCost, TrainedPart
from splitrank.planning.costs.full import no_rank
from splitrank.planning.costs.reference import frozen_matrices_flops


def bitfit_flops(part: TrainedPart) -> Flops:
    """Count the passes with frozen matrices; the gradient of a bias is a sum over tokens, no product."""
    return Flops(frozen_matrices_flops(part, frozenset(part.shape.linears())), np.zeros(3))


def bitfit_numbers(part: TrainedPart) -> dict[str, Count]:
    """Count the biases of six linears and two layer norms in each trained layer: l·(Σd + 2·h)."""
    layer = sum(d for d, _ in part.shape.linears().values()) + 2 * part.shape.hidden_size
    return {"bias": Count(constant=len(set(part.layers)) * layer)}


BITFIT = MethodCost(flops=bitfit_flops, numbers=bitfit_numbers, rank_cap=no_rank)
