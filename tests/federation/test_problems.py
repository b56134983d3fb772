"""Promises of problems and plans made of settings: calibration, fixed ranks, ranks per client, no limits."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank.config import load_config
from splitrank.federation.problems import plan_round, planned_problem


def planned(preset: str, *overrides: str, require_all: bool = True):
    config = load_config(preset, overrides)
    problem = planned_problem(config, 1, require_all=require_all)
    return problem, plan_round(config, problem, 1, require_all=require_all)


@pytest.mark.parametrize(
    ("preset", "overrides", "expected"),
    [
        ("paper", [], 16.6),
        ("paper", ["budget.latency_s=2400"], 4.3),
        ("paper", ["budget.energy_j=1e3"], 5.5),
        ("paper", ["planner.method=random-frequency"], 2.9),
        # With FLOPs counted as PyTorch counts them where the last layer needs no other token's key or value.
        ("edge", [], 55.2),
    ],
)
def test_mean_ranks_of_the_presets(preset, overrides, expected):
    ranks = [planned(preset, *overrides, f"run.seed={seed}")[1].largest_rank for seed in range(200)]
    assert np.mean(ranks) == pytest.approx(expected, rel=0.03)


def test_a_fixed_rank_is_floor_and_ceiling():
    problem, plan = planned("edge", "adapter.rank=16")
    np.testing.assert_array_equal(problem.rank_floor, [16, 16, 16])
    np.testing.assert_array_equal(problem.rank_ceiling, [16, 16, 16])
    assert plan.common_rank == 16
    assert np.all(plan.max_rank > 16)
    problem, _ = planned("edge")
    np.testing.assert_array_equal(problem.rank_floor, [1, 1, 1])
    np.testing.assert_array_equal(problem.rank_ceiling, [128, 128, 128])


def test_a_method_without_a_rank_is_planned_at_rank_1():
    _, plan = planned("edge", "adapter.method=full", "budget.latency_s=3000", "budget.energy_j=3000")
    assert (plan.status, plan.common_rank) == ("optimal", 1)


def test_the_drawn_frequency_fits_the_fixed_rank():
    drawn = ["planner.method=random-frequency", "adapter.rank=16"]
    _, plan = planned("edge", *drawn)
    assert (plan.status, plan.common_rank) == ("feasible", 16)


@pytest.mark.parametrize("rule", ["ffa", "flexlora"])
def test_ranks_per_client(rule):
    common, own = (
        planned("edge", f"federation.aggregation={rule}", f"planner.rank_policy={policy}")[1]
        for policy in ("common", "per-client")
    )
    np.testing.assert_array_equal(own.rank, own.max_rank)
    assert common.common_rank == own.rank.min()
    assert own.common_rank is None


def test_no_limits():
    problem, plan = planned("edge", "budget.latency_s=inf", "budget.energy_j=inf")
    assert problem.deadline_s == np.inf
    assert plan.common_rank == 128
    np.testing.assert_array_equal(plan.frequency_hz, problem.max_frequency_hz)


def test_a_broadcast_waits_for_the_slowest_that_can_take_part():
    gains = "[1e-10, 0, 1e-11]"
    settings = ["radio.downlink=broadcast", "radio.uplink_gain=[1e-10, 1e-10, 1e-10]", f"radio.downlink_gain={gains}"]
    assert planned("edge", *settings)[0].downlink_bps.max() == 0.0
    problem, _ = planned("edge", *settings, require_all=False)
    alone, _ = planned("edge", *settings[1:], require_all=False)
    assert problem.downlink_bps[0] == problem.downlink_bps[2] < 3 * alone.downlink_bps[0]
