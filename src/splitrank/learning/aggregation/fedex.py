"""FedEx-LoRA: Singhal et al., "FedEx-LoRA: exact aggregation for federated and efficient fine-tuning of foundation
models", arXiv 2410.09432.

Factors are averaged as by ``fedavg``, and what that loses is put aside as a merged part, so that nothing is lost. The
paper adds this residual to the pretrained weights and sends K·r directions of it; (K − 1)·r are enough.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.merged import Factors, add_merged
from splitrank.learning.aggregation.fedavg import fedavg
from splitrank.learning.aggregation.rule import Combined, Starts, on_scaling


def fedex(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Average A and B apart, and merge the residual: s·B̄·Ā + R = Σ w_i·s·B_i·A_i.

    The error in the result is what averaging alone would lose, ‖R‖ / ‖Σ w_i·s·B_i·A_i‖; the residual makes up for it.

    Args:
        starts: the whole's scaling becomes the result's.
        updates: at least one, all of one rank.
        weights: n_i/Σn.
        memory: not used.
    """
    averaged = fedavg(starts, updates, weights, memory)
    lost = residual(on_scaling(updates, starts.whole.scaling), weights)
    return Combined(add_merged(averaged.adapter, lost), {}, averaged.factor_averaging_error)


def residual(updates: Mapping[int, Adapter], weights: Mapping[int, float]) -> dict[str, Factors]:
    """Return what averaging factors loses, s·Σ w_i·(B_i − B̄)·(A_i − Ā), by path as factors of rank (K − 1)·r.

    Σ w_i·(B_i − B̄) = 0, so Ā may be any client's A: with that of the last client K its own term vanishes, and
    R = s·Σ_(i<K) w_i·(B_i − B̄)·(A_i − A_K). Directions without effect are left out.

    Args:
        updates: client → adapter, all of one rank and scaling.
        weights: n_i/Σn.
    """
    *others, last = updates
    found: dict[str, Factors] = {}
    if not others:
        return found
    for path, last_a in updates[last].of_kind("lora_A").items():
        lora_B = {client: update.tensors[f"lora_B/{path}"] for client, update in updates.items()}
        mean_b = torch.zeros(lora_B[last].shape, dtype=torch.float64)
        for client, b in lora_B.items():
            mean_b.add_(b, alpha=weights[client])
        rows = torch.cat([(updates[client].tensors[f"lora_A/{path}"] - last_a.double()).float() for client in others])
        columns = torch.cat(
            [(updates[c].scaling * weights[c] * (lora_B[c].double() - mean_b)).float() for c in others], dim=1
        )
        has_effect = rows.any(dim=1) & columns.any(dim=0)
        found[path] = rows[has_effect], columns[:, has_effect]
    return found
