"""Promise: training from the cache stays several times faster than PEFT's whole network, measured side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.measure import alternate
from benchmarks.rivals.federated_peft import load_trainee
from benchmarks.rivals.task import Task
from splitrank.learning import client
from splitrank.learning.adapters.lora import Lora
from splitrank.learning.adapters.method import attach, initial, trained_head
from splitrank.learning.encoder import load_encoder, resolve_precision
from splitrank.learning.minilm import minilm_folder
from splitrank.learning.trunk import trunk_outputs

LABELS = ["a", "b", "c", "d"]
TRAINING = client.TrainingConfig(
    learning_rate=5e-4,
    batch_size=32,
    schedule="constant",
    weight_decay=0.0,
    max_grad_norm=1.0,
    local_epochs=1,
    num_rounds=1,
)


@pytest.mark.real
def test_an_epoch_takes_less_than_half_of_pefts():
    """Some five to eight times less on an idle machine; half leaves room for a busy one."""
    cpu = torch.device("cpu")
    encoder = load_encoder(
        "minilm", "last:3", LABELS, precision=resolve_precision("auto", cpu), device=cpu, max_length=128
    )
    ids = np.random.default_rng(0).integers(1000, 30_000, (96, 54), dtype=np.int32)
    labels, rows = np.arange(len(ids)) % len(LABELS), np.arange(len(ids))
    outputs = trunk_outputs(encoder, list(ids), limit_bytes=1e9, what="texts")
    adapted = attach(encoder, Lora(("query", "value"), scaling=2.0))
    start = initial(adapted, trained_head(adapted, "full"))
    adapter = adapted.method.resize(start, 8, distribution="svd", seed=0, round=1)
    task = Task(
        location=str(minilm_folder()),
        client_texts=[],
        client_labels=[list(range(len(LABELS)))],
        test_texts=[],
        test_labels=[],
        layers=(3, 4, 5),
        rank=8,
        learning_rate=5e-4,
        batch_size=32,
        max_length=128,
        seed=0,
        rounds=1,
    )
    rival = load_trainee(task, "expert")
    draws = np.random.default_rng(0)

    def ours() -> None:
        client.train_client(adapted, client.Task(adapter, seed=0, round=1, client=0), outputs, rows, labels, TRAINING)

    def theirs() -> None:
        rival.train_epoch(ids.tolist(), labels, learning_rate=5e-4, batch_size=32, draws=draws)

    pairs = alternate(ours, theirs, repeats=5)
    outputs.close()
    assert pairs.ratio > 2.0, str(pairs)
