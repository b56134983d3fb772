"""Promises of local training and of evaluating a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from splitrank import streams
from splitrank.errors import RunError
from splitrank.learning.adapters.method import load, read
from splitrank.learning.adapters.methods import METHODS
from splitrank.learning.client import (
    Task,
    TrainingConfig,
    balanced_class_weights,
    classification_metrics,
    learning_rate_factor,
    predict_logits,
    shuffled_batches,
    train_client,
)
from splitrank.learning.trunk import trunk_outputs
from splitrank.traits import METHOD_TRAITS
from tests.learning import oracle
from tests.learning.oracle import adapt, begin, random_ids, same_bits

DEFAULTS = {
    "learning_rate": 1e-2,
    "batch_size": 4,
    "schedule": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "local_epochs": 1,
    "num_rounds": 3,
}
LENGTHS = [5, 17, 9, 30, 3, 12, 8, 21, 6, 6]
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1], dtype=np.int64)


def everything(name, tensor, client, turn):
    return None


def task(start, **changes) -> Task:
    defaults = {"personal": {}, "select": everything, "seed": 0, "round": 1, "client": 0, "turn": 0}
    return Task(start=start, **{**defaults, **changes})


@pytest.fixture
def setting(tiny_model):
    """An encoder with a method, cached texts, and the adapter of the first round at rank 3."""
    opened = []

    def make(name="lora", *, dropout=0.0, policy="full"):
        linears = ("query", "value")
        adapted = adapt(oracle.fresh(tiny_model("roberta"), dropout=dropout), name, linears=linears, dropout=dropout)
        texts = trunk_outputs(adapted.encoder, random_ids(64, LENGTHS), limit_bytes=10**9, what="texts")
        opened.append(texts)
        return adapted, texts, begin(adapted, 3, policy)

    yield make
    for texts in opened:
        texts.close()


def trained(setting, rows=None, *, name="lora", adapter=None, dropout=0.0, asked=None, **changes):
    adapted, texts, start = setting(name, dropout=dropout)
    return train_client(
        adapted,
        task(adapter or start, **(asked or {})),
        texts,
        np.arange(10) if rows is None else np.array(rows),
        LABELS,
        TrainingConfig(**{**DEFAULTS, **changes}),
    )


def same(first, second) -> bool:
    return same_bits(first.adapter.tensors, second.adapter.tensors)


@pytest.mark.parametrize("name", [name for name in METHODS if METHOD_TRAITS[name].export == "peft"])
def test_training_equals_plain_hugging_face_training(name, setting):
    """One epoch by hand with PEFT's own forward, torch's AdamW and clipping gives the same adapter."""
    update = trained(setting, name=name, weight_decay=0.1, learning_rate=1e-3)
    adapted, texts, start = setting(name)
    parameters = list(load(adapted, start).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    ids = random_ids(64, LENGTHS)
    losses = []
    for batch in shuffled_batches(texts.lengths, 4, streams.generator(0, "batches", 1, 0)):
        encoded = adapted.encoder.tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt")
        loss = functional.cross_entropy(adapted.peft_model(**encoded).logits, torch.from_numpy(LABELS[batch]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses += [loss.item()] * len(batch)
    expected = read(adapted, start)
    for key, tensor in update.adapter.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[key], rtol=1e-3, atol=2e-5)
    assert update.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert update.num_samples == 10


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_balanced_training_equals_torchs_weighted_loss(name, setting):
    """Packed and reference, by hand with scikit-learn's weights of the client's own labels and torch's loss."""
    rows = np.array([0, 4, 8, 1, 2, 6, 0, 4])  # class 0 five times, 1 once, 2 twice, 3 never
    update = trained(setting, rows, name=name, learning_rate=1e-3, class_weights="balanced")
    adapted, texts, start = setting(name)
    weights = torch.zeros(4)
    weights[:3] = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(3), y=LABELS[rows]))
    loss_of, plain_loss_of = torch.nn.CrossEntropyLoss(weight=weights), torch.nn.CrossEntropyLoss()
    parameters = list(load(adapted, start).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    ids = random_ids(64, LENGTHS)
    losses = []
    for batch in shuffled_batches(texts.lengths[rows], 4, streams.generator(0, "batches", 1, 0)):
        encoded = adapted.encoder.tokenizer.pad({"input_ids": [ids[row] for row in rows[batch]]}, return_tensors="pt")
        logits, classes = adapted.peft_model(**encoded).logits, torch.from_numpy(LABELS[rows[batch]])
        optimizer.zero_grad()
        loss_of(logits, classes).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses += [plain_loss_of(logits, classes).item()] * len(batch)
    expected = read(adapted, start)
    for key, tensor in update.adapter.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[key], rtol=1e-3, atol=2e-5)
    assert update.train_loss == pytest.approx(np.mean(losses), rel=1e-5)  # without weights, as in any record
    plain = trained(setting, rows, name=name, learning_rate=1e-3)
    assert not all(torch.allclose(tensor, plain.adapter.tensors[key], rtol=1e-3, atol=2e-5)
                   for key, tensor in update.adapter.tensors.items())  # fmt: skip


def test_balanced_weights_make_classes_count_alike():
    labels = np.array([0] * 6 + [2] * 3 + [3], dtype=np.int64)
    weights = balanced_class_weights(labels, 4).numpy()
    np.testing.assert_allclose(weights, [10 / 24, 0, 10 / 12, 10 / 4])
    np.testing.assert_allclose(weights * np.bincount(labels, minlength=4), [2.5, 0, 2.5, 2.5])


@pytest.mark.parametrize("policy", ["full", "out_proj", "frozen"])
@pytest.mark.parametrize("name", METHODS)
def test_training_moves_all_that_is_trained_and_nothing_else(name, policy, setting):
    adapted, texts, start = setting(name, policy=policy)
    own = {id(parameter) for parameter in load(adapted, start).values()}
    state = adapted.encoder.model.state_dict(keep_vars=True)
    base = {key: tensor.detach().clone() for key, tensor in state.items() if id(tensor) not in own}
    before = {key: tensor.clone() for key, tensor in start.tensors.items()}
    update = train_client(adapted, task(start), texts, np.arange(10), LABELS, TrainingConfig(**DEFAULTS))
    assert same_bits(start.tensors, before)
    assert list(update.adapter.tensors) == list(before)
    assert (update.adapter.rank, update.adapter.scaling) == (start.rank, start.scaling)
    assert not any(torch.equal(tensor, before[key]) for key, tensor in update.adapter.tensors.items())
    after = adapted.encoder.model.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in base.items())
    assert dict(update.personal) == {}


@pytest.mark.parametrize("name", METHODS)
def test_same_stream_same_bits_and_no_global_randomness(name, setting):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trained(setting, name=name, dropout=0.2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert same(first, trained(setting, name=name, dropout=0.2))
    assert not same(first, trained(setting, name=name, dropout=0.2, asked={"client": 1}))
    assert not same(first, trained(setting, name=name, dropout=0.2, asked={"round": 2}))


def test_moments_start_fresh(setting):
    """A second round depends on the adapter alone, not on what was trained before in this process."""
    first = trained(setting)
    alone = trained(setting, adapter=first.adapter, asked={"round": 2})
    adapted, texts, start = setting()
    arguments = (texts, np.arange(10), LABELS, TrainingConfig(**DEFAULTS))
    one = train_client(adapted, task(start), *arguments)
    two = train_client(adapted, task(one.adapter, round=2), *arguments)
    assert same(alone, two)


def test_only_own_rows_matter(setting):
    labels_elsewhere = trained(setting, rows=[0, 1, 2, 3])
    assert labels_elsewhere.num_samples == 4
    assert not same(labels_elsewhere, trained(setting, rows=[4, 5, 6, 7]))


def test_local_epochs_are_passes_in_new_orders(setting):
    lengths = np.array(LENGTHS)
    draws = streams.generator(0, "batches", 1, 0)
    first, second = (np.concatenate(shuffled_batches(lengths, 4, draws)) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert not same(trained(setting), trained(setting, local_epochs=2))


def test_batches_have_texts_of_similar_length():
    lengths = np.arange(1000) % 100 + 5
    batches = shuffled_batches(lengths, 8, streams.generator(0, "test"))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()


def test_schedules():
    assert learning_rate_factor("constant", 7, 10) == 1.0
    assert [learning_rate_factor("linear", step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_the_linear_schedule_spans_the_run(setting):
    constant = trained(setting, num_rounds=3, asked={"round": 3})
    linear = trained(setting, num_rounds=3, schedule="linear", asked={"round": 3})
    start = setting()[2].tensors

    def moved(update):
        return sum((tensor - start[name]).norm().item() for name, tensor in update.adapter.tensors.items())

    assert moved(linear) < 0.5 * moved(constant)


def test_clipping_bounds_the_step_of_plain_gradients(setting):
    assert not same(trained(setting), trained(setting, max_grad_norm=1e-3))


def test_divergence_is_a_clear_error(setting):
    adapted, texts, start = setting()
    start.tensors["head/classifier.out_proj.bias"].fill_(float("nan"))
    with pytest.raises(
        RunError, match=r"loss and weights of client 2 in round 1 must be finite.*train\.learning_rate below 0\.01"
    ):
        train_client(adapted, task(start, client=2), texts, np.arange(10), LABELS, TrainingConfig(**DEFAULTS))


@pytest.mark.parametrize("name", METHODS)
def test_personal_tensors_are_trained_and_stay(name, setting):
    adapted, texts, whole = setting(name)
    shared = setting(name, policy="frozen")[2]
    head = {key: tensor.clone() for key, tensor in whole.only("head").items()}
    before = {key: tensor.clone() for key, tensor in head.items()}
    arguments = (texts, np.arange(10), LABELS, TrainingConfig(**DEFAULTS))
    update = train_client(adapted, task(shared, personal=head), *arguments)
    assert update.adapter.kinds == shared.kinds
    assert list(update.personal) == list(head)
    assert not any(torch.equal(tensor, before[key]) for key, tensor in update.personal.items())
    assert same_bits(head, before)
    together = train_client(adapted, task(whole), *arguments).adapter
    assert same_bits({**update.adapter.tensors, **update.personal}, together.tensors)


def test_predictions_do_not_depend_on_the_batch(setting):
    adapted, texts, start = setting()
    load(adapted, start)
    together = predict_logits(adapted, texts, np.arange(10), "")
    alone = np.concatenate([predict_logits(adapted, texts, np.array([row]), "") for row in range(10)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_evaluating():
    draws = np.random.default_rng(0)
    logits = draws.standard_normal((40, 4)).astype(np.float32)
    labels = draws.integers(0, 4, 40)
    shares = [np.arange(0, 30), np.arange(30, 40), np.array([], dtype=np.int64)]
    result = classification_metrics(logits, labels, shares)
    predicted = logits.argmax(axis=1)
    assert result.accuracy == np.mean(predicted == labels)
    assert result.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    expected = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.worst_client_accuracy == min(np.mean((predicted == labels)[rows]) for rows in shares[:2])
