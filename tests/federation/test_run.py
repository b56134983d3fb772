"""Promises of a run: its records, its folder, the adapter it leaves, resumption to the same bits."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from splitrank import load_config, load_data, make_clients, predict, run, run_round
from splitrank.errors import ConfigError, InputError
from splitrank.federation import run_folder
from splitrank.learning.adapters.lora import resize


def run_all(config_file: Path, out: Path, *overrides: str):
    return list(run(load_config(str(config_file), overrides), out))


def lines(folder: Path) -> list[dict]:
    """The records of a run without what measures real time."""
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if "wall" not in key} for record in records]


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_round_from_python(tiny_config):
    config = load_config(str(tiny_config))
    data = load_data(config)
    clients = make_clients(config, data)
    state = clients.initial_state()
    before = {name: tensor.clone() for name, tensor in state.adapter.tensors().items()}
    after, record = run_round(state, clients, clients.config)
    clients.close()
    assert (state.round, after.round, record.round) == (0, 1, 1)
    assert record.rank == after.adapter.rank > 1
    # A round is a function: the state that went in is as it was.
    assert all(torch.equal(before[name], tensor) for name, tensor in state.adapter.tensors().items())


def test_new_directions_are_drawn_for_their_round(tiny_config):
    config = load_config(str(tiny_config))
    clients = make_clients(config, load_data(config))
    started = []

    def train(start, plan, round):
        started.append(start.adapter)
        return clients.train(start, plan, round)

    watched = SimpleNamespace(
        num_samples=clients.num_samples,
        problem=clients.problem,
        plan=clients.plan,
        train=train,
        evaluate=clients.evaluate,
    )
    state = replace(clients.initial_state(), round=4)
    _, record = run_round(state, watched, clients.config)
    clients.close()
    expected = resize(state.adapter, record.rank, seed=0, round=5).tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in started[0].tensors().items())


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
    assert lines(again) == lines(out)
    assert adapter_bytes(again) == adapter_bytes(out)


def test_seeds_differ(tiny_config, tmp_path):
    run_all(tiny_config, tmp_path / "one", "federation.rounds=1")
    run_all(tiny_config, tmp_path / "two", "federation.rounds=1", "run.seed=1")
    assert lines(tmp_path / "one")[1] != lines(tmp_path / "two")[1]


def test_the_adapter_loads_in_plain_peft_and_predicts_the_same(tiny_config, tiny_texts, tmp_path):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoConfig, AutoTokenizer

    out = tmp_path / "run"
    records = run_all(tiny_config, out, "model.precision=fp32")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model = AutoPeftModelForSequenceClassification.from_pretrained(str(out / "adapter"), num_labels=4).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(out / "adapter"))
    labels = AutoConfig.from_pretrained(str(out / "adapter")).id2label
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
    config = run_folder.resumed_config(tmp_path / "run", None, [])
    assert list(run(config, tmp_path / "run", resume=True)) == []
    # A higher target goes on.
    config = run_folder.resumed_config(
        tmp_path / "run", None, ["federation.target_accuracy=0.99", "federation.rounds=51"]
    )
    assert next(run(config, tmp_path / "run", resume=True)).round == records[-1].round + 1


def test_a_weak_client_sits_out(tiny_config, tmp_path):
    records = run_all(tiny_config, tmp_path / "run", "budget.energy_j=[0.12, 0.05, 0.12]", "federation.rounds=2")
    for record in records[1:]:
        assert record.status == "optimal"
        one = record.clients[1]
        assert (one["dropped"], one["rank"], one["max_rank"], one["uplink_bits"]) == (True, 0, 0, 0.0)
        assert one["binding"] == "energy"
        assert one["shortfall"]["constraint"] == "energy"
        assert one["train_loss"] is None
        assert not record.clients[0]["dropped"]


def test_a_round_for_nobody_is_recorded_and_the_run_goes_on(tiny_config, tmp_path):
    records = run_all(tiny_config, tmp_path / "run", "budget.energy_j=0.05", "federation.rounds=2")
    assert [record.status for record in records] == [None, "infeasible", "infeasible"]
    assert [record.rank for record in records] == [0, 0, 0]
    assert records[0].accuracy == records[1].accuracy == records[2].accuracy
    assert records[1].factor_averaging_error is None
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()


def test_a_fixed_rank_sits_out_whom_it_overloads(tiny_config, tmp_path):
    (_, free) = run_all(tiny_config, tmp_path / "free", "federation.rounds=1")
    rank = sorted(client["max_rank"] for client in free.clients)[1]
    (_, fixed) = run_all(tiny_config, tmp_path / "fixed", "federation.rounds=1", f"adapter.rank={rank}")
    assert fixed.rank == rank
    assert [client["dropped"] for client in fixed.clients] == [client["max_rank"] < rank for client in free.clients]
    assert any(client["dropped"] for client in fixed.clients)


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
        with pytest.raises(InputError, match="a model per client"):
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


RUN = "import sys; from splitrank.cli import app; sys.argv = ['splitrank', *sys.argv[1:]]; app()"


def start_run(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, "run", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Who starts the tests in the background has Ctrl-C ignored, and so would the run.
    return subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@pytest.mark.parametrize(("attempt", "head"), [(0, "full"), (1, "local")])
def test_killed_and_resumed_equals_uninterrupted(attempt, head, tiny_config, tmp_path):
    """SIGKILL at a random moment after the first line appears, as often as it takes to finish."""
    options = ["--set", "federation.rounds=12", "--set", f"model.head={head}", "--set", "train.dropout=0.1"]
    whole = tmp_path / "whole"
    process = start_run(tiny_config, "--out", whole, *options)
    assert process.wait() == 0, process.communicate()
    process.communicate()
    broken = tmp_path / "broken"
    draws = random.Random(attempt)
    starts = kills = 0
    while not (broken / "adapter").exists():
        resume = ["--resume"] if (broken / "config.toml").exists() else []
        process = start_run(*([] if resume else [tiny_config]), "--out", broken, *resume, *([] if resume else options))
        if starts < 3:
            process.stdout.readline()  # rounds are being done
            time.sleep(draws.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            starts += 1
        _, err = process.communicate()
        assert process.returncode in (0, -9), err
        kills += process.returncode == -9
    assert kills >= 1
    assert lines(broken) == lines(whole)
    files = ["adapter"] if head == "full" else [f"adapter/client-{i}" for i in range(3)]
    for file in files:
        path = Path(file) / "adapter_model.safetensors"
        assert (broken / path).read_bytes() == (whole / path).read_bytes()


def test_ctrl_c_leaves_a_resumable_folder(tiny_config, tmp_path):
    out = tmp_path / "run"
    process = start_run(tiny_config, "--out", out, "--set", "federation.rounds=500")
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert f"splitrank run --resume --out {out}" in errors
    assert "Traceback" not in errors
    config = run_folder.resumed_config(out, None, [])
    done = len(lines(out)) - 1
    resumed = run(config, out, resume=True)
    assert next(resumed).round in (done, done + 1)
    resumed.close()


def interrupted(config_file: Path, out: Path, rounds: int = 3) -> None:
    running = run(load_config(str(config_file)), out)
    for _ in range(rounds):
        next(running)
    running.close()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("state.safetensors", "truncate"),
        ("state.safetensors", "tamper"),
        ("state.safetensors", "remove"),
        ("state.json", "truncate"),
        ("state.json", "tamper"),
        ("state.json", "remove"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(file, damage, tiny_config, tmp_path, capsys):
    out, whole = tmp_path / "run", tmp_path / "whole"
    run_all(tiny_config, whole)
    interrupted(tiny_config, out)
    newest = sorted((out / "checkpoint").iterdir())[-1] / file
    content = newest.read_bytes()
    if damage == "truncate":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        newest.unlink()
    elif file == "state.json":
        newest.write_bytes(content.replace(b'"scaling": 2.0', b'"scaling": 4.0'))
    else:
        newest.write_bytes(content[:-4] + b"\x01\x02\x03\x04")
    list(run(run_folder.resumed_config(out, None, []), out, resume=True))
    said = capsys.readouterr().err
    assert str(newest) in said
    assert "falling back" in said
    assert lines(out) == lines(whole)
    assert adapter_bytes(out) == adapter_bytes(whole)


def test_no_whole_checkpoint_is_an_error_that_names_the_files(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    for file in (out / "checkpoint").glob("*/state.json"):
        file.write_text("{")
    before = (out / "rounds.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"round-000002/state\.json.*round-000001/state\.json"):
        list(run(run_folder.resumed_config(out, None, []), out, resume=True))
    assert (out / "rounds.jsonl").read_bytes() == before


def test_altered_records_are_noticed(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    path = out / "rounds.jsonl"
    path.write_text(path.read_text().replace('"round": 0', '"round": 7'))
    with pytest.raises(InputError, match=r"rounds\.jsonl is truncated or was changed"):
        list(run(run_folder.resumed_config(out, None, []), out, resume=True))


def test_only_more_may_change_on_resume(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    resumed = run_folder.resumed_config
    assert resumed(out, None, ["federation.rounds=9"]).federation.rounds == 9
    assert resumed(out, load_config(str(tiny_config)), []).run.threads == 1
    for change in ("federation.rounds=2", "train.learning_rate=1e-3", "run.seed=1", "budget.energy_j=1"):
        key = change.split("=")[0]
        for asked in (resumed, lambda out, _, sets: resumed(out, load_config(str(tiny_config), sets), [])):
            with pytest.raises(ConfigError, match=rf"{key} must be the same"):
                asked(out, None, [change])


def test_changed_texts_are_noticed_on_resume(tiny_config, tiny_texts, tmp_path):
    import shutil

    texts = shutil.copytree(tiny_texts, tmp_path / "texts")
    config = load_config(str(tiny_config), [f"data.path={texts}"])
    running = run(config, tmp_path / "run")
    next(running)
    running.close()
    with (texts / "train.csv").open("a") as file:
        file.write("one more,class-1\n")
    with pytest.raises(InputError, match="texts must be those"):
        list(run(run_folder.resumed_config(tmp_path / "run", None, []), tmp_path / "run", resume=True))


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


def test_altered_settings_are_noticed(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    path = out / "config.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.005", "learning_rate = 0.004"))
    with pytest.raises(InputError, match=r"config\.toml was changed"):
        list(run(run_folder.resumed_config(out, None, []), out, resume=True))


def test_a_linear_schedule_spans_its_rounds(tiny_config, tmp_path):
    out = tmp_path / "run"
    run_all(tiny_config, out, "train.schedule=linear", "federation.rounds=1")
    with pytest.raises(ConfigError, match=r"federation\.rounds must be the same, since a linear train\.schedule"):
        run_folder.resumed_config(out, None, ["federation.rounds=2"])


def test_relative_paths_resume(tiny_config, tiny_texts, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.chdir(tiny_texts.parent)
    asked = load_config(str(tiny_config), [f"data.path={tiny_texts.name}"])
    running = run(asked, out)
    next(running)
    running.close()
    assert run_folder.resumed_config(out, asked, []).data.path == str(tiny_texts)


def test_killed_before_the_settings_were_written_starts_anew(tiny_config, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    (out / ".lock").write_text("1")
    assert len(run_all(tiny_config, out, "federation.rounds=1")) == 2


def test_leftovers_of_killed_processes_go(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    (out / "checkpoint" / ".round-000003.abc").mkdir()
    (out / ".adapter.abc").mkdir()
    list(run(run_folder.resumed_config(out, None, []), out, resume=True))
    assert not list(out.glob(".adapter.*"))
    assert not list((out / "checkpoint").glob(".*"))


def test_nobody_at_first_then_somebody_and_resumed_in_between(tiny_config, tmp_path):
    """One client whose budget is met in some rounds only."""
    settings = ["budget.energy_j=0.1016", "adapter.dropout=0.2", "federation.rounds=8", "federation.num_clients=1"]
    whole = run_all(tiny_config, tmp_path / "whole", *settings)
    statuses = [record.status for record in whole[1:]]
    assert {"infeasible", "optimal"} <= set(statuses), statuses
    broken = tmp_path / "broken"
    config = load_config(str(tiny_config), settings)
    for index in range(1, 9):
        resume = index > 1
        running = run(run_folder.resumed_config(broken, None, []) if resume else config, broken, resume=resume)
        for _ in range(1 if resume else 2):
            next(running)
        running.close()
    list(run(run_folder.resumed_config(broken, None, []), broken, resume=True))
    assert lines(broken) == lines(tmp_path / "whole")


def test_a_broadcast_waits_for_nobody_who_sits_out(tiny_config, tmp_path):
    fixed = ["radio.uplink_gain=[1e-3,1e-3,1e-3]", "radio.downlink_gain=[0,1e-3,2e-3]", "radio.downlink=broadcast"]
    (_, record) = run_all(tiny_config, tmp_path / "run", "federation.rounds=1", *fixed)
    assert [client["dropped"] for client in record.clients] == [True, False, False]
    rates = [client["downlink_bps"] for client in record.clients]
    assert rates[0] == 0
    assert rates[1] == rates[2] > 0
