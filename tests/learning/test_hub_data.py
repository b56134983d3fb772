"""Promises of the hub's loader: the same data as from files, and one sentence for whatever fails on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitrank.errors import InputError
from splitrank.learning.data import load_hub, load_path
from tests.learning.test_data import TRAIN, write_rows


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder that stands in for a data set of the hub; nothing is read from or written to the real cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    folder.mkdir()
    return folder


def test_the_hub_loader_reads_what_the_path_loader_reads(hub):
    write_rows(hub / "train.parquet", [row for row in TRAIN if "NA" not in row[0]])
    write_rows(hub / "test.parquet", [("a plum", "fruit")])
    data = load_hub(str(hub))
    assert data.fingerprint == load_path(hub).fingerprint
    assert "datasets " in data.source
    assert str(hub) in data.source


def test_class_names_of_the_hub_keep_their_order(hub):
    import datasets

    features = datasets.Features({"body": datasets.Value("string"), "kind": datasets.ClassLabel(names=["z", "a", "m"])})
    rows = {"body": ["one", "two", "three"], "kind": [0, 1, 2]}
    datasets.Dataset.from_dict(rows, features).to_parquet(hub / "train.parquet")
    datasets.Dataset.from_dict({"body": ["four"], "kind": [-1]}, features).to_parquet(hub / "test.parquet")
    datasets.Dataset.from_dict({"body": ["five"], "kind": [2]}, features).to_parquet(hub / "validation.parquet")
    data = load_hub(str(hub), text=["body"], label="kind")
    assert data.label_names == ["z", "a", "m"]
    assert data.train_labels.tolist() == [0, 1, 2]
    assert data.test_texts == ["five"]
    assert data.test_labels.tolist() == [2]
    with pytest.raises(InputError, match="one of the columns 'body', 'kind', got 'text'"):
        load_hub(str(hub))


def test_the_hub_without_a_test_split_holds_out(hub):
    write_rows(hub / "train.parquet", [(f"text {number}", "xy"[number % 2]) for number in range(20)])
    data = load_hub(str(hub), test_share=0.2, seed=1)
    assert len(data.train_texts) == 16
    assert np.bincount(data.test_labels).tolist() == [2, 2]


def test_a_test_split_without_labels_is_passed_over_as_in_a_folder(hub):
    for split, labels in (("train", [0, 1, 0, 1]), ("test", [-1, -1])):
        pq.write_table(pa.table({"text": list("abcd")[: len(labels)], "label": labels}), hub / f"{split}.parquet")
    with pytest.raises(InputError, match=r"\(test\): rows to test on must have labels.*data\.test_share"):
        load_hub(str(hub))
    assert len(load_hub(str(hub), test_share=0.5).test_texts) == 2
    pq.write_table(pa.table({"text": ["g"], "label": [1]}), hub / "validation.parquet")
    data = load_hub(str(hub))
    assert (data.test_texts, data.test_labels.tolist()) == (["g"], [1])
    assert data.fingerprint == load_path(hub).fingerprint


def test_a_configuration_is_chosen_and_a_failed_look_up_lists_them_all(hub):
    names = [f"set-{number:02}" for number in range(25)]
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.parquet\n" for name in names
    )
    (hub / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    for name in names:
        (hub / name).mkdir()
        write_rows(hub / name / "train.parquet", [(f"{name} text {number}", "xy"[number % 2]) for number in range(10)])
    data = load_hub(str(hub), config="set-07")
    assert all(text.startswith("set-07") for text in data.train_texts)
    assert "(set-07)" in data.source
    for config, got in ((None, "got none"), ("set", "got 'set'")):
        with pytest.raises(InputError, match=rf"data\.config must .*{got}$") as caught:
            load_hub(str(hub), config=config)
        assert all(repr(name) in str(caught.value) for name in names)


def test_the_hub_needs_a_train_split(hub):
    write_rows(hub / "test.parquet", TRAIN)
    with pytest.raises(InputError, match="must have a split called train, got test"):
        load_hub(str(hub))


def test_an_unreadable_folder_points_to_data_path(hub):
    with pytest.raises(InputError, match=r"cannot read: .*try data\.path instead"):
        load_hub(str(hub))


def test_no_network_is_one_sentence_that_names_the_offline_preset(tmp_path):
    """In a process of its own, because the hub's client reads the variable when it is imported."""
    program = """
from splitrank.errors import InputError
from splitrank.learning.data import load_hub
try:
    load_hub("nobody/no-such-data")
except InputError as error:
    print(error)
"""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
        "HOME": str(tmp_path),
    }
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.count("\n") == 1
    assert "data.name = 'nobody/no-such-data' cannot be loaded from the Hugging Face hub" in run.stdout
    assert "offline preset" in run.stdout
    assert "data.path" in run.stdout


@pytest.mark.parametrize("error", [ConnectionError("no route"), OSError(), RuntimeError("first line\nsecond line")])
def test_whatever_fails_on_the_way_to_the_hub_is_an_input_error(monkeypatch, error):
    import datasets

    def fail(name):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError) as caught:
        load_hub("some/name")
    assert "offline preset" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert type(error).__name__ in str(caught.value)
