"""Promises of rsLoRA beside those of every method: PEFT with ``use_rslora`` as the oracle, LoRA at rank 1."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model

from splitrank.learning.adapters.method import load
from splitrank.placement import LINEARS
from tests.learning import oracle
from tests.learning.oracle import LENGTHS, adapt, begin, distance, moved, product, random_ids, same_bits

IDS = random_ids(64, LENGTHS)
COUNTS = torch.tensor(LENGTHS)
ALPHA = 1.3


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_peft_scales_the_same_factors_alike(rank, tiny_model):
    """PEFT's own rsLoRA, made with this rank and alpha and given the tensors, has the same scores and gradients."""
    adapted = adapt(oracle.fresh(tiny_model()), "rslora", scaling=ALPHA)
    adapter = moved(begin(adapted, rank))
    parameters = load(adapted, adapter)
    logits = adapted.logits(adapted.encoder.trunk(IDS), COUNTS)

    bare = oracle.fresh(tiny_model())
    names = "|".join(bare.family.linears[name].replace(".", r"\.") for name in LINEARS)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=ALPHA,
        use_rslora=True,
        target_modules=rf"{bare.family.layers}\.[345]\.({names})",
        modules_to_save=list(bare.family.head_modules),
    )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        theirs = get_peft_model(bare.model, config)
    own = dict(bare.model.named_parameters())
    found = {}
    for name, tensor in adapter.tensors.items():
        kind, _, path = name.partition("/")
        head, _, last = path.partition(".")
        found[name] = own[
            f"{head}.modules_to_save.default.{last}" if kind == "head" else f"{path}.{kind}.default.weight"
        ]
        found[name].data.copy_(tensor)
        found[name].requires_grad_()
    batch = bare.tokenizer.pad({"input_ids": [row.tolist() for row in IDS]}, return_tensors="pt")
    wanted = theirs(**batch).logits
    oracle.assert_logits(logits, wanted)
    oracle.assert_gradients(oracle.gradients(logits, parameters), oracle.gradients(wanted, found))


def test_at_rank_1_it_is_lora_and_at_others_not(tiny_model):
    plain, stable = (adapt(oracle.fresh(tiny_model()), name, scaling=ALPHA) for name in ("lora", "rslora"))
    for rank in (1, 4):
        of_plain, of_stable = (moved(begin(adapted, rank)) for adapted in (plain, stable))
        assert same_bits(of_plain.tensors, of_stable.tensors)
        logits = []
        for adapted, adapter in ((plain, of_plain), (stable, of_stable)):
            load(adapted, adapter)
            logits.append(adapted.logits(adapted.encoder.trunk(IDS), COUNTS))
        assert torch.equal(*logits) == (rank == 1)


def test_the_scaling_falls_with_the_root_of_the_rank(tiny_model):
    method = adapt(oracle.fresh(tiny_model()), "rslora", scaling=ALPHA).method
    assert [method.scaling_at(rank) for rank in (1, 4, 16, 64)] == [ALPHA, ALPHA / 2, ALPHA / 4, ALPHA / 8]


@pytest.mark.parametrize("distribution", ["svd", "prefix"])
def test_growing_from_rank_to_rank_keeps_the_product(distribution, tiny_model):
    """Though each rank has its own scaling: B makes up for it."""
    adapted = adapt(oracle.fresh(tiny_model()), "rslora", scaling=ALPHA)
    first = adapter = moved(begin(adapted, 2))
    for round, rank in enumerate((3, 7, 12), 2):
        adapter = adapted.method.resize(adapter, rank, distribution=distribution, seed=0, round=round)
        assert adapter.scaling == ALPHA / rank**0.5
        for path in first.of_kind("lora_A"):
            assert distance(product(adapter, path), product(first, path)) < 1e-6
