"""RoLoRA: Chen et al., "Robust federated finetuning of LLMs via alternating optimization of LoRA", arXiv 2502.01755.

In even turns the clients train and send B, in odd ones A; turns count the rounds that changed the model, from 0. B
comes first, since it starts at zero and A has no gradient until it has moved. All clients have the other factor in
common, so the mean of the products is the product with the mean of the trained factor, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of, on_scaling


def rolora(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Average every tensor by itself: θ = Σ_i n_i·θ_i / Σ_i n_i; the factor that nobody trained stays what it was.

    Args:
        starts: the whole's scaling becomes the result's.
        updates: at least one, all of one rank, with one factor in common.
        weights: n_i/Σn.
        memory: not used.
    """
    whole = starts.whole
    updates = on_scaling(updates, whole.scaling)
    return Combined(whole.with_tensors(mean_of(whole.tensors, updates, weights)), {}, 0.0)
