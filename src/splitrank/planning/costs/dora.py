"""DoRA: the reference forward pass, LoRA's factors and a magnitude per output.

Liu et al., "DoRA: weight-decomposed low-rank adaptation", ICML 2024, as PEFT 0.21 runs it (`peft.tuners.lora.dora`).
"""

from __future__ import annotations

import numpy as np

from splitrank.planning.costs.cost import (
    Count,
    Flops,
    MethodCost,
    TrainedPart,
    factor_numbers,
    factor_passes,
    gradient_flow,
    smallest_side,
)
from splitrank.planning.costs.reference import frozen_matrices_flops
from splitrank.planning.flops import ALL_TOKENS


def dora_flops(part: TrainedPart) -> Flops:
    """Count LoRA's products for all tokens, and per step those that form B·A for the norm.

    per step and linear: 2·k·k·r + 2·k·r·d,  B·(A·1) with the k × k identity

    The norm is detached, so forming B·A has no backward pass. With dropout on its input an adapter multiplies what is
    left of it with the frozen matrix once more, forward and, where the input needs a gradient, backward.
    """
    linears, sizes = frozenset(part.linears), part.shape.linears()
    constant, per_rank, step_per_rank = frozen_matrices_flops(part, linears), np.zeros(3), 0
    for layer in sorted(set(part.layers)):
        flow = gradient_flow(part, layer, linears)
        for name in part.linears:
            d, k = sizes[name]
            passes_A, passes_B = factor_passes(flow, name, part.kinds)
            per_rank = per_rank + 2 * (k * passes_A + d * passes_B) * ALL_TOKENS
            step_per_rank += 2 * k * k + 2 * k * d
            if part.has_dropout:
                constant = constant + 2 * d * k * (1 + flow.into(name)) * ALL_TOKENS
    return Flops(constant, per_rank, step_per_rank=float(step_per_rank))


def dora_numbers(part: TrainedPart) -> dict[str, Count]:
    """Count LoRA's factors and l·Σd magnitudes."""
    magnitudes = len(set(part.layers)) * sum(d for d, _ in part.sizes())
    return factor_numbers(part) | {"magnitude": Count(constant=magnitudes)}


DORA = MethodCost(flops=dora_flops, numbers=dora_numbers, rank_cap=smallest_side)
