"""Promise: a partition of the settings is dealt before any work, told in full, tested by, and everywhere the same."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitrank import load_config, load_data, make_clients, run
from splitrank.errors import ConfigError, InputError
from splitrank.federation.loop import manifest_of
from splitrank.federation.partitions import partition_of, shares_to_test_on
from splitrank.learning.client import classification_metrics
from splitrank.learning.data import load_hub, load_path
from splitrank.learning.partition import PARTITIONS
from tests.learning.test_data import write
from tests.records import equal_records
from tests.test_cli import invoke

ROWS = [(f"market {i}", "xyz"[i % 3], "north" if i % 5 else "south") for i in range(40)]


def write_hospitals(folder, rows=ROWS, test=True):
    lines = ["text,label,hospital", *(",".join(row) for row in rows)]
    write(folder / "train.csv", "\n".join(lines))
    if test:
        write(folder / "test.csv", "text,label\n" + "\n".join(f"game {i},{'xyz'[i % 3]}" for i in range(9)))


def of_column(folder, *more: str) -> list[str]:
    return [f"data.path={folder}", 'federation.partition={column="hospital"}', "federation.num_clients=2", *more]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "dirichlet" else pytest.mark.slow) for name in PARTITIONS]
)
def test_a_run_tells_who_holds_what(name, tiny_config, tmp_path):
    config = load_config(
        str(tiny_config), [f"federation.partition={name}", "federation.rounds=1", 'model.head="local"']
    )
    list(run(config, tmp_path / "run"))
    data = load_data(config)
    dealt = partition_of(config, data)
    told = json.loads((tmp_path / "run" / "manifest.json").read_text())["data_summary"]["clients"]
    assert told["counts"] == dealt.counts.tolist()
    assert [sum(counts) for counts in told["counts"]] == [
        client["samples"] for client in equal_records(tmp_path / "run")[1]["clients"]
    ]
    shares = shares_to_test_on(config, data, dealt)
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(len(data.test_labels)))
    written = load_config(str(tmp_path / "run" / "config.toml"))
    assert written.federation == config.federation


@pytest.mark.extras
@pytest.mark.parametrize("partition", ["dirichlet", "pathological", '{column="hospital"}'])
def test_through_flowers_messages_the_same(partition, tiny_config, tmp_path):
    from tests.flower_in_process import flower

    write_hospitals(tmp_path, [*ROWS, ("storm", "x", "west")])
    settings = [f"data.path={tmp_path}", f"federation.partition={partition}", "federation.rounds=2"]
    config = load_config(str(tiny_config), [*settings, "federation.partition_min_samples=1"])
    with flower() as (connect, _):
        list(run(config, tmp_path / "flower", connect=connect))
    list(run(config, tmp_path / "run"))
    assert equal_records(tmp_path / "flower") == equal_records(tmp_path / "run")
    manifests = [json.loads((tmp_path / one / "manifest.json").read_text()) for one in ("flower", "run")]
    assert manifests[0]["data_summary"]["clients"] == manifests[1]["data_summary"]["clients"]


def test_a_server_without_training_rows_deals_nothing(tiny_config):
    from dataclasses import replace

    config = load_config(str(tiny_config), ["federation.partition=dirichlet"])
    data = load_data(config)
    own = replace(data, train_texts=[], train_labels=data.train_labels[:0])
    assert partition_of(config, own) is None
    iid = load_config(str(tiny_config))
    shares = zip(shares_to_test_on(config, own, None), shares_to_test_on(iid, own, None), strict=True)
    assert all(np.array_equal(one, other) for one, other in shares)


def test_the_worst_client_is_judged_by_its_classes(tiny_config, tmp_path):
    """min_i Σ_c π_ic·acc_c over the whole test split, written out."""
    draws = np.random.default_rng(0)
    logits, labels = draws.standard_normal((60, 3)).astype(np.float32), np.arange(60) % 2  # class 2 is not tested
    right = logits.argmax(axis=1) == labels
    counts = np.array([[3, 1, 0], [0, 5, 5], [0, 0, 7]])
    expected = []
    for own in counts[:2]:  # the third has nothing that is tested
        of_class = [right[labels == label].mean() for label in (0, 1)]
        expected.append(sum(own[label] * of_class[label] for label in (0, 1)) / own[:2].sum())
    found = classification_metrics(logits, labels, [np.arange(60)], counts)
    assert found.worst_client_accuracy == pytest.approx(min(expected))
    assert found.accuracy == classification_metrics(logits, labels, [np.arange(60)]).accuracy
    # Shares of equal classes have one accuracy, the model's.
    even = classification_metrics(logits, labels, [], np.array([[4, 4, 0]]))
    assert even.worst_client_accuracy == pytest.approx(even.accuracy)
    # A run's own.
    config = load_config(str(tiny_config), ["federation.partition=pathological", "federation.rounds=2"])
    records = list(run(config, tmp_path / "run"))
    assert records[-1].worst_client_accuracy < records[-1].accuracy


def test_a_column_of_own_files_names_the_clients(tiny_config, tmp_path):
    write_hospitals(tmp_path)
    config = load_config(str(tiny_config), of_column(tmp_path, "federation.rounds=1"))
    data = load_data(config)
    dealt = partition_of(config, data)
    assert dealt.names == ("north", "south")
    assert [len(rows) for rows in dealt.rows] == [32, 8]
    assert [ROWS[row][2] for row in dealt.rows[1]] == ["south"] * 8
    clients = make_clients(config, data)
    assert manifest_of(config, clients)["data_summary"]["clients"]["names"] == ["north", "south"]
    clients.close()
    list(run(config, tmp_path / "run"))
    written = load_config(str(tmp_path / "run" / "config.toml"))
    assert written.federation.partition.column == "hospital"
    shown = invoke("data", tiny_config, *[word for one in of_column(tmp_path) for word in ("--set", one)])
    assert "  client 1 (south): 8 rows, 3 of 3 classes: x 3, y 2, z 3" in shown.stdout.splitlines()


def test_rows_held_out_and_drawn_keep_their_clients(tmp_path):
    write_hospitals(tmp_path, test=False)
    data = load_path(tmp_path / "train.csv", holder="hospital", test_share=0.25)
    held_by = {text: holder for text, _, holder in ROWS}
    assert data.train_holders == tuple(held_by[text] for text in data.train_texts)
    plain = load_path(tmp_path / "train.csv", test_share=0.25)
    assert plain.train_holders is None
    assert (plain.train_texts, plain.test_texts) == (data.train_texts, data.test_texts)
    assert plain.fingerprint != data.fingerprint  # who holds a row is part of what a resumed run must find again


def test_a_column_of_hub_data(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    texts, labels, wards = zip(*ROWS[:12], strict=True)
    columns = {"text": texts, "label": labels, "ward": [len(ward) for ward in wards]}
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), tmp_path / "hub/train.parquet")
    pq.write_table(pa.table({"text": ["a"], "label": ["x"]}), tmp_path / "hub/test.parquet")
    assert load_hub(str(tmp_path / "hub"), holder="ward").train_holders == ("5",) * 12
    with pytest.raises(
        InputError, match=r"federation\.partition must name one of the columns .* got \'bed\'; .*column"
    ):
        load_hub(str(tmp_path / "hub"), holder="bed")


def test_a_column_that_cannot_serve_is_refused_before_any_work(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("splitrank.federation.in_process.load_model", None)

    def refusal(*more: str) -> str:
        with pytest.raises(InputError) as error:
            next(run(load_config(str(tiny_config), of_column(tmp_path, *more)), tmp_path / "run"))
        return str(error.value)

    write_hospitals(tmp_path)
    assert refusal("federation.num_clients=3").startswith(
        "federation.num_clients must be 2, the number of different values in the column 'hospital', got 3"
    )
    assert "got 9; the smallest groups of rows are 'south' 8, 'north' 32" in refusal(
        "federation.partition_min_samples=9"
    )
    write_hospitals(tmp_path, [*ROWS, ("goal", "x", "")])
    assert "line 42: a value of the column 'hospital' must not be empty or missing" in refusal()
    assert not (tmp_path / "run").exists()


def test_settings_of_other_partitions_and_columns_of_none_are_refused(tiny_config):
    def problems(*settings: str) -> str:
        with pytest.raises(ConfigError) as error:
            load_config("offline", settings)
        return "\n".join(error.value.problems)

    assert 'it is read where federation.partition = "dirichlet" or' in problems("federation.partition_alpha=0.1")
    for wrong in ('"by-mood"', "{column=1}", "{columns='a'}", "3"):
        assert problems(f"federation.partition={wrong}").startswith("federation.partition must be one of 'iid', 'dir")
    assert problems('federation.partition={column="module"}').startswith(
        'federation.partition must be one by name for data.name = "docstrings", which has no columns, got {column = '
    )


@pytest.mark.slow
def test_a_skewed_run_resumes_to_the_same_bits(tiny_config, tmp_path):
    config = load_config(
        str(tiny_config), ["federation.partition=dirichlet", "federation.partition_alpha=0.1", "federation.rounds=2"]
    )
    list(run(config, tmp_path / "run"))
    list(islice(run(config, tmp_path / "broken"), 2))
    list(run(config, tmp_path / "broken", resume=True))
    assert equal_records(tmp_path / "broken") == equal_records(tmp_path / "run")
