"""Floating-point operations of one training step on the part of the encoder that is not frozen away.

A multiply-add counts two; only matrix products count (norms, softmax and activations are below one per cent). A
cost is three coefficients (a, b, c): a sample of L tokens costs a + b·L + c·L². The step counted is the one that the
learning wing runs:

* layers from ``cut_layer`` upwards run, whether or not they have adapters; what lies below is the trunk;
* the last layer runs for the first token only, the one the head reads: its query goes through the key's matrix to the
  other tokens' states and their mixture through the value's matrix, so no other token needs a key or a value;
* a frozen matrix passes the gradient on to its input and gets none itself; a trained one gets both;
* no gradient is computed that nothing trainable needs: in the cut layer none flows into the layer's input, nor
  through a map or an attention product below which nothing is trained.

Xie and Wen's equation (2) counts Σ(2r-1)dk instead, neither pass of the network; see `workload.paper_workload`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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

    def maps(self) -> dict[str, tuple[int, int]]:
        """The six linear maps of one layer, from bottom to top, as (d, k) = (out, in)."""
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
    """Forward pass of the frozen layers below the cut.

    l·(Σ 2·d·k·L + 4·h·L²),  l = cut_layer, the sum over a layer's six maps

    Args:
        shape: the encoder's sizes.
        cut_layer: index of the first trained layer, 0 <= cut_layer < num_layers.

    Returns:
        FLOPs of a sample as coefficients of (1, L, L²), shape (3,).
    """
    products = sum(2 * d * k for d, k in shape.maps().values())
    return cut_layer * (products * ALL_TOKENS + 4 * shape.hidden_size * TOKEN_PAIRS)


def training_flops(
    shape: EncoderShape, trained_layers: Sequence[int], targets: Collection[str], head: Head, num_labels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Forward and backward pass of everything above the cut, as an affine function of the rank.

    F(r) = F_0 + r·F_1;  a product of n rows with a d × k matrix costs 2·n·d·k in each of its passes: forward,
    input gradient, weight gradient

    Args:
        shape: the encoder's sizes.
        trained_layers: indices of the layers with adapters; the lowest is the cut.
        targets: logical names of the maps with adapters, among those of `EncoderShape.maps`.
        head: how the head is trained; ``"local"`` is trained like ``"full"``.
        num_labels: n, number of classes.

    Returns:
        F_0 and F_1, FLOPs of a sample as coefficients of (1, L, L²), shape (3,) each.
    """
    hidden = shape.hidden_size
    cut_layer = min(trained_layers)
    constant, per_rank = np.zeros(3), np.zeros(3)

    for layer in range(cut_layer, shape.num_layers):
        adapted = set(targets) if layer in trained_layers else set()
        first_token_only = layer == shape.num_layers - 1
        rows = FIRST_TOKEN if first_token_only else ALL_TOKENS

        # Which activations need a gradient, from bottom to top.
        below = layer > cut_layer
        query, key, value = (below or name in adapted for name in ("query", "key", "value"))
        weights = query or key
        context = weights or value
        attended = context or "attention_output" in adapted
        expanded = attended or "intermediate" in adapted
        input_needs_gradient = {
            "query": below,
            "key": below,
            "value": below,
            "attention_output": context,
            "intermediate": attended,
            "output": expanded,
        }
        maps = shape.maps()
        if first_token_only:
            del maps["key"], maps["value"]
            attention = _first_token_attention(shape, adapted, below)
            constant, per_rank = constant + attention[0], per_rank + attention[1]
        else:
            constant += 2 * hidden * ((1 + query + key) + (1 + weights + value)) * TOKEN_PAIRS
        for name, (d, k) in maps.items():
            passes = 1 + input_needs_gradient[name]
            constant += 2 * d * k * passes * rows
            if name in adapted:
                # lora_A (r × k) has a weight gradient as well; lora_B (d × r) always has both.
                per_rank += 2 * (k * (passes + 1) + d * 3) * rows

    dense_passes = 3 if head in ("full", "local") else 2
    out_proj_passes = 2 if head == "frozen" else 3
    constant += 2 * hidden * (hidden * dense_passes + num_labels * out_proj_passes) * FIRST_TOKEN
    return constant, per_rank


def _first_token_attention(
    shape: EncoderShape, adapted: Collection[str], below: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Attention of the first token without keys and values, W_k and W_v and their LoRA included.

    Args:
        shape: the encoder's sizes.
        adapted: logical names of the layer's maps with adapters.
        below: whether the layer's input needs a gradient.

    Returns:
        as :func:`training_flops`.
    """
    square = 2 * shape.hidden_size**2 * FIRST_TOKEN
    reading = 2 * shape.num_heads * shape.hidden_size * ALL_TOKENS  # all heads read or mix the tokens' states
    query = below or "query" in adapted
    weights = query or "key" in adapted
    mixed = weights or below

    constant = square * (1 + query) + reading * (1 + query + below)
    constant = constant + reading * (1 + weights + below) + square * (1 + mixed)
    per_rank = np.zeros(3)
    one_direction, all_heads = (
        2 * shape.hidden_size * FIRST_TOKEN,
        2 * shape.hidden_size * shape.num_heads * FIRST_TOKEN,
    )
    if "key" in adapted:
        per_rank = per_rank + one_direction * (2 + query) + all_heads * 3
        constant = constant + reading * (2 + below)
    if "value" in adapted:
        per_rank = per_rank + all_heads * (2 + mixed) + one_direction * 3
    return constant, per_rank
