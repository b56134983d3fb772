"""Promises of the commands: results on stdout, the rest on stderr, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitrank.cli import app
from splitrank.config import PRESETS
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS

FIXED_GAINS = ["--set", "radio.uplink_gain=[1e-3,1e-3,1e-3]", "--set", "radio.downlink_gain=[1e-3,1e-3,1e-3]"]


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The message of a command that must end with exit code 2 and print no result."""
    result = invoke(*arguments)
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith(("Error: ", "Reading ", "Usage: "))
    return result.stderr


def test_plan_json_has_the_fixed_interface():
    result = invoke("plan", "paper", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["status"], report["method"]) == ("optimal", "exact")
    assert report["adapter_parameters_per_rank"] == 9_216
    assert report["head_parameters"] == 593_668
    assert len(report["clients"]) == 3
    for index, client in enumerate(report["clients"]):
        assert client["client"] == index
        assert client["rank"] == report["rank"] == min(other["max_rank"] for other in report["clients"])
        low, high = client["frequency_range_hz"]
        assert low == client["frequency_hz"] <= high
        assert client["latency_s"] == pytest.approx(client["compute_s"] + client["uplink_s"] + client["downlink_s"])
        assert client.keys() >= {"uplink_bps", "downlink_bps", "energy_j", "binding"}


def test_plan_counts_all_six_maps():
    report = json.loads(invoke("plan", "paper", "--set", "adapter.target_modules=all-linear", "--json").stdout)
    assert report["adapter_parameters_per_rank"] == 41_472


def test_plan_as_a_table_fits_a_terminal():
    for preset in ("paper", "edge", "offline"):
        result = invoke("plan", preset)
        assert result.exit_code == 0
        assert "limited by" in result.stdout
        assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_rounds_have_their_own_channels():
    first, second, again = (invoke("plan", "edge", "--round", t, "--json").stdout for t in (1, 2, 1))
    assert first == again != second


def test_fixed_gains_switch_the_draw_off():
    first, second = (json.loads(invoke("plan", "paper", *FIXED_GAINS, "--round", t, "--json").stdout) for t in (1, 2))
    assert first["clients"] == second["clients"]


def test_broadcast_gives_all_the_slowest_rate():
    unicast, broadcast = (
        json.loads(invoke("plan", "edge", "--set", f"radio.downlink={mode}", "--json").stdout)["clients"]
        for mode in ("unicast", "broadcast")
    )
    rates = {client["downlink_bps"] for client in broadcast}
    assert len(rates) == 1
    assert rates.pop() == pytest.approx(3 * min(client["downlink_bps"] for client in unicast))


def test_total_bandwidth_is_shared_equally():
    whole, parts = (
        json.loads(invoke("plan", "paper", "--set", setting, "--json").stdout)["clients"]
        for setting in ("radio.total_bandwidth_hz=3e6", "radio.bandwidth_hz=1e6")
    )
    assert whole == parts


def test_measured_workload_plans():
    result = invoke(
        "plan", "paper", "--json",
        *("--set", "workload.model=measured", "--set", "client.seconds_per_sample=0.01"),
        *("--set", "client.seconds_per_sample_per_rank=1e-4", "--set", "client.reference_frequency_hz=1e9"),
    )  # fmt: skip
    assert result.exit_code == 0
    (first, *_) = json.loads(result.stdout)["clients"]
    expected = (0.01 + 1e-4 * first["rank"]) * 40_000 * 1e9 / first["frequency_hz"]
    assert first["compute_s"] == pytest.approx(expected)


def test_infeasible_is_exit_3_with_json_and_the_reason_for_every_client():
    settings = ["--set", "budget.energy_j=[50.1, 49.0, 25000.0]"]
    result = invoke("plan", "paper", "--json", *settings)
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert (report["status"], report["rank"]) == ("infeasible", 0)
    blocked = report["clients"][1]
    assert blocked["rank"] == blocked["max_rank"] == 0
    assert blocked["frequency_hz"] is None
    assert blocked["shortfall"]["constraint"] == "energy"
    assert blocked["shortfall"]["needed"] > blocked["shortfall"]["available"] == 49.0
    assert "shortfall" not in report["clients"][2]
    table = invoke("plan", "paper", *settings)
    assert table.exit_code == 3
    assert "client 1 cannot take part: energy, needs" in table.stdout


@pytest.mark.parametrize(
    ("budgets", "constraint"),
    [
        (["budget.latency_s=0.05"], "latency"),
        (["budget.energy_j=50"], "energy"),
        (["client.max_frequency_hz=1000"], "frequency"),
    ],
)
def test_every_constraint_can_block(budgets, constraint):
    settings = [part for budget in budgets for part in ("--set", budget)]
    report = json.loads(invoke("plan", "paper", "--json", *settings).stdout)
    assert {client["shortfall"]["constraint"] for client in report["clients"]} == {constraint}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "papr"], "did you mean paper"),
        (["plan", "missing.toml"], "preset (offline, plain, paper, edge) or a TOML file"),
        (["plan", "paper", "--set", "federation.rouns=1"], "federation.rounds"),
        (["plan", "paper", "--set", "adapter.rank=800"], "adapter.rank must be at most 768"),
        (["plan", "paper", "--set", "model.trained_layers=last:13"], "model.trained_layers must be at most 12 layers"),
        (["plan", "paper", "--set", "model.trained_layers=[3, 12]"], "from 0 to 11"),
        (["plan", "paper", "--set", "model.name=mine"], "model.hidden_size must be given"),
        (["config", "check", "paper", "--set", "run.seed=-1"], "run.seed"),
        (["run", "--resume"], "--resume needs --out"),
        (["run", "--resume", "--out", "nowhere"], "--resume needs the folder of a run"),
        (["predict", "nowhere", "text"], "RUN_DIR must be the folder of a run"),
        (["predict", "nowhere"], "predict needs texts or --file"),
        (["predict", "nowhere", "fine", " "], "must not be empty"),
        (["plan", "edge", "--set", "radio.distance_m=1e-300"], "radio.distance_m must be a number of metres"),
        (["plan", "edge", "--set", "radio.noise_psd_dbm_hz=-4000"], "radio.noise_psd_dbm_hz must be"),
        (["plan", "paper", "--set", "radio.noise_power_w=1e-320"], "within reach of a computer"),
        (["plan", "--round", "0"], "--round"),
        (["pln"], "No such command"),
    ],
)
def test_bad_usage(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in " ".join(refused(*arguments).replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_config_show_and_check(tmp_path):
    shown = invoke("config", "show", "edge", "--set", "run.seed=7")
    assert shown.exit_code == 0
    assert "seed = 7" in shown.stdout
    (tmp_path / "mine.toml").write_text(shown.stdout)
    checked = invoke("config", "check", tmp_path / "mine.toml")
    assert checked.exit_code == 0
    assert "in order" in checked.stdout


def test_config_explain():
    result = invoke("config", "explain", "radio.distance_m")
    assert result.exit_code == 0
    assert "a number of metres from 1 to 1e6" in result.stdout
    assert "did you mean radio.distance_m" in refused("config", "explain", "radio.distance")


def test_methods_and_rules_with_their_bits():
    report = json.loads(invoke("methods", "paper", "--set", "adapter.target_modules=all-linear", "--json").stdout)
    assert list(report["methods"]) == list(METHOD_TRAITS)
    assert list(report["rules"]) == list(RULE_TRAITS)
    per_rank = 32 * 41_472
    assert report["methods"]["lora"]["bits"] == {"constant": 0, "per_rank": per_rank}
    assert report["methods"]["full"]["rules"] == ["fedavg", "median", "trimmed-mean"]
    assert report["rules"]["fedavg"]["uplink_bits"]["per_rank"] == per_rank
    assert report["rules"]["ffa"]["uplink_bits"]["per_rank"] < per_rank
    assert report["rules"]["ffa"]["drawn_from_seed"] == ["lora_A"]
    lines = invoke("methods").stdout
    assert all(name in lines for name in [*METHOD_TRAITS, *RULE_TRAITS])
    assert "294,912 · rank" in lines
    assert all(len(line) <= 130 for line in lines.splitlines())


def test_version():
    assert invoke("--version").stdout.startswith("splitrank 0.")


def test_run_predict_and_cache(tiny_config, tiny_texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("run", tiny_config, "--set", "federation.rounds=2")
    assert result.exit_code == 0, result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split()[:3] == ["round", "rank", "accuracy"]
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]
    assert "3 of 3" in rows[-1]
    assert "0.3 s / 0.3 s" in rows[-1]
    assert "J / 0.12 J" in rows[-1]
    assert "Run folder: runs/tiny-1" in result.stderr
    assert invoke("run", tiny_config, "--set", "federation.rounds=1", "--json").exit_code == 0
    assert {path.name for path in Path("runs").iterdir()} == {"tiny-1", "tiny-2"}
    assert (Path("runs/tiny-2/rounds.jsonl").read_text().count("\n")) == 2

    line = invoke("predict", "runs/tiny-1", "market stock bank", "team game").stdout.splitlines()
    assert len(line) == 2
    assert line[0].startswith("class-")
    by_file = invoke("predict", "runs/tiny-1", "--file", tiny_texts / "test.csv", "--json")
    assert by_file.exit_code == 0
    predicted = [json.loads(row) for row in by_file.stdout.splitlines()]
    assert len(predicted) == 64
    assert predicted[0].keys() == {"label", "probability", "text"}

    listed = invoke("cache", "list")
    assert len(listed.stdout.splitlines()) == 2
    assert "2 cached" in listed.stderr
    assert invoke("cache", "clear").exit_code == 0
    assert invoke("cache", "list").stdout == ""


def test_plan_adds_the_plan_of_those_who_can():
    deep_fade = ["--set", "radio.uplink_gain=[1e-3,1e-3,0]", "--set", "radio.downlink_gain=[1e-3,1e-3,1e-3]"]
    result = invoke("plan", "paper", *deep_fade, "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert (report["status"], report["rank"]) == ("infeasible", 0)
    able = report["able"]
    assert [client["client"] for client in able["clients"]] == [0, 1]
    assert able["rank"] == min(client["max_rank"] for client in able["clients"]) > 0
    assert [(one["client"], one["shortfall"]["constraint"]) for one in able["sits_out"]] == [(2, "latency")]
    lines = invoke("plan", "paper", *deep_fade).stdout
    assert f"a run goes on without: rank {able['rank']} for clients 0, 1 (optimal)" in lines
    nobody = json.loads(invoke("plan", "paper", "--set", "budget.energy_j=1", "--json").stdout)
    assert "able" not in nobody


def test_a_run_in_which_nobody_ever_can_take_part_ends_at_once_with_exit_3(tiny_config, tmp_path):
    result = invoke("run", tiny_config, "--set", "budget.energy_j=0.05", "--out", tmp_path / "run")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "Error: federation.min_clients = 1 clients must be able to take part, 0 of 3 ever can" in result.stderr
    assert "Error: client 2 cannot do rank 1: energy, needs 0.1 J and has 0.05 J" in result.stderr
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "xdg-cache" / "splitrank").exists()
    one = invoke("run", tiny_config, "--set", "budget.energy_j=[0.2, 0.05, 0.2]", "--out", tmp_path / "run")
    assert one.exit_code == 0
    assert "Warning: client 1 cannot do rank 1: energy" in one.stderr


def test_predict_answers_the_rows_that_have_a_text(tiny_config, tmp_path):
    run = tmp_path / "run"
    assert invoke("run", tiny_config, "--set", "federation.rounds=1", "--out", run).exit_code == 0
    (tmp_path / "new.csv").write_text("id,text\n1,market stock\n2,\n3,team game\n", encoding="utf-8")
    result = invoke("predict", run, "--file", tmp_path / "new.csv", "--json")
    assert result.exit_code == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["market stock", None, "team game"]
    assert (rows[1]["label"], rows[1]["probability"]) == (None, None)
    assert rows[0]["label"] is not None
    assert "1 row has no text" in result.stderr
    chinese = "这个产品的质量非常好" * 12
    (line,) = invoke("predict", run, chinese).stdout.splitlines()
    assert line.split("\t")[2] == chinese[:79] + "…"


def test_an_unfinished_run_cannot_predict_and_says_how_to_finish(tiny_config, tmp_path):
    out = tmp_path / "run"
    assert invoke("run", tiny_config, "--out", out, "--set", "federation.rounds=1").exit_code == 0
    shutil.rmtree(out / "adapter")
    assert f"splitrank run --resume --out {out}" in refused("predict", out, "text")
    again = invoke("run", "--resume", "--out", out)
    assert again.exit_code == 0
    assert invoke("predict", out, "text").exit_code == 0


def test_json_lines_of_a_run_are_its_records(tiny_config, tmp_path):
    result = invoke("run", tiny_config, "--out", tmp_path / "run", "--json", "--set", "federation.rounds=1")
    assert result.stdout == (tmp_path / "run" / "rounds.jsonl").read_text()


def write_texts(folder: Path, train: str | bytes, test: str = "text,label\nthe market,a\na game,b\n") -> Path:
    folder.mkdir()
    (folder / "train.csv").write_bytes(train if isinstance(train, bytes) else train.encode())
    (folder / "test.csv").write_text(test)
    return folder


GOOD = "text,label\n" + "the market,a\na game,b\n" * 4


@pytest.mark.parametrize(
    ("train", "test", "settings", "expected"),
    [
        ("words,label\nx,a\ny,b\n", None, [], "data.text must name one of the columns"),
        ("text,class\nx,a\ny,b\n", None, [], "data.label must name one of the columns"),
        (GOOD, "text,label\nx,c\n", [], "'c'"),
        ("text,label\nx,a\ny,a\n", None, [], "classes"),
        ("text,label\n,a\ny,b\n", None, [], "must not be empty"),
        (b"text,label\n\xff\xfe,a\ny,b\n", None, [], "UTF-8"),
        (f"text,label\n{'word ' * 2_000_000},a\ny,b\n", None, [], "at most 1,000,000 characters"),
        (GOOD, None, ["federation.num_clients=9"], "federation.num_clients"),
        (GOOD, None, ["data.train_rows=100"], "data.train_rows"),
        (GOOD, None, ["model.trained_layers=last:7"], "model.trained_layers must be at most 6"),
        (GOOD, None, ["model.trained_layers=[6]"], "from 0 to 5"),
        (GOOD, None, ["model.max_length=500"], "model.max_length must be at most 63"),
        (GOOD, None, ["adapter.rank=33"], "adapter.rank must be at most 32"),
        (GOOD, None, ["model.name=nobody/nothing"], "offline preset"),
        (GOOD, None, ["run.cache_limit_gb=1e-9"], "run.cache_limit_gb must be at least"),
    ],
)  # fmt: skip
def test_bad_texts_and_settings(train, test, settings, expected, tiny_config, tmp_path):
    folder = write_texts(tmp_path / "texts", train, **({"test": test} if test else {}))
    sets = [part for setting in (f"data.path={folder}", *settings) for part in ("--set", setting)]
    out = tmp_path / "out" / "run"
    message = refused("run", tiny_config, "--out", out, *sets)
    assert expected in message
    assert not out.exists()


def test_missing_data(tiny_config, tmp_path):
    assert str(tmp_path / "none") in refused("run", tiny_config, "--set", f"data.path={tmp_path / 'none'}")
    no_network = refused("run", tiny_config, "--set", "data.name=nobody/has-this")
    assert "offline" in no_network


def test_resuming_with_other_settings(tiny_config, tmp_path):
    out = tmp_path / "run"
    assert invoke("run", tiny_config, "--out", out, "--set", "federation.rounds=1").exit_code == 0
    message = refused(
        "run", tiny_config, "--resume", "--out", out, "--set", "federation.rounds=1", "--set", "run.seed=3"
    )
    assert "run.seed must be the same when a run is resumed" in message
    assert "add --resume" in refused("run", tiny_config, "--out", out)
    longer = invoke("run", "--resume", "--out", out, "--set", "federation.rounds=2")
    assert longer.exit_code == 0
    assert [row.split()[0] for row in longer.stdout.splitlines()[1:]] == ["2"]


def test_help_names_every_preset_and_swallows_no_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for command in (["plan"], ["data"], ["run"], ["methods"], ["config", "show"], ["config", "check"]):
        assert f"CONFIG is a preset ({', '.join(PRESETS)}) or a TOML file" in invoke(*command, "--help").stdout
    for table in ("[set]", "[grid]", "[[list]]"):
        assert table in invoke("sweep", "--help").stdout
