"""Promises of a change of rank: the product or its best approximation is kept, or the first directions to the bit."""

from __future__ import annotations

import pytest
import torch

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.factors import best_factors, new_directions, resize_factors, shrink
from splitrank.learning.adapters.methods import METHODS, make_method
from splitrank.traits import METHOD_TRAITS
from tests.learning.oracle import distance, noise, product, same_bits

SCALING = 2.0
SHAPES = [(20, 13), (13, 20), (16, 16)]
RANKED = [name for name in METHODS if METHOD_TRAITS[name].contract == "product"]

ranked_methods = pytest.mark.parametrize("name", RANKED)


def method_of(name: str, scaling: float = SCALING):
    return make_method(name, {"linears": ("query",), "scaling": scaling, "dropout": 0.0})


def random_adapter(name: str, rank: int, out: int = 20, inner: int = 13, scaling: float = SCALING) -> Adapter:
    shapes = {"lora_A/query": (rank, inner), "lora_B/query": (out, rank)}
    if name == "dora":
        shapes["magnitude/query"] = (out,)
    shapes["head/classifier"] = (4, inner)
    return Adapter(rank, scaling, {key: noise(key, shape, key=rank) for key, shape in shapes.items()})


def resized(name: str, adapter: Adapter, rank: int, *, distribution="svd", seed=0, round=1, scaling=SCALING) -> Adapter:
    return method_of(name, scaling).resize(adapter, rank, distribution=distribution, seed=seed, round=round)


@pytest.mark.parametrize(("out", "inner"), SHAPES)
@pytest.mark.parametrize(("old", "new"), [(8, 5), (8, 1), (2, 1), (12, 11), (13, 4)])
@ranked_methods
def test_shrinking_is_the_best_approximation(name, old, new, out, inner):
    """Eckart and Young, by the dense singular value decomposition; other tensors stay as they are."""
    before = random_adapter(name, old, out, inner)
    after = resized(name, before, new)
    u, s, v = torch.linalg.svd(product(before, "query"), full_matrices=False)
    best = (u[:, :new] * s[:new]) @ v[:new]
    assert after.rank == new
    assert after.shapes(new) == before.shapes(new)
    assert {key: tuple(tensor.shape) for key, tensor in after.tensors.items()} == before.shapes(new)
    assert distance(product(after, "query"), best) < 1e-6
    rest = {"magnitude", "head"}
    assert same_bits(after.only(*rest), before.only(*rest))
    assert list(after.tensors) == list(before.tensors)


@pytest.mark.parametrize("distribution", ["svd", "prefix"])
@pytest.mark.parametrize(("old", "new"), [(1, 2), (5, 8), (1, 13), (4, 20)])
@ranked_methods
def test_growing_keeps_the_product_and_can_learn(name, old, new, distribution):
    before = random_adapter(name, old)
    after = resized(name, before, new, distribution=distribution)
    assert distance(product(after, "query"), product(before, "query")) < 1e-6
    assert torch.equal(after.tensors["lora_A/query"][:old], before.tensors["lora_A/query"])
    added_a, added_b = after.tensors["lora_A/query"][old:], after.tensors["lora_B/query"][:, old:]
    assert (added_a.abs().amax(dim=1) > 0).all()
    assert added_a.abs().max() <= 1 / 13**0.5
    assert not added_b.any()
    assert {tensor.dtype for tensor in after.tensors.values()} == {torch.float32}


@pytest.mark.parametrize("distribution", ["svd", "prefix"])
@pytest.mark.parametrize("new", [3, 5, 9])
@ranked_methods
def test_a_new_scaling_keeps_the_product(name, new, distribution):
    """B is multiplied by s_old/s_new."""
    before = random_adapter(name, 5, scaling=0.75)
    same_scaling = resized(name, before, new, distribution=distribution, scaling=0.75)
    after = resized(name, before, new, distribution=distribution, scaling=3.0)
    if new != 5:
        assert after.scaling == method_of(name, 3.0).scaling_at(new)
    assert distance(product(after, "query"), product(same_scaling, "query")) < 1e-6


@pytest.mark.parametrize("new", [1, 3, 7])
@ranked_methods
def test_a_prefix_is_the_first_directions(name, new):
    before = random_adapter(name, 8)
    after = resized(name, before, new, distribution="prefix")
    assert torch.equal(after.tensors["lora_A/query"], before.tensors["lora_A/query"][:new])
    first = before.tensors["lora_B/query"][:, :new]
    assert torch.equal(after.tensors["lora_B/query"], first * (before.scaling / after.scaling))


@ranked_methods
def test_prefixes_are_rows_of_one_draw_for_the_run(name):
    """Whatever ranks came before, and in whatever round it grew; each linear and each seed has its own."""
    empty = Adapter(0, SCALING, {"lora_A/query": torch.zeros(0, 13), "lora_B/query": torch.zeros(20, 0)})
    long = resized(name, empty, 12, distribution="prefix").tensors["lora_A/query"]
    adapter = empty
    for round, rank in enumerate((3, 8, 2, 5, 11, 1, 12), 1):
        adapter = resized(name, adapter, rank, distribution="prefix", round=round)
        assert torch.equal(adapter.tensors["lora_A/query"], long[:rank])
    assert torch.equal(long, new_directions("query", 12, 13, 0).float())
    assert not torch.equal(long, resized(name, empty, 12, distribution="prefix", seed=1).tensors["lora_A/query"])
    assert not torch.equal(new_directions("query", 4, 13, 0), new_directions("other", 4, 13, 0))


@pytest.mark.parametrize("name", [name for name in METHODS if METHOD_TRAITS[name].contract == "fixed"])
def test_a_method_without_a_rank_is_not_changed(name):
    adapter = Adapter(0, 1.0, {"weight/layer.weight": torch.randn(7, 5), "head/classifier": torch.randn(4, 5)})
    for distribution in ("svd", "prefix"):
        for rank in (1, 8):
            after = resized(name, adapter, rank, distribution=distribution)
            assert after.rank == 1
            assert same_bits(after.tensors, adapter.tensors)


@ranked_methods
def test_the_first_growth_is_peft_initialisation(name):
    start = Adapter(0, SCALING, {"lora_A/query": torch.zeros(0, 13), "lora_B/query": torch.zeros(20, 0)})
    grown = resized(name, start, 4)
    assert grown.tensors["lora_A/query"].shape == (4, 13)
    assert not product(grown, "query").any()
    assert same_bits(grown.tensors, resized(name, start, 4).tensors)
    for seed, round in ((1, 1), (0, 2)):
        other = resized(name, start, 4, seed=seed, round=round)
        assert not torch.equal(grown.tensors["lora_A/query"], other.tensors["lora_A/query"])


def test_shrinking_a_product_of_zero_can_still_learn():
    start = Adapter(0, SCALING, {"lora_A/query": torch.zeros(0, 13), "lora_B/query": torch.zeros(20, 0)})
    untouched = resized("lora", start, 6)
    smaller = resized("lora", untouched, 3, round=2)
    assert smaller.tensors["lora_A/query"].shape == (3, 13)
    assert (smaller.tensors["lora_A/query"].abs().amax(dim=1) > 0).all()
    assert not product(smaller, "query").any()


def test_shrinking_forgets_only_directions_without_weight():
    adapter = random_adapter("lora", 3)
    padded = resized("lora", adapter, 9)
    lora_A, lora_B = shrink(padded.tensors["lora_A/query"], padded.tensors["lora_B/query"], 6)
    assert lora_A.shape[0] == lora_B.shape[1] == 3
    found = SCALING * lora_B.double() @ lora_A.double()
    assert distance(found, product(adapter, "query")) < 1e-6


def test_same_rank_is_the_same_object():
    adapter = random_adapter("lora", 4)
    assert resize_factors(adapter, 4, SCALING, distribution="svd", seed=0, round=1) is adapter


@pytest.mark.parametrize("total", [4, 12, 60])
def test_the_core_has_the_singular_values_of_the_dense_product(total):
    """Also where there are more directions than rows or columns."""
    left, right = noise("left", (20, total)).double(), noise("right", (total, 13)).double()
    b, a, values = best_factors(left, right, 3)
    u, s, v = torch.linalg.svd(left @ right, full_matrices=False)
    torch.testing.assert_close(values[: min(total, 13)], s[: min(total, 13)], rtol=1e-12, atol=1e-12)
    assert distance(b @ a, (u[:, :3] * s[:3]) @ v[:3]) < 1e-12
    torch.testing.assert_close(b.T @ b, s[:3].diag(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a @ a.T, s[:3].diag(), rtol=1e-9, atol=1e-9)
