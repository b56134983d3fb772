"""FlexLoRA: Bai et al., "Federated fine-tuning of large language models under heterogeneous tasks and client
resources", NeurIPS 2024, arXiv 2402.11505.

The clients' products are averaged, not their factors, and the mean is cut to the global rank; each client gets the
best approximation of its own rank. All on factors: the d × k product is never formed.

At unequal ranks a client that cannot hold a direction counts as zero there, so that without new learning direction j
shrinks each round to the share of those who hold it. The paper's rule has this weakness; it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.adapters.factors import best_factors, filled_up, fixed_signs, stacked
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of


def flexlora(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Average the products and cut: s·B·A = best approximation of Σ w_i·s_i·B_i·A_i, of the whole's rank.

    B = U·√Σ/√s and A = √Σ·Vᵀ/√s, the largest entry of each column of U positive. All other tensors are averaged. The
    share of the mean's norm that the cut loses is in the result, as ``truncation_error``.

    Args:
        starts: directions beyond the largest rank that was trained this round keep the whole's values, which stand in
            falling order.
        updates: at least one, of any ranks.
        weights: n_i/Σn.
        memory: not used.
    """
    whole = starts.whole
    others = [name for name in whole.tensors if kind_of(name) not in ("lora_A", "lora_B")]
    combined = mean_of(others, updates, weights)
    trained_rank = max(update.rank for update in updates.values())
    lost_squared = norm_squared = 0.0
    for path, whole_a in whole.of_kind("lora_A").items():
        name_a, name_b = f"lora_A/{path}", f"lora_B/{path}"
        whole_b = whole.tensors[name_b]
        terms = [
            (weights[client] * update.scaling, update.tensors[name_b], update.tensors[name_a])
            for client, update in updates.items()
        ]
        if trained_rank < whole.rank:
            terms.append((whole.scaling, whole_b[:, trained_rank:], whole_a[trained_rank:]))
        b, a, singular_values = best_factors(*stacked(terms), whole.rank)
        b, a = fixed_signs(b, a)
        lost_squared += float(singular_values[whole.rank :].square().sum())
        norm_squared += float(singular_values.square().sum())
        root = whole.scaling**0.5
        combined |= filled_up(path, b / root, a / root, whole_a)
    error = (lost_squared / norm_squared) ** 0.5 if norm_squared else 0.0
    return Combined(whole.with_tensors(combined), {}, None, {"truncation_error": error})
