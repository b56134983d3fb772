"""Promises of FedSVD: the rows of A are orthonormal, products stay what they are, A is never trained."""

from __future__ import annotations

import pytest
import torch

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.distribute import distribute
from splitrank.learning.aggregation.fedsvd import with_orthonormal_rows
from splitrank.learning.aggregation.rules import RULES
from tests.learning.oracle import distance, product
from tests.learning.rule_checks import (
    LARGER,
    SHAPES,
    adapter_of,
    combined,
    drift_round,
    drifted,
    mean_product,
    subject,
)


def fedsvd(method="lora"):
    return subject(RULES["fedsvd"], method)


def assert_orthonormal(adapter: Adapter, shapes=LARGER) -> None:
    for path in shapes:
        a = adapter.tensors[f"lora_A/{path}"].double()
        torch.testing.assert_close(a @ a.T, torch.eye(len(a), dtype=torch.float64), rtol=0, atol=1e-6)


def test_it_refactorises_the_mean():
    """A = Vᵀ and B = U·Σ of the dense mean, directions in falling order, the largest entry of each of U positive."""
    on = fedsvd()
    starts, updates = drift_round(on)
    result = combined(on, starts, updates)
    assert_orthonormal(result.adapter, SHAPES)
    assert result.factor_averaging_error == 0.0
    for path in SHAPES:
        dense = mean_product(updates, path)
        assert distance(product(result.adapter, path), dense) < 1e-6
        b = result.adapter.tensors[f"lora_B/{path}"].double()
        values = torch.linalg.svdvals(dense)[:4] / result.adapter.scaling
        torch.testing.assert_close(b.T @ b, values.square().diag(), rtol=1e-5, atol=1e-5)
        assert (b.gather(0, b.abs().argmax(dim=0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_mean_of_less_than_full_rank_gets_an_orthonormal_complement(kept):
    """Round 1 may learn in few directions; the others must be able to learn later, within the same rows."""
    on = fedsvd()
    starts, updates = drift_round(on)
    fewer = {c: u.with_tensors({n: torch.cat([b[:, :kept], 0 * b[:, kept:]], 1) for n, b in u.only("lora_B").items()})
             for c, u in updates.items()}  # fmt: skip
    result = combined(on, starts, fewer).adapter
    assert_orthonormal(result, SHAPES)
    for path in SHAPES:
        dense = mean_product(fewer, path)
        assert float((product(result, path) - dense).norm()) <= 1e-6 * float(dense.norm())
        before, after = (adapter.tensors[f"lora_A/{path}"].double() for adapter in (starts.whole, result))
        torch.testing.assert_close(after.T @ after, torch.linalg.pinv(before) @ before, rtol=0, atol=1e-5)  # one span
        assert float(result.tensors[f"lora_B/{path}"][:, kept:].abs().amax()) < 1e-5


@pytest.mark.parametrize("method", ["lora", "rslora"])
@pytest.mark.parametrize("ranks", [(1, 4), (4, 2), (8, 3, 8), (5, 5)])
def test_rows_that_growing_adds_are_orthonormal_at_once(ranks, method):
    """What is sent out always has an orthonormal A, and growing keeps the product."""
    on = fedsvd(method)
    adapter = adapter_of(on, ranks[0], LARGER)
    for round, rank in enumerate(ranks, 1):
        starts = distribute(adapter, {0: rank, 1: rank}, on.method, on.rule, keeps_largest=False, seed=0, round=round)
        assert_orthonormal(starts.whole)
        for path in LARGER:
            dense = product(adapter, path)
            u, s, v = torch.linalg.svd(dense, full_matrices=False)
            best = (u[:, :rank] * s[:rank]) @ v[:rank]
            assert distance(product(starts.of[1], path), best if rank < adapter.rank else dense) < 1e-6
        updates = {client: drifted(on, start, client) for client, start in starts.of.items()}
        adapter = combined(on, starts, updates).adapter
        assert_orthonormal(adapter)


def test_orthonormal_rows_stay_and_new_ones_have_no_effect():
    adapter = with_orthonormal_rows(adapter_of(fedsvd(), 4, LARGER))
    again = with_orthonormal_rows(adapter)
    assert all(distance(again.tensors[name], tensor) < 1e-6 for name, tensor in adapter.tensors.items())
    grown = fedsvd().method.resize(adapter, 6, distribution="svd", seed=0, round=1)
    prepared = with_orthonormal_rows(grown)
    for path in LARGER:
        assert not prepared.tensors[f"lora_B/{path}"][:, 4:].any()
        assert distance(prepared.tensors[f"lora_A/{path}"][:4], adapter.tensors[f"lora_A/{path}"]) < 1e-6


def test_b_alone_is_trained_and_sent():
    assert RULES["fedsvd"].traits.trained({"lora_A", "lora_B", "head", "magnitude"}, 3) == {
        "lora_B",
        "head",
        "magnitude",
    }
    assert RULES["fedsvd"].traits.drawn({"lora_A", "lora_B"}) == frozenset()  # A goes down: the server changes it
