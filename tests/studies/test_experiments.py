"""Promise: the experiments are the paper's, at whatever size; verdicts and figures follow from the tables alone."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from splitrank.config import load_config, with_values
from splitrank.errors import InputError
from splitrank.federation.costs import round_workload
from splitrank.federation.problems import plan_round, round_problem
from splitrank.federation.sizes import encoder_shape
from splitrank.federation.texts import nominal_text_stats
from splitrank.studies import figures, verdicts
from splitrank.studies.experiments import PRESETS, VARIED, chosen_experiments, experiment_trials, read_study
from splitrank.studies.reproduce import planned_ranks
from splitrank.studies.verdicts import FAILS, HOLDS, UNRESOLVED, paired

# Means over 200 draws with the paper's 3 clients, for T0 at E0 = 25 kJ and for E0 at T0 = 18,000 s.
PLANNER = {
    "latency": [2, 3.0, 4.3, 6.9, 10.5, 16.6, 26.4, 42, 67],
    "energy": [2.0, 3.5, 5.5, 8.3, 12.2, 16.6, 26.4, 38, 57, 64],
}
RANDOM_FREQUENCY = {
    "latency": [1.0, 1.3, 1.7, 2.1, 2.5, 2.9, 3.2, 3.6, 3.9],
    "energy": [1, 1.1, 1.1, 1.2, 1.5, 2.9, 7.9, 12.8, 15.4, 15.4],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_trials(preset):
    study = read_study(preset)
    for experiment in chosen_experiments(study, "all"):
        trials = experiment_trials(study, experiment, {}, range(2))
        assert len({trial.name for trial in trials}) == len(trials)
        assert {trial.config.run.seed for trial in trials} == {0, 1}


@pytest.mark.parametrize("experiment", ["latency", pytest.param("energy", marks=pytest.mark.slow)])
@pytest.mark.parametrize("preset", [pytest.param("paper", marks=pytest.mark.slow), "small"])
def test_mean_ranks_are_those_of_the_calibration(preset, experiment):
    ranks = planned_ranks(experiment_trials(read_study(preset), experiment, {}, [0]))
    for method, expected in (("exact", PLANNER), ("random-frequency", RANDOM_FREQUENCY)):
        found = ranks[ranks["planner.method"] == method]["rank"].to_numpy()
        np.testing.assert_allclose(found, expected[experiment], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("experiment", ["latency", "energy"])
def test_the_small_preset_has_the_ranks_of_the_papers_size(experiment):
    """The same seed draws the same clients and channels, so not only the means are equal."""
    for large, small in zip(
        experiment_trials(read_study("paper"), experiment, {}, [5]),
        experiment_trials(read_study("small"), experiment, {}, [5]),
        strict=True,
    ):
        plans = []
        for config in (large.config, small.config):
            shape = encoder_shape(config)
            workload = round_workload(config, shape, nominal_text_stats(config))
            problem = round_problem(config, shape, workload, 2, require_all=False)
            plans.append(plan_round(config, problem, 2, require_all=False))
        np.testing.assert_array_equal(plans[0].max_rank, plans[1].max_rank)
        np.testing.assert_allclose(plans[0].frequency_hz, plans[1].frequency_hz, rtol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_client_is_ever_below_its_rank_under_random_frequency(preset):
    study = read_study(preset)
    for experiment in set(study.experiments) & {"latency", "energy", "bandwidth", "distance"}:
        by_point: dict[str, dict[str, np.ndarray]] = {}
        for trial in experiment_trials(study, experiment, {}, range(3)):
            config = trial.config
            shape = encoder_shape(config)
            workload = round_workload(config, shape, nominal_text_stats(config))
            ranks = [
                plan_round(
                    config, round_problem(config, shape, workload, round, require_all=False), round, require_all=False
                )
                for round in range(1, 6)
            ]
            point = f"{trial.varied[VARIED[experiment]]}, {config.run.seed}"
            by_point.setdefault(point, {})[config.planner.method] = np.array([plan.max_rank for plan in ranks])
        for point, methods in by_point.items():
            assert (methods["exact"] >= methods["random-frequency"]).all(), (experiment, point)


def test_placement_has_its_baselines():
    trials = experiment_trials(read_study("small"), "placement", {}, [0])
    placements = [trial.config.model.trained_layers for trial in trials if not trial.baseline]
    assert placements == ["first:3", "middle:3", "last:3", "all"]
    (centralised,) = [trial for trial in trials if trial.name.startswith("centralised")]
    federated = trials[2].config
    config = centralised.config
    assert config.federation.num_clients == 1
    assert (
        config.federation.local_epochs * config.federation.rounds
        == federated.federation.local_epochs * federated.federation.rounds
    )
    changed = experiment_trials(
        read_study("small"), "placement", {"federation.local_epochs": 2, "train.learning_rate": 1e-3}, [0]
    )
    assert {trial.config.train.learning_rate for trial in changed} == {1e-3}
    (centralised,) = [trial for trial in changed if trial.name.startswith("centralised")]
    assert centralised.config.federation.local_epochs == 2 * 5
    (full,) = [trial for trial in trials if trial.baseline == "full-fine-tuning"]
    assert full.config.model.trained_layers == "last:3"
    # The baseline of one machine holds all rows and takes part in every round; full fine-tuning is a federation, too.
    some = {
        "federation.clients_per_round": 2, "federation.selection": "fair", "federation.partition": "pathological",
        "federation.classes_per_client": 4,
    }  # fmt: skip
    by_baseline = {
        trial.baseline: trial.config.federation
        for trial in experiment_trials(read_study("small"), "placement", some, [0])
    }
    assert (by_baseline["centralised"].clients_per_round, by_baseline["centralised"].partition) == (None, "iid")
    for baseline in ("", "full-fine-tuning"):
        assert (by_baseline[baseline].clients_per_round, by_baseline[baseline].partition) == (2, "pathological")


def test_the_centralised_baseline_knows_no_federation():
    more = {
        "federation.aggregation": "trimmed-mean",
        "federation.trimmed-mean.fraction": 0.34,
        "federation.server_optimizer": "fedadam",
        "federation.fedadam.tau": 0.1,
        "train.proximal": 0.1,
        "adapter.rank": 4,
    }
    trials = experiment_trials(read_study("small"), "placement", more, [0])
    alone = [trial.config for trial in trials if trial.baseline == "centralised"]
    others = [trial.config for trial in trials if not trial.baseline]
    for config in alone:
        assert config.federation.aggregation == "fedavg"
        assert config.federation.server_optimizer == "none"
        assert config.train.proximal == 0.0
    assert {config.federation.aggregation for config in others} == {"trimmed-mean"}
    assert {config.federation.server_optimizer for config in others} == {"fedadam"}


def test_what_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"--preset must be one of .*did you mean small"):
        read_study("smal")
    with pytest.raises(InputError, match=r"EXPERIMENT must be one of placement, .* got 'bandwidth'"):
        chosen_experiments(read_study("small"), "bandwidth")
    with pytest.raises(InputError, match=r"adapter.rank must be either varied or the same .*rank varies it"):
        experiment_trials(read_study("small"), "rank", {"adapter.rank": 3}, [0])
    with pytest.raises(InputError, match=r"adapter.rnk must be a known key"):
        experiment_trials(read_study("small"), "rank", {"adapter.rnk": 3}, [0])


def test_a_folder_takes_the_place_of_the_offline_texts():
    trials = experiment_trials(read_study("small"), "rank", {"data.path": "news"}, [0])
    assert trials[0].config.data.name is None
    assert trials[0].config.data.path.endswith("/news")


def series(values: list[float]) -> pd.Series:
    return pd.Series(values, index=range(len(values)))


def test_verdicts_are_paired_over_seeds():
    base = series([80.0, 85.0, 90.0])
    assert paired("x", base + series([1.0, 1.1, 0.9]), base).outcome == HOLDS
    assert paired("x", base - series([1.0, 1.1, 0.9]), base).outcome == FAILS
    assert paired("x", base + series([1.0, -1.1, 0.9]), base).outcome == UNRESOLVED
    one = paired("x", series([81.0]), series([80.0]))
    assert (one.outcome, one.seeds) == (UNRESOLVED, 1)
    assert math.isnan(one.low)
    assert "not resolved at 1 seed: x (+1.00 points)" in str(one)
    # Student's t with 2 degrees of freedom: 4.303 · 0.1 / sqrt(3)
    assert paired("x", base + series([1.0, 1.1, 0.9]), base).low == pytest.approx(
        1 - 4.3027 * 0.1 / math.sqrt(3), abs=1e-4
    )


def test_a_rise_after_the_peak_is_no_fall():
    ranks = pd.DataFrame(
        {"adapter.rank": [1, 32, 128] * 3, "run.seed": [0] * 3 + [1] * 3 + [2] * 3,
         "accuracy": [0.5, 0.7, 0.8, 0.5, 0.71, 0.8, 0.5, 0.72, 0.8]}
    )  # fmt: skip
    rises, falls = verdicts.test_expectations("rank", ranks, {})
    assert rises.outcome == HOLDS
    assert falls.outcome == FAILS
    assert str(falls).startswith("does not hold: accuracy is higher at rank 32 than at rank 128 (-9.00 points")


def budget_table(experiment: str, gain: float) -> pd.DataFrame:
    values = [1.0, 10.0, 100.0]
    lines = [
        {
            "member": f"{method}-{value}-{seed}",
            "baseline": "",
            VARIED[experiment]: value,
            "planner.method": method,
            "run.seed": seed,
            "accuracy": 0.5 + seed / 100 + gain * np.log10(value) / 10 + (0.05 if method == "exact" else 0) + jitter,
            "mean_rank": 2 + np.log10(value) + (3 if method == "exact" else 0) + jitter,
        }
        for seed, jitter in ((0, 0.001), (1, 0.0), (2, -0.001))
        for value in values
        for method in ("exact", "random-frequency")
    ]
    return pd.DataFrame(lines)


def clients_with(max_rank: int) -> pd.DataFrame:
    return pd.DataFrame({"client": [0, 1, 0, 1], "max_rank": [np.nan, np.nan, max_rank, 7]}, index=[0, 0, 1, 1])


@pytest.mark.parametrize("experiment", ["latency", "energy", "bandwidth"])
def test_a_budget_experiment_is_judged(experiment):
    table = budget_table(experiment, gain=1.0)
    clients = {name: clients_with(5 if name.startswith("exact") else 3) for name in table["member"]}
    table["accuracy"] += 0.002 * table["run.seed"] * (table[VARIED[experiment]] == 100)
    assert [verdict.outcome for verdict in verdicts.test_expectations(experiment, table, clients)][:1] == [HOLDS]
    assert verdicts.test_expectations(experiment, table, clients)[3].outcome == HOLDS
    worse = {name: clients_with(2 if name.startswith("exact") else 3) for name in table["member"]}
    assert verdicts.test_expectations(experiment, table, worse)[3].outcome == FAILS
    falling = budget_table(experiment, gain=-1.0)
    falling["accuracy"] += 0.002 * falling["run.seed"] * (falling[VARIED[experiment]] == 100)
    assert verdicts.test_expectations(experiment, falling, clients)[0].outcome == FAILS


def test_less_distance_is_the_looser_side():
    table = budget_table("distance", gain=-1.0)
    table["accuracy"] += 0.002 * table["run.seed"] * (table["radio.distance_m"] == 1)
    clients = {name: clients_with(3) for name in table["member"]}
    assert verdicts.test_expectations("distance", table, clients)[0].outcome == HOLDS


def placement_table() -> pd.DataFrame:
    accuracies = {"first:3": 0.7, "middle:3": 0.72, "last:3": 0.8, "all": 0.85}
    lines = []
    for seed in range(3):
        for baseline, layers in (
            *(("", layers) for layers in accuracies),
            ("centralised", "last:3"),
            ("full-fine-tuning", "last:3"),
        ):
            lines.append(
                {
                    "member": f"{baseline}{layers},seed={seed}",
                    "baseline": baseline,
                    "model.trained_layers": layers,
                    "run.seed": seed,
                    "accuracy": accuracies[layers] + seed / 1000 * (1 + len(layers) + len(baseline)),
                    "accuracy_before": 0.25,
                    "latency_s": 10.0,
                    "energy_j": 5.0,
                }
            )
    return pd.DataFrame(lines)


def test_placements_are_judged_without_their_baselines():
    outcomes = {
        verdict.expectation: verdict.outcome
        for verdict in verdicts.test_expectations("placement", placement_table(), {})
    }
    assert outcomes["all layers are better than last:3"] == HOLDS
    assert outcomes["last:3 is better than first:3"] == HOLDS
    assert outcomes["first:3 is better than no fine-tuning"] == HOLDS
    assert len(outcomes) == 9


@pytest.mark.parametrize("experiment", ["placement", "rank", "latency", "distance"])
def test_figures_appear_and_repeat(experiment, tmp_path):
    if experiment == "placement":
        table, expected = placement_table(), None
    elif experiment == "rank":
        table = pd.DataFrame(
            {"adapter.rank": [1, 2, 4] * 2, "accuracy": [0.5, 0.6, 0.7] * 2, "run.seed": [0] * 3 + [1] * 3}
        )
        expected = None
    else:
        table = budget_table(experiment, 1.0)
        expected = table.groupby([VARIED[experiment], "planner.method"], as_index=False)["mean_rank"].mean()
        expected = expected.rename(columns={"mean_rank": "rank"})
    for name in ("one", "two"):
        figures.save(figures.draw(experiment, table, "a title", 0.5, expected), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()


def test_a_preset_of_a_study_is_one_of_run():
    for preset in PRESETS:
        assert load_config(read_study(preset).base) == with_values(load_config(read_study(preset).base), {})
