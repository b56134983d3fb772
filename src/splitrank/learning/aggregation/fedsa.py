"""FedSA-LoRA: Guo et al., "Selective aggregation for low-rank adaptation in federated learning", ICLR 2025,
arXiv 2410.01463.

Clients train both factors and share A alone: B stays with its client, and so does the head, as in the authors' settings
(``local_param: [lora_B, classifier]``). There is no global model: each client's is the common A with its own B.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of


def fedsa(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Average what is shared tensor by tensor, A = Σ_i n_i·A_i / Σ_i n_i; there is no product to lose anything of.

    Args:
        starts: whose adapters have what is shared, no lora_B and no head.
        updates: at least one, all of one rank. Their scaling belongs to the B that is not here.
        weights: n_i/Σn.
        memory: not used.
    """
    whole = starts.whole
    return Combined(whole.with_tensors(mean_of(whole.tensors, updates, weights)), {})
