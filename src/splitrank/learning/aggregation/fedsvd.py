"""FedSVD: Lee et al., "FedSVD: adaptive orthogonalization for private federated learning with LoRA",
arXiv 2505.12805.

Clients train and send B alone, so nothing is lost in averaging. The server then turns the basis: rows of A become
orthonormal, and the first ones those in which most was learnt.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.adapters.factors import fixed_signs
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of, on_scaling


def fedsvd(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Average B and refactorise: B̄·A = U·Σ·Vᵀ, B = U·Σ and A = Vᵀ; all other tensors are averaged.

    Where B̄ has less than full rank, the other rows of Vᵀ are an orthonormal complement within the rows of A, and B is
    zero there. In exact arithmetic the rows of A always span what they did before.

    Args:
        starts: whose A all clients have.
        updates: at least one, all of one rank.
        weights: n_i/Σn.
        memory: not used.
    """
    whole = starts.whole
    updates = on_scaling(updates, whole.scaling)
    averaged = mean_of((name for name in whole.tensors if kind_of(name) != "lora_A"), updates, weights)
    for path, lora_A in whole.of_kind("lora_A").items():
        # With Aᵀ = Q·R the product is (B̄·Rᵀ)·Qᵀ, whose decomposition is that of the narrow matrix B̄·Rᵀ.
        q, r = torch.linalg.qr(lora_A.double().T)
        u, singular_values, v_t = torch.linalg.svd(averaged[f"lora_B/{path}"].double() @ r.T, full_matrices=False)
        b, a = fixed_signs(u * singular_values, v_t @ q.T)
        averaged[f"lora_A/{path}"] = a.to(lora_A.dtype)
        averaged[f"lora_B/{path}"] = b.to(lora_A.dtype)
    return Combined(whole.with_tensors(averaged), {}, 0.0)


def with_orthonormal_rows(adapter: Adapter) -> Adapter:
    """Return the same products with rows of A made orthonormal from the first on; new rows, whose B is 0, among them.

    Rows that are orthonormal already stay what they are, up to rounding.
    """
    tensors = {}
    for path, lora_A in adapter.of_kind("lora_A").items():
        q, r = torch.linalg.qr(lora_A.double().T)
        signs = torch.where(r.diagonal() < 0, -1.0, 1.0).double()
        tensors[f"lora_A/{path}"] = (q * signs).T.contiguous().to(lora_A.dtype)
        lora_B = adapter.tensors[f"lora_B/{path}"]
        tensors[f"lora_B/{path}"] = (lora_B.double() @ (r.T * signs)).to(lora_B.dtype)
    return adapter.with_tensors(tensors)
