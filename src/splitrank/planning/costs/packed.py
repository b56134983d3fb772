"""The packed forward pass, which LoRA runs in: the last layer is computed for the first token only.

* Layers from the cut upwards run, whether or not they have adapters.
* In the last layer the first token's query goes through the key's matrix to the other tokens' states and their
  mixture through the value's matrix, so no other token needs a key or a value.
* A frozen matrix passes the gradient on to its input and gets none itself.
* No gradient is computed that nothing trainable needs: in the cut layer none flows into the layer's input, nor through
  a linear or an attention product below which nothing is trained; an untrained lora_A has none, and where its input
  needs none either the low-rank state has none.
* A merged part is as frozen as the matrix beside it: two products with factors of rank R, or one with a dense part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitrank.planning.costs.cost import (
    Flops,
    GradientFlow,
    TrainedPart,
    attention_flops,
    factor_passes,
    gradient_flow,
    head_flops,
)
from splitrank.planning.flops import ALL_TOKENS, FIRST_TOKEN

Affine3 = tuple[NDArray[np.float64], NDArray[np.float64]]


def packed_flops(part: TrainedPart) -> Flops:
    """Count forward and backward pass of everything above the cut with LoRA in the trained layers.

    F(r) = F_0 + r·F_1;  a product of n rows with a d × k matrix costs 2·n·d·k in each of its passes: forward,
    input gradient, weight gradient

    Xie and Wen's equation (2) counts Σ(2r-1)dk instead, neither pass of the network; see `workload.paper_workload`.
    """
    constant, per_rank = np.zeros(3), np.zeros(3)
    for layer in range(part.cut_layer, part.shape.num_layers):
        adapted = frozenset(part.linears) if layer in part.layers else frozenset[str]()
        flow = gradient_flow(part, layer, adapted)
        sizes = part.shape.linears()
        first_token_only = layer == part.shape.num_layers - 1
        rows = FIRST_TOKEN if first_token_only else ALL_TOKENS
        if first_token_only:
            del sizes["key"], sizes["value"]
            attention = _first_token_attention(part, adapted, flow)
            constant, per_rank = constant + attention[0], per_rank + attention[1]
            constant = constant + _first_token_merged(part, flow)
        else:
            constant = constant + attention_flops(part, flow)
        for name, (d, k) in sizes.items():
            constant = constant + 2 * d * k * (1 + flow.into(name)) * rows
            if name in adapted:
                passes_A, passes_B = factor_passes(flow, name, part.kinds)
                per_rank = per_rank + 2 * (k * passes_A + d * passes_B) * rows
            if (layer, name) in part.merged:
                rank = part.merged[layer, name]
                numbers = d * k if rank is None else rank * (d + k)
                constant = constant + 2 * numbers * (1 + flow.into(name)) * rows
    return Flops(constant + head_flops(part), per_rank)


def _first_token_attention(part: TrainedPart, adapted: frozenset[str], flow: GradientFlow) -> Affine3:
    """Count attention of the first token without keys and values, W_k and W_v and their LoRA included.

    Of the key's LoRA: query·B is one product of a direction, ·A one of all heads, and their scores one reading of the
    states. Of the value's: the mixture goes through A for all heads, then through B.

    Args:
        part: what is trained.
        adapted: logical names of the layer's linears with adapters.
        flow: which activations of the layer need a gradient.

    Returns:
        F_0 and F_1, FLOPs of a sample as coefficients of (1, L, L²), shape (3,) each.
    """
    shape, below, query, weights = part.shape, flow.below, flow.query, flow.weights
    trains_A, trains_B = "lora_A" in part.kinds, "lora_B" in part.kinds
    square = 2 * shape.hidden_size**2 * FIRST_TOKEN
    reading = 2 * shape.num_heads * shape.hidden_size * ALL_TOKENS  # all heads read or mix the tokens' states
    one_direction = 2 * shape.hidden_size * FIRST_TOKEN
    all_heads = 2 * shape.hidden_size * shape.num_heads * FIRST_TOKEN
    mixed = weights or below

    # The query's own gradient through the frozen key needs that of the states read through it.
    constant = square * (1 + query) + reading * (1 + query + below)
    constant = constant + reading * (1 + weights + below) + square * (1 + mixed)
    per_rank = np.zeros(3)
    if "key" in adapted:
        through = query or trains_B
        per_rank = per_rank + one_direction * (1 + query + trains_B) + all_heads * (1 + through + trains_A)
        constant = constant + reading * (1 + (through or trains_A) + below)
    if "value" in adapted:
        low = mixed or trains_A
        per_rank = per_rank + all_heads * (1 + mixed + trains_A) + one_direction * (1 + low + trains_B)
    return constant, per_rank


def _first_token_merged(part: TrainedPart, flow: GradientFlow) -> NDArray[np.float64]:
    """Count the merged parts of the last layer's key and value, which go the way of its LoRA and train nothing.

    Returns:
        FLOPs of a sample as coefficients of (1, L, L²), shape (3,).
    """
    hidden, num_heads, last = part.shape.hidden_size, part.shape.num_heads, part.shape.num_layers - 1
    flops = np.zeros(3)
    passes = {"key": 1 + flow.query, "value": 1 + (flow.weights or flow.below)}
    for name in sorted(passes.keys() & {linear for layer, linear in part.merged if layer == last}):
        rank = part.merged[last, name]
        numbers = hidden**2 if rank is None else rank * (hidden + hidden * num_heads)
        flops = flops + 2 * numbers * passes[name] * FIRST_TOKEN
        if name == "key":
            flops = flops + 2 * num_heads * hidden * (1 + flow.query + flow.below) * ALL_TOKENS
    return flops
