"""The reference forward pass: Hugging Face's own layers with eager attention, all tokens in all layers from the cut up.

The last layer runs for all tokens, too, and the head reads the first. Query, key and value are products of their own.
Gradients stop where nothing below needs them, as autograd does. Padding is not counted: texts count with their real
lengths.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitrank.planning.costs.cost import TrainedPart, attention_flops, gradient_flow, head_flops
from splitrank.planning.flops import ALL_TOKENS


def frozen_matrices_flops(part: TrainedPart, linears: frozenset[str]) -> NDArray[np.float64]:
    """Count forward and backward pass above the cut with the encoder's matrices frozen, and the head.

    Σ 2·d·k·L for each of: forward, input gradient where one is needed;  attention as `cost.attention_flops`

    Args:
        part: what is trained.
        linears: logical names of a trained layer's linears that have something trained.

    Returns:
        FLOPs of a sample as coefficients of (1, L, L²), shape (3,).
    """
    flops = head_flops(part)
    for layer in range(part.cut_layer, part.shape.num_layers):
        flow = gradient_flow(part, layer, linears if layer in part.layers else frozenset())
        flops = flops + attention_flops(part, flow)
        for name, (d, k) in part.shape.linears().items():
            flops = flops + 2 * d * k * (1 + flow.into(name)) * ALL_TOKENS
    return flops
