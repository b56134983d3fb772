"""The result in PEFT's own format, and predictions from it by plain PEFT and transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from splitrank.config import load_config
from splitrank.errors import InputError
from splitrank.federation.model import Model
from splitrank.federation.rounds import State
from splitrank.files import folder_built_atomically, write_atomically
from splitrank.learning.adapters import lora
from splitrank.learning.encoder import model_location, quiet_transformers
from splitrank.learning.table_files import read_table
from splitrank.learning.text_rules import columns_wanted, texts_of
from splitrank.learning.trunk import BATCH_TOKENS, length_batches
from splitrank.progress import track


def export_adapter(model: Model, state: State, path: Path) -> None:
    """Write ``adapter/``: loads with ``AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=N)``.

    Beside PEFT's two files it holds the tokenizer and the model's configuration with the label names. With local
    heads there is one such folder per client in it.
    """
    with folder_built_atomically(path) as building:
        if not state.local_heads:
            lora.load(model.peft_model, state.adapter)
            _save(model, building)
        for client, head in state.local_heads.items():
            lora.load(model.peft_model, state.adapter, head)
            _save(model, building / f"client-{client}")


def _save(model: Model, folder: Path) -> None:
    model.peft_model.save_pretrained(str(folder))
    model.encoder.tokenizer.save_pretrained(str(folder))
    model.encoder.model.config.save_pretrained(str(folder))
    labels = model.encoder.label_names
    write_atomically(folder / "README.md", _CARD.format(base=model.encoder.location, n=len(labels), labels=labels))


_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-classification
---

A LoRA adapter and classification head trained by splitrank on `{base}`. Classes: {labels}.

```python
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoConfig, AutoTokenizer

folder = "."  # this folder
model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels={n})
tokenizer = AutoTokenizer.from_pretrained(folder)
label_names = AutoConfig.from_pretrained(folder).id2label
```
"""


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

    adapter, config_path = _adapter_folder(run)
    if config_path is not None:
        model_location(load_config(str(config_path)).model.name)  # makes the offline encoder again should it be gone
    try:
        labels = {int(k): v for k, v in json.loads((adapter / "config.json").read_text())["id2label"].items()}
        tokenizer = AutoTokenizer.from_pretrained(str(adapter))
        # PEFT uses an old name in Transformers.
        with quiet_transformers(), warnings.catch_warnings(action="ignore", category=FutureWarning):
            model = AutoPeftModelForSequenceClassification.from_pretrained(str(adapter), num_labels=len(labels))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        what = str(error).strip().split("\n")[0]
        raise InputError(
            f"{adapter} must be as the run wrote it and its base model where it was, got: {what}"
        ) from None
    ids = tokenizer(list(texts), truncation=True)["input_ids"]
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    probabilities = np.zeros((len(ids), len(labels)), dtype=np.float64)
    batches = list(length_batches(lengths, BATCH_TOKENS))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)
    with torch.inference_mode():
        for batch in track(batches, "predicting", total=len(batches)):
            encoded = tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt").to(device)
            probabilities[batch] = torch.softmax(model(**encoded).logits.double(), dim=-1).cpu().numpy()
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
        config = run / "config.toml"
        return adapter, config if config.is_file() else None
    if run.name == "adapter" and (run / "client-0").is_dir():
        adapter = run
    if (adapter / "client-0" / "adapter_config.json").is_file():
        raise InputError(
            f'{run} has a model per client (model.head = "local"); choose one, such as {adapter / "client-0"}'
        )
    if (run / "config.toml").is_file():
        hint = f"splitrank run --resume --out {run} (a deployment's with its run.sh)"
        raise InputError(f"{run} must be a finished run, got one without adapter/; finish it with: {hint}")
    raise InputError(f"RUN_DIR must be the folder of a run, got {run}")
