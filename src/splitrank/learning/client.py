"""Local training: train one client for a round, the shared adapter on its own texts; and evaluate a model.

:func:`train_client` is where every client trains, in one process as over Flower; :func:`train_epochs` has the steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from splitrank import streams
from splitrank.errors import RunError
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.method import (
    AdaptedEncoder,
    LocalTerms,
    Parameters,
    freeze_unselected,
    load,
    read,
    read_tensors,
)
from splitrank.learning.adapters.selection import Index, Select, everything, outside
from splitrank.learning.trunk import BATCH_TOKENS, TrunkOutputs, length_batches
from splitrank.progress import track

# Batches are cut from windows of this many batches sorted by length, so that little padding is computed.
_WINDOW_BATCHES = 16


@dataclass(frozen=True)
class TrainingConfig:
    """How a client trains.

    Attributes:
        learning_rate: AdamW's peak rate, greater than 0.
        batch_size: texts per step, at least 1.
        schedule: ``"constant"``, or ``"linear"`` down to 0 at the end of the run.
        weight_decay: AdamW's decoupled decay, 0 or greater.
        max_grad_norm: gradients are scaled down to this L2 norm, greater than 0.
        local_epochs: passes over the client's texts in a round.
        num_rounds: rounds of the whole run, which the schedule spans.
        class_weights: ``"none"``, or ``"balanced"`` by :func:`balanced_class_weights` of the client's own labels.
    """

    learning_rate: float
    batch_size: int
    schedule: Literal["constant", "linear"]
    weight_decay: float
    max_grad_norm: float
    local_epochs: int
    num_rounds: int
    class_weights: Literal["none", "balanced"] = "none"


@dataclass(frozen=True, eq=False)
class Update:
    """A client's result: its adapter, the mean loss over the texts it trained on, and how many it has.

    The loss is the plain cross-entropy, without class weights or penalties, so it compares with other settings.

    ``personal`` stays on the client: tensors that are trained and not sent. ``wall`` is what the round really took on a
    real machine, under names that contain ``wall``; ``notes`` is what else the record says of the client.
    """

    adapter: Adapter
    train_loss: float
    num_samples: int
    personal: Mapping[str, Tensor]
    wall: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A client's task in a round.

    Attributes:
        start: the adapter to start from.
        seed, round, client: key of the streams.
        turn: rounds aggregated so far.
        personal: the client's own tensors, trained but not shared, by name.
        select: which numbers it trains; see :mod:`adapters.selection`.
        terms: what the method and the rule add to its steps.
    """

    start: Adapter
    seed: int
    round: int
    client: int
    turn: int = 0
    personal: Mapping[str, Tensor] = field(default_factory=dict)
    select: Select = everything
    terms: Sequence[LocalTerms] = ()


@dataclass
class Throttle:
    """How fast a real machine may work, and until when; neither changes what is learnt.

    Attributes:
        slowdown: how many times as long it must take, by resting between steps, so that a machine whose clock cannot
            be set works as if it had been; 1 for as fast as it can.
        planned_s: seconds beyond which it rests no more, however much it is behind that.
        stop_at_s: moment of ``time.monotonic()`` at which training is given up; infinite for never.
        rested_s: seconds that it has rested.
    """

    slowdown: float = 1.0
    planned_s: float = math.inf
    stop_at_s: float = math.inf
    rested_s: float = 0.0

    def wait(self, started_s: float, share_done: float) -> None:
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


FULL_SPEED = Throttle()
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


def balanced_class_weights(labels: NDArray[np.int64], num_labels: int) -> Tensor:
    """Return the weight of each class in a client's cross-entropy, rare classes counting as much as common ones.

        w_c = n / (C·n_c),  and 0 where n_c = 0

    King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001, and scikit-learn's "balanced".
    The counts are the client's own: those of the federation would have to be gathered from the clients, and how many
    texts of a class somebody has is as private as the texts. So a client whose classes are skewed balances those that
    it has, which is another loss than the federation's balanced one unless all have the same class shares.

    Args:
        labels: the client's class indices, int64, shape (n,), n at least 1.
        num_labels: C, classes of the run; as a factor of all weights it cancels in the weighted mean.

    Returns:
        float32, shape (num_labels,).
    """
    counts = np.bincount(labels, minlength=num_labels)
    weights = np.divide(len(labels), num_labels * counts, out=np.zeros(num_labels), where=counts > 0)
    return torch.from_numpy(weights).float()


def shuffled_batches(
    lengths: NDArray[np.int64], batch_size: int, draws: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return one epoch of batches in random order, each of texts of similar length.

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


def train_client(
    adapted: AdaptedEncoder,
    task: Task,
    texts: TrunkOutputs,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    training: TrainingConfig,
    *,
    throttle: Throttle = FULL_SPEED,
) -> Update:
    """Train one client for one round with AdamW (Loshchilov and Hutter, ICLR 2019), its moments starting at zero.

    The paper names neither optimiser nor batch size; these are our choices. Order and dropout come from the streams
    (seed, "batches" | "dropout", round, client). Numbers that are not selected keep the value that they start from.

    Args:
        adapted: the model that all clients share; it holds this client's adapter afterwards.
        task: what is asked; see :class:`Task`.
        texts: trunk outputs of all training texts.
        rows: this client's rows of ``texts``, int64, shape (num_samples,).
        labels: class indices of all training texts, int64.
        training: see :class:`TrainingConfig`.
        throttle: see :class:`Throttle`.

    Raises:
        RunError: the loss or a weight is no longer finite, or time ran out.
    """
    loaded = load(adapted, task.start, task.personal)
    parameters, partly = freeze_unselected(loaded, task.select, task.client, task.turn)
    mended = [PartlyTrained(parameters[name], index) for name, index in partly.items()]
    train_loss = train_epochs(adapted, parameters, mended, task, texts, rows, labels, training, throttle=throttle)
    return Update(
        adapter=read(adapted, task.start),
        train_loss=train_loss,
        num_samples=len(rows),
        personal=read_tensors(adapted, task.personal, task.start),
    )


class PartlyTrained:
    """A parameter of which only some numbers are trained: the others have no gradient and keep their values."""

    def __init__(self, parameter: nn.Parameter, index: Index) -> None:
        self._parameter, self._fixed = parameter, outside(parameter, index)
        self._values = parameter.detach()[self._fixed].clone()

    def after_backward(self) -> None:
        if self._parameter.grad is not None:
            self._parameter.grad[self._fixed] = 0.0

    def after_step(self) -> None:
        with torch.no_grad():  # weight decay moves what has no gradient, too
            self._parameter[self._fixed] = self._values


def train_epochs(
    adapted: AdaptedEncoder,
    parameters: Parameters,
    partly: Sequence[PartlyTrained],
    task: Task,
    texts: TrunkOutputs,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    training: TrainingConfig,
    *,
    throttle: Throttle = FULL_SPEED,
) -> float:
    """Run the steps of one client's round, on the parameters as they stand in the model.

    A step: backward, the terms' ``after_backward``, clip, step. With class weights w a batch's loss is the weighted
    mean Σ w(y_i)·l_i / Σ w(y_i) of its cross-entropies l_i, as ``torch.nn.CrossEntropyLoss(weight=w)`` defines it.

    Args:
        parameters: what is trained, by name.
        partly: those of which only some numbers are.
        adapted, task, texts, rows, labels, training, throttle: as in :func:`train_client`.

    Returns:
        the mean cross-entropy over the texts trained on [nats], without class weights and penalty.

    Raises:
        RunError: the loss or a weight is no longer finite, or time ran out.
    """
    encoder, trained = adapted.encoder, list(parameters.values())
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)
    draws = streams.generator(task.seed, "batches", task.round, task.client)
    epochs = [shuffled_batches(texts.lengths[rows], training.batch_size, draws) for _ in range(training.local_epochs)]
    batches = [rows[batch] for epoch in epochs for batch in epoch]
    num_steps = training.num_rounds * len(batches)
    device = encoder.model.device
    sums_on = torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs have no float64
    loss_sum = torch.zeros((), dtype=torch.float64, device=sums_on)
    class_weights = None
    if training.class_weights == "balanced":
        class_weights = balanced_class_weights(labels[rows], encoder.model.config.num_labels).to(device)
    if not encoder.model.training:  # switching visits every module
        encoder.model.train()
    cuda = [device] if device.type == "cuda" else []
    started_s, num_done = time.monotonic(), 0
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(streams.integer(task.seed, "dropout", task.round, task.client))
        description = f"round {task.round}, client {task.client}"
        first_step = (task.round - 1) * len(batches)
        for step, batch in enumerate(track(batches, description, total=len(batches)), first_step):
            hidden, lengths = texts.read(batch)
            logits = adapted.logits(hidden.to(device), lengths)
            classes = torch.from_numpy(labels[batch]).to(device)
            loss = functional.cross_entropy(logits, classes)
            weighted = loss if class_weights is None else functional.cross_entropy(logits, classes, class_weights)
            optimizer.zero_grad(set_to_none=True)
            penalties = [term.penalty(parameters, task.start) for term in task.terms if term.penalty]
            sum(penalties, weighted).backward()  # type: ignore[no-untyped-call]
            for part in partly:
                part.after_backward()
            for term in task.terms:
                if term.after_backward:
                    term.after_backward(parameters)
            torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * learning_rate_factor(training.schedule, step, num_steps)
            optimizer.step()
            for part in partly:
                part.after_step()
            loss_sum += loss.detach().to(sums_on).double() * len(batch)
            num_done += 1
            throttle.wait(started_s, num_done / len(batches))
    train_loss = float(loss_sum) / sum(len(batch) for batch in batches)
    if not math.isfinite(train_loss + float(torch.nn.utils.get_total_norm(trained))):
        raise RunError(
            f"The loss and weights of client {task.client} in round {task.round} must be finite, got a loss of "
            f"{train_loss}; try a train.learning_rate below {training.learning_rate:g}"
        )
    return train_loss


@torch.no_grad()
def predict_logits(
    adapted: AdaptedEncoder, texts: TrunkOutputs, rows: NDArray[np.int64], what: str
) -> NDArray[np.float32]:
    """Return class scores of cached texts by the model as it stands, float32, shape (len(rows), num_labels)."""
    encoder = adapted.encoder
    encoder.model.eval()
    device = encoder.model.device
    scores = np.zeros((len(rows), encoder.model.config.num_labels), dtype=np.float32)
    batches = list(length_batches(texts.lengths[rows], BATCH_TOKENS))
    for batch in track(batches, what, total=len(batches)):
        hidden, lengths = texts.read(rows[batch])
        scores[batch] = adapted.logits(hidden.to(device), lengths).cpu().numpy()
    return scores


def classification_metrics(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    shares: Sequence[NDArray[np.int64]],
    class_counts: NDArray[np.int64] | None = None,
) -> Evaluation:
    """Accuracy, mean cross-entropy, macro-averaged F1 and the worst client's accuracy.

    With ``class_counts`` the worst client's accuracy is min_i Σ_c π_ic·acc_c, with acc_c the accuracy on all test texts
    of class c, and π_ic the share that class c has of client i's training texts (of classes that are tested): a share
    of the test texts for each client of very unequal classes would be empty or a handful.

    Args:
        logits: class scores, shape (num_texts, num_labels).
        labels: class indices, shape (num_texts,).
        shares: rows of the test split that stand for each client; a client without any is left out.
        class_counts: training texts of each client in each class, shape (num_clients, num_labels), where one model
            serves clients of unequal classes; None to go by ``shares``.

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
        worst_client_accuracy=_worst_by_class(right, labels, class_counts)
        if class_counts is not None
        else min(float(right[rows].mean()) for rows in shares if len(rows)),
    )


def _worst_by_class(right: NDArray[np.bool_], labels: NDArray[np.int64], class_counts: NDArray[np.int64]) -> float:
    tested = np.bincount(labels, minlength=class_counts.shape[1])
    hits = np.bincount(labels, weights=right, minlength=class_counts.shape[1])
    own = class_counts * (tested > 0)
    own = own[own.sum(axis=1) > 0]
    return float((own @ (hits / np.maximum(tested, 1)) / own.sum(axis=1)).min())
