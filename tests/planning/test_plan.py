"""A plan keeps every promise it makes: budgets, statuses, reasons, and the JSON that scripts read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrank.planning.limits import UNITS, binding, shortfalls
from splitrank.planning.plan import OPTIMAL_SOLVERS, make_plan, plan_json
from splitrank.planning.problem import (
    downlink_s,
    energy_j,
    feasible,
    frequency_range_hz,
    latency_s,
    uplink_s,
)
from splitrank.planning.solvers.exact import exact
from splitrank.planning.solvers.random_frequency import draw_frequency_hz
from splitrank.planning.workload import Affine, Workload
from tests.planning.problems import check_budgets, fixed, random_problem, roomy

seeds = st.integers(0, 2**32 - 1)
deterministic = settings(derandomize=True, deadline=None, max_examples=60)


ONE = Affine(np.ones(1), np.ones(1))


@pytest.mark.parametrize("method", OPTIMAL_SOLVERS)
def test_an_energy_beyond_any_float_is_infeasible_without_a_limit_too(method: Any) -> None:
    problem = roomy(1, latency_budget_s=np.inf, energy_budget_j=np.inf, capacitance=np.full(1, 1e300))
    plan = make_plan(problem, method=method, frequency_policy="least-latency")
    assert plan.status == "infeasible"


@pytest.mark.parametrize("policy", ["least-energy", "least-latency"])
@pytest.mark.parametrize("method", [*OPTIMAL_SOLVERS, "random-frequency"])
@pytest.mark.parametrize("rank_policy", ["common", "per-client"])
@given(seed=seeds, margin=st.floats(0.0, 0.9), rank=st.none() | st.integers(1, 20), has_time_limit=st.booleans())
@deterministic
def test_every_plan_keeps_to_the_budgets(
    method: Any, policy: Any, rank_policy: Any, seed: int, margin: float, rank: int | None, has_time_limit: bool
) -> None:
    problem = fixed(random_problem(seed, 40, margin, has_time_limit=has_time_limit), rank)
    if not has_time_limit:
        policy = "least-latency"
    drawn_hz = draw_frequency_hz(problem, seed, 1) if method == "random-frequency" else None
    plan = make_plan(
        problem,
        method=method,
        frequency_policy=policy,
        rank_policy=rank_policy,
        require_all=False,
        frequency_hz=drawn_hz,
    )
    np.testing.assert_array_equal(plan.participants, plan.max_rank >= (rank or 1))
    np.testing.assert_array_equal(plan.shortfalls.constraint == "", plan.participants)
    if plan.status == "infeasible":
        assert plan.largest_rank == plan.common_rank == 0
        assert not np.any(plan.participants)
    else:
        check_budgets(plan, problem)
        own = plan.max_rank[plan.participants]
        expected = rank or (own.min() if rank_policy == "common" else own)
        np.testing.assert_array_equal(plan.rank[plan.participants], expected)
    json.dumps(plan_json(plan, problem), allow_nan=False)


@given(seed=seeds, share=st.floats(0.0, 1.0))
@deterministic
def test_policies_take_the_ends_of_the_range(seed: int, share: float) -> None:
    problem = random_problem(seed, 40)
    least_energy = make_plan(problem, method="exact", frequency_policy="least-energy", require_all=False)
    least_latency = make_plan(problem, method="exact", frequency_policy="least-latency", require_all=False)
    part, rank = least_energy.participants, least_energy.largest_rank
    if not np.any(part):
        return
    other_hz = least_energy.frequency_low_hz + share * (least_energy.frequency_high_hz - least_energy.frequency_low_hz)
    assert np.all(least_energy.energy_j[part] <= energy_j(problem, rank, other_hz)[part] * (1 + 1e-12))
    assert np.all(least_latency.latency_s[part] <= latency_s(problem, rank, other_hz)[part] * (1 + 1e-12))
    # Least energy leaves no slack in time; least latency none in energy, unless at full speed.
    np.testing.assert_allclose(least_energy.latency_s[part], problem.deadline_s, rtol=1e-9)
    full_speed = least_latency.frequency_hz == problem.max_frequency_hz
    spent = np.isclose(least_latency.energy_j, problem.energy_budget_j, rtol=1e-9)
    assert np.all((full_speed | spent)[part])


def test_range_is_empty_exactly_where_the_rank_is_infeasible() -> None:
    problem = random_problem(1, 5000)
    problem = replace(problem, memory_budget_bytes=np.inf)
    for rank in (1, 5, 30):
        low_hz, high_hz = frequency_range_hz(problem, rank)
        np.testing.assert_array_equal(low_hz <= high_hz, feasible(problem, rank))


def test_range_of_one_point_is_not_empty() -> None:
    """Budgets at the edge of rank 1, where f_lat and f_en differ by rounding alone."""
    problem = random_problem(2, 20_000)
    alive = exact(problem) > 0
    low_hz, _ = frequency_range_hz(problem, 1)
    edge_j = np.where(alive, energy_j(problem, 1, low_hz), problem.energy_budget_j)
    problem = replace(problem, energy_budget_j=edge_j)
    low_hz, high_hz = frequency_range_hz(problem, 1)
    fits = feasible(problem, 1)
    assert 0.1 < np.mean(fits[alive]) < 0.9  # rounding goes either way
    assert np.all((low_hz <= high_hz)[fits])


def test_statuses() -> None:
    plan = make_plan(roomy(3), method="exact", frequency_policy="least-energy")
    assert (plan.status, plan.common_rank) == ("optimal", 50)

    drawn_hz = draw_frequency_hz(roomy(3), 0, 1)
    plan = make_plan(roomy(3), method="random-frequency", frequency_policy="least-energy", frequency_hz=drawn_hz)
    assert plan.status == "feasible"
    np.testing.assert_array_equal(plan.frequency_hz, drawn_hz)

    one_dead = roomy(3, uplink_bps=np.array([2e6, 0.0, 2e6]))
    plan = make_plan(one_dead, method="exact", frequency_policy="least-energy")
    assert (plan.status, plan.common_rank) == ("infeasible", 0)
    assert not np.any(plan.participants)
    assert np.all(np.isnan(plan.frequency_hz))
    np.testing.assert_array_equal(plan.max_rank, [50, 0, 50])

    plan = make_plan(one_dead, method="exact", frequency_policy="least-energy", require_all=False)
    assert (plan.status, plan.common_rank) == ("optimal", 50)
    np.testing.assert_array_equal(plan.participants, [True, False, True])

    all_dead = roomy(3, uplink_bps=np.zeros(3))
    plan = make_plan(all_dead, method="exact", frequency_policy="least-energy", require_all=False)
    assert (plan.status, plan.common_rank) == ("infeasible", 0)


def test_fixed_rank_plans_frequencies_only() -> None:
    problem = roomy(2, max_frequency_hz=np.array([1e9, 1e7]))
    plan = make_plan(fixed(problem, 20), method="exact", frequency_policy="least-energy")
    assert plan.status == "infeasible"
    np.testing.assert_array_equal(plan.max_rank, [50, 9])
    plan = make_plan(fixed(problem, 20), method="exact", frequency_policy="least-energy", require_all=False)
    assert (plan.status, plan.common_rank) == ("optimal", 20)
    np.testing.assert_array_equal(plan.participants, [True, False])
    assert plan.frequency_hz[0] == pytest.approx(20e9 / (1000 - 20))
    np.testing.assert_array_equal(plan.shortfalls.constraint, ["", "frequency"])
    np.testing.assert_allclose(plan.shortfalls.needed, [np.nan, 20e9 / (1000 - 20)])
    np.testing.assert_array_equal(plan.shortfalls.available, [np.nan, 1e7])
    above_cap = make_plan(fixed(problem, 51), method="exact", frequency_policy="least-energy")
    assert set(above_cap.shortfalls.constraint) == {"rank-cap"}
    np.testing.assert_array_equal(above_cap.shortfalls.needed, [51, 51])
    np.testing.assert_array_equal(above_cap.shortfalls.available, [50, 50])


REMEMBERING = replace(roomy().workload, memory_bytes=Affine(0.7e9, 1e8))
BOUND_BY = {
    "rank-cap": roomy(),
    "latency": roomy(uplink_bps=np.array([1e4])),  # 100 s of airtime a rank and next to no computing
    "energy": roomy(energy_budget_j=np.array([1e-3 + 1.0 + 0.1 * 20])),
    "frequency": roomy(max_frequency_hz=np.array([1e7])),
    "memory": roomy(workload=REMEMBERING, memory_budget_bytes=1e9),
}


@pytest.mark.parametrize("word", BOUND_BY)
def test_every_binding_constraint_is_reached(word: str) -> None:
    problem = BOUND_BY[word]
    plan = make_plan(problem, method="exact", frequency_policy="least-energy")
    assert plan.largest_rank == plan.max_rank[0] >= 1
    assert plan.binding[0] == word
    # Lifting what binds, and nothing else, admits the next rank.
    lifted = {
        "rank-cap": {"rank_cap": problem.rank_cap + 1},
        "latency": {"latency_budget_s": problem.latency_budget_s * 2},
        "energy": {"energy_budget_j": problem.energy_budget_j * 2},
        "frequency": {"max_frequency_hz": problem.max_frequency_hz * 2},
        "memory": {"memory_budget_bytes": problem.memory_budget_bytes * 2},
    }[word]
    assert exact(replace(problem, **lifted))[0] > plan.largest_rank


@given(seeds, st.booleans())
@deterministic
def test_binding_says_what_the_next_rank_lacks(seed: int, has_time_limit: bool) -> None:
    """By the definition in words, with each limit lifted in turn."""
    problem = random_problem(seed, 100, has_time_limit=has_time_limit, may_be_free=not has_time_limit)
    max_rank = exact(problem)
    words, rank = binding(problem, max_rank), max_rank + 1
    with np.errstate(all="ignore"):
        airtime_s = uplink_s(problem, rank) + downlink_s(problem, rank)
    no_energy_limit = feasible(replace(problem, energy_budget_j=np.inf), rank)
    no_speed_limit = feasible(replace(problem, max_frequency_hz=1e300), rank)
    capped = max_rank == problem.rank_cap
    np.testing.assert_array_equal(words == "rank-cap", capped)
    full = ~capped & (problem.workload.memory_bytes(rank) > problem.memory_budget_bytes)
    np.testing.assert_array_equal(words == "memory", full)
    capped |= full
    np.testing.assert_array_equal(words == "latency", ~capped & (airtime_s >= problem.deadline_s))
    assert np.all(words[no_energy_limit & ~capped] == "energy")
    assert np.all(words[no_speed_limit & ~capped] == "frequency")


@pytest.mark.parametrize(
    ("changes", "constraint", "needed", "available", "unit"),
    [
        ({"latency_budget_s": 0.5}, "latency", 1.0, 0.5, "s"),
        ({"latency_budget_s": 1.0, "latency_margin": 0.2}, "latency", 1.0, 0.8, "s"),
        ({"uplink_bps": np.zeros(1)}, "latency", np.inf, 1000.0, "s"),
        ({"energy_budget_j": np.array([1.05]), "latency_budget_s": 2.25}, "energy", 1.1 + 0.64, 1.05, "J"),  # W < 0
        ({"energy_budget_j": np.array([1.4]), "latency_budget_s": 2.25}, "energy", 1.1 + 0.64, 1.4, "J"),  # 0.8 GHz
        ({"latency_budget_s": 1.5}, "frequency", 2e9, 1e9, "Hz"),
        ({"workload": REMEMBERING, "memory_budget_bytes": 7.5e8}, "memory", 8e8, 7.5e8, "bytes"),
        ({"latency_budget_s": np.inf, "energy_budget_j": np.array([0.9])}, "energy", 1.1, 0.9, "J"),
        ({"latency_budget_s": np.inf, "uplink_bps": np.zeros(1)}, "latency", np.inf, np.inf, "s"),
        (
            {"latency_budget_s": np.inf, "energy_budget_j": np.inf, "downlink_bps": np.zeros(1)},
            *("latency", np.inf, np.inf, "s"),
        ),
    ],
)
def test_shortfall_names_what_is_missing(
    changes: dict[str, Any], constraint: str, needed: float, available: float, unit: str
) -> None:
    problem = roomy(**changes)
    plan = make_plan(problem, method="exact", frequency_policy="least-latency")
    assert plan.status == "infeasible"
    blocked = plan.shortfalls
    assert plan.binding[0] == blocked.constraint[0] == constraint
    assert blocked.needed[0] == pytest.approx(needed)
    assert blocked.available[0] == pytest.approx(available)
    assert UNITS[constraint] == unit


@given(seeds, st.booleans())
@deterministic
def test_a_shortfall_is_short(seed: int, has_time_limit: bool) -> None:
    problem = random_problem(seed, 60, has_time_limit=has_time_limit)
    for drawn_hz in (None, draw_frequency_hz(problem, seed, 1, "full")):
        plan = make_plan(
            problem,
            method="exact" if drawn_hz is None else "random-frequency",
            frequency_policy="least-latency",
            frequency_hz=drawn_hz,
        )
        unable, blocked = plan.max_rank == 0, plan.shortfalls
        np.testing.assert_array_equal(blocked.constraint, np.where(unable, plan.binding, ""))
        assert np.all(blocked.needed[unable] >= blocked.available[unable] * (1 - 1e-12))
        assert np.all(np.isnan(blocked.needed[~unable]) & np.isnan(blocked.available[~unable]))


def test_without_limits_everybody_runs_at_full_speed() -> None:
    problem = roomy(2, latency_budget_s=np.inf, energy_budget_j=np.inf, max_frequency_hz=np.array([1e9, 1e6]))
    plan = make_plan(problem, method="exact", frequency_policy="least-latency")
    assert (plan.status, plan.common_rank) == ("optimal", 50)
    np.testing.assert_array_equal(plan.frequency_hz, problem.max_frequency_hz)
    np.testing.assert_array_equal(plan.frequency_low_hz, [0.0, 0.0])
    assert set(plan.binding) == {"rank-cap"}
    with pytest.raises(ValueError, match="least-latency"):
        make_plan(problem, method="exact", frequency_policy="least-energy")


@given(seed=seeds)
@deterministic
def test_no_limit_is_a_limit_that_is_never_met(seed: int) -> None:
    """An infinite budget gives what a huge one gives, up to rounding in the energy that is left."""
    problem = random_problem(seed, 60)
    unlimited, huge = (replace(problem, latency_budget_s=budget_s) for budget_s in (np.inf, 1e30))
    plans = [
        make_plan(one, method="exact", frequency_policy="least-latency", rank_policy="per-client", require_all=False)
        for one in (unlimited, huge)
    ]
    np.testing.assert_array_equal(plans[0].rank, plans[1].rank)
    np.testing.assert_allclose(plans[0].frequency_hz, plans[1].frequency_hz)
    np.testing.assert_array_equal(plans[0].binding, plans[1].binding)
    np.testing.assert_array_equal(plans[0].shortfalls.constraint, plans[1].shortfalls.constraint)


def test_drawn_frequencies_are_above_0_without_a_time_limit() -> None:
    problem = random_problem(3, 2000, has_time_limit=False)
    drawn_hz = draw_frequency_hz(problem, 3, 1)
    fits = feasible(problem, 1)
    assert np.all((drawn_hz > 0)[fits] & (drawn_hz <= problem.max_frequency_hz)[fits])
    assert np.all(np.isnan(drawn_hz[~fits]))


def test_a_client_that_costs_nothing_takes_no_time() -> None:
    free = Affine(np.zeros(1), np.zeros(1))
    problem = roomy(workload=Workload(free, free, free), uplink_bps=np.zeros(1), downlink_bps=np.zeros(1))
    for policy in ("least-energy", "least-latency"):
        plan = make_plan(problem, method="exact", frequency_policy=policy)  # type: ignore[arg-type]
        assert (plan.status, plan.common_rank) == ("optimal", 50)
        np.testing.assert_array_equal([plan.latency_s[0], plan.energy_j[0]], [0.0, 1.0])
    np.testing.assert_array_equal(shortfalls(problem, 50, np.ones(1, bool)).constraint, [""])


def test_json_of_a_plan() -> None:
    problem = roomy(2, downlink_bps=np.array([2e6, 0.0]))
    written = plan_json(make_plan(problem, method="exact", frequency_policy="least-energy", require_all=False), problem)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert {key: written[key] for key in ("status", "method", "rank")} == {
        "status": "optimal",
        "method": "exact",
        "rank": 50,
    }
    first, second = written["clients"]
    assert list(first) == [
        *("client", "rank", "max_rank", "frequency_hz", "frequency_range_hz", "uplink_bps", "downlink_bps"),
        *("compute_s", "uplink_s", "downlink_s", "latency_s", "energy_j", "binding"),
    ]
    assert first["frequency_range_hz"][0] == first["frequency_hz"] == pytest.approx(50e9 / 950)
    assert (first["uplink_s"], first["downlink_s"], first["latency_s"]) == pytest.approx((25.0, 25.0, 1000.0))
    assert (second["client"], second["rank"], second["max_rank"], second["latency_s"]) == (1, 0, 0, None)
    assert second["frequency_range_hz"] == [None, None]
    assert second["downlink_bps"] == 0.0
    assert second["shortfall"] == {"constraint": "latency", "needed": None, "available": 1000.0, "unit": "s"}


def test_frequencies_go_with_the_random_method_only() -> None:
    with pytest.raises(ValueError, match="frequency_hz"):
        make_plan(roomy(), method="random-frequency", frequency_policy="least-energy")
    with pytest.raises(ValueError, match="frequency_hz"):
        make_plan(roomy(), method="exact", frequency_policy="least-energy", frequency_hz=np.ones(1))
