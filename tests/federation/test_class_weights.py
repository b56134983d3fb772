"""Promises of ``train.class_weights``: rare classes count, wherever the clients are and however they compute."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from splitrank import load_config, load_data, run
from splitrank.config import with_values
from tests.federation.test_run import run_all
from tests.records import equal_records

BALANCED = 'train.class_weights="balanced"'


@pytest.fixture
def skewed_config(tiny_config, tiny_texts, tmp_path):
    """The tiny settings on texts of which the first class has 48 and each other 6."""
    folder = tmp_path / "skewed"
    folder.mkdir()
    with (tiny_texts / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [row for index, row in enumerate(rows) if row["label"] == "class-0" or index % 8 == 0]
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(kept)
    (folder / "test.csv").write_text((tiny_texts / "test.csv").read_text())
    tiny_config.write_text(tiny_config.read_text().replace(str(tiny_texts), str(folder)))
    return tiny_config


def test_none_is_what_a_run_does_by_itself(skewed_config, tmp_path):
    run_all(skewed_config, tmp_path / "left-out", "federation.rounds=1")
    run_all(skewed_config, tmp_path / "none", "federation.rounds=1", 'train.class_weights="none"')
    run_all(skewed_config, tmp_path / "balanced", "federation.rounds=1", BALANCED)
    assert equal_records(tmp_path / "left-out") == equal_records(tmp_path / "none")
    assert equal_records(tmp_path / "left-out")[1] != equal_records(tmp_path / "balanced")[1]


def test_rare_classes_are_found(skewed_config, tmp_path):
    """Half of the training rows are of one class, but a quarter of the test rows."""
    plain = run_all(skewed_config, tmp_path / "plain", "federation.rounds=15")
    balanced = run_all(skewed_config, tmp_path / "balanced", "federation.rounds=15", BALANCED)
    assert balanced[-1].macro_f1 > plain[-1].macro_f1 + 0.1


@pytest.mark.extras
@pytest.mark.parametrize(
    "settings", [[], ['model.precision="bf16"'], ['adapter.method="dora"'], ['model.head="local"']], ids=str
)
def test_clients_weigh_by_their_own_labels_through_flower_too(settings, skewed_config, tmp_path):
    """The same rounds as in one process, every update within the server's bound, and nothing more told."""
    from tests.flower_in_process import flower

    plain = load_config(str(skewed_config), ["federation.rounds=2", 'workload.model="flops"', *settings])
    config = with_values(plain, {"train.class_weights": "balanced"})
    expected = list(run(config, tmp_path / "in-process"))
    with flower() as (connect, messengers):
        found = list(run(config, tmp_path / "flower", connect=connect))
        list(run(plain, tmp_path / "plain", connect=connect))
    assert all(len(record.trained) == 3 for record in found[1:])
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert [client.train_loss for client in one.clients] == [client.train_loss for client in other.clients]
        assert one.accuracy == other.accuracy
    balanced, without = ([sorted(told) for _, _, told, _ in one.sent] for one in messengers)
    assert balanced == without


@pytest.mark.real
def test_macro_f1_rises_on_real_text_with_a_rare_class(tmp_path):
    """Of the offline preset's four sources three keep one text in sixteen for training; all are tested alike."""
    data = load_data(load_config("offline"))
    draws = np.random.default_rng(0)
    folder = tmp_path / "texts"
    folder.mkdir()
    for split, texts, labels in (
        ("train", data.train_texts, data.train_labels),
        ("test", data.test_texts, data.test_labels),
    ):
        rows = []
        for label in range(len(data.label_names)):
            of_class = draws.permutation(np.flatnonzero(labels == label))
            rows += list(of_class[: (320 if label == 0 else 20) if split == "train" else 50])
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([texts[row], data.label_names[labels[row]]] for row in rows)
    settings = [f'data.path="{folder}"', "federation.rounds=3", "adapter.rank=8", "train.batch_size=8"]
    settings += ["run.threads=1", "model.max_length=48", "budget.energy_j=inf", "budget.latency_s=inf"]
    plain, balanced = (
        list(run(load_config("offline", [*settings, *more]), tmp_path / name))[-1]
        for name, more in (("plain", []), ("balanced", [BALANCED]))
    )
    print(f"macro F1 {plain.macro_f1:.3f} without weights, {balanced.macro_f1:.3f} balanced")
    assert balanced.macro_f1 > plain.macro_f1 + 0.02
