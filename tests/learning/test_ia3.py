"""Promises of IA3 beside those of every method: which vectors it trains, and that PEFT's own IA3 trains alike."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import IA3Config, TaskType, get_peft_model

from splitrank.learning.adapters.method import load
from splitrank.learning.aggregation.fedavg import fedavg
from splitrank.learning.aggregation.rule import Starts
from splitrank.learning.forward import packed_logits, reference_logits
from tests.conftest import TINY_FAMILIES
from tests.learning import oracle
from tests.learning.oracle import LENGTHS, adapt, begin, moved, random_ids

IDS = random_ids(64, LENGTHS)
COUNTS = torch.tensor(LENGTHS)
STEPS, LEARNING_RATE = 20, 1e-2


@pytest.mark.parametrize("place", ["last:3", [1, 4]])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_it_trains_three_vectors_of_ones_in_each_of_the_trained_layers(family, place, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model(family), place), "ia3")
    parameters = load(adapted, begin(adapted, 1))
    linears, num_layers = adapted.encoder.family.linears, len(adapted.encoder.trained_layers)
    found = {name: p for name, p in parameters.items() if name.startswith("scale/")}
    assert all(torch.equal(p, torch.ones_like(p)) for p in found.values())
    for linear, shape in {"key": (32, 1), "value": (32, 1), "output": (1, 48)}.items():
        of_linear = [tuple(p.shape) for name, p in found.items() if name.endswith(linears[linear])]
        assert of_linear == num_layers * [shape]
    assert len(found) == 3 * num_layers


def test_the_reference_pass_is_chosen_since_the_packed_one_would_ignore_scales(tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), "ia3")
    load(adapted, begin(adapted, 1))
    assert adapted.forward is reference_logits
    with pytest.raises(TypeError):
        packed_logits(adapted.encoder, adapted.encoder.trunk(IDS), COUNTS)


@pytest.mark.parametrize("family", ["roberta", "mpnet", "distilbert"])
def test_pefts_own_ia3_trains_alike(family, tiny_model):
    """Fresh, and after 20 steps, a model that PEFT made on its own has the same scores."""
    adapted = adapt(oracle.fresh(tiny_model(family)), "ia3")
    parameters = load(adapted, begin(adapted, 1))
    hidden = adapted.encoder.trunk(IDS)

    bare = oracle.fresh(tiny_model(family))
    layers, linears = bare.family.layers.replace(".", r"\."), bare.family.linears
    key, value, output = (linears[name].replace(".", r"\.") for name in ("key", "value", "output"))
    config = IA3Config(
        task_type=TaskType.SEQ_CLS,
        target_modules=rf"{layers}\.[345]\.({key}|{value}|{output})",
        feedforward_modules=rf"{layers}\.[345]\.{output}",
        modules_to_save=list(bare.family.head_modules),
    )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        theirs = get_peft_model(bare.model, config)
    theirs.eval()
    batch = bare.tokenizer.pad({"input_ids": [row.tolist() for row in IDS]}, return_tensors="pt")
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in parameters.values())
    ours_step, theirs_step = (torch.optim.AdamW(p, lr=LEARNING_RATE) for p in (list(parameters.values()), trained))
    for _ in range(STEPS):
        losses = []
        for step, logits in (
            (ours_step, adapted.logits(hidden, COUNTS)),
            (theirs_step, theirs(**batch).logits),
        ):
            losses.append(oracle.loss_of(logits))
            step.zero_grad()
            losses[-1].backward()
            step.step()
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert losses[0] < 0.9 * oracle.loss_of(adapt(oracle.fresh(tiny_model(family)), "ia3").logits(hidden, COUNTS))
    oracle.assert_logits(adapted.logits(hidden, COUNTS), theirs(**batch).logits, tolerance=1e-4)


def test_averaging_is_exact_in_the_vectors(tiny_model):
    """The mean of the vectors is the mean of what they multiply with: no product of means is taken for one."""
    adapted = adapt(oracle.fresh(tiny_model()), "ia3")
    start = begin(adapted, 1)
    updates = {client: moved(start, key=client, size=0.5) for client in range(3)}
    weights = {0: 0.5, 1: 0.3, 2: 0.2}
    combined = fedavg(Starts(start, dict.fromkeys(updates, start)), updates, weights, {})
    assert not combined.factor_averaging_error
    for name, vector in combined.adapter.tensors.items():
        mean = sum(weights[client] * update.tensors[name].double() for client, update in updates.items())
        torch.testing.assert_close(vector.double(), mean, rtol=1e-6, atol=1e-7)
