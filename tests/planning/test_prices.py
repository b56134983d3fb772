"""The price of a budget is the slope of the real rank, and the budget said to buy the next rank does, barely."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from splitrank import load_config
from splitrank.federation.plan_report import plan_lines, plan_report
from splitrank.planning.plan import make_plan
from splitrank.planning.prices import prices
from splitrank.planning.problem import Problem, feasible
from tests.planning.bands import random_band_problem
from tests.planning.problems import random_problem, roomy


def with_budget(problem: Problem, name: str, factor: float) -> Problem:
    if name == "latency_s":
        return replace(problem, latency_budget_s=problem.latency_budget_s * factor)
    if name == "energy_j":
        return replace(problem, energy_budget_j=problem.energy_budget_j * factor)
    if name == "memory_bytes":
        return replace(problem, memory_budget_bytes=problem.memory_budget_bytes * factor)
    assert problem.band is not None
    band = problem.band.widened(factor)
    shares_hz = np.full(problem.num_clients, band.share_hz)
    return replace(problem, band=band, uplink_bps=band.uplink_bps(shares_hz), downlink_bps=band.downlink_bps(shares_hz))


def real_rank(problem: Problem) -> float:
    """The largest real rank that fits every client, by halving the kernel's answers."""
    low, high = np.ones(problem.num_clients), problem.rank_cap.astype(float)
    for _ in range(80):
        middle = (low + high) / 2
        fits = feasible(problem, middle)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return float(low.min())


@pytest.mark.parametrize("bandwidth", ["equal", "joint"])
def test_budgets_buy_what_is_said(bandwidth: Any) -> None:
    bought = dict.fromkeys(("latency_s", "energy_j", "memory_bytes", "bandwidth_hz"), 0)
    beyond = 0
    for seed in range(24 if bandwidth == "equal" else 12):
        problem = random_band_problem(seed, 1 + seed % 4)
        plan = make_plan(problem, bandwidth=bandwidth)
        if plan.status == "infeasible":
            continue
        for price in prices(problem, plan):
            if price.next_rank is None:
                assert price.ranks_per_unit == 0
            elif np.isinf(price.factor):
                more = with_budget(problem, price.budget, 1e9)
                assert make_plan(more, bandwidth=bandwidth).largest_rank < price.next_rank
                beyond += 1
            else:
                assert price.needed == pytest.approx(price.given * price.factor)
                enough, short = (with_budget(problem, price.budget, price.factor * by) for by in (1 + 1e-9, 1 - 1e-6))
                assert make_plan(enough, bandwidth=bandwidth).largest_rank >= price.next_rank
                assert make_plan(short, bandwidth=bandwidth).largest_rank < price.next_rank
                bought[price.budget] += 1
    assert min(bought.values()) >= 1
    assert beyond >= 1


def test_the_price_is_the_slope_of_the_real_rank() -> None:
    slopes = 0
    for seed in range(40):
        problem = random_band_problem(seed, 3)
        plan = make_plan(problem)
        if plan.status == "infeasible":
            continue
        for price in prices(problem, plan):
            step = 1e-4
            more = real_rank(with_budget(problem, price.budget, 1 + step))
            slope = (more - real_rank(problem)) / (step * price.given)
            assert price.ranks_per_unit == pytest.approx(slope, rel=1e-3, abs=1e-6 * plan.largest_rank / price.given)
            slopes += slope > 0
    assert slopes >= 15


def test_on_a_shared_band_the_price_predicts_the_rank() -> None:
    """Ranks gained with a budget twice as large are about those that the prices on the way say."""
    config = ["radio.total_bandwidth_hz=1.08e6", "planner.bandwidth=joint", "planner.max_rank=1000"]
    ends = [plan_report(load_config("edge", [*config, f"budget.latency_s={t}"]), 1) for t in np.linspace(300, 330, 7)]
    (latency, *_), ranks = zip(*(end["budgets"] for end in ends), strict=True), [end["rank"] for end in ends]
    slope = np.mean([row["ranks_per_unit"] for row in latency])
    assert ranks[-1] - ranks[0] == pytest.approx(30 * slope, abs=1.1)
    assert slope > 0.1


def test_a_budget_without_limit_has_no_price() -> None:
    problem = replace(random_problem(1, 1), energy_budget_j=np.inf, uplink_bps=1e9, downlink_bps=1e9)
    assert [price.budget for price in prices(problem, make_plan(problem))] == ["latency_s"]
    at_cap = roomy(3)
    assert [(price.next_rank, price.factor) for price in prices(at_cap, make_plan(at_cap))] == [(None, np.inf)] * 2


def test_the_report_ends_with_the_prices() -> None:
    report = plan_report(load_config("paper"), 1)
    assert list(report)[-1] == "budgets"
    latency, energy = report["budgets"]
    assert [row["next_rank"] for row in report["budgets"]] == [report["rank"] + 1] * 2
    bought = plan_report(load_config("paper", [f"budget.latency_s={latency['needed']}"]), 1)
    assert bought["rank"] == report["rank"] + 1
    assert plan_report(load_config("paper", [f"budget.energy_j={energy['needed']}"]), 1)["rank"] == report["rank"] + 1
    lines = list(plan_lines(report))
    assert lines[-3].split() == ["budget", "given", "ranks", "per", "unit", "next", "rank", "takes"]
    assert lines[-2].split()[:3] == ["T0", "18,000", "s"]
    assert all(len(line) <= 80 for line in lines[-3:])


@pytest.mark.parametrize(
    "settings",
    [
        ["adapter.rank=4"],
        ["planner.method=random-frequency"],
        ["planner.objective=least-energy"],
        ["adapter.method=bitfit", "workload.model=flops"],
    ],
)
def test_where_no_rank_is_planned_there_are_no_prices(settings: list[str]) -> None:
    assert "budgets" not in plan_report(load_config("paper", settings), 1)
