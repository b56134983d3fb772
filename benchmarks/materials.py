"""What the speed scripts work on: rows of AG News, an encoder of RoBERTa-base's shape, an empty cache."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, RobertaConfig, RobertaModel

from benchmarks.measure import seconds
from splitrank import load_config, load_data
from splitrank.learning.encoder import quiet_transformers
from splitrank.learning.minilm import minilm_folder

FREE_BUDGETS = ["budget.latency_s=1e6", "budget.energy_j=1e9"]
"""Budgets that bind nobody: the rank is fixed, the planner is not what is measured."""


def settings_of_all(encoder: Path, rows: Path, *, clients: int, rounds: int, threads: int) -> list[str]:
    """What splitrank and every rival train: LoRA of rank 8 on query and value, batches of 32."""
    return [
        f'model.name="{encoder}"',
        "model.max_length=128",
        "adapter.rank=8",
        "adapter.target_modules=query-value",
        f'data.path="{rows}"',
        f"federation.num_clients={clients}",
        f"federation.rounds={rounds}",
        "train.batch_size=32",
        f"run.threads={threads}",
        *FREE_BUDGETS,
    ]


def agnews_rows(folder: Path, train_rows: int, test_rows: int) -> Path:
    """A folder with that many rows of AG News, drawn by seed 0, whatever seed a run then takes.

    The environment variable SPLITRANK_SHARED names the folder that holds ``data/agnews``.
    """
    agnews = Path(os.environ["SPLITRANK_SHARED"]) / "data" / "agnews"
    sizes = [f"data.train_rows={train_rows}", f"data.test_rows={test_rows}"]
    data = load_data(load_config("offline", [f'data.path="{agnews}"', *sizes]))
    folder.mkdir()
    for split, texts, labels in (
        ("train", data.train_texts, data.train_labels),
        ("test", data.test_texts, data.test_labels),
    ):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["text", "label"])
            lines.writerows((text, data.label_names[label]) for text, label in zip(texts, labels, strict=True))
    return folder


@quiet_transformers()
def roberta_base_shape(folder: Path) -> Path:
    """A folder with an encoder of RoBERTa-base's size, for want of the real one where there is no network.

    12 layers of 768 with random weights from a fixed seed and the offline encoder's tokenizer. How long it computes
    does not depend on what its weights are; what it learns does, so accuracies mean nothing here.
    """
    known, tokenizer = AutoConfig.from_pretrained(minilm_folder()), AutoTokenizer.from_pretrained(minilm_folder())
    config = RobertaConfig(
        vocab_size=known.vocab_size,
        pad_token_id=known.pad_token_id,
        bos_token_id=known.bos_token_id,
        eos_token_id=known.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def empty_cache() -> Iterator[Path]:
    """Let splitrank find an empty cache for a while; gives a temporary folder, which holds it, for other things."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary) / "cache")
        try:
            yield Path(temporary)
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


def announced(name: str, call: Callable[[], object]) -> Callable[[], None]:
    """The same call, which prints how long it took."""

    def announce() -> None:
        print(f"{name}: {seconds(call):.1f} s", flush=True)

    return announce
