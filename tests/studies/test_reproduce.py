"""Promise: an experiment leaves table, figure, report and verdicts; its cost is known before."""

from __future__ import annotations

import json

import numpy as np
import pytest

from splitrank.config import load_config, with_values
from splitrank.errors import InputError
from splitrank.planning.flops import trunk_flops
from splitrank.planning.workload import KNOWN_SHAPES
from splitrank.studies import cost
from splitrank.studies.cost import trial_cost
from splitrank.studies.experiments import Study, experiment_trials, read_study
from splitrank.studies.reproduce import reproduce
from splitrank.studies.run_reader import read_run


@pytest.mark.slow
def test_an_experiment_leaves_its_results(tmp_path, tiny_model, tiny_texts):
    shared = {
        "model.name": str(tiny_model()),
        "model.max_length": 32,
        "data.path": str(tiny_texts),
        "federation.rounds": 1,
        "budget.latency_s": 1e6,
        "budget.energy_j": 1e9,
    }
    study = Study("tiny", "offline", 1.0, shared, {"rank": {"grid": {"adapter": {"rank": [1, 2]}}}})
    trials = experiment_trials(study, "rank", {}, [0])
    out = tmp_path / "rank"
    said = list(reproduce(study, "rank", trials, out, jobs=2, ray_address=None))
    assert said[2].startswith("not resolved at 1 seed: accuracy rises from rank 1 to rank 2")
    assert {"results.csv", "results.parquet", "figure.png", "figure.pdf", "verdicts.json", "report.html"} <= {
        path.name for path in out.iterdir()
    }
    (verdict,) = json.loads((out / "verdicts.json").read_text())["verdicts"]
    assert verdict["outcome"] == "not resolved"
    assert verdict["low"] is None
    again = list(reproduce(study, "rank", trials, out, jobs=1, ray_address=None))
    assert again == said[2:]


def small(experiment: str) -> dict[str, float]:
    trials = experiment_trials(read_study("small"), experiment, {}, [0])
    return {trial.name: trial_cost(trial.config).training_flops for trial in trials}


def test_costs_follow_from_the_count_of_operations():
    config = load_config("paper", ["adapter.rank=16", "federation.rounds=4", "data.test_rows=1000"])
    one, two = trial_cost(config), trial_cost(with_values(config, {"client.samples": 80_000}))
    assert one.rank == 16
    assert one.cache_bytes == 121_000 * 64 * 768 * 2
    shape = KNOWN_SHAPES["roberta-base"]
    per_text = np.array([1, 64, 64**2]) @ trunk_flops(shape, 9)
    assert one.trunk_flops == pytest.approx(121_000 * per_text)
    # evaluation, which does not grow with the training texts, is a third of training for each of 5 × 1,000 texts
    a_text = (two.training_flops - one.training_flops) / (4 * 120_000)
    assert one.training_flops == pytest.approx(a_text * (4 * 120_000 + 5 * 1000 / 3))
    # of a round that takes one client of three, a third
    third = trial_cost(with_values(config, {"federation.clients_per_round": 1}))
    assert third.training_flops == pytest.approx(a_text * (4 * 40_000 + 5 * 1000 / 3))
    assert third.cache_bytes == one.cache_bytes
    placements = small("placement")
    assert placements["trained_layers=first:3,seed=0"] > 2 * placements["trained_layers=last:3,seed=0"]
    assert trial_cost(load_config("paper", ["model.trained_layers=all"])).trunk_flops == 0


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_cost(monkeypatch):
    monkeypatch.setattr(cost, "CALIBRATION_S", 0.1)
    trials = experiment_trials(read_study("small"), "rank", {}, [0])
    lines = list(cost.dry_run({"rank": trials}, jobs=2))
    assert lines[0].split()[:2] == ["experiment", "trials"]
    assert lines[1].split()[:3] == ["rank", "8", "48,000"]
    assert float(lines[1].split()[-1]) < 24
    assert "GFLOP/s in training" in lines[3]
    assert sum("adapter.rank = " in line for line in lines) == 8


def test_what_no_run_left_behind_is_named(tmp_path):
    with pytest.raises(InputError, match=r"must be the folder of a run, got .*nowhere without config.toml"):
        read_run(tmp_path / "nowhere")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("[federation]\nrounds = 0\n")
    with pytest.raises(InputError, match=r"config.toml must hold the settings of a run: federation.rounds"):
        read_run(folder)
    (folder / "config.toml").write_text("")
    with pytest.raises(InputError, match=r"manifest.json must be readable"):
        read_run(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"rounds.jsonl must be readable"):
        read_run(folder)
    rounds = folder / "rounds.jsonl"
    for content, says in (
        ("", "must hold at least round 0"),
        ('{"round": 0', "must hold at least round 0"),  # as a run leaves it that is writing
        ("{\n", "line 1 of .*rounds.jsonl must be a JSON object"),
        ("{}\n", "line 1 of .*rounds.jsonl must be the record of a round"),
        ("\xff", "must be readable"),
    ):
        rounds.write_bytes(content.encode("latin-1"))
        with pytest.raises(InputError, match=says):
            read_run(folder)
