"""Floating-point operations of an encoder: its sizes, how operations are counted, and the frozen layers.

A multiply-add counts two; only matrix products count (norms, softmax and activations are below one per cent). A
count is three coefficients (a, b, c): a sample of L tokens costs a + b·L + c·L². What lies below the cut is the trunk,
counted here; what a training step above it costs depends on the adapter method, see `costs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Head = Literal["full", "out_proj", "frozen", "local"]

FIRST_TOKEN, ALL_TOKENS, TOKEN_PAIRS = np.eye(3)


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a BERT-like encoder: layers, hidden width h, feed-forward width m and attention heads n."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the six linears of one layer, from bottom to top, as (d, k) = (out, in)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        square = (hidden, hidden)
        return {
            "query": square,
            "key": square,
            "value": square,
            "attention_output": square,
            "intermediate": (inner, hidden),
            "output": (hidden, inner),
        }


def trunk_flops(shape: EncoderShape, cut_layer: int) -> NDArray[np.float64]:
    """Count the forward pass of the frozen layers below the cut.

    l·(Σ 2·d·k·L + 4·h·L²),  l = cut_layer, the sum over a layer's six linears

    Args:
        shape: the encoder's sizes.
        cut_layer: index of the first trained layer, 0 <= cut_layer < num_layers.

    Returns:
        FLOPs of a sample as coefficients of (1, L, L²), shape (3,).
    """
    products = sum(2 * d * k for d, k in shape.linears().values())
    return cut_layer * (products * ALL_TOKENS + 4 * shape.hidden_size * TOKEN_PAIRS)
