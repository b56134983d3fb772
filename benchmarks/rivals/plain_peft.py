"""Centralised PEFT as someone who knows Hugging Face would write it: no federation, no cache, no planner.

The whole network runs in every step, in bf16 autocast where the processor has it, padded to the longest text of a
batch, batches cut from windows sorted by length (what the Trainer calls grouping by length).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from benchmarks.rivals.task import Task


def load_peft(task: Task, **options: object) -> tuple[PreTrainedTokenizerBase, PeftModel]:
    """A classifier with LoRA on query and value of some layers and a trained head; ``options`` go to the loader."""
    logging.set_verbosity_error()  # the new head is meant to be new
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(task.location)
    model = AutoModelForSequenceClassification.from_pretrained(task.location, num_labels=task.num_labels, **options)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=task.rank,
        lora_alpha=2 * task.rank,
        target_modules=["query", "value"],
        layers_to_transform=list(task.layers),
    )
    return tokenizer, get_peft_model(model, config)


def grouped_batches(lengths: np.ndarray, batch_size: int, draws: np.random.Generator) -> list[np.ndarray]:
    """One epoch of shuffled batches whose texts have similar lengths."""
    order = draws.permutation(len(lengths))
    window = 50 * batch_size
    windows = [order[start : start + window] for start in range(0, len(order), window)]
    ordered = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in windows])
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return [batches[index] for index in draws.permutation(len(batches))]


def train_centralised(task: Task, *, bf16: bool) -> float:
    """Train LoRA and the head on all clients' texts at once, ``rounds`` epochs; return the test accuracy."""
    torch.manual_seed(task.seed)
    draws = np.random.default_rng(task.seed)
    tokenizer, model = load_peft(task)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=task.learning_rate)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), truncation=True, max_length=task.max_length)["input_ids"]

    def logits(ids: list[list[int]], rows: np.ndarray) -> torch.Tensor:
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return model(**batch).logits.float()

    ids = encode([text for texts in task.client_texts for text in texts])
    labels = np.concatenate([np.array(labels) for labels in task.client_labels])
    lengths = np.array([len(row) for row in ids])
    model.train()
    for _ in range(task.rounds):
        for rows in grouped_batches(lengths, task.batch_size, draws):
            loss = functional.cross_entropy(logits(ids, rows), torch.from_numpy(labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    model.eval()
    ids, labels = encode(task.test_texts), np.array(task.test_labels)
    order = np.argsort([len(row) for row in ids], kind="stable")
    right = 0
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            right += int((logits(ids, rows).argmax(dim=1).numpy() == labels[rows]).sum())
    return right / len(labels)
