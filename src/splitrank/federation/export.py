"""The result of a run in PEFT's or transformers' own format, and predictions from it by these alone.

What neither has a place for is written in a format of splitrank's own: ``splitrank.safetensors``, the adapter's tensors
with the head's, and ``splitrank.json``, which says how they go into the base model. Predictions then need splitrank.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitrank.config import load_config
from splitrank.errors import InputError, check_types
from splitrank.federation.data import table_format
from splitrank.federation.export_forms import EXPORTS, has_personal
from splitrank.federation.model import Model, untrained_personal
from splitrank.federation.state import State
from splitrank.files import folder_built_atomically, write_atomically
from splitrank.learning.adapters.adapter import Adapter, is_ranked
from splitrank.learning.adapters.merged import as_one_adapter
from splitrank.learning.adapters.method import attach, load
from splitrank.learning.adapters.methods import make_method
from splitrank.learning.device import available_devices, resolve_device
from splitrank.learning.encoder import load_encoder, model_location, quiet_transformers
from splitrank.learning.table import TableFormat
from splitrank.learning.table_files import read_table
from splitrank.learning.text_rules import columns_wanted, texts_of
from splitrank.learning.trunk import BATCH_TOKENS, length_batches
from splitrank.progress import track
from splitrank.traits import TRAINED_ADAPTER

LABELS = "labels.json"
"""File beside an adapter: a list of the label names in the order of the classes."""

OWN_TENSORS, OWN_SETTINGS = "splitrank.safetensors", "splitrank.json"
"""Files of an adapter in splitrank's own format."""

_OWN_FORMAT = 1


def export(model: Model, state: State, run: Path) -> Path:
    """Write the result into a run folder, in the form of the run's method.

    ``adapter/`` loads with ``AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=N)``, and as
    ``model/`` with ``AutoModelForSequenceClassification.from_pretrained(path)`` and in ``pipeline``; its card says how
    to pass its label names, ``labels.json``. A config.json beside an adapter would tell transformers that the folder
    holds a whole model. An adapter that PEFT does not have is for :func:`predict` alone. With personal tensors there is
    one such folder per client in it.

    Returns:
        the folder written.
    """
    path = run / EXPORTS[model.method.traits.export]
    write = {"peft": _save_adapter, "model": _save_model, "splitrank": _save_own}[model.method.traits.export]
    with folder_built_atomically(path) as building:
        if not state.local:  # PEFT wants a B beside A, zeros where B has stayed on the clients
            factors = {n: t for n, t in untrained_personal(model, state.adapter.rank).items() if is_ranked(n)}
            write(model, state.adapter, factors, building)
        for client, personal in state.local.items():
            write(model, state.adapter, personal, building / f"client-{client}")
    return path


def _save_adapter(model: Model, adapter: Adapter, personal: Mapping[str, Tensor], folder: Path) -> None:
    peft_model = model.adapted.peft_model
    assert peft_model is not None
    load(model.adapted, adapter, personal)
    with as_one_adapter(model.encoder, peft_model, adapter):
        peft_model.save_pretrained(str(folder))
    _name_magnitudes(folder / "adapter_model.safetensors")
    write_atomically(folder / LABELS, json.dumps(model.encoder.label_names, indent=2) + "\n")
    can_merge = isinstance(peft_model.peft_config[TRAINED_ADAPTER], LoraConfig)
    _save_beside(model, folder, _PEFT_CARD + _MERGING if can_merge else _PEFT_CARD)


def _name_magnitudes(weights: Path) -> None:
    """End the names of DoRA's magnitudes in ``.weight``.

    PEFT leaves it out and reads them either way. Transformers 5.23 knows the names of PEFT's modules only, and would
    put untrained magnitudes in the place of those that it does not find.
    """
    tensors = load_file(weights)
    if named := {name: f"{name}.weight" for name in tensors if name.endswith(".lora_magnitude_vector")}:
        save_file({named.get(name, name): tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})


def _save_model(model: Model, adapter: Adapter, personal: Mapping[str, Tensor], folder: Path) -> None:
    """Write the pretrained weights, to the bit where they are frozen, with the trained ones in their place."""
    config = model.config
    whole = load_encoder(
        config.model.name,
        config.model.trained_layers,
        model.encoder.label_names,
        precision=torch.float32,
        device=torch.device("cpu"),
        max_length=config.model.max_length,
        dropout=config.train.dropout,
        seed=config.run.seed,
    ).model
    trained = {name.partition("/")[2]: tensor for name, tensor in {**adapter.tensors, **personal}.items()}
    if lost := trained.keys() - whole.state_dict().keys():
        raise TypeError(f"a method exported as a model must train weights of it, got {min(lost)} beside them")
    weights = {path: trained.get(path, weight).contiguous() for path, weight in whole.state_dict().items()}
    with quiet_transformers():
        whole.save_pretrained(str(folder), state_dict=weights)
    _save_beside(model, folder, _MODEL_CARD)


def _save_own(model: Model, adapter: Adapter, personal: Mapping[str, Tensor], folder: Path) -> None:
    """Write the adapter's tensors with all of the head, trained or not, and how they go into the base model."""
    load(model.adapted, adapter, personal)
    head = {f"head/{path}": parameter.detach().cpu() for path, parameter in model.adapted.head.items()}
    tensors = {name: tensor.contiguous() for name, tensor in {**adapter.tensors, **head}.items()}
    save_file(tensors, folder / OWN_TENSORS)
    method: Any = model.method
    settings = {
        "format": _OWN_FORMAT,
        "base_model": model.encoder.location,
        "method": method.name,
        "settings": {field.name: getattr(method, field.name) for field in fields(method)},
        "trained_layers": list(model.encoder.trained_layers),
        "max_length": model.config.model.max_length,
        "rank": adapter.rank,
        "scaling": adapter.scaling,
    }
    write_atomically(folder / OWN_SETTINGS, json.dumps(settings, indent=2) + "\n")
    write_atomically(folder / LABELS, json.dumps(model.encoder.label_names, indent=2) + "\n")
    _save_beside(model, folder, _OWN_CARD)


def _save_beside(model: Model, folder: Path, card: str) -> None:
    """Write the tokenizer, and what the folder is."""
    labels = model.encoder.label_names
    model.encoder.tokenizer.save_pretrained(str(folder))
    filled = card.format(base=model.encoder.location, n=len(labels), labels=labels, method=model.method.name)
    write_atomically(folder / "README.md", filled)


_PEFT_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-classification
---

An adapter ({method}) and classification head trained by splitrank on `{base}`. Classes: {labels}.

PEFT's format has no place for the names of the classes. They are in `labels.json` and must be passed:

```python
import json
from pathlib import Path

from transformers import pipeline

folder = "."  # this folder
id2label = dict(enumerate(json.loads(Path(folder, "labels.json").read_text())))
classify = pipeline(
    "text-classification", folder, tokenizer=folder, truncation=True, model_kwargs={{"id2label": id2label}}
)
```

The model alone, by transformers:

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(folder, id2label=id2label)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

By PEFT, where `num_labels={n}` instead of `id2label` does as well, without names:

```python
from peft import AutoPeftModelForSequenceClassification

model = AutoPeftModelForSequenceClassification.from_pretrained(folder, id2label=id2label)
```
"""

# PEFT 0.21 merges LoRA and its variants beside a head of several linears, but not IA3.
_MERGING = """
As a whole model, `pipeline("text-classification", "merged")`, which needs no arguments and no PEFT:

```python
model.merge_and_unload().save_pretrained("merged")
tokenizer.save_pretrained("merged")
```

sentence-transformers cannot load this folder, only the whole model: `CrossEncoder` wants a `config.json`, and
`SentenceTransformer` loads the encoder without a head, in which the adapter finds none of its layers by name.
"""

_MODEL_CARD = """---
base_model: {base}
library_name: transformers
pipeline_tag: text-classification
---

`{base}`, its last layers ({method}) and classification head trained by splitrank. Classes: {labels}.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

folder = "."  # this folder
classify = pipeline("text-classification", folder, truncation=True)
model = AutoModelForSequenceClassification.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

sentence-transformers loads this folder: `CrossEncoder` with the head, `SentenceTransformer` without it.
"""


_OWN_CARD = """---
base_model: {base}
library_name: splitrank
pipeline_tag: text-classification
---

An adapter ({method}) and classification head trained by splitrank on `{base}`. Classes: {labels}.

PEFT and transformers have no such adapter, so that splitrank is needed to use it:

```python
from splitrank import predict

folder = "."  # this folder
for told in predict(folder, ["a text", "another"]):
    print(told.label, told.probability)
```

`splitrank predict .` does the same. `splitrank.safetensors` has the tensors by name, `splitrank.json` says how they go
into the base model.
"""


@dataclass(frozen=True)
class Prediction:
    """A text's class: ``label``, and the ``probability`` the model gives it, 0 to 1."""

    label: str
    probability: float


def predict(run: Path | str, texts: Sequence[str]) -> Iterator[Prediction]:
    """Classify texts with the result of a finished run.

    Computes on the run's ``run.device``; where this machine has none such, as with ``"auto"``.

    Args:
        run: a run folder, or one of the adapter folders in it.
        texts: at least one.

    Raises:
        InputError: there is no adapter, or its base model is not to be found; or one text where a list of them is due.
    """
    from transformers import AutoTokenizer

    check_types(run=(run, Path | str, "name the run's folder"))
    if isinstance(texts, str):
        raise InputError(f"texts must be a list of texts, got {texts[:40]!r}; put one text into a list")
    run = Path(run)

    folder, config_path = _export_of(run)
    wanted = "auto"
    if config_path is not None:
        config = load_config(str(config_path))
        wanted = config.run.device
        if has_personal(config) and not folder.name.startswith("client-"):
            raise InputError(f"{run} must have a trained head, got a run whose heads stayed on the clients' machines")
        model_location(config.model.name)  # makes the offline encoder again should it be gone
    try:
        labels = _label_names(folder)
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        model = _loaded_own(folder, labels) if _is_own(folder) else _loaded(folder, len(labels))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        what = str(error).strip().split("\n")[0]
        raise InputError(f"{folder} must be as the run wrote it and its base model where it was, got: {what}") from None
    ids = tokenizer(list(texts), truncation=True)["input_ids"]
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    probabilities = np.zeros((len(ids), len(labels)), dtype=np.float64)
    batches = list(length_batches(lengths, BATCH_TOKENS))
    device = resolve_device(wanted if wanted in available_devices() else "auto")
    model.eval().to(device)
    with torch.inference_mode():
        for batch in track(batches, "predicting", total=len(batches)):
            encoded = tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt").to(device)
            probabilities[batch] = torch.softmax(model(**encoded).logits.cpu().double(), dim=-1).numpy()
    for row in probabilities:
        yield Prediction(labels[int(row.argmax())], float(row.max()))


def _loaded(folder: Path, num_labels: int) -> Any:
    """Load an export of PEFT's or transformers' format by these alone."""
    from peft import PeftConfig, PeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    # PEFT uses an old name in Transformers.
    with quiet_transformers(), warnings.catch_warnings(action="ignore", category=FutureWarning):
        if _is_peft(folder):
            base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=num_labels)
            # PEFT's Auto class does the same, but puts the adapter on a card first, whatever run.device says.
            return PeftModelForSequenceClassification.from_pretrained(model, str(folder), torch_device="cpu")
        model, loading = AutoModelForSequenceClassification.from_pretrained(str(folder), output_loading_info=True)
    if lacking := sorted(loading["missing_keys"]):
        raise ValueError(f"no weights for {lacking[0]}")
    return model


def _loaded_own(folder: Path, labels: Sequence[str]) -> Any:
    """Load an export in splitrank's own format: the base model with the method and its tensors in it."""
    told = json.loads((folder / OWN_SETTINGS).read_text())
    if told["format"] != _OWN_FORMAT:
        raise ValueError(f"format {told['format']}, which this version of splitrank does not read")
    encoder = load_encoder(
        told["base_model"],
        told["trained_layers"],
        labels,
        precision=torch.float32,
        device=torch.device("cpu"),
        max_length=told["max_length"],
    )
    adapted = attach(encoder, make_method(told["method"], told["settings"]))
    load(adapted, Adapter(told["rank"], told["scaling"], load_file(folder / OWN_TENSORS)))
    return encoder.model.requires_grad_(False)


def _label_names(folder: Path) -> list[str]:
    """Read the label names of an export, which adapters of splitrank 0.1.0 have in config.json as models do."""
    if (folder / LABELS).is_file():
        names = json.loads((folder / LABELS).read_text())
    else:
        id2label = json.loads((folder / "config.json").read_text())["id2label"]
        names = [id2label[str(index)] for index in range(len(id2label))]
    if not names or not isinstance(names, list):
        raise ValueError("no label names")
    return names


def _is_peft(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _is_own(folder: Path) -> bool:
    return (folder / OWN_SETTINGS).is_file()


def _is_export(folder: Path) -> bool:
    return (
        _is_peft(folder)
        or _is_own(folder)
        or ((folder / "config.json").is_file() and any(folder.glob("*.safetensors")))
    )


def texts_of_file(run: Path, file: Path) -> list[str]:
    """Return the texts of a file to classify, from the columns that the run was trained on; ``""`` for an empty row."""
    _, config_path = _export_of(run)
    config = load_config(str(config_path)) if config_path else None
    text = list(config.data.text) if config and config.data.text else None
    wanted = columns_wanted(text, None)
    form = table_format(config) if config else TableFormat()
    try:
        return texts_of(read_table(file, wanted), text, may_be_empty=True)
    except InputError:
        if form == TableFormat():
            raise
    return texts_of(read_table(file, wanted, form), text, may_be_empty=True)  # written as the run's own files are


def _export_of(run: Path) -> tuple[Path, Path | None]:
    """Return the folder of the export, and the run's config.toml if it is at hand."""
    if _is_export(run):
        above = [parent / "config.toml" for parent in run.resolve().parents[:2]]
        return run, next((path for path in above if path.is_file()), None)
    config = run / "config.toml"
    folders = [run] if run.name in EXPORTS.values() else [run / name for name in dict.fromkeys(EXPORTS.values())]
    for folder in folders:
        if _is_export(folder):
            return folder, config if config.is_file() else None
        if _is_export(folder / "client-0"):
            raise InputError(f"{run} has a model for each client; choose one, such as {folder / 'client-0'}")
    if config.is_file():
        hint = f"splitrank run --resume --out {run} (a deployment's with its run.sh)"
        raise InputError(f"{run} must be a finished run, got one without adapter/ or model/; finish it with: {hint}")
    raise InputError(f"RUN_DIR must be the folder of a run, got {run}")
