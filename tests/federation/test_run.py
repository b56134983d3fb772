"""Promises of a run: its records, its folder, the adapter it leaves, what it refuses."""

from __future__ import annotations

import json
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from splitrank import load_config, load_data, make_clients, predict, run, run_round
from splitrank.errors import ConfigError, InfeasibleError, InputError
from splitrank.federation.resume import resumed_config
from tests.records import equal_records


def run_all(config_file: Path, out: Path, *overrides: str):
    return list(run(load_config(str(config_file), overrides), out))


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_round_from_python(tiny_config):
    config = load_config(str(tiny_config))
    data = load_data(config)
    clients = make_clients(config, data)
    state = clients.initial_state()
    before = {name: tensor.clone() for name, tensor in state.adapter.tensors.items()}
    after, record = run_round(state, clients)
    clients.close()
    assert (state.round, after.round, record.round) == (0, 1, 1)
    assert record.rank == after.adapter.rank > 1
    # A round is a function: the state that went in is as it was.
    assert all(torch.equal(before[name], tensor) for name, tensor in state.adapter.tensors.items())


def test_new_directions_are_drawn_for_their_round(tiny_config):
    config = load_config(str(tiny_config))
    clients = make_clients(config, load_data(config))
    started = []

    def train(starts, plan, state):
        started.extend(starts.of.values())
        return clients.train(starts, plan, state)

    watched = SimpleNamespace(
        config=clients.config,
        model=clients.model,
        rule=clients.rule,
        num_samples=clients.num_samples,
        problem=clients.problem,
        plan=clients.plan,
        train=train,
        evaluate=clients.evaluate,
    )
    state = replace(clients.initial_state(), round=4)
    _, record = run_round(state, watched)
    clients.close()
    method = clients.model.method
    expected = method.resize(state.adapter, record.rank, distribution="svd", seed=0, round=5).tensors
    assert all(torch.equal(tensor, expected[name]) for name, tensor in started[0].tensors.items())


def test_records(tiny_config, tmp_path):
    records = run_all(tiny_config, tmp_path / "run")
    assert [record.round for record in records] == [0, 1, 2, 3, 4]
    assert records[-1].accuracy > records[0].accuracy + 0.15
    written = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert written == [json.loads(record.to_json()) for record in records]
    assert written[0]["rank"] == 0
    assert [client["samples"] for client in written[0]["clients"]] == [64, 64, 64]
    ranks = set()
    for record in written[1:]:
        ranks.add(record["rank"])
        assert record["status"] == "optimal"
        assert 0 < record["factor_averaging_error"] < 1
        for client in record["clients"]:
            assert client["rank"] == record["rank"] <= client["max_rank"]
            assert client["latency_s"] <= 0.3 + 1e-9
            assert client["energy_j"] <= client["energy_budget_j"] * (1 + 1e-9)
            assert client["uplink_bits"] == client["downlink_bits"] == 3 * 2 * 64 * 256 * record["rank"]
            assert client["uplink_bits"] / client["uplink_bps"] == pytest.approx(client["uplink_s"])
            assert client["binding"] in ("latency", "energy", "frequency", "rank-cap")
            assert client["dropped"] is False
            assert client["train_loss"] > 0
    assert len(ranks) > 1  # the adapter really was resized from round to round


def test_the_folder(tiny_config, tmp_path):
    out = tmp_path / "run"
    run_all(tiny_config, out)
    assert {path.name for path in out.iterdir()} == {
        "config.toml", "manifest.json", "rounds.jsonl", "checkpoint", "adapter", ".lock",
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["seed"] == 0
    assert manifest["data"]["labels"] == [f"class-{i}" for i in range(4)]
    assert len(list((out / "checkpoint").iterdir())) == 2
    # Its own settings reproduce it.
    again = tmp_path / "again"
    run_all(out / "config.toml", again)
    assert equal_records(again) == equal_records(out)
    assert adapter_bytes(again) == adapter_bytes(out)


def test_seeds_differ(tiny_config, tmp_path):
    run_all(tiny_config, tmp_path / "one", "federation.rounds=1")
    run_all(tiny_config, tmp_path / "two", "federation.rounds=1", "run.seed=1")
    assert equal_records(tmp_path / "one")[1] != equal_records(tmp_path / "two")[1]


def test_the_adapter_loads_in_plain_peft_and_predicts_the_same(tiny_config, tiny_texts, tmp_path):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    out = tmp_path / "run"
    records = run_all(tiny_config, out, "model.precision=fp32")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model = AutoPeftModelForSequenceClassification.from_pretrained(str(out / "adapter"), num_labels=4).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(out / "adapter"))
    labels = json.loads((out / "adapter" / "labels.json").read_text())
    rows = [line.rsplit(",", 1) for line in (tiny_texts / "test.csv").read_text().splitlines()[1:]]
    texts, expected = zip(*rows, strict=True)
    with torch.no_grad():
        logits = model(
            **tokenizer(list(texts), padding=True, truncation=True, max_length=32, return_tensors="pt")
        ).logits
    predicted = [labels[int(index)] for index in logits.argmax(dim=1)]
    assert np.mean([a == b for a, b in zip(predicted, expected, strict=True)]) == records[-1].accuracy
    # The same through `predict`, also after the folder has moved.
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    out.rename(moved)
    predictions = list(predict(moved, texts))
    assert [prediction.label for prediction in predictions] == predicted
    probabilities = torch.softmax(logits.double(), dim=1).amax(dim=1)
    np.testing.assert_allclose([p.probability for p in predictions], probabilities, atol=1e-5)


def test_target_accuracy_stops_early(tiny_config, tmp_path):
    records = run_all(tiny_config, tmp_path / "run", "federation.target_accuracy=0.3", "federation.rounds=50")
    assert records[-1].accuracy >= 0.3
    assert all(record.accuracy < 0.3 for record in records[:-1])
    assert len(records) < 51
    # Resuming a run that has reached its target does nothing but finish.
    config = resumed_config(tmp_path / "run", None, [])
    assert list(run(config, tmp_path / "run", resume=True)) == []
    # A higher target goes on.
    config = resumed_config(tmp_path / "run", None, ["federation.target_accuracy=0.99", "federation.rounds=51"])
    assert next(run(config, tmp_path / "run", resume=True)).round == records[-1].round + 1


def test_a_weak_client_sits_out(tiny_config, tmp_path):
    records = run_all(tiny_config, tmp_path / "run", "budget.energy_j=[0.12, 0.05, 0.12]", "federation.rounds=2")
    for record in records[1:]:
        assert record.status == "optimal"
        one = record.clients[1]
        assert (one.dropped, one.rank, one.max_rank, one.uplink_bits) == (True, 0, 0, 0.0)
        assert one.binding == "energy"
        assert one.shortfall.constraint == "energy"
        assert one.train_loss is None
        assert not record.clients[0].dropped


def test_a_round_for_nobody_is_recorded_and_the_run_goes_on(tiny_config, tmp_path):
    config = load_config(str(tiny_config), ["budget.energy_j=0.05", "federation.rounds=2"])
    with pytest.raises(InfeasibleError, match=r"0 of 3 ever can.*\n.*client 0 cannot do rank 1: energy, needs 0\.1 J"):
        next(run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    records = list(run(config, tmp_path / "run", refuse_unable=False))
    assert [record.status for record in records] == [None, "infeasible", "infeasible"]
    assert [record.rank for record in records] == [0, 0, 0]
    assert records[0].accuracy == records[1].accuracy == records[2].accuracy
    assert records[1].factor_averaging_error is None
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()


def test_a_fixed_rank_sits_out_whom_it_overloads(tiny_config, tmp_path):
    (_, free) = run_all(tiny_config, tmp_path / "free", "federation.rounds=1")
    rank = sorted(client.max_rank for client in free.clients)[1]
    (_, fixed) = run_all(tiny_config, tmp_path / "fixed", "federation.rounds=1", f"adapter.rank={rank}")
    assert fixed.rank == rank
    assert [client.dropped for client in fixed.clients] == [client.max_rank < rank for client in free.clients]
    assert any(client.dropped for client in fixed.clients)


@pytest.mark.parametrize("method", ["bisection", "branch-and-bound", "random-frequency"])
def test_other_methods_run(method, tiny_config, tmp_path):
    (_, exact) = run_all(tiny_config, tmp_path / "exact", "federation.rounds=1")
    (_, other) = run_all(tiny_config, tmp_path / "other", "federation.rounds=1", f"planner.method={method}")
    if method == "random-frequency":
        assert other.status == "feasible"
        assert other.rank <= exact.rank
    else:
        assert other.rank == exact.rank


@pytest.mark.parametrize("policy", ["out_proj", "frozen", "local"])
def test_head_policies(policy, tiny_config, tmp_path):
    out = tmp_path / "run"
    records = run_all(tiny_config, out, f"model.head={policy}")
    assert records[-1].loss < records[0].loss
    if policy == "local":
        heads = [load_file(out / "adapter" / f"client-{i}" / "adapter_model.safetensors") for i in range(3)]
        name = next(name for name in heads[0] if name.endswith("out_proj.weight"))
        assert not torch.equal(heads[0][name], heads[1][name])
        factor = next(name for name in heads[0] if "lora_B" in name)
        assert torch.equal(heads[0][factor], heads[1][factor])
        with pytest.raises(InputError, match="a model for each client"):
            list(predict(out, ["the market"]))
        assert len(list(predict(out / "adapter" / "client-1", ["the market"]))) == 1
    else:
        assert len(list(predict(out, ["the market", "a game"]))) == 2


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet"])
def test_other_families_run(family, tiny_config, tiny_model, tmp_path):
    name = tiny_model(family)
    records = run_all(tiny_config, tmp_path / "run", f"model.name={name}", "adapter.target_modules=all-linear")
    assert records[-1].accuracy > records[0].accuracy
    assert len(list(predict(tmp_path / "run", ["the market"]))) == 1


def test_a_folder_that_another_run_holds(tiny_config, tmp_path):
    out = tmp_path / "run"
    running = run(load_config(str(tiny_config)), out)
    next(running)
    for resume in (False, True):
        with pytest.raises(InputError, match=rf"another run holds it \(process {os.getpid()}\)"):
            next(run(load_config(str(tiny_config)), out, resume=resume))
    running.close()


def test_a_folder_with_files_in_it(tiny_config, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="new or empty folder"):
        next(run(load_config(str(tiny_config)), out))
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_nothing_is_written_when_the_input_is_bad(tiny_config, tmp_path):
    out = tmp_path / "run"
    for bad in ("federation.num_clients=500", "model.trained_layers=last:7", "data.label=nothing", "adapter.rank=33"):
        with pytest.raises(InputError, match=re.escape(bad.split("=")[0])):
            next(run(load_config(str(tiny_config), [bad]), out))
        assert not out.exists()


def test_sizes_that_contradict_the_weights(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.hidden_size must be 32"):
        next(run(load_config(str(tiny_config), ["model.hidden_size=64"]), tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"model\.num_labels must be 4"):
        next(run(load_config(str(tiny_config), ["model.num_labels=5"]), tmp_path / "run"))


def test_a_broadcast_waits_for_nobody_who_sits_out(tiny_config, tmp_path):
    fixed = ["radio.uplink_gain=[1e-3,1e-3,1e-3]", "radio.downlink_gain=[0,1e-3,2e-3]", "radio.downlink=broadcast"]
    (_, record) = run_all(tiny_config, tmp_path / "run", "federation.rounds=1", *fixed)
    assert [client.dropped for client in record.clients] == [True, False, False]
    rates = [client.downlink_bps for client in record.clients]
    assert rates[0] == 0
    assert rates[1] == rates[2] > 0
