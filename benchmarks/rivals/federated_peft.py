"""Federated averaging written around PEFT and Hugging Face by hand: one process, one model, no cache, no planner.

The whole network runs in every step. Three ways of feeding it are measured against:

- ``expert``: bf16 autocast where the processor has it, batches of similar lengths padded to their longest text,
  evaluation in batches of 64 sorted by length;
- ``common``: float32, every text padded to ``max_length``, random batches, evaluation in batches of 32;
- ``tuned``: ``expert`` with two settings that few look for on a processor: frozen weights held in bf16, which saves
  autocast a conversion in every step, and attention as plain matrix products.

All else is the libraries' default, the model's dropout and the optimiser's weight decay among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from benchmarks.rivals.plain_peft import grouped_batches, load_peft
from benchmarks.rivals.task import Task


@dataclass(frozen=True)
class Style:
    """How texts are fed to the model.

    Attributes:
        bf16: bf16 autocast, where the processor has it.
        by_length: pad to the longest text of a batch and batch texts of similar lengths; else pad to ``max_length``.
        evaluation_batch: texts per batch of an evaluation.
        bf16_weights: hold the frozen weights in bf16 too.
        attention: Hugging Face's ``attn_implementation``.
    """

    bf16: bool
    by_length: bool
    evaluation_batch: int
    bf16_weights: bool = False
    attention: str = "sdpa"


STYLES = {
    "expert": Style(bf16=True, by_length=True, evaluation_batch=64),
    "common": Style(bf16=False, by_length=False, evaluation_batch=32),
}
STYLES["tuned"] = replace(STYLES["expert"], bf16_weights=True, attention="eager")


@dataclass(frozen=True, eq=False)
class Trainee:
    """The one model, which every client trains in turn."""

    tokenizer: PreTrainedTokenizerBase
    model: PeftModel
    style: Style
    max_length: int

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut to ``max_length``, not padded yet."""
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]

    def state(self) -> dict[str, Tensor]:
        """A copy of what is trained and sent: the LoRA factors and the head."""
        return {name: part.detach().clone() for name, part in self.model.named_parameters() if part.requires_grad}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set what is trained."""
        for name, part in self.model.named_parameters():
            if part.requires_grad:
                part.copy_(state[name])

    def logits(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Class scores of one batch."""
        padding = "longest" if self.style.by_length else "max_length"
        batch = self.tokenizer.pad(
            {"input_ids": list(ids)}, padding=padding, max_length=self.max_length, return_tensors="pt"
        )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.style.bf16):
            return self.model(**batch).logits.float()

    def train_epoch(
        self,
        ids: Sequence[Sequence[int]],
        labels: np.ndarray,
        *,
        learning_rate: float,
        batch_size: int,
        draws: np.random.Generator,
    ) -> None:
        """One pass over one client's texts with an optimiser of its own."""
        trained = [part for part in self.model.parameters() if part.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, fused=True)
        if self.style.by_length:
            batches = grouped_batches(np.array([len(row) for row in ids]), batch_size, draws)
        else:
            order = draws.permutation(len(ids))
            batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        self.model.train()
        for rows in batches:
            loss = functional.cross_entropy(self.logits([ids[row] for row in rows]), torch.from_numpy(labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.inference_mode()
    def accuracy(self, ids: Sequence[Sequence[int]], labels: np.ndarray) -> float:
        """Share of the texts classified rightly."""
        self.model.eval()
        lengths = [len(row) for row in ids]
        order = np.argsort(lengths, kind="stable") if self.style.by_length else np.arange(len(ids))
        right = 0
        for start in range(0, len(order), self.style.evaluation_batch):
            rows = order[start : start + self.style.evaluation_batch]
            predicted = self.logits([ids[row] for row in rows]).argmax(dim=1).numpy()
            right += int((predicted == labels[rows]).sum())
        return right / len(labels)


def load_trainee(task: Task, style: str) -> Trainee:
    """Load the model once and put LoRA on it."""
    chosen = STYLES[style]
    if chosen.bf16 and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        chosen = replace(chosen, bf16=False, bf16_weights=False)
    torch.manual_seed(task.seed)
    tokenizer, model = load_peft(
        task,
        dtype=torch.bfloat16 if chosen.bf16_weights else torch.float32,
        attn_implementation=chosen.attention,
    )
    for part in model.parameters():
        if part.requires_grad:
            part.data = part.data.float()
    return Trainee(tokenizer, model, chosen, task.max_length)


def fedavg(states: Sequence[Mapping[str, Tensor]], num_samples: Sequence[int]) -> dict[str, Tensor]:
    """Average by number of samples."""
    shares = [count / sum(num_samples) for count in num_samples]
    return {name: sum(share * state[name] for share, state in zip(shares, states, strict=True)) for name in states[0]}


def train_federated(task: Task, style: str) -> list[float]:
    """Train for some rounds of one local epoch per client; return the test accuracy after each round."""
    trainee = load_trainee(task, style)
    client_ids = [trainee.tokenize(texts) for texts in task.client_texts]
    client_labels = [np.array(labels) for labels in task.client_labels]
    test_ids, test_labels = trainee.tokenize(task.test_texts), np.array(task.test_labels)
    draws = np.random.default_rng(task.seed)
    state = trainee.state()
    accuracies = []
    for _ in range(task.rounds):
        updates = []
        for ids, labels in zip(client_ids, client_labels, strict=True):
            trainee.load(state)
            trainee.train_epoch(ids, labels, learning_rate=task.learning_rate, batch_size=task.batch_size, draws=draws)
            updates.append(trainee.state())
        state = fedavg(updates, [len(ids) for ids in client_ids])
        trainee.load(state)
        accuracies.append(trainee.accuracy(test_ids, test_labels))
    return accuracies
