"""Prefix tuning: the reference forward pass, and p learned keys and values in each trained layer.

Li and Liang, "Prefix-tuning: optimizing continuous prompts for generation", ACL 2021. The rank is the number of learned
tokens p.
"""

from __future__ import annotations

from splitrank.planning.costs.bottleneck import hidden_size
from splitrank.planning.costs.cost import Count, Flops, MethodCost, TrainedPart, gradient_flow
from splitrank.planning.costs.reference import frozen_matrices_flops
from splitrank.planning.flops import ALL_TOKENS


def prefix_flops(part: TrainedPart) -> Flops:
    """Count the passes with frozen matrices, and 2·h·L a learned token for every product with its key and its value.

    key: forward, gradient of the query where that needs one, own gradient; value: forward, gradient of its weight, own
    gradient. With a gate the text's own weights depend on nothing that is trained in the layer, without it they do.
    """
    trained = frozenset({"context" if part.gate else "weights"})
    passes, is_trained = 0, "prefix" in part.kinds
    for layer in sorted(set(part.layers)):
        flow = gradient_flow(part, layer, trained)
        passes += (1 + flow.query + is_trained) + (1 + (flow.query or is_trained) + is_trained)
    per_rank = 2 * part.shape.hidden_size * passes * ALL_TOKENS
    return Flops(frozen_matrices_flops(part, trained), per_rank)


def prefix_numbers(part: TrainedPart) -> dict[str, Count]:
    """Count keys and values, and the gates where there are some: l·(2·h·p + p)."""
    return {"prefix": Count(per_rank=len(set(part.layers)) * (2 * part.shape.hidden_size + part.gate))}


PREFIX = MethodCost(flops=prefix_flops, numbers=prefix_numbers, rank_cap=hidden_size)
