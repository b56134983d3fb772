"""Whose participation is worth it: the best set and rank of all, by brute force."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitrank import load_config, run
from splitrank.errors import ConfigError
from splitrank.federation.plan_report import plan_lines, plan_report
from splitrank.planning.plan import make_plan
from splitrank.planning.problem import subproblem
from splitrank.planning.solvers.exact import exact
from tests.planning.bands import is_close_call, least_bands, random_band_problem
from tests.planning.problems import check_budgets, random_problem, roomy


def sets(num_clients: int, fewest: int) -> list[list[int]]:
    sizes = range(fewest, num_clients + 1)
    return [list(some) for size in sizes for some in itertools.combinations(range(num_clients), size)]


def weights_of(seed: int, num_clients: int) -> np.ndarray:
    rng = np.random.default_rng((seed, 3))
    return rng.integers(1, 100, num_clients).astype(float) if seed % 2 else np.ones(num_clients)


def check_equal_shares(seed: int) -> str:
    num_clients, fewest = 2 + seed % 5, 1 + seed % 2
    problem, weights = random_problem(seed, num_clients), weights_of(seed, num_clients)
    ranks = exact(problem)
    plan = make_plan(problem, participation="worth", weights=weights, min_clients=fewest)
    able = int((ranks > 0).sum())
    if not able:
        assert plan.status == "infeasible"
        return "infeasible"
    check_budgets(plan, problem)
    wanted = min(fewest, able)
    best = max(weights[some].sum() * np.log1p(ranks[some].min()) for some in sets(num_clients, wanted))
    assert plan.status == "optimal"
    assert plan.participants.sum() >= wanted
    assert weights[plan.participants].sum() * np.log1p(plan.largest_rank) == pytest.approx(best)
    return "all" if plan.participants.sum() == able else "some"


def check_shared_band(seed: int) -> str:
    num_clients, fewest = 2 + seed % 4, 1 + seed % 2
    problem, weights = random_band_problem(seed, num_clients, most_ranks=30), weights_of(seed, num_clients)
    assert problem.band is not None
    least_hz, total_hz = least_bands(problem), problem.band.total_hz
    ranks = np.log1p(np.arange(1, len(least_hz) + 1))
    fitting = [some for some in sets(num_clients, 1) if least_hz[0, some].sum() <= total_hz]
    plan = make_plan(problem, bandwidth="joint", participation="worth", weights=weights, min_clients=fewest)
    if not fitting:
        assert plan.status == "infeasible"
        return "infeasible"
    if any(is_close_call(least_hz[:, some], problem) for some in fitting):
        return "close call"
    wanted = min(fewest, max(map(len, fitting)))
    best = max(
        weights[some].sum() * ranks[least_hz[:, some].sum(axis=1) <= total_hz].max(initial=0.0)
        for some in fitting
        if len(some) >= wanted
    )
    assert plan.participants.sum() >= wanted
    value = weights[plan.participants].sum() * np.log1p(plan.largest_rank)
    assert value <= best * (1 + 1e-12)
    assert best * (1 - 1e-12) <= value / (1 - plan.gap)
    if np.all(weights == weights[0]):
        assert plan.status == "optimal"
    if plan.status == "optimal":
        assert value == pytest.approx(best)
    return plan.status if plan.participants.all() else f"{plan.status}, some"


def test_equal_shares_equal_brute_force() -> None:
    found = [check_equal_shares(seed) for seed in range(150)]
    assert found.count("some") >= 15
    assert found.count("all") >= 15


def test_a_shared_band_equals_brute_force_or_says_how_far_it_may_be() -> None:
    found = [check_shared_band(seed) for seed in range(100)]
    assert found.count("optimal, some") >= 10
    assert found.count("feasible, some") >= 1
    assert found.count("close call") <= 3


@pytest.mark.slow
def test_a_thousand_problems_more() -> None:
    for seed in range(200, 1200):
        check_equal_shares(seed)
        check_shared_band(seed)


@pytest.mark.parametrize("bandwidth", ["equal", "joint"])
def test_the_order_of_the_clients_does_not_matter(bandwidth: Any) -> None:
    for seed in range(20):
        problem, weights = random_band_problem(seed, 8, most_ranks=30), weights_of(seed, 8)
        order = np.random.default_rng(seed).permutation(8)
        options: Any = {"bandwidth": bandwidth, "participation": "worth"}
        plan = make_plan(problem, **options, weights=weights)
        other = make_plan(subproblem(problem, order), **options, weights=weights[order])
        np.testing.assert_array_equal(other.rank, plan.rank[order])


def test_a_fleet_without_weak_clients_takes_part_as_a_whole() -> None:
    plan, everybody = make_plan(roomy(5), participation="worth"), make_plan(roomy(5))
    assert plan.chosen is None
    np.testing.assert_array_equal(plan.rank, everybody.rank)


def test_arguments_that_do_not_go_together() -> None:
    for options in ({"rank_policy": "per-client"}, {"objective": "least-energy"}):
        with pytest.raises(ValueError, match=r"^participation must be 'all' where "):
            make_plan(roomy(), participation="worth", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^weights must have shape \(3,\), .* got shape \(2,\)$"):
        make_plan(roomy(3), participation="worth", weights=np.ones(2))
    with pytest.raises(ValueError, match=r"^participation must be 'all' for a broadcast on a band that is shared"):
        make_plan(random_band_problem(1, 2, is_broadcast=True), bandwidth="joint", participation="worth")


# ---- from settings

WORTH = "planner.participation=worth"
WEAK = ["federation.num_clients=6", "radio.distance_m=[100, 100, 100, 100, 100, 1500]", "radio.fading=none"]


def test_a_plan_says_who_is_worth_it() -> None:
    report = plan_report(load_config("edge", [*WEAK, WORTH]), 1)
    everybody = plan_report(load_config("edge", WEAK), 1)
    assert report["rank"] > everybody["rank"] > 0
    assert [client["chosen"] for client in report["clients"]] == [True] * 5 + [False]
    assert report["clients"][-1]["chosen_by"] == "the others' larger rank is worth more"
    lines = list(plan_lines(report))
    assert lines[0].startswith(f"rank {report['rank']} for the chosen (optimal")
    assert "5 of 6 clients are worth it (planner.participation): 0, 1, 2, 3, 4" in lines
    held = plan_report(load_config("edge", [*WEAK, WORTH, "federation.min_clients=6"]), 1)
    assert held["rank"] == everybody["rank"]
    heavy = plan_report(load_config("edge", [*WEAK, WORTH, "client.samples=[20, 20, 20, 20, 20, 2000]"]), 1)
    assert heavy["clients"][-1].get("chosen", True)


def test_a_run_trains_those_who_are_worth_it(tiny_config: Path, tmp_path: Path) -> None:
    settings = [WORTH, "federation.rounds=1", "budget.energy_j=[2.0, 2.0, 0.1017]"]
    config = load_config(str(tiny_config), settings)
    records = list(run(config, tmp_path / "run"))
    without = list(run(load_config(str(tiny_config), settings[1:]), tmp_path / "without"))
    assert [client.chosen for client in records[1].planned] == [True, True, False]
    assert records[1].rank > without[1].rank > 0
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[1])
    assert [client["dropped"] for client in line["clients"]] == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["adapter.rank=8"], "it is read where adapter.rank is left out"),
        (["federation.clients_per_round=2"], "it is read where federation.clients_per_round is left out"),
        (["planner.objective=least-energy"], 'it is read where planner.objective = "largest-rank"'),
        (
            ["planner.rank_policy=per-client", "federation.aggregation=flexlora"],
            'it is read where planner.rank_policy = "common"',
        ),
        (
            ["radio.total_bandwidth_hz=1e6", "planner.bandwidth=joint", "radio.downlink=broadcast"],
            'planner.participation must be "all" for radio.downlink = "broadcast" and planner.bandwidth = "joint"',
        ),
    ],
)
def test_settings_that_do_not_go_together(settings: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config("edge", [WORTH, *settings])
