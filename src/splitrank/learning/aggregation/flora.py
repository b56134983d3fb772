"""FLoRA: Wang et al., "FLoRA: federated fine-tuning large language models with heterogeneous low-rank adaptations",
NeurIPS 2024, arXiv 2409.05976.

The clients' products are stacked, whatever their ranks, and put aside as a merged part; the next round starts from new
factors. The paper adds the stack to the pretrained weights, here these and the trunk's cache stay what they were.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.merged import Factors, add_merged
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of


def flora(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Merge Σ w_i·s_i·B_i·A_i = [w_1·s_1·B_1 … w_K·s_K·B_K]·[A_1; …; A_K], and go back to rank 0.

    From rank 0 the next round draws A anew from (seed, path, round), and B = 0. All other tensors are averaged.
    Directions without effect are left out.

    Args:
        starts: the whole, whose product is 0.
        updates: at least one, of any ranks.
        weights: n_i/Σn.
        memory: not used.
    """
    whole = starts.whole
    factors = whole.only("lora_A", "lora_B")
    tensors = mean_of((name for name in whole.tensors if name not in factors), updates, weights)
    parts: dict[str, Factors] = {}
    for path, lora_A in whole.of_kind("lora_A").items():
        name_A, name_B = f"lora_A/{path}", f"lora_B/{path}"
        tensors[name_A], tensors[name_B] = lora_A[:0].clone(), factors[name_B][:, :0].clone()
        a = torch.cat([update.tensors[name_A] for update in updates.values()])
        b = torch.cat(
            [
                (weights[client] * update.scaling * update.tensors[name_B].double()).to(lora_A.dtype)
                for client, update in updates.items()
            ],
            dim=1,
        )
        has_effect = a.any(dim=1) & b.any(dim=0)
        parts[path] = a[has_effect], b[:, has_effect]
    emptied = Adapter(0, whole.scaling, {**whole.tensors, **tensors})
    return Combined(add_merged(emptied, parts), {})
