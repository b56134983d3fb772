"""Plans for another purpose than the largest rank: least energy together, least time of the slowest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from splitrank import load_config
from splitrank.errors import ConfigError
from splitrank.federation.problems import plan_round, planned_problem
from splitrank.planning.bandwidth import at_bands
from splitrank.planning.bandwidth_energy import saved_j_per_hz
from splitrank.planning.least_bands import min_band
from splitrank.planning.plan import Plan, make_plan
from splitrank.planning.problem import Problem, energy_j, feasible, frequency_range_hz, latency_s, subproblem
from tests.planning.bands import least_bands, random_band_problem
from tests.planning.problems import check_budgets, random_problem, roomy


def at_floor(problem: Problem, floor: int) -> Problem:
    return replace(problem, rank_floor=floor, rank_ceiling=np.maximum(problem.rank_cap, floor))


@pytest.mark.parametrize("floor", [1, 4])
@pytest.mark.parametrize("objective", ["least-energy", "least-latency"])
def test_no_other_rank_and_frequency_is_better(objective: Any, floor: int) -> None:
    """Of all ranks from the floor on and all frequencies with which the budgets hold, on equal shares."""
    problem = at_floor(random_problem(7, 300), floor)
    plan = make_plan(problem, objective=objective, require_all=False)
    check_budgets(plan, problem)
    able = feasible(problem, floor) & (problem.rank_cap >= floor)
    np.testing.assert_array_equal(plan.participants, able)
    assert set(plan.rank[able]) == {floor}
    for rank in range(floor, floor + 20, 3):
        fits = feasible(problem, rank) & able
        low_hz, high_hz = (np.where(fits, end, 1.0) for end in frequency_range_hz(problem, rank))
        for share in np.linspace(0, 1, 7):
            hz = low_hz + share * (high_hz - low_hz)
            cost, planned = (
                (energy_j(problem, rank, hz), plan.energy_j)
                if objective == "least-energy"
                else (latency_s(problem, rank, hz), plan.latency_s)
            )
            assert np.all(planned[fits] <= cost[fits] * (1 + 1e-9))


# ---- a band of one's own need


def able_together(seed: int, num_clients: int) -> Problem | None:
    problem = random_band_problem(seed, num_clients)
    plan = make_plan(problem, bandwidth="joint", require_all=False)
    members = np.flatnonzero(plan.participants)
    return subproblem(problem, members) if len(members) == num_clients else None


def check_least_time(seed: int) -> bool:
    problem = able_together(seed, 1 + seed % 5)
    if problem is None:
        return False
    assert problem.band is not None
    plan = make_plan(problem, bandwidth="joint", objective="least-latency")
    assert plan.status == "optimal"
    check_budgets(plan, at_bands(problem, plan.bandwidth_hz))
    slowest_s = float(plan.latency_s.max())
    for factor, fits in ((1 + 1e-6, True), (1 - 1e-6, False)):
        shorter = replace(problem, latency_budget_s=slowest_s * factor, latency_margin=0.0)
        assert (least_bands(shorter)[0].sum() <= problem.band.total_hz) == fits
    equal = make_plan(problem, objective="least-latency", require_all=False)
    if equal.participants.all():
        assert slowest_s <= equal.latency_s.max() * (1 + 1e-9)
    return True


def check_least_energy(seed: int) -> bool:
    problem = able_together(seed, 2)
    if problem is None:
        return False
    assert problem.band is not None
    plan = make_plan(problem, bandwidth="joint", objective="least-energy")
    assert plan.status == "optimal"
    check_budgets(plan, at_bands(problem, plan.bandwidth_hz))
    least_hz, total_hz = least_bands(problem)[0], problem.band.total_hz

    def spent_j(first_hz: float) -> float:
        bands_hz = np.array([first_hz, total_hz - first_hz])
        at = at_bands(problem, bands_hz)
        low_hz, _ = frequency_range_hz(at, 1)
        return float(energy_j(at, 1, low_hz).sum())

    low_hz, high_hz = float(least_hz[0]), total_hz - float(least_hz[1])
    inner = minimize_scalar(spent_j, bounds=(low_hz, high_hz), method="bounded", options={"xatol": 1e-9 * total_hz})
    best_j = min(inner.fun, *(spent_j(hz) for hz in np.linspace(low_hz * (1 + 1e-9), high_hz * (1 - 1e-9), 31)))
    assert plan.energy_j.sum() <= best_j * (1 + 1e-7)
    return True


def test_the_slowest_could_not_be_done_earlier() -> None:
    assert sum(check_least_time(seed) for seed in range(30)) >= 15


def test_no_other_shares_take_less_energy() -> None:
    assert sum(check_least_energy(seed) for seed in range(30)) >= 15


@pytest.mark.slow
def test_a_thousand_problems_more() -> None:
    assert sum(check_least_time(seed) + check_least_energy(seed) for seed in range(100, 1100)) >= 1000


def test_savings_are_the_slope_of_the_energy() -> None:
    problem = able_together(5, 1)
    assert problem is not None
    problem = random_band_problem(5, 200)
    problem = subproblem(problem, np.flatnonzero(np.isfinite(min_band(problem, 1))))
    bands_hz = min_band(problem, 1) * 1.5
    step = 1e-5

    def spent_j(hz: np.ndarray) -> np.ndarray:
        at = at_bands(problem, hz)
        return energy_j(at, 1, frequency_range_hz(at, 1)[0])

    slope = (spent_j(bands_hz * (1 - step)) - spent_j(bands_hz * (1 + step))) / (2 * step * bands_hz)
    matters = slope * bands_hz > 1e-6 * spent_j(bands_hz)
    assert matters.sum() > 20
    np.testing.assert_allclose(saved_j_per_hz(problem, 1, bands_hz)[matters], slope[matters], rtol=1e-4)


def test_the_least_time_needs_no_time_limit() -> None:
    problem = replace(random_band_problem(3, 3), energy_budget_j=np.inf)
    for how in ("equal", "joint"):
        plan: Plan = make_plan(
            replace(problem, latency_budget_s=np.inf), objective="least-latency", bandwidth=how, require_all=False
        )
        assert np.isfinite(plan.latency_s[plan.participants]).all()
        assert plan.participants.any()


# ---- what does not go together


def test_arguments_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"^objective must be 'least-latency' where latency_budget_s is infinite, got"):
        make_plan(roomy(latency_budget_s=np.inf), objective="least-energy")
    with pytest.raises(ValueError, match=r"^objective must be 'largest-rank' where rank_policy is 'per-client', got"):
        make_plan(roomy(), objective="least-energy", rank_policy="per-client")


OBJECTIVE = "planner.objective=least-energy"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ([OBJECTIVE, "budget.latency_s=inf"], 'planner.objective must be "largest-rank" or "least-latency" where'),
        ([OBJECTIVE, "planner.frequency_policy=least-latency"], 'read where planner.objective = "largest-rank", and'),
        (
            [OBJECTIVE, "planner.rank_policy=per-client", "federation.aggregation=flexlora"],
            'planner.rank_policy must be "common" for planner.objective = "least-energy"',
        ),
        (["planner.min_rank=9", "planner.max_rank=8"], "planner.min_rank must be at most planner.max_rank = 8, got 9"),
        (["planner.min_rank=9", "adapter.rank=8"], "it is read where adapter.rank is left out"),
        (
            ["planner.min_rank=2", "federation.aggregation=hetlora", "planner.rank_policy=per-client"],
            'planner.min_rank must be 1 for federation.aggregation = "hetlora"',
        ),
        (["planner.objective=accuracy"], 'planner.objective = "accuracy" is not available yet'),
        (
            [OBJECTIVE, "federation.clients_per_round=2", "federation.over_selection=0.5"],
            'over_selection must be 0 for planner.objective = "least-energy"',
        ),
    ],
)
def test_settings_that_do_not_go_together(settings: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config("edge", settings)


def test_settings_say_what_a_plan_is_for() -> None:
    def planned(*settings: str) -> Plan:
        config = load_config("edge", ["planner.min_rank=4", *settings])
        return plan_round(config, planned_problem(config, 1, require_all=True), 1, require_all=True)

    largest, energy, latency = planned(), planned(OBJECTIVE), planned("planner.objective=least-latency")
    assert largest.largest_rank > energy.largest_rank == latency.largest_rank == 4
    assert energy.energy_j.sum() < min(latency.energy_j.sum(), largest.energy_j.sum())
    assert latency.latency_s.max() < min(energy.latency_s.max(), largest.latency_s.max())
    assert planned("budget.latency_s=120").status == "infeasible"
    unlimited = planned("planner.objective=least-latency", "budget.latency_s=inf")
    assert unlimited.status == "optimal"
