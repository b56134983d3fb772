"""The result in PEFT's own format, and predictions from it by plain PEFT and transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from splitrank.config import load_config
from splitrank.errors import InputError
from splitrank.federation.in_process import InProcessClients
from splitrank.federation.rounds import State
from splitrank.files import folder_built_atomically
from splitrank.learning.adapters import lora
from splitrank.learning.encoder import model_location
from splitrank.learning.table_files import read_table
from splitrank.learning.text_rules import columns_wanted, texts_of
from splitrank.learning.trunk import BATCH_TOKENS, length_batches
from splitrank.progress import track


def export_adapter(clients: InProcessClients, state: State, path: Path) -> None:
    """Write ``adapter/``: loads with ``AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=N)``.

    Beside PEFT's two files it holds the tokenizer and the model's configuration with the label names. With local
    heads there is one such folder per client in it.
    """
    with folder_built_atomically(path) as building:
        if not state.local_heads:
            lora.load(clients.peft_model, state.adapter)
            _save(clients, building)
        for client, head in state.local_heads.items():
            lora.load(clients.peft_model, state.adapter, head)
            _save(clients, building / f"client-{client}")


def _save(clients: InProcessClients, folder: Path) -> None:
    clients.peft_model.save_pretrained(str(folder))
    clients.encoder.tokenizer.save_pretrained(str(folder))
    clients.encoder.model.config.save_pretrained(str(folder))


@dataclass(frozen=True)
class Prediction:
    """A text's class: ``label``, and the ``probability`` the model gives it, 0 to 1."""

    label: str
    probability: float


def predict(run: Path, texts: Sequence[str]) -> Iterator[Prediction]:
    """Classify texts with a finished run's adapter.

    Args:
        run: a run folder, or one of the adapter folders in it.
        texts: at least one.

    Raises:
        InputError: there is no adapter, or its base model is not to be found.
    """
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    adapter, config_path = _adapter_folder(run)
    max_length = None
    if config_path is not None:
        config = load_config(str(config_path))
        max_length = config.model.max_length
        model_location(config.model.name)  # the offline encoder is made again should it be gone
    labels = {int(k): v for k, v in json.loads((adapter / "config.json").read_text())["id2label"].items()}
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PEFT uses an old name in Transformers
            model = AutoPeftModelForSequenceClassification.from_pretrained(str(adapter), num_labels=len(labels))
    except OSError as error:
        raise InputError(f"The base model of {adapter} must be where it was trained from, got: {error}") from None
    tokenizer = AutoTokenizer.from_pretrained(str(adapter))
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    probabilities = np.zeros((len(ids), len(labels)), dtype=np.float64)
    batches = list(length_batches(lengths, BATCH_TOKENS))
    model.eval()
    with torch.inference_mode():
        for batch in track(batches, "predicting", total=len(batches)):
            encoded = tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt")
            probabilities[batch] = torch.softmax(model(**encoded).logits.double(), dim=-1).numpy()
    for row in probabilities:
        yield Prediction(labels[int(row.argmax())], float(row.max()))


def texts_of_file(run: Path, file: Path) -> list[str]:
    """Texts of a file to classify, from the columns that the run was trained on."""
    _, config_path = _adapter_folder(run)
    columns = load_config(str(config_path)).data.text if config_path else None
    text = list(columns) if columns else None
    return texts_of(read_table(file, columns_wanted(text, None)), text)


def _adapter_folder(run: Path) -> tuple[Path, Path | None]:
    """The adapter's folder, and the run's config.toml if it is at hand."""
    if (run / "adapter_config.json").is_file():
        above = [parent / "config.toml" for parent in run.resolve().parents[:2]]
        return run, next((path for path in above if path.is_file()), None)
    adapter = run / "adapter"
    if (adapter / "adapter_config.json").is_file():
        return adapter, run / "config.toml"
    if (adapter / "client-0" / "adapter_config.json").is_file():
        raise InputError(
            f'{run} has a model per client (model.head = "local"); choose one, such as {adapter / "client-0"}'
        )
    if (run / "config.toml").is_file():
        hint = f"splitrank run --resume --out {run}"
        raise InputError(f"{run} must be a finished run, got one without adapter/; finish it with: {hint}")
    raise InputError(f"RUN_DIR must be the folder of a run, got {run}")
