"""Promise: names in settings, records, manifests, tables and ``plan --json`` stay; new ones come last."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from splitrank import load_config, run
from splitrank.cli import app
from splitrank.config.fields import settings_of
from splitrank.studies.study import run_sweep
from splitrank.studies.sweep import read_sweep

OLD_RUN = Path(__file__).parent / "fixtures" / "run-0.1.0" / "run"

SETTINGS_OF_0_1_0 = {
    "model": "name trained_layers max_length precision head hidden_size intermediate_size num_layers num_labels",
    "adapter": "method target_modules scaling dropout rank",
    "data": "name path text label train_rows test_rows test_share",
    "federation": "num_clients rounds local_epochs partition aggregation target_accuracy min_clients join_s timeout_s "
    "grace_s",
    "train": "learning_rate batch_size schedule weight_decay max_grad_norm dropout",
    "client": "samples capacitance max_frequency_hz circuit_energy_j flops_per_cycle reference_frequency_hz "
    "seconds_per_sample seconds_per_sample_per_rank",
    "radio": "bandwidth_hz total_bandwidth_hz uplink_power_w downlink_power_w large_scale_gain distance_m fading "
    "uplink_gain downlink_gain noise_power_w noise_psd_dbm_hz noise_figure_db downlink",
    "budget": "latency_s energy_j",
    "workload": "model bits_per_parameter count_head trunk tokens_per_sample",
    "planner": "method max_rank frequency_policy latency_margin random_range where",
    "run": "seed threads cache_limit_gb tracking",
}
PLAN_OF_0_1_0 = (
    "client rank max_rank frequency_hz frequency_range_hz uplink_bps downlink_bps compute_s uplink_s downlink_s "
    "latency_s energy_j binding"
)
RESULTS_OF_0_1_0 = (
    "rounds accuracy_before accuracy best_accuracy loss macro_f1 worst_client_accuracy mean_rank mean_max_rank "
    "client_rounds_missed latency_s energy_j preparation_s preparation_j uplink_bits downlink_bits "
    "factor_averaging_error"
)


@pytest.fixture
def folder(tiny_config: Path, tmp_path: Path) -> Path:
    settings = ["federation.rounds=1", "budget.energy_j=[0.2, 0.05, 0.2]"]
    list(run(load_config(str(tiny_config), settings), tmp_path / "run"))
    return tmp_path / "run"


def starts_with(old: Any, new: Any) -> bool:
    return list(new)[: len(list(old))] == list(old)


def test_settings():
    keys = {f"{table}.{key}" for table, names in SETTINGS_OF_0_1_0.items() for key in names.split()}
    assert keys <= set(settings_of())


def test_records_and_manifest(folder):
    for old, new in zip(*((one / "rounds.jsonl").read_text().splitlines() for one in (OLD_RUN, folder)), strict=False):
        before, now = json.loads(old), json.loads(new)
        assert starts_with(before, now)
        assert starts_with(before["clients"][0], now["clients"][0])
    before, now = (json.loads((one / "manifest.json").read_text()) for one in (OLD_RUN, folder))
    assert starts_with(before, now)
    for key in ("versions", "hardware", "data", "model"):
        assert starts_with(before[key], now[key])
    sits_out = json.loads((folder / "rounds.jsonl").read_text().splitlines()[1])["clients"][1]
    assert list(sits_out)[len(PLAN_OF_0_1_0.split())] == "shortfall"
    assert list(sits_out["shortfall"]) == ["constraint", "needed", "available", "unit"]


def test_plans():
    report = json.loads(CliRunner().invoke(app, ["plan", "paper", "--json"]).stdout)
    assert starts_with(["status", "method", "rank"], report)
    assert starts_with(PLAN_OF_0_1_0.split(), report["clients"][0])


@pytest.mark.slow
def test_a_sweep(tiny_config, tmp_path):
    (tmp_path / "ranks.toml").write_text(
        f'base = "{tiny_config}"\n[set]\nfederation.rounds = 1\n[grid]\nadapter.rank = [1]\n'
    )
    out = tmp_path / "ranks"
    list(run_sweep(read_sweep(tmp_path / "ranks.toml"), out, "ranks", jobs=1, ray_address=None))
    with (out / "results.csv").open() as file:
        columns = next(csv.reader(file))
    assert columns == ["member", "baseline", "adapter.rank", *RESULTS_OF_0_1_0.split()]
    (trial,) = (path for path in (out / "members").iterdir() if path.is_dir())
    assert {trial.name, f"{trial.name}.toml", f"{trial.name}.log"} == {
        path.name for path in (out / "members").iterdir()
    }
