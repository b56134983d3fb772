"""Low-rank factors brought from rank to rank, without ever forming a d × k product.

Two ways to cut: ``"svd"`` keeps the best approximation of the product s·B·A (Eckart and Young, 1936), ``"prefix"`` its
first directions, for rules in which direction j is the same on every client.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splitrank import streams
from splitrank.learning.adapters.adapter import Adapter
from splitrank.traits import Distribution

# Directions with less than this share of the largest singular value carry nothing but rounding.
_NO_WEIGHT = 1e-12


def resize_factors(
    adapter: Adapter, rank: int, scaling: float, *, distribution: Distribution, seed: int, round: int
) -> Adapter:
    """Bring an adapter to another rank and keep its product scaling·B·A, as far as the rank allows.

    Growing appends rows drawn as PEFT draws them, U(-1/√k, 1/√k), to A and zero columns to B: the product is the same
    to the bit and the new directions learn from zero effect. Shrinking keeps the best rank-r approximation, or the
    first r directions. Not in the paper, which trains one fixed rank.

    Args:
        adapter: the adapter to resize; tensors other than its factors stay as they are. Where B stays with the
            clients A can only grow.
        rank: new rank r, at least 1.
        scaling: s at the new rank, > 0; B is multiplied by s_old/s_new.
        distribution: ``"svd"``, whose new directions come from the stream (seed, path, round); or ``"prefix"``, where
            direction j is row j of one draw for the whole run, (seed, path).
        seed, round: key of the streams.
    """
    if rank == adapter.rank:
        return adapter
    lora_B = adapter.of_kind("lora_B")
    resized: dict[str, Tensor] = {}
    for path, a in adapter.of_kind("lora_A").items():
        b = lora_B.get(path, a.new_zeros(0, adapter.rank))  # of no rows where it stays with the clients
        if rank < adapter.rank:
            a, b = shrink(a, b, rank) if distribution == "svd" else (a[:rank], b[:, :rank])
        missing = rank - a.shape[0]
        if not missing:
            rows = a[:0]
        elif distribution == "svd":
            rows = new_directions(path, missing, a.shape[1], seed, round)
        else:
            rows = new_directions(path, rank, a.shape[1], seed)[a.shape[0] :]
        resized[f"lora_A/{path}"] = torch.cat([a, rows.to(a.dtype)], dim=0)
        if scaling != adapter.scaling:
            b = b * (adapter.scaling / scaling)
        if path in lora_B:
            resized[f"lora_B/{path}"] = torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1)
    return Adapter(rank, scaling, {**adapter.tensors, **resized})


def new_directions(path: str, count: int, width: int, seed: int, round: int = 0) -> Tensor:
    """Draw rows of A from U(-1/√k, 1/√k), the stream being (seed, path, round); float64, shape (count, width).

    The first rows of a longer draw are those of a shorter one.
    """
    bound = 1.0 / width**0.5
    return torch.from_numpy(streams.generator(seed, f"lora_A/{path}", round).uniform(-bound, bound, (count, width)))


def shrink(lora_A: Tensor, lora_B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors of the best approximation of B·A of at most ``rank``.

    Args:
        lora_A: A, shape (r, k).
        lora_B: B, shape (d, r).
        rank: directions to keep, less than r.

    Returns:
        (A', B') of shapes (n, k) and (d, n), n ≤ rank; see :func:`best_factors`.
    """
    smaller_b, smaller_a, _ = best_factors(lora_B.double(), lora_A.double(), rank)
    return smaller_a.to(lora_A.dtype), smaller_b.to(lora_B.dtype)


def best_factors(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return factors of the best approximation of left·right of at most ``rank``, from the SVD of a small core.

    With left = Q_L·R_L and rightᵀ = Q_R·R_R the product is Q_L·(R_L·R_Rᵀ)·Q_Rᵀ, so the singular value decomposition
    U·Σ·Vᵀ of the core is that of the product. Directions without any weight are left out (both factors would be zero
    there and could never learn again); the caller fills them up.

    Args:
        left: shape (d, R), float64: factors B_i beside each other, each times its weight.
        right: shape (R, k), float64: factors A_i below each other.
        rank: directions to keep at most.

    Returns:
        B = Q_L·U·√Σ and A = √Σ·Vᵀ·Q_Rᵀ of shapes (d, n) and (n, k), n ≤ rank, and all singular values in falling order.
    """
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, singular_values, v_t = torch.linalg.svd(r_left @ r_right.T)
    kept = int((singular_values[:rank] > singular_values.max() * _NO_WEIGHT).sum())
    root = singular_values[:kept].sqrt()
    return q_left @ (u[:, :kept] * root), (root[:, None] * v_t[:kept]) @ q_right.T, singular_values


def in_falling_order(adapter: Adapter) -> Adapter:
    """Return the same products with factors from their SVD, the largest singular value first, signs fixed.

    The first r directions are then the best approximation of rank r, and what is cut off is the rest to the last bit.
    Rows of A whose directions have no weight come last, where they can still learn.
    """
    lora_B, ordered = adapter.of_kind("lora_B"), dict[str, Tensor]()
    for path, a in adapter.of_kind("lora_A").items():
        b, rows, _ = best_factors(lora_B[path].double(), a.double(), adapter.rank)
        b, rows = fixed_signs(b, rows)
        ordered |= filled_up(path, b, rows, a)
    return adapter.with_tensors(ordered)


def filled_up(path: str, b: Tensor, rows: Tensor, a: Tensor) -> dict[str, Tensor]:
    """Return factors as tensors of an adapter, with directions of zero effect up to its rank: the last rows of ``a``.

    Args:
        path: of the linear.
        b, rows: B and A, float64, of shapes (d, n) and (n, k).
        a: the A before, shape (r, k), r ≥ n.
    """
    missing = a.shape[0] - rows.shape[0]
    return {
        f"lora_A/{path}": torch.cat([rows, a[a.shape[0] - missing :].double()]).to(a.dtype),
        f"lora_B/{path}": torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1).to(a.dtype),
    }


def stacked(terms: Sequence[tuple[float, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return factors (left, right) of the sum Σ_i w_i·B_i·A_i.

    Args:
        terms: (w_i, B_i of shape (d, r_i), A_i of shape (r_i, k)) each.
    """
    left = torch.cat([weight * b.double() for weight, b, _ in terms], dim=1)
    return left, torch.cat([a.double() for _, _, a in terms], dim=0)


def fixed_signs(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Turn singular vectors so that the largest entry of each left one is positive: the same with every LAPACK."""
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))[0]
    signs = torch.where(largest < 0, -1.0, 1.0).to(left.dtype)
    return left * signs, right * signs[:, None]
