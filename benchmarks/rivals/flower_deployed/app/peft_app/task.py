"""What server and clients share: the model, its texts, training and testing."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

Config = dict[str, Any]


def load_model(config: Config) -> tuple[PreTrainedTokenizerBase, PeftModel]:
    """The encoder with LoRA on query and value of some layers, and a head."""
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    tokenizer = AutoTokenizer.from_pretrained(config["encoder"])
    model = AutoModelForSequenceClassification.from_pretrained(config["encoder"], num_labels=config["labels"])
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config["rank"],
        lora_alpha=2 * config["rank"],
        target_modules=["query", "value"],
        layers_to_transform=[int(layer) for layer in config["layers"].split()],
    )
    return tokenizer, get_peft_model(model, lora)


def get_arrays(model: PeftModel) -> ArrayRecord:
    """Adapter and head."""
    return ArrayRecord(get_peft_model_state_dict(model))


def set_arrays(model: PeftModel, arrays: ArrayRecord) -> None:
    """Put adapter and head into the model."""
    set_peft_model_state_dict(model, arrays.to_torch_state_dict())


def load_texts(file: str) -> tuple[list[str], Tensor]:
    """Texts and class numbers of a CSV file."""
    with Path(file).open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [row["text"] for row in rows], torch.tensor([int(row["label"]) for row in rows])


def _batches(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], labels: Tensor, order: Tensor, config: Config
) -> Iterator[tuple[Any, Tensor]]:
    for rows in order.split(config["batch-size"]):
        chosen = [texts[row] for row in rows]
        batch = tokenizer(
            chosen, truncation=True, max_length=config["max-length"], padding="longest", return_tensors="pt"
        )
        yield batch, labels[rows]


def train_epoch(
    tokenizer: PreTrainedTokenizerBase, model: PeftModel, texts: list[str], labels: Tensor, config: Config
) -> None:
    """One pass over the texts."""
    optimizer = torch.optim.AdamW(
        (part for part in model.parameters() if part.requires_grad), lr=config["learning-rate"]
    )
    model.train()
    for batch, expected in _batches(tokenizer, texts, labels, torch.randperm(len(texts)), config):
        loss = functional.cross_entropy(model(**batch).logits, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def accuracy(
    tokenizer: PreTrainedTokenizerBase, model: PeftModel, texts: list[str], labels: Tensor, config: Config
) -> float:
    """Share of the texts classified rightly."""
    model.eval()
    right = 0
    for batch, expected in _batches(tokenizer, texts, labels, torch.arange(len(texts)), config):
        right += int((model(**batch).logits.argmax(dim=1) == expected).sum())
    return right / len(texts)
