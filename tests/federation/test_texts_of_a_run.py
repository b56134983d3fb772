"""Promise: a run says and records what it made of its texts, finds them again, and notices at once if they changed."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from splitrank.config import absolute_paths, load_config
from splitrank.errors import InputError
from splitrank.federation import model
from splitrank.federation.export import texts_of_file
from splitrank.federation.loop import run
from splitrank.federation.resume import resumed_config
from splitrank.federation.round_lines import round_lines
from splitrank.records import RoundRecord
from tests.learning.test_data import write_rows
from tests.test_cli import invoke


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_a_run_says_and_records_what_it_made_of_its_texts(tiny_config, tiny_texts, tmp_path, caplog):
    caplog.set_level("INFO", "splitrank")
    list(islice(run(load_config(str(tiny_config), ["model.max_length=8"]), tmp_path / "run"), 1))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[1] == (
        "Texts: 192 training rows (train.csv), 64 test rows (test.csv); "
        "4 classes: class-0 48, class-1 48, class-2 48, class-3 48."
    )
    assert "have more tokens than model.max_length = 8, and are cut there." in lines[3]
    assert lines[-1] == "Always naming the largest class, class-0, is right for 25.0 % of the test rows."
    manifest = manifest_of(tmp_path / "run")
    assert list(manifest)[-1] == "data_summary"
    summary = manifest["data_summary"]
    assert (summary["train_rows"], summary["test_from"], summary["test_counts"]) == (192, "test.csv", [16] * 4)
    assert (summary["largest_class_share"], summary["lengths"]["max_length"]) == (0.25, 8)
    cut = f"{100 * summary['lengths']['train_longer'] / 192:.1f} % of the training texts"
    assert lines[3].startswith(cut)


def test_the_command_shows_the_same_without_a_model(tiny_config, monkeypatch):
    monkeypatch.setattr(model, "load_encoder", None)  # the trunk's weights
    shown = invoke("data", tiny_config, "--set", "model.max_length=8")
    assert shown.exit_code == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if not line.startswith("Warning")]
    texts, lengths, worth, clients, first, *_ = lines
    assert texts.startswith("Texts: 192 training rows (train.csv), 64 test rows (test.csv); 4 classes: class-0 48, ")
    assert lengths.endswith("have more tokens than model.max_length = 8, and are cut there.")
    assert worth == "Always naming the largest class, class-0, is right for 25.0 % of the test rows."
    assert (clients, len(lines)) == ("Clients: 3 with 64 training rows.", 7)
    assert first == "  client 0: 64 rows, 4 of 4 classes: class-0 16, class-1 16, class-2 16, class-3 16"
    summary = json.loads(invoke("data", tiny_config, "--set", "model.max_length=8", "--json").stdout)
    assert summary["clients"] == {"names": [], "counts": [[16] * 4] * 3, "moves": []}
    assert summary["classes"] == [f"class-{number}" for number in range(4)]
    assert summary["lengths"]["train_longer"] > 0


def test_the_command_does_without_a_tokenizer(tiny_config):
    shown = invoke("data", tiny_config, "--set", "model.name=no/such-model")
    assert shown.exit_code == 0, shown.stderr
    assert "How long the texts are is not known without the tokenizer of no/such-model" in shown.stderr
    assert "tokens" not in shown.stdout


def test_changed_texts_are_noticed_before_any_weights_are_loaded(tiny_config, tiny_texts, tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text((tiny_texts / f"{split}.csv").read_text())
    config = load_config(str(tiny_config), [f"data.path={folder}"])
    list(islice(run(config, tmp_path / "run"), 2))
    with (folder / "train.csv").open("a") as file:
        file.write("one more,class-0\n")
    monkeypatch.setattr("splitrank.federation.in_process.load_model", None)
    with pytest.raises(InputError, match=r"The texts must be those the run in .* started with, but they have changed"):
        next(run(resumed_config(tmp_path / "run", None, []), tmp_path / "run", resume=True))


def test_a_relative_folder_is_found_from_anywhere(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    config = load_config(str(tiny_config), ["data.name=here"])
    assert absolute_paths(config)["data.name"] == str(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(str(tiny_config), ["data.path=~/here"])
    assert absolute_paths(config)["data.path"] == str(tmp_path / "here")
    (tmp_path / "docstrings").mkdir()  # the set that any installation has is no folder
    assert "data.name" not in absolute_paths(load_config(str(tiny_config), ["data.name=docstrings"]))


def test_a_run_of_a_relative_data_set_repeats_from_its_written_settings(tiny_config, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for split in ("train", "test"):
        write_rows(tmp_path / "texts" / f"{split}.parquet", [(f"{split} {i}", "xy"[i % 2]) for i in range(12)])
    list(run(load_config(str(tiny_config), ["data.name=texts", "federation.rounds=1"]), tmp_path / "one"))
    monkeypatch.chdir("/")
    written = load_config(str(tmp_path / "one" / "config.toml"))
    assert written.data.name == str(tmp_path / "texts")
    list(run(written, tmp_path / "two"))
    assert manifest_of(tmp_path / "one")["data"]["sha256"] == manifest_of(tmp_path / "two")["data"]["sha256"]


@pytest.mark.parametrize(("share", "has_f1"), [(0.5, False), (0.51, True), (None, False)])
def test_macro_f1_stands_beside_accuracy_where_one_class_prevails(tmp_path, share, has_f1):
    summary = {} if share is None else {"data_summary": {"largest_class": "x", "largest_class_share": share}}
    (tmp_path / "manifest.json").write_text(json.dumps(summary))
    record = RoundRecord(0, None, 0, 0.9, 0.3, 0.474, 0.8, None)
    (line,) = round_lines([record], load_config("offline"), tmp_path)
    header, row = line.splitlines()
    assert ("accuracy  macro F1" in header) == has_f1
    assert row.split()[2:6] == (["90.0", "%", "0.474", "0.300"] if has_f1 else ["90.0", "%", "0.300", "-"])
    assert len(header) == len(row)


def test_predict_reads_a_file_written_as_the_runs_own(tiny_config, tmp_path):
    for name in ("train", "test"):
        text = "text;label\n" + "".join(f"texte été {i}, fin;{'xy'[i % 2]}\n" for i in range(9))
        (tmp_path / f"{name}.csv").write_bytes(text.encode("cp1252"))
    options = [f"data.path={tmp_path}", "data.encoding=cp1252", "federation.rounds=1"]
    list(run(load_config(str(tiny_config), options), tmp_path / "run"))
    assert texts_of_file(tmp_path / "run", tmp_path / "test.csv")[1] == "texte été 1, fin"
    write_rows(tmp_path / "other.csv", [("déjà vu", "x")])  # in UTF-8
    assert texts_of_file(tmp_path / "run", tmp_path / "other.csv") == ["déjà vu"]
