"""What a client does in a round: train the shared adapter on its own texts; and how a model is judged."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional

from splitrank import streams
from splitrank.errors import RunError
from splitrank.learning.adapters import lora
from splitrank.learning.adapters.lora import Adapter
from splitrank.learning.encoder import Encoder
from splitrank.learning.trunk import BATCH_TOKENS, TrunkOutputs, length_batches
from splitrank.progress import track

# Batches are cut from windows of this many batches sorted by length, so that little padding is computed.
_WINDOW_BATCHES = 16


@dataclass(frozen=True)
class Training:
    """How a client trains.

    Attributes:
        learning_rate: AdamW's peak rate, greater than 0.
        batch_size: texts per step, at least 1.
        schedule: ``"constant"``, or ``"linear"`` down to 0 at the end of the run.
        weight_decay: AdamW's decoupled decay, 0 or greater.
        max_grad_norm: gradients are scaled down to this L2 norm, greater than 0.
        local_epochs: passes over the client's texts in a round.
        num_rounds: rounds of the whole run, which the schedule spans.
    """

    learning_rate: float
    batch_size: int
    schedule: Literal["constant", "linear"]
    weight_decay: float
    max_grad_norm: float
    local_epochs: int
    num_rounds: int


@dataclass(frozen=True, eq=False)
class Update:
    """What a client returns: its adapter, the mean loss over the texts it trained on, and how many it has.

    ``local_head`` stays on the client (``model.head = "local"``); ``wall`` is what the round really took on a real
    machine, under names that contain ``wall``.
    """

    adapter: Adapter
    train_loss: float
    num_samples: int
    local_head: Mapping[str, Tensor]
    wall: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Pace:
    """How fast a real machine may work, and until when; neither changes what is learnt.

    Attributes:
        slowdown: how many times as long it is to take, by resting between steps, so that a machine whose clock cannot
            be set works as if it had been; 1 for as fast as it can.
        planned_s: seconds beyond which it rests no more, however much it is behind that.
        stop_at_s: moment of ``time.monotonic()`` at which training is given up; infinite for never.
        rested_s: seconds that it has rested.
    """

    slowdown: float = 1.0
    planned_s: float = math.inf
    stop_at_s: float = math.inf
    rested_s: float = 0.0

    def keep(self, started_s: float, share_done: float) -> None:
        """Rest until a step is due to be over, or give up.

        Raises:
            RunError: time ran out.
        """
        now_s = time.monotonic()
        taken_s = now_s - started_s
        due_s = min(self.planned_s * share_done, self.slowdown * (taken_s - self.rested_s))
        if due_s > taken_s:
            time.sleep(due_s - taken_s)
            self.rested_s += time.monotonic() - now_s
        if time.monotonic() > self.stop_at_s:
            raise RunError("the round's time was over before the training was; it was given up")


FULL_SPEED = Pace()
"""Never rests, and so never changes."""


@dataclass(frozen=True)
class Evaluation:
    """How a model does on labelled texts, all dimensionless shares but ``loss`` [nats per text]."""

    accuracy: float
    loss: float
    macro_f1: float
    worst_client_accuracy: float


def learning_rate_factor(schedule: str, step: int, num_steps: int) -> float:
    """Share of the peak learning rate at a step of the run, counted from 0."""
    return 1.0 if schedule == "constant" else 1.0 - step / num_steps


def shuffled_batches(
    lengths: NDArray[np.int64], batch_size: int, draws: np.random.Generator
) -> list[NDArray[np.int64]]:
    """One epoch of batches in random order, each of texts of similar length.

    Returns:
        index arrays, all of ``batch_size`` but the last one cut.
    """
    order = draws.permutation(len(lengths))
    window = _WINDOW_BATCHES * batch_size
    batches = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return [batches[index] for index in draws.permutation(len(batches))]


def train(
    encoder: Encoder,
    peft_model: PeftModel,
    adapter: Adapter,
    texts: TrunkOutputs,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    training: Training,
    *,
    seed: int,
    round: int,
    client: int,
    local_head: Mapping[str, Tensor],
    pace: Pace = FULL_SPEED,
) -> Update:
    """Train one client for one round with AdamW (Loshchilov and Hutter, ICLR 2019), its moments starting at zero.

    The paper names neither optimiser nor batch size; these are our choices. Order and dropout come from the streams
    (seed, "batches" | "dropout", round, client).

    Args:
        encoder, peft_model: the model that all clients share; it holds this client's adapter afterwards.
        adapter: the global adapter of the round.
        texts: trunk outputs of all training texts.
        rows: this client's rows of ``texts``, int64, shape (num_samples,).
        labels: class indices of all training texts, int64.
        training: see :class:`Training`.
        seed, round, client: key of the streams.
        local_head: this client's own head, empty unless ``model.head = "local"``.
        pace: see :class:`Pace`.

    Raises:
        RunError: the loss or a weight is no longer finite, or time ran out.
    """
    parameters = lora.load(peft_model, adapter, local_head)
    train_loss = descend(
        encoder, parameters, texts, rows, labels, training, seed=seed, round=round, client=client, pace=pace
    )
    return Update(
        adapter=lora.read(peft_model, adapter),
        train_loss=train_loss,
        num_samples=len(rows),
        local_head=lora.read_head(peft_model, list(local_head)),
    )


def descend(
    encoder: Encoder,
    parameters: Sequence[nn.Parameter],
    texts: TrunkOutputs,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    training: Training,
    *,
    seed: int,
    round: int,
    client: int,
    pace: Pace = FULL_SPEED,
) -> float:
    """The steps of one client's round, on the parameters as they stand in the encoder's model.

    Args:
        parameters: what is trained.
        encoder, texts, rows, labels, training, seed, round, client, pace: as in :func:`train`.

    Returns:
        the mean loss over the texts trained on [nats].

    Raises:
        RunError: the loss or a weight is no longer finite, or time ran out.
    """
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)
    draws = streams.generator(seed, "batches", round, client)
    epochs = [shuffled_batches(texts.lengths[rows], training.batch_size, draws) for _ in range(training.local_epochs)]
    batches = [rows[batch] for epoch in epochs for batch in epoch]
    num_steps = training.num_rounds * len(batches)
    device = encoder.model.device
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    if not encoder.model.training:  # switching visits every module
        encoder.model.train()
    cuda = [device] if device.type == "cuda" else []
    started_s, num_done = time.monotonic(), 0
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(streams.integer(seed, "dropout", round, client))
        description = f"round {round}, client {client}"
        for step, batch in enumerate(track(batches, description, total=len(batches)), (round - 1) * len(batches)):
            hidden, lengths = texts.read(batch)
            logits = encoder.logits(hidden.to(device), lengths)
            loss = functional.cross_entropy(logits, torch.from_numpy(labels[batch]).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * learning_rate_factor(training.schedule, step, num_steps)
            optimizer.step()
            loss_sum += loss.detach().double() * len(batch)
            num_done += 1
            pace.keep(started_s, num_done / len(batches))
    train_loss = float(loss_sum) / sum(len(batch) for batch in batches)
    if not math.isfinite(train_loss + float(torch.nn.utils.get_total_norm(parameters))):
        raise RunError(
            f"The loss and weights of client {client} in round {round} must be finite, got a loss of {train_loss}; "
            f"try a train.learning_rate below {training.learning_rate:g}"
        )
    return train_loss


@torch.no_grad()
def predict_logits(encoder: Encoder, texts: TrunkOutputs, rows: NDArray[np.int64], what: str) -> NDArray[np.float32]:
    """Class scores of cached texts by the model as it stands, float32, shape (len(rows), num_labels)."""
    encoder.model.eval()
    device = encoder.model.device
    scores = np.zeros((len(rows), encoder.model.config.num_labels), dtype=np.float32)
    batches = list(length_batches(texts.lengths[rows], BATCH_TOKENS))
    for batch in track(batches, what, total=len(batches)):
        hidden, lengths = texts.read(rows[batch])
        scores[batch] = encoder.logits(hidden.to(device), lengths).cpu().numpy()
    return scores


def judge(logits: NDArray[np.float32], labels: NDArray[np.int64], shares: Sequence[NDArray[np.int64]]) -> Evaluation:
    """Accuracy, mean cross-entropy, macro-averaged F1 and the worst client's accuracy.

    Args:
        logits: class scores, shape (num_texts, num_labels).
        labels: class indices, shape (num_texts,).
        shares: rows of the test split that stand for each client; a client without any is left out.

    Raises:
        RunError: the loss is not finite.
    """
    predicted = logits.argmax(axis=1)
    right = predicted == labels
    log_probabilities = torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    f1_scores = []
    for label in np.union1d(np.unique(labels), np.unique(predicted)):
        hits = int(np.sum(right & (labels == label)))
        f1_scores.append(2 * hits / (int(np.sum(predicted == label)) + int(np.sum(labels == label))))
    loss = float(-log_probabilities[np.arange(len(labels)), labels].mean())
    if not math.isfinite(loss):
        raise RunError(f"The loss on the test texts must be finite, got {loss}; try a smaller train.learning_rate")
    return Evaluation(
        accuracy=float(right.mean()),
        loss=loss,
        macro_f1=float(np.mean(f1_scores)),
        worst_client_accuracy=min(float(right[rows].mean()) for rows in shares if len(rows)),
    )
