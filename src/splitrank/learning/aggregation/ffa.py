"""FFA-LoRA: Sun et al., "Improving LoRA in privacy-preserving federated learning", ICLR 2024, arXiv 2403.12313.

A is drawn from the seed, the same on every client, and never trained or sent; B is averaged. The mean of the products
is then the product with the mean of B, so nothing is lost. At unequal ranks, which the paper leaves out, a client has
the first r_i rows of A, and each column of B is averaged over the clients that have it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of, on_scaling
from splitrank.learning.aggregation.slices import mean_over_owners


def ffa(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Average B column by column over its owners, and all else as a whole: b_j = Σ_(i: r_i ≥ j) w_i·b_ij / Σ w_i.

    Args:
        starts: columns that nobody has trained this round keep the whole's values.
        updates: at least one; one A for all, its first r_i rows on client i.
        weights: n_i/Σn.
        memory: not used.
    """
    whole = starts.whole
    updates = on_scaling(updates, whole.scaling)
    others = [name for name in whole.tensors if kind_of(name) not in ("lora_A", "lora_B")]
    averaged = mean_of(others, updates, weights)
    for name, start in whole.only("lora_B").items():
        averaged[name] = mean_over_owners(name, start, updates, weights)
    return Combined(whole.with_tensors(averaged), {}, 0.0)
