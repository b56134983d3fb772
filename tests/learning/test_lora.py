"""Promises: resizing keeps the product or its best approximation; what PEFT holds is what the adapter says."""

from __future__ import annotations

import pytest
import torch

from splitrank import streams
from splitrank.learning.adapters import lora
from splitrank.learning.adapters.lora import Adapter, from_tensors, resize, shrink
from splitrank.placement import MAPS
from tests.learning.test_encoder import load


def random_adapter(rank: int, out: int = 20, inner: int = 13) -> Adapter:
    draws = streams.generator(rank, "test-adapter")
    return Adapter(
        rank=rank,
        scaling=2.0,
        lora_A={"map": torch.from_numpy(draws.standard_normal((rank, inner))).float()},
        lora_B={"map": torch.from_numpy(draws.standard_normal((out, rank))).float()},
    )


def product(adapter: Adapter) -> torch.Tensor:
    return adapter.scaling * adapter.lora_B["map"].double() @ adapter.lora_A["map"].double()


@pytest.mark.parametrize(("out", "inner"), [(20, 13), (13, 20), (16, 16)])
@pytest.mark.parametrize(("old", "new"), [(8, 5), (8, 1), (2, 1), (12, 11)])
def test_shrinking_is_the_best_approximation(old, new, out, inner):
    before = random_adapter(old, out, inner)
    after = resize(before, new, seed=0, round=1)
    u, s, v = torch.linalg.svd(product(before), full_matrices=False)
    best = (u[:, :new] * s[:new]) @ v[:new]
    assert after.lora_A["map"].shape == (new, inner)
    assert after.lora_B["map"].shape == (out, new)
    assert (product(after) - best).norm() / best.norm() < 1e-6


@pytest.mark.parametrize(("old", "new"), [(1, 2), (5, 8), (1, 13)])
def test_growing_keeps_the_product_and_can_learn(old, new):
    before = random_adapter(old)
    after = resize(before, new, seed=0, round=1)
    assert (product(after) - product(before)).norm() / product(before).norm() < 1e-6
    added_a, added_b = after.lora_A["map"][old:], after.lora_B["map"][:, old:]
    assert (added_a.abs().amax(dim=1) > 0).all()
    assert added_a.abs().max() <= 1 / 13**0.5
    assert not added_b.any()


def test_the_first_growth_is_peft_initialisation():
    start = Adapter(0, 2.0, {"map": torch.zeros(0, 13)}, {"map": torch.zeros(20, 0)})
    grown = resize(start, 4, seed=0, round=1)
    assert grown.lora_A["map"].shape == (4, 13)
    assert not product(grown).any()
    assert torch.equal(grown.lora_A["map"], resize(start, 4, seed=0, round=1).lora_A["map"])
    for seed, round in ((1, 1), (0, 2)):
        assert not torch.equal(grown.lora_A["map"], resize(start, 4, seed=seed, round=round).lora_A["map"])


def test_shrinking_a_product_of_zero_can_still_learn():
    untouched = resize(Adapter(0, 2.0, {"map": torch.zeros(0, 13)}, {"map": torch.zeros(20, 0)}), 6, seed=0, round=1)
    smaller = resize(untouched, 3, seed=0, round=2)
    assert smaller.lora_A["map"].shape == (3, 13)
    assert (smaller.lora_A["map"].abs().amax(dim=1) > 0).all()
    assert not product(smaller).any()


def test_shrinking_forgets_only_directions_without_weight():
    adapter = random_adapter(3)
    padded = resize(adapter, 9, seed=0, round=1)
    lora_A, lora_B = shrink(padded.lora_A["map"], padded.lora_B["map"], 6)
    assert lora_A.shape[0] == lora_B.shape[1] == 3
    assert (2.0 * lora_B.double() @ lora_A.double() - product(adapter)).norm() / product(adapter).norm() < 1e-6


def test_same_rank_is_the_same_object():
    adapter = random_adapter(4)
    assert resize(adapter, 4, seed=0, round=1) is adapter


def test_flat_names_round_trip():
    adapter = random_adapter(4)
    again = from_tensors(adapter.tensors(), 4, 2.0)
    assert again.lora_A.keys() == adapter.lora_A.keys()
    assert torch.equal(again.lora_B["map"], adapter.lora_B["map"])


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert"])
@pytest.mark.parametrize(
    ("policy", "trained"),
    [
        ("full", {"roberta": 4, "bert": 4, "distilbert": 4}),
        ("out_proj", {"roberta": 2, "bert": 2, "distilbert": 2}),
        ("frozen", {"roberta": 0, "bert": 0, "distilbert": 0}),
    ],
)
def test_head_policies(policy, trained, family, tiny_model):
    encoder = load(tiny_model(family))
    peft_model = lora.attach(encoder, ("query", "value"), scaling=2.0, dropout=0.0)
    head = lora.trained_head(encoder, peft_model, policy)
    assert len(head) == trained[family]
    start = resize(lora.initial(peft_model, scaling=2.0, head=head), 5, seed=0, round=1)
    parameters = lora.load(peft_model, start)
    assert len(parameters) == 2 * 2 * 3 + len(head)
    trainable = {id(parameter) for parameter in peft_model.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in parameters}


def test_load_and_read_round_trip_at_every_rank(tiny_model):
    encoder = load(tiny_model("roberta"), precision=torch.bfloat16)
    peft_model = lora.attach(encoder, MAPS, scaling=2.0, dropout=0.0)
    start = lora.initial(peft_model, scaling=2.0, head=lora.trained_head(encoder, peft_model, "full"))
    for rank in (3, 7, 2):
        adapter = resize(start, rank, seed=0, round=rank)
        lora.load(peft_model, adapter)
        again = lora.read(peft_model, adapter)
        for name, tensor in adapter.tensors().items():
            assert torch.equal(tensor, again.tensors()[name])
            assert tensor.dtype == torch.float32
        assert peft_model.peft_config["default"].r == rank
        assert peft_model.peft_config["default"].lora_alpha == 2 * rank


def test_loading_copies(tiny_model):
    encoder = load(tiny_model("roberta"))
    peft_model = lora.attach(encoder, ("query",), scaling=2.0, dropout=0.0)
    adapter = resize(lora.initial(peft_model, scaling=2.0, head=[]), 2, seed=0, round=1)
    before = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    for parameter in lora.load(peft_model, adapter):
        parameter.data.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.tensors().items())


def test_the_paper_counts_parameters_as_peft_does():
    """129,960,968 in all, 124,648,708 + 593,668 + 36,864·128: roberta-base, 4 labels, r = 128, query and value."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import RobertaConfig, RobertaForSequenceClassification

    shape = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=4)
    with torch.device("meta"):
        model = RobertaForSequenceClassification(shape)
        import warnings

        with warnings.catch_warnings(action="ignore"):
            wrapped = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=128))
    trainable, total = wrapped.get_nb_trainable_parameters()
    assert total == 129_960_968
    assert trainable == 593_668 + 36_864 * 128
