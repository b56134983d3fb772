"""Bottleneck adapters: the reference forward pass, and two small networks of m units in each trained layer.

Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019. The rank is the number of units m.
"""

from __future__ import annotations

from splitrank.planning.costs.cost import Count, Flops, MethodCost, TrainedPart, gradient_flow
from splitrank.planning.costs.reference import frozen_matrices_flops
from splitrank.planning.flops import ALL_TOKENS

_LINEARS = frozenset({"attention_output"})  # behind which the lower of the two networks stands


def bottleneck_flops(part: TrainedPart) -> Flops:
    """Count the passes with frozen matrices, and 2·h·L a unit for every product with W_down and with W_up.

    W_down: forward, gradient of its input where that needs one, own gradient; W_up: forward, gradient of the units
    where W_down or its input wants it, own gradient
    """
    trains_down, trains_up = "bottleneck_down" in part.kinds, "bottleneck_up" in part.kinds
    passes = 0
    for layer in sorted(set(part.layers)):
        flow = gradient_flow(part, layer, _LINEARS)
        for into in (flow.context, flow.expanded):  # inputs of the linears before the networks
            passes += (1 + into + trains_down) + (1 + (into or trains_down) + trains_up)
    per_rank = 2 * part.shape.hidden_size * passes * ALL_TOKENS
    return Flops(frozen_matrices_flops(part, _LINEARS), per_rank)


def bottleneck_numbers(part: TrainedPart) -> dict[str, Count]:
    """Count W_down and b_down, W_up, and b_up of two networks in each trained layer: 2·l·(2·h·m + m + h)."""
    networks, hidden_size = 2 * len(set(part.layers)), part.shape.hidden_size
    return {
        "bottleneck_down": Count(per_rank=networks * (hidden_size + 1)),
        "bottleneck_up": Count(per_rank=networks * hidden_size),
        "bottleneck_bias": Count(constant=networks * hidden_size),
    }


def hidden_size(part: TrainedPart) -> int:
    """Return the encoder's width h: a bottleneck is no wider than what it stands in."""
    return part.shape.hidden_size


BOTTLENECK = MethodCost(flops=bottleneck_flops, numbers=bottleneck_numbers, rank_cap=hidden_size)
