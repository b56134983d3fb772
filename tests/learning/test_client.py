"""Promises of local training and of judging a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional

from splitrank import streams
from splitrank.errors import RunError
from splitrank.learning.adapters import lora
from splitrank.learning.client import (
    Training,
    judge,
    learning_rate_factor,
    predict_logits,
    shuffled_batches,
    train,
)
from splitrank.learning.trunk import trunk_outputs
from tests.learning.test_encoder import load, random_ids

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


@pytest.fixture
def setting(tiny_model):
    """An encoder with LoRA, cached texts, and the adapter of the first round at rank 3."""
    opened = []

    def make(dropout: float = 0.0):
        encoder = load(tiny_model("roberta"), dropout=dropout)
        texts = trunk_outputs(encoder, random_ids(64, LENGTHS), limit_bytes=10**9, what="texts")
        opened.append(texts)
        peft_model = lora.attach(encoder, ("query", "value"), scaling=2.0, dropout=dropout)
        start = lora.initial(peft_model, scaling=2.0, head=lora.trained_head(encoder, peft_model, "full"))
        return encoder, peft_model, texts, lora.resize(start, 3, seed=0, round=1)

    yield make
    for texts in opened:
        texts.close()


def trained(setting, rows=None, *, round=1, client=0, local_head=None, adapter=None, dropout=0.0, **changes):
    encoder, peft_model, texts, start = setting(dropout)
    return train(
        encoder,
        peft_model,
        adapter or start,
        texts,
        np.arange(10) if rows is None else np.array(rows),
        LABELS,
        Training(**{**DEFAULTS, **changes}),
        seed=0,
        round=round,
        client=client,
        local_head=local_head or {},
    )


def same(first, second) -> bool:
    tensors = second.adapter.tensors()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in first.adapter.tensors().items())


def test_training_equals_plain_hugging_face_training(setting):
    """One epoch by hand with PEFT's own forward, torch's AdamW and clipping gives the same adapter."""
    update = trained(setting, weight_decay=0.1, learning_rate=1e-3)
    encoder, peft_model, texts, start = setting()
    parameters = lora.load(peft_model, start)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    ids = random_ids(64, LENGTHS)
    losses = []
    for batch in shuffled_batches(texts.lengths, 4, streams.generator(0, "batches", 1, 0)):
        encoded = encoder.tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt")
        loss = functional.cross_entropy(peft_model(**encoded).logits, torch.from_numpy(LABELS[batch]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses += [loss.item()] * len(batch)
    expected = lora.read(peft_model, start)
    for name, tensor in update.adapter.tensors().items():
        torch.testing.assert_close(tensor, expected.tensors()[name], rtol=1e-3, atol=2e-5)
    assert update.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert update.num_samples == 10


def test_same_stream_same_bits_and_no_global_randomness(setting):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trained(setting, dropout=0.2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert same(first, trained(setting, dropout=0.2))
    assert not same(first, trained(setting, dropout=0.2, client=1))
    assert not same(first, trained(setting, dropout=0.2, round=2))


def test_moments_start_fresh(setting):
    """A second round depends on the adapter alone, not on what was trained before in this process."""
    first = trained(setting)
    alone = trained(setting, round=2, adapter=first.adapter)
    encoder, peft_model, texts, start = setting()
    arguments = (texts, np.arange(10), LABELS, Training(**DEFAULTS))
    one = train(encoder, peft_model, start, *arguments, seed=0, round=1, client=0, local_head={})
    two = train(encoder, peft_model, one.adapter, *arguments, seed=0, round=2, client=0, local_head={})
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
    constant = trained(setting, round=3, num_rounds=3)
    linear = trained(setting, round=3, num_rounds=3, schedule="linear")
    start = setting()[3].tensors()

    def moved(update):
        return sum((tensor - start[name]).norm().item() for name, tensor in update.adapter.tensors().items())

    assert moved(linear) < 0.5 * moved(constant)


def test_clipping_bounds_the_step_of_plain_gradients(setting):
    assert not same(trained(setting), trained(setting, max_grad_norm=1e-3))


def test_divergence_is_a_clear_error(setting):
    encoder, peft_model, texts, start = setting()
    start.head["classifier.out_proj.bias"].fill_(float("nan"))
    with pytest.raises(
        RunError, match=r"loss and weights of client 2 in round 1 must be finite.*train\.learning_rate below 0\.01"
    ):
        train(
            encoder, peft_model, start, texts, np.arange(10), LABELS, Training(**DEFAULTS),
            seed=0, round=1, client=2, local_head={},
        )  # fmt: skip


def test_local_heads_are_trained_and_stay(setting):
    encoder, peft_model, texts, start = setting()
    head = {name: tensor.clone() for name, tensor in start.head.items()}
    shared = lora.from_tensors({k: v for k, v in start.tensors().items() if not k.startswith("head/")}, 3, 2.0)
    update = train(
        encoder, peft_model, shared, texts, np.arange(10), LABELS, Training(**DEFAULTS),
        seed=0, round=1, client=0, local_head=head,
    )  # fmt: skip
    assert update.adapter.head == {}
    assert update.local_head.keys() == head.keys()
    assert not any(torch.equal(tensor, head[name]) for name, tensor in update.local_head.items())


def test_predictions_do_not_depend_on_the_batch(setting):
    encoder, peft_model, texts, start = setting()
    lora.load(peft_model, start)
    together = predict_logits(encoder, texts, np.arange(10), "")
    alone = np.concatenate([predict_logits(encoder, texts, np.array([row]), "") for row in range(10)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_judging():
    draws = np.random.default_rng(0)
    logits = draws.standard_normal((40, 4)).astype(np.float32)
    labels = draws.integers(0, 4, 40)
    shares = [np.arange(0, 30), np.arange(30, 40), np.array([], dtype=np.int64)]
    result = judge(logits, labels, shares)
    predicted = logits.argmax(axis=1)
    assert result.accuracy == np.mean(predicted == labels)
    assert result.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    expected = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.worst_client_accuracy == min(np.mean((predicted == labels)[rows]) for rows in shares[:2])
