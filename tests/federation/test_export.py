"""Promise: what a run leaves works where it goes, by the calls that its card shows, and predicts what ``predict`` does.

The cards' code is run as it stands there, in the folder that it speaks of.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from splitrank import load_config, predict, run
from splitrank.errors import InputError
from tests.conftest import TINY_FAMILIES
from tests.federation.merging_rules import PUT_ASIDE, of_rule

ROOT = Path(__file__).parents[2]
ANY_BUDGET = ['workload.model="flops"', "budget.latency_s=inf", "budget.energy_j=inf", "federation.rounds=1"]
LONG = "storm rain chip " * 40
PEFT = "from peft import AutoPeftModelForSequenceClassification\n"
TRANSFORMERS = "from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline\n"
TEXTS = ["market team game", "the court of law", LONG, "goal", "bank stock price"]


def code_of(markdown: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", markdown.read_text(), re.DOTALL)


def run_code(code: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run code and return its names; PEFT uses an old name in Transformers."""
    names = names or {}
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        exec(code, names)
    return names


def by_model(names: dict[str, Any], texts: list[str]) -> list[tuple[str, float]]:
    """Classify texts one by one with the model and tokenizer that a card has loaded."""
    model, found = names["model"], []
    assert not model.training
    for text in texts:
        with torch.no_grad():
            logits = model(**names["tokenizer"](text, truncation=True, return_tensors="pt")).logits[0]
        best = int(logits.argmax())
        found.append((model.config.id2label[best], float(torch.softmax(logits, dim=-1)[best])))
    return found


def by_pipeline(classify: Any, texts: list[str]) -> list[tuple[str, float]]:
    return [(one["label"], one["score"]) for one in classify(texts)]


def assert_same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [label for label, _ in found] == [label for label, _ in expected]
    np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], atol=1e-5)


def check_card(folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code of an exported folder's card there; all that it loads must predict what ``predict`` does."""
    expected = [(told.label, told.probability) for told in predict(folder, texts)]
    monkeypatch.chdir(folder)
    blocks = code_of(folder / "README.md")
    names: dict[str, Any] = {}
    if (folder / "splitrank.json").is_file():
        (block,) = blocks
        printed = io.StringIO()
        with redirect_stdout(printed):
            run_code(block)
        again = [(told.label, told.probability) for told in predict(".", ["a text", "another"])]
        assert printed.getvalue() == "".join(f"{label} {probability}\n" for label, probability in again)
        return
    if folder.name == "model":
        (block,) = blocks
        names = run_code(block)
        assert_same(by_pipeline(names["classify"], texts), expected)
        assert_same(by_model(names, texts), expected)
        return
    with_pipeline, by_transformers, by_peft, *merging = blocks
    names = run_code(with_pipeline)
    assert_same(by_pipeline(names["classify"], texts), expected)
    names = run_code(by_transformers, names)
    assert type(names["model"]).__name__.endswith("ForSequenceClassification")
    assert_same(by_model(names, texts), expected)
    names = run_code(by_peft, names)
    assert type(names["model"]).__name__ == "PeftModelForSequenceClassification"
    assert_same(by_model(names, texts), expected)
    if json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "IA3":
        assert not merging  # which PEFT cannot merge beside a whole head
        return
    (merged,) = merging
    run_code(merged, names)
    call = re.search(r"`(pipeline\(.*?\))`", (folder / "README.md").read_text())
    assert call is not None
    classify = run_code(f"from transformers import pipeline\nclassify = {call[1]}")["classify"]
    assert_same([(one["label"], one["score"]) for one in classify(texts, truncation=True)], expected)


@pytest.fixture
def exported(tiny_settings, tiny_model, tmp_path):
    """A function from a family and settings to the folder of a short run on it."""

    def make(family: str, *settings: str, connect: Any = None, out: str = "run") -> Path:
        config = tmp_path / "of-family.toml"
        config.write_text(tiny_settings.replace(str(tiny_model("roberta")), str(tiny_model(family))))
        more = ["model.precision=fp32", "train.learning_rate=2e-2", *ANY_BUDGET, *settings]
        list(run(load_config(str(config), more), tmp_path / out, connect=connect))
        return tmp_path / out

    return make


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("method", ["dora", "full", "ia3", "bottleneck", "prefix"])
def test_the_calls_of_the_card_predict_the_same(family, method, exported, monkeypatch):
    folder = exported(family, f'adapter.method="{method}"')
    check_card(folder / ("model" if method == "full" else "adapter"), TEXTS, monkeypatch)


def test_so_do_they_where_merged_parts_are_exported(exported, monkeypatch):
    """Square linears are dense by then, wide ones are not, so that their ranks differ in the export."""
    settings = ["adapter.target_modules=all-linear", "adapter.rank=3", "federation.rounds=7"]
    folder = exported("roberta", *settings, connect=of_rule(PUT_ASIDE)) / "adapter"
    assert len(set(json.loads((folder / "adapter_config.json").read_text())["rank_pattern"].values())) == 2
    check_card(folder, TEXTS, monkeypatch)


def test_so_do_they_for_each_client_s_own(exported, monkeypatch):
    folder = exported("roberta", 'model.head="local"')
    for client in range(3):
        check_card(folder / "adapter" / f"client-{client}", TEXTS, monkeypatch)


def test_classes_that_the_base_model_does_not_have_keep_their_names(exported, tiny_texts, tmp_path, monkeypatch):
    """Three classes, with letters of their own, over a base model whose configuration says four."""
    texts = tmp_path / "three"
    shutil.copytree(tiny_texts, texts)
    names = {"class-0": "Straße", "class-1": "été", "class-2": "市場"}
    for file in texts.iterdir():
        lines = [line for line in file.read_text().splitlines() if not line.endswith("class-3")]
        text = "\n".join(lines) + "\n"
        for old, new in names.items():
            text = text.replace(old, new)
        file.write_text(text)
    folder = exported("roberta", f'data.path="{texts}"') / "adapter"
    assert json.loads((folder / "labels.json").read_text()) == sorted(names.values())
    check_card(folder, TEXTS, monkeypatch)


def test_the_calls_of_the_documentation_predict_the_same(exported):
    """Those of the table in docs/methods.md, with the names that it gives by code before and after."""
    page = ROOT / "docs" / "methods.md"
    folders = {
        "adapter": exported("roberta") / "adapter",
        "model": exported("roberta", 'adapter.method="full"', out="whole") / "model",
    }
    (of_labels,) = [code for code in code_of(page) if code.startswith("id2label")]
    imports = f"import json\nfrom pathlib import Path\n{PEFT}{TRANSFORMERS}"
    rows = re.findall(r"^\| *(?:`(\w+)/`)? *\|[^|]*\| `((?:Auto|pipeline).*)` \|$", page.read_text(), re.MULTILINE)
    assert len(rows) == 5
    form = ""
    for first_cell, call in rows:
        form = first_cell or form
        folder = folders[form]
        load = f"tokenizer = AutoTokenizer.from_pretrained(folder)\nmodel = {call}"
        labels = of_labels if form == "adapter" else ""
        names = run_code(imports + labels + load, {"folder": str(folder), "N": 4})
        expected = [(told.label, told.probability) for told in predict(folder, TEXTS)]
        found = by_pipeline(names["model"], TEXTS) if call.startswith("pipeline") else by_model(names, TEXTS)
        if "num_labels" in call:
            found = [(label.replace("LABEL_", "class-"), probability) for label, probability in found]
        assert_same(found, expected)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_what_sentence_transformers_asks_transformers_for(family, exported, monkeypatch):
    """Its CrossEncoder starts with AutoConfig, its SentenceTransformer with AutoModel; it is not installed here."""
    from transformers import AutoConfig, AutoModel

    folder = exported(family) / "adapter"
    with pytest.raises(ValueError, match=r"Should have a `model_type` key in its config\.json"):
        AutoConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"Target modules .* not found|No modules were targeted"):
        AutoModel.from_pretrained(folder)
    check_card(folder, TEXTS, monkeypatch)
    whole = exported(family, 'adapter.method="full"', out="whole") / "model"
    for path in (folder / "merged", whole):
        assert AutoConfig.from_pretrained(path).architectures[0].endswith("ForSequenceClassification")
        assert AutoModel.from_pretrained(path).num_parameters() > 0


def as_before(folder: Path) -> None:
    """Turn an exported adapter into what was written before: config.json for labels.json, PEFT's names of tensors."""
    from transformers import AutoConfig

    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    id2label = dict(enumerate(json.loads((folder / "labels.json").read_text())))
    AutoConfig.from_pretrained(base, id2label=id2label).save_pretrained(folder)
    (folder / "labels.json").unlink()
    tensors = load_file(folder / "adapter_model.safetensors")
    old = {name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): t for name, t in tensors.items()}
    save_file(old, folder / "adapter_model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_folder_written_before_still_predicts_the_same(method, exported):
    folder = exported("roberta", f'adapter.method="{method}"')
    expected = list(predict(folder, TEXTS))
    as_before(folder / "adapter")
    assert not (folder / "adapter" / "labels.json").exists()
    assert list(predict(folder, TEXTS)) == expected


def test_an_adapter_in_our_own_format_may_be_moved(exported, tmp_path):
    """It names its base model, and has the whole head, trained or not."""
    folder = exported("bert", 'adapter.method="bottleneck"', 'model.head="frozen"', "adapter.rank=3")
    expected = list(predict(folder, TEXTS))
    shutil.move(folder / "adapter", tmp_path / "elsewhere")
    assert list(predict(tmp_path / "elsewhere", TEXTS)) == expected
    names = set(load_file(tmp_path / "elsewhere" / "splitrank.safetensors"))
    assert {"head/bert.pooler.dense.weight", "head/classifier.bias"} <= names


@pytest.mark.parametrize("change", [{"format": 2}, {"method": "nope"}, {"rank": 2}, {"trained_layers": [4]}, None])
def test_a_damaged_adapter_in_our_own_format_is_refused(change, exported):
    folder = exported("roberta", 'adapter.method="bottleneck"', "adapter.rank=3") / "adapter"
    told = json.loads((folder / "splitrank.json").read_text())
    (folder / "splitrank.json").write_text("{" if change is None else json.dumps(told | change))
    with pytest.raises(InputError, match="must be as the run wrote it"):
        list(predict(folder, TEXTS))


@pytest.mark.parametrize("damage", ["[]", "", "null", '["one"]', '{"one": 0}'])
def test_damaged_label_names_are_refused(damage, exported):
    folder = exported("roberta")
    (folder / "adapter" / "labels.json").write_text(damage)
    with pytest.raises(InputError, match="must be as the run wrote it"):
        list(predict(folder, TEXTS))


@pytest.mark.real
def test_on_real_weights(tmp_path, monkeypatch):
    """The offline preset's export by its card, and by what the README says of it."""
    out = tmp_path / "runs" / "offline-1"
    list(run(load_config("offline", ["federation.rounds=1", "data.train_rows=120", "data.test_rows=60"]), out))
    texts = ["Return the roots of a polynomial with coefficients given in p.", "The tokenizer to use. " * 200]
    expected = [(told.label, told.probability) for told in predict(out, texts)]
    monkeypatch.chdir(tmp_path)
    (code,) = [code for code in code_of(ROOT / "README.md") if "runs/offline-1/adapter" in code]
    names = run_code(code)
    assert_same(by_pipeline(names["classify"], texts), expected)
    assert_same(by_model(names, texts), expected)
    check_card(out / "adapter", texts, monkeypatch)
