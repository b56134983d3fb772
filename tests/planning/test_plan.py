"""A plan keeps every promise it makes: budgets, statuses, reasons, and the JSON that scripts read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrank.planning.plan import OPTIMAL_SOLVERS, Plan, make_plan, plan_json
from splitrank.planning.problem import UNITS, Problem, binding, energy_j, feasible, frequency_range_hz, latency_s
from splitrank.planning.solvers.exact import exact
from splitrank.planning.solvers.random_frequency import draw_frequency_hz
from splitrank.planning.workload import Workload
from tests.planning.problems import random_problem

seeds = st.integers(0, 2**32 - 1)
deterministic = settings(derandomize=True, deadline=None, max_examples=60)


def roomy(num_clients: int = 1, **changes: Any) -> Problem:
    """Clients that spend 1 s computing at full speed and 1 s on the air per rank, 1 J and 0.1 J; caps at 50."""
    ones = np.ones(num_clients)
    fields: dict[str, Any] = {
        "workload": Workload(0 * ones, 1e9 * ones, 0 * ones, 1e6 * ones),
        "uplink_bps": 2e6 * ones,
        "downlink_bps": 2e6 * ones,
        "uplink_power_w": 0.2 * ones,
        "capacitance": 1e-27 * ones,
        "max_frequency_hz": 1e9 * ones,
        "circuit_energy_j": 1.0 * ones,
        "energy_j": 1e6 * ones,
        "rank_cap": np.full(num_clients, 50),
        "latency_s": 1000.0,
    }
    return Problem(**{**fields, **changes})


def check_budgets(plan: Plan, problem: Problem) -> None:
    """E1 to E4 to 1e-9, computed from the equations of the paper rather than by the planner."""
    part = plan.participants
    f, bits, cycles = plan.frequency_hz, problem.workload.payload_bits(plan.rank), problem.workload.cycles(plan.rank)
    with np.errstate(divide="ignore"):
        up_s, down_s = bits / problem.uplink_bps, bits / problem.downlink_bps
    deadline_s = problem.latency_s * (1 - problem.latency_margin)
    time_s = cycles / f + up_s + down_s
    spent_j = problem.capacitance * (cycles / f) * f**3 + problem.joules_per_cycle * cycles
    spent_j = spent_j + problem.uplink_power_w * up_s + problem.circuit_energy_j
    assert np.all(time_s[part] <= deadline_s * (1 + 1e-9))
    assert np.all(spent_j[part] <= problem.energy_j[part] * (1 + 1e-9))
    assert np.all((f[part] > 0) & (f[part] <= problem.max_frequency_hz[part]))
    assert isinstance(plan.rank, int)
    assert np.all((plan.rank >= 1) & (plan.rank <= problem.rank_cap[part]))
    np.testing.assert_allclose(plan.latency_s[part], time_s[part])
    np.testing.assert_allclose(plan.energy_j[part], spent_j[part])
    np.testing.assert_allclose((plan.compute_s + plan.uplink_s + plan.downlink_s)[part], time_s[part])
    for field in ("frequency_hz", "frequency_low_hz", "frequency_high_hz", "compute_s", "uplink_s", "latency_s"):
        assert np.all(np.isnan(getattr(plan, field)) == ~part)


@pytest.mark.parametrize("policy", ["least-energy", "least-latency"])
@pytest.mark.parametrize("method", [*OPTIMAL_SOLVERS, "random-frequency"])
@given(seed=seeds, margin=st.floats(0.0, 0.9), rank=st.none() | st.integers(1, 20))
@deterministic
def test_every_plan_keeps_to_the_budgets(method: Any, policy: Any, seed: int, margin: float, rank: int | None) -> None:
    problem = random_problem(seed, 40, margin)
    drawn_hz = draw_frequency_hz(problem, seed, 1) if method == "random-frequency" else None
    plan = make_plan(problem, method=method, frequency_policy=policy, rank=rank, sit_out=True, frequency_hz=drawn_hz)
    np.testing.assert_array_equal(plan.participants, plan.max_rank >= (rank or 1))
    np.testing.assert_array_equal(plan.shortfalls.constraint == "", plan.participants)
    if plan.status == "infeasible":
        assert plan.rank == 0
        assert not np.any(plan.participants)
    else:
        check_budgets(plan, problem)
        assert plan.rank == (rank or plan.max_rank[plan.participants].min())
    json.dumps(plan_json(plan, problem), allow_nan=False)


@given(seed=seeds, share=st.floats(0.0, 1.0))
@deterministic
def test_policies_take_the_ends_of_the_range(seed: int, share: float) -> None:
    problem = random_problem(seed, 40)
    least_energy = make_plan(problem, method="exact", frequency_policy="least-energy", sit_out=True)
    least_latency = make_plan(problem, method="exact", frequency_policy="least-latency", sit_out=True)
    part, rank = least_energy.participants, least_energy.rank
    if not np.any(part):
        return
    other_hz = least_energy.frequency_low_hz + share * (least_energy.frequency_high_hz - least_energy.frequency_low_hz)
    assert np.all(least_energy.energy_j[part] <= energy_j(problem, rank, other_hz)[part] * (1 + 1e-12))
    assert np.all(least_latency.latency_s[part] <= latency_s(problem, rank, other_hz)[part] * (1 + 1e-12))
    # Least energy leaves no slack in time; least latency none in energy, unless at full speed.
    np.testing.assert_allclose(least_energy.latency_s[part], problem.deadline_s, rtol=1e-9)
    full_speed = least_latency.frequency_hz == problem.max_frequency_hz
    spent = np.isclose(least_latency.energy_j, problem.energy_j, rtol=1e-9)
    assert np.all((full_speed | spent)[part])


def test_range_is_empty_exactly_where_the_rank_is_infeasible() -> None:
    problem = random_problem(1, 5000)
    for rank in (1, 5, 30):
        low_hz, high_hz = frequency_range_hz(problem, rank)
        np.testing.assert_array_equal(low_hz <= high_hz, feasible(problem, rank))


def test_range_of_one_point_is_not_empty() -> None:
    """Budgets at the edge of rank 1, where f_lat and f_en differ by rounding alone."""
    problem = random_problem(2, 20_000)
    alive = exact(problem) > 0
    low_hz, _ = frequency_range_hz(problem, 1)
    edge_j = np.where(alive, energy_j(problem, 1, low_hz), problem.energy_j)
    problem = replace(problem, energy_j=edge_j)
    low_hz, high_hz = frequency_range_hz(problem, 1)
    fits = feasible(problem, 1)
    assert 0.1 < np.mean(fits[alive]) < 0.9  # rounding goes either way
    assert np.all((low_hz <= high_hz)[fits])


def test_statuses() -> None:
    plan = make_plan(roomy(3), method="exact", frequency_policy="least-energy")
    assert (plan.status, plan.rank) == ("optimal", 50)

    drawn_hz = draw_frequency_hz(roomy(3), 0, 1)
    plan = make_plan(roomy(3), method="random-frequency", frequency_policy="least-energy", frequency_hz=drawn_hz)
    assert plan.status == "feasible"
    np.testing.assert_array_equal(plan.frequency_hz, drawn_hz)

    one_dead = roomy(3, uplink_bps=np.array([2e6, 0.0, 2e6]))
    plan = make_plan(one_dead, method="exact", frequency_policy="least-energy")
    assert (plan.status, plan.rank) == ("infeasible", 0)
    assert not np.any(plan.participants)
    assert np.all(np.isnan(plan.frequency_hz))
    np.testing.assert_array_equal(plan.max_rank, [50, 0, 50])

    plan = make_plan(one_dead, method="exact", frequency_policy="least-energy", sit_out=True)
    assert (plan.status, plan.rank) == ("optimal", 50)
    np.testing.assert_array_equal(plan.participants, [True, False, True])

    all_dead = roomy(3, uplink_bps=np.zeros(3))
    plan = make_plan(all_dead, method="exact", frequency_policy="least-energy", sit_out=True)
    assert (plan.status, plan.rank) == ("infeasible", 0)


def test_fixed_rank_plans_frequencies_only() -> None:
    problem = roomy(2, max_frequency_hz=np.array([1e9, 1e7]))
    plan = make_plan(problem, method="exact", frequency_policy="least-energy", rank=20)
    assert plan.status == "infeasible"
    np.testing.assert_array_equal(plan.max_rank, [50, 9])
    plan = make_plan(problem, method="exact", frequency_policy="least-energy", rank=20, sit_out=True)
    assert (plan.status, plan.rank) == ("optimal", 20)
    np.testing.assert_array_equal(plan.participants, [True, False])
    assert plan.frequency_hz[0] == pytest.approx(20e9 / (1000 - 20))
    np.testing.assert_array_equal(plan.shortfalls.constraint, ["", "frequency"])
    np.testing.assert_allclose(plan.shortfalls.needed, [np.nan, 20e9 / (1000 - 20)])
    np.testing.assert_array_equal(plan.shortfalls.available, [np.nan, 1e7])
    above_cap = make_plan(problem, method="exact", frequency_policy="least-energy", rank=51)
    assert set(above_cap.shortfalls.constraint) == {"rank-cap"}
    np.testing.assert_array_equal(above_cap.shortfalls.needed, [51, 51])
    np.testing.assert_array_equal(above_cap.shortfalls.available, [50, 50])


BOUND_BY = {
    "rank-cap": roomy(),
    "latency": roomy(uplink_bps=np.array([1e4])),  # 100 s of airtime a rank and next to no computing
    "energy": roomy(energy_j=np.array([1e-3 + 1.0 + 0.1 * 20])),
    "frequency": roomy(max_frequency_hz=np.array([1e7])),
}


@pytest.mark.parametrize("word", BOUND_BY)
def test_every_binding_constraint_is_reached(word: str) -> None:
    problem = BOUND_BY[word]
    plan = make_plan(problem, method="exact", frequency_policy="least-energy")
    assert plan.rank == plan.max_rank[0] >= 1
    assert plan.binding[0] == word
    # Lifting what binds, and nothing else, admits the next rank.
    lifted = {
        "rank-cap": {"rank_cap": problem.rank_cap + 1},
        "latency": {"latency_s": problem.latency_s * 2},
        "energy": {"energy_j": problem.energy_j * 2},
        "frequency": {"max_frequency_hz": problem.max_frequency_hz * 2},
    }[word]
    assert exact(replace(problem, **lifted))[0] > plan.rank


@given(seeds)
@deterministic
def test_binding_says_what_the_next_rank_lacks(seed: int) -> None:
    """By the definition in words, with each limit lifted in turn."""
    problem = random_problem(seed, 100)
    max_rank = exact(problem)
    words, rank = binding(problem, max_rank), max_rank + 1
    with np.errstate(all="ignore"):
        airtime_s = problem.workload.payload_bits(rank) * (1 / problem.uplink_bps + 1 / problem.downlink_bps)
    no_energy_limit = feasible(replace(problem, energy_j=np.inf), rank)
    no_speed_limit = feasible(replace(problem, max_frequency_hz=1e300), rank)
    capped = max_rank == problem.rank_cap
    np.testing.assert_array_equal(words == "rank-cap", capped)
    np.testing.assert_array_equal(words == "latency", ~capped & (airtime_s >= problem.deadline_s))
    assert np.all(words[no_energy_limit & ~capped] == "energy")
    assert np.all(words[no_speed_limit & ~capped] == "frequency")


@pytest.mark.parametrize(
    ("changes", "constraint", "needed", "available", "unit"),
    [
        ({"latency_s": 0.5}, "latency", 1.0, 0.5, "s"),
        ({"latency_s": 1.0, "latency_margin": 0.2}, "latency", 1.0, 0.8, "s"),
        ({"uplink_bps": np.zeros(1)}, "latency", np.inf, 1000.0, "s"),
        ({"energy_j": np.array([1.05]), "latency_s": 2.25}, "energy", 1.1 + 0.64, 1.05, "J"),  # W < 0
        ({"energy_j": np.array([1.1 + 0.3]), "latency_s": 2.25}, "energy", 1.1 + 0.64, 1.4, "J"),  # f_lat = 0.8 GHz
        ({"latency_s": 1.5}, "frequency", 2e9, 1e9, "Hz"),
    ],
)
def test_shortfall_names_what_is_missing(
    changes: dict[str, Any], constraint: str, needed: float, available: float, unit: str
) -> None:
    problem = roomy(**changes)
    plan = make_plan(problem, method="exact", frequency_policy="least-energy")
    assert plan.status == "infeasible"
    blocked = plan.shortfalls
    assert plan.binding[0] == blocked.constraint[0] == constraint
    assert blocked.needed[0] == pytest.approx(needed)
    assert blocked.available[0] == pytest.approx(available)
    assert UNITS[constraint] == unit


@given(seeds)
@deterministic
def test_a_shortfall_is_short(seed: int) -> None:
    problem = random_problem(seed, 60)
    for drawn_hz in (None, draw_frequency_hz(problem, seed, 1, "full")):
        plan = make_plan(
            problem,
            method="exact" if drawn_hz is None else "random-frequency",
            frequency_policy="least-energy",
            frequency_hz=drawn_hz,
        )
        unable, blocked = plan.max_rank == 0, plan.shortfalls
        np.testing.assert_array_equal(blocked.constraint, np.where(unable, plan.binding, ""))
        assert np.all(blocked.needed[unable] >= blocked.available[unable] * (1 - 1e-12))
        assert np.all(np.isnan(blocked.needed[~unable]) & np.isnan(blocked.available[~unable]))


def test_json_of_a_plan() -> None:
    problem = roomy(2, downlink_bps=np.array([2e6, 0.0]))
    written = plan_json(make_plan(problem, method="exact", frequency_policy="least-energy", sit_out=True), problem)
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


@pytest.mark.parametrize(
    "changes",
    [
        {"uplink_bps": -np.ones(1)},
        {"uplink_bps": np.full(1, np.nan)},
        {"capacitance": -np.ones(1)},
        {"max_frequency_hz": np.full(1, np.inf)},
        {"rank_cap": np.zeros(1, np.int64)},
        {"energy_j": np.ones(2)},
        {"latency_s": 0.0},
        {"latency_s": np.inf},
        {"latency_margin": 1.0},
        {"workload": Workload(-np.ones(1), np.ones(1), np.ones(1), np.ones(1))},
        {"workload": Workload(9 * np.ones(1), -np.ones(1), np.ones(1), np.ones(1))},
        {"workload": Workload(np.ones(0), np.ones(0), np.ones(0), np.ones(0))},
    ],
)
def test_a_problem_outside_its_ranges_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes)).replace("latency_s", "T0").replace("latency_", "")):
        roomy(**changes)


def test_scalars_are_shared_by_all_clients() -> None:
    problem = roomy(3, energy_j=7.0, rank_cap=4)
    np.testing.assert_array_equal(problem.energy_j, [7.0, 7.0, 7.0])
    np.testing.assert_array_equal(problem.rank_cap, [4, 4, 4])
