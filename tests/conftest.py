"""Tiny random encoders built in place, real weights and real news where a test asks for them."""

from __future__ import annotations

import os

# Read once when the libraries are imported: no test may try the network.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizerFast

# Tiny tensors are quicker on one thread.
torch.set_num_threads(1)

WORDS = "the a of to in market team game stock court chip storm price vote goal data rain bank law code".split()  # noqa: SIM905
TINY_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
TINY_FAMILIES = ("roberta", "xlm-roberta", "camembert", "bert", "mpnet", "distilbert")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the caches of the person who runs it, nor any network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg-cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "xdg-data"))


def _save_tiny(family: str, folder: Path) -> None:
    sizes = dict(TINY_SIZES)
    if family == "distilbert":
        sizes = {
            **{key: sizes[key] for key in ("vocab_size", "max_position_embeddings", "pad_token_id")},
            **{"dim": 32, "n_layers": 6, "n_heads": 4, "hidden_dim": 48},
        }
    elif family == "bert":
        sizes["hidden_act"] = "gelu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **sizes, num_labels=4))
        with torch.no_grad():  # HF's initial weights are too small for attention to matter
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    # Save the encoder alone, so that loading starts with a new head, as it does with pretrained weights.
    model.base_model.save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a family's name to a folder with a tiny random encoder of it."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: str = "roberta") -> Path:
        path = root / family
        if not path.exists():
            path.mkdir()
            _save_tiny(family, path)
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv and test.csv: four classes, told apart by the words that each prefers."""
    import numpy as np

    folder = tmp_path_factory.mktemp("texts")
    draws = np.random.default_rng(5)
    for split, per_class in (("train", 48), ("test", 16)):
        lines = ["text,label"]
        for label in range(4):
            own = WORDS[5 + 3 * label : 8 + 3 * label]
            for _ in range(per_class):
                words = [*draws.choice(own, 3), *draws.choice(WORDS, int(draws.integers(2, 12)))]
                lines.append(f"{' '.join(draws.permutation(words))},class-{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_settings(tiny_model: Callable[[str], Path], tiny_texts: Path) -> str:
    """Settings of a run that takes a second: the tiny encoder, the tiny texts, budgets that bind."""
    return f"""
[model]
name = "{tiny_model("roberta")}"
max_length = 32

[data]
path = "{tiny_texts}"

[federation]
rounds = 4

[train]
learning_rate = 5e-3
batch_size = 8

[client]
capacitance = 1e-25
max_frequency_hz = {{ uniform = [1e8, 2e8] }}
circuit_energy_j = 0.1

[radio]
bandwidth_hz = 1e6
noise_power_w = 1e-6

[budget]
latency_s = 0.3
energy_j = 0.12

[run]
threads = 1
"""


@pytest.fixture
def tiny_config(tiny_settings: str, tmp_path: Path) -> Path:
    """A configuration file with the tiny settings."""
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_settings)
    return path


@pytest.fixture
def agnews() -> Path:
    """The folder of AG News in its headerless form; in CI its absence is a failure."""
    shared = os.environ.get("SPLITRANK_SHARED")
    folder = Path(shared) / "data" / "agnews" if shared else None
    if folder is None or not folder.is_dir():
        message = "SPLITRANK_SHARED must name the folder that holds data/agnews"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
