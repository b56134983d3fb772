"""Every solver that promises an optimum finds it: against brute force, each other and an independent solver."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrank.planning.plan import OPTIMAL_SOLVERS, make_plan
from splitrank.planning.problem import (
    Problem,
    compute_slack,
    energy_j,
    feasible,
    frequency_range_hz,
    round_to_feasible,
    subproblem,
)
from splitrank.planning.solvers.bisection import bisection
from splitrank.planning.solvers.branch_and_bound import branch_and_bound, relaxation
from splitrank.planning.solvers.exact import exact
from splitrank.planning.solvers.random_frequency import draw_frequency_hz, random_frequency
from splitrank.planning.workload import Affine, Workload
from tests.planning.problems import random_problem

seeds = st.integers(0, 2**32 - 1)
deterministic = settings(derandomize=True, deadline=None, max_examples=60)


def brute_force(problem: Problem) -> np.ndarray:
    """Try every rank, with the constraints as the paper writes them: minimise energy over the frequencies in time."""
    best = np.zeros(problem.num_clients, np.int64)
    for rank in range(1, int(problem.rank_cap.max()) + 1):
        work, cycles = problem.workload, problem.workload.cycles(rank)
        with np.errstate(all="ignore"):
            up_s = np.where(work.uplink_bits(rank) == 0, 0.0, work.uplink_bits(rank) / problem.uplink_bps)
            down_s = np.where(work.downlink_bits(rank) == 0, 0.0, work.downlink_bits(rank) / problem.downlink_bps)
            slowest_hz = cycles / (problem.deadline_s - (up_s + down_s))
            fixed_j = problem.circuit_energy_j + problem.uplink_power_w * up_s + problem.joules_per_cycle * cycles
            least_j = fixed_j + problem.capacitance * cycles * slowest_hz**2
        fits = (up_s + down_s < problem.deadline_s) & (slowest_hz <= problem.max_frequency_hz)
        # The slowest clock may be 0 where there is no time limit; what the clock costs must then still be above 0.
        fits &= (least_j <= problem.energy_budget_j) & (fixed_j < problem.energy_budget_j)
        fits &= work.memory_bytes.constant + rank * work.memory_bytes.per_rank <= problem.memory_budget_bytes
        best[fits & (rank <= problem.rank_cap)] = rank
    return best


@pytest.mark.parametrize("name", OPTIMAL_SOLVERS)
def test_solvers_equal_brute_force_on_ten_thousand_clients(name: str) -> None:
    reached = []
    for seed in range(50):
        problem = random_problem(seed, 200)
        found = OPTIMAL_SOLVERS[name](problem)
        np.testing.assert_array_equal(found, brute_force(problem))
        reached.append(found)
    ranks = np.concatenate(reached)
    # The comparison is worth something only if the answers are spread over the whole range.
    assert len(ranks) == 10_000
    assert np.mean(ranks == 0) < 0.6
    assert len(np.unique(ranks)) > 100


@pytest.mark.parametrize("name", OPTIMAL_SOLVERS)
@given(seeds, st.booleans(), st.booleans())
@deterministic
def test_solvers_equal_brute_force_without_limits_and_costs(
    name: str, seed: int, has_time_limit: bool, has_energy_limit: bool
) -> None:
    problem = random_problem(seed, 100, has_time_limit=has_time_limit, may_be_free=True)
    if not has_energy_limit:
        problem = replace(problem, energy_budget_j=np.inf, memory_budget_bytes=np.inf)
    found = OPTIMAL_SOLVERS[name](problem)
    np.testing.assert_array_equal(found, brute_force(problem))
    if not has_time_limit and not has_energy_limit:
        assert set(found) <= {0, *problem.rank_cap}


@given(seeds, st.integers(1, 300), st.floats(0.0, 0.5), st.booleans())
@deterministic
def test_solvers_agree(seed: int, num_clients: int, margin: float, has_time_limit: bool) -> None:
    problem = random_problem(seed, num_clients, margin, has_time_limit=has_time_limit, may_be_free=not has_time_limit)
    answers = [solver(problem) for solver in OPTIMAL_SOLVERS.values()]
    for answer in answers:
        assert answer.dtype == np.int64
        np.testing.assert_array_equal(answer, answers[0])


@given(seeds)
@deterministic
def test_answer_is_the_last_rank_that_fits(seed: int) -> None:
    problem = random_problem(seed, 100)
    rank = exact(problem)
    assert np.all(feasible(problem, np.maximum(rank, 1))[rank > 0])
    assert not np.any(feasible(problem, rank + 1)[rank < problem.rank_cap])


@pytest.mark.parametrize("edge_rank", [1, 2, 7, 40])
def test_solvers_agree_where_a_budget_is_met_exactly(edge_rank: int) -> None:
    """The relaxation ends within rounding of an integer; the kernel decides on which side."""
    problem = random_problem(4, 20_000)
    able = exact(problem) >= edge_rank
    low_hz, _ = frequency_range_hz(problem, edge_rank)
    edge_j = np.where(able, energy_j(problem, edge_rank, low_hz), problem.energy_budget_j)
    problem = replace(problem, energy_budget_j=edge_j)
    best = exact(problem)
    assert set(best[able]) == {edge_rank - 1, edge_rank}
    np.testing.assert_array_equal(bisection(problem), best)
    np.testing.assert_array_equal(branch_and_bound(problem), best)


def test_the_relaxation_needs_no_walk() -> None:
    """Its floor is the answer, but for rounding: a slope that forgot a term would end far below."""
    for seed in range(20):
        problem = random_problem(seed, 400)
        np.testing.assert_array_equal(np.floor(relaxation(problem) * (1 + 1e-9)), exact(problem))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=20), seeds)
@deterministic
def test_rounding_mends_any_guess(best: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, cap = np.array(best), np.array(best) + rng.integers(0, 3, len(best)).clip(1 - np.array(best), None)
    guess = np.where(rng.random(len(best)) < 0.1, np.nan, rng.uniform(-5, 40, len(best)))
    np.testing.assert_array_equal(round_to_feasible(guess, cap, lambda rank: rank <= true), true)


def test_a_client_can_run_bisection_by_itself() -> None:
    problem = random_problem(3, 60)
    alone = [bisection(subproblem(problem, np.array([i])))[0] for i in range(problem.num_clients)]
    np.testing.assert_array_equal(bisection(problem), alone)


@pytest.mark.parametrize("solve", [exact, bisection, branch_and_bound])
def test_overhead_is_time_taken_off_the_budget(solve) -> None:
    problem = random_problem(5, 400, latency_margin=0.1)
    overhead_s = 0.2 * problem.latency_budget_s
    with_overhead = replace(problem, overhead_s=np.full(problem.num_clients, overhead_s))
    shorter = replace(problem, latency_budget_s=problem.latency_budget_s - overhead_s / 0.9)
    np.testing.assert_array_equal(solve(with_overhead), solve(shorter))
    assert np.any(solve(with_overhead) < solve(problem))


def scip_rank(problem: Problem) -> int:
    """P1 for one client, solved by SCIP: τ = T_cmp in units of T0, energy in units of E_0."""
    import pyscipopt as scip

    model = scip.Model()
    model.hideOutput()
    for tolerance in ("numerics/feastol", "numerics/dualfeastol"):
        model.setParam(tolerance, 1e-9)
    work = problem.workload
    full_speed = problem.max_frequency_hz[0] * problem.deadline_s
    up, down = problem.uplink_bps[0], problem.downlink_bps[0]
    rank = model.addVar("rank", vtype="INTEGER", lb=1, ub=int(problem.rank_cap[0]))
    tau = model.addVar("tau", lb=0, ub=1)
    # Constant and slope of each cost.
    cycles, up_bits, down_bits = (
        (cost.constant[0], cost.per_rank[0]) for cost in (work.cycles, work.uplink_bits, work.downlink_bits)
    )
    load = cycles[0] / full_speed + cycles[1] / full_speed * rank
    airtime = [(ups / up + downs / down) / problem.deadline_s for ups, downs in zip(up_bits, down_bits, strict=True)]
    fixed_j = [
        problem.uplink_power_w[0] / up * bits + problem.joules_per_cycle[0] * operations
        for bits, operations in zip(up_bits, cycles, strict=True)
    ]
    budget_j = problem.energy_budget_j[0]
    power = problem.capacitance[0] * problem.max_frequency_hz[0] ** 3 * problem.deadline_s / budget_j
    left = 1 - (problem.circuit_energy_j[0] + fixed_j[0]) / budget_j
    model.addCons(load <= tau)
    model.addCons(tau + airtime[0] + airtime[1] * rank <= 1)
    model.addCons(power * load**3 <= (left - fixed_j[1] / budget_j * rank) * tau**2)
    model.addCons(fixed_j[1] / budget_j * rank <= left)
    if np.isfinite(room := problem.memory_budget_bytes[0]):
        memory = work.memory_bytes
        model.addCons(float(memory.constant[0] / room) + float(memory.per_rank[0] / room) * rank <= 1)
    model.setObjective(rank, "maximize")
    model.optimize()
    return round(model.getObjVal()) if model.getStatus() == "optimal" else 0


def slack(problem: Problem, rank: int) -> float:
    """Relative distance of a rank from the edge of feasibility; negative if infeasible."""
    cycles = problem.workload.cycles(rank)[0]
    spare_s, spare_j = (float(x[0]) for x in compute_slack(problem, rank))
    if spare_s <= 0 or spare_j <= 0:
        return min(spare_s / problem.deadline_s, spare_j / float(problem.energy_budget_j[0]))
    needed_j = float(problem.capacitance[0]) * cycles**3 / spare_s**2
    return min(1 - cycles / (problem.max_frequency_hz[0] * spare_s), 1 - needed_j / spare_j)


def test_exact_equals_scip() -> None:
    """On clients whose answer does not hang on SCIP's tolerances."""
    problem = random_problem(11, 400)
    ranks, solved = exact(problem), []
    for i in range(problem.num_clients):
        client, rank = subproblem(problem, np.array([i])), int(ranks[i])
        usable = problem.uplink_bps[i] > 0 and problem.downlink_bps[i] > 0 and np.isfinite(problem.energy_budget_j[i])
        clear = (rank == 0 or slack(client, rank) > 1e-4) and slack(client, rank + 1) < -1e-4
        if usable and (clear or rank == problem.rank_cap[i]):
            assert scip_rank(client) == rank
            solved.append(rank)
        if len(solved) == 30:
            break
    assert len(solved) == 30
    assert len(set(solved)) > 10


def algorithm_1_as_printed(problem: Problem, low: float, high: float) -> list[float]:
    """Xie and Wen's Algorithm 1, lines (1) to (13), word for word; the bracket is given."""
    answers = []
    for i in range(problem.num_clients):
        left, right = low, high
        middle = (left + right) / 2
        while right - left > 1:
            if feasible(problem, middle)[i]:
                left = middle
            else:
                right = middle
            middle = (left + right) / 2
        answers.append(right)
    return answers


def test_algorithm_1_as_printed_returns_an_infeasible_rank() -> None:
    """Two clients, |D|Σdk/f_max = 1 s, T0 = 20 s, airtime 1 and 2 s per rank, no energy limit: 6 printed, 5 true."""
    ones = np.ones(2)
    bits = Affine(0 * ones, 1e6 * ones)
    problem = Problem(
        workload=Workload(Affine(-1e9 * ones, 2e9 * ones), bits, bits),
        uplink_bps=np.array([2e6, 1e6]),
        downlink_bps=np.array([2e6, 1e6]),
        uplink_power_w=0.1 * ones,
        capacitance=1e-28 * ones,
        max_frequency_hz=1e9 * ones,
        circuit_energy_j=0 * ones,
        energy_budget_j=np.inf * ones,
        rank_cap=np.full(2, 9),
        latency_budget_s=20.0,
    )
    printed = algorithm_1_as_printed(problem, 1.0, 9.0)
    assert printed == [8.0, 6.0]
    assert not feasible(problem, 6)[1]
    for method in OPTIMAL_SOLVERS:
        plan = make_plan(problem, method=method, frequency_policy="least-energy")  # type: ignore[arg-type]
        assert plan.common_rank == 5
        np.testing.assert_array_equal(plan.max_rank, [7, 5])


@pytest.mark.parametrize(
    "budget",
    ["latency_budget_s", "energy_budget_j", "max_frequency_hz", "uplink_bps", "downlink_bps", "memory_budget_bytes"],
)
@given(seed=seeds, factor=st.floats(1.0, 100.0))
@deterministic
def test_loosening_a_budget_never_lowers_a_rank(budget: str, seed: int, factor: float) -> None:
    problem = random_problem(seed, 50)
    looser = replace(problem, **{budget: getattr(problem, budget) * factor})
    for solver in OPTIMAL_SOLVERS.values():
        before, after = solver(problem), solver(looser)
        assert np.all(after >= before)
        assert after.min() >= before.min()


@pytest.mark.parametrize("random_range", ["feasible", "full"])
@given(seed=seeds, round=st.integers(1, 10), has_time_limit=st.booleans())
@deterministic
def test_random_frequency_never_beats_the_planner(
    random_range: str, seed: int, round: int, has_time_limit: bool
) -> None:
    problem = random_problem(seed, 100, has_time_limit=has_time_limit, may_be_free=not has_time_limit)
    best = exact(problem)
    frequency_hz = draw_frequency_hz(problem, seed, round, random_range)  # type: ignore[arg-type]
    drawn = random_frequency(problem, frequency_hz)
    assert np.all(drawn <= best)
    if random_range == "feasible":
        np.testing.assert_array_equal(drawn == 0, best == 0)
        np.testing.assert_array_equal(np.isnan(frequency_hz), best == 0)
    else:
        assert np.all((frequency_hz > 0) & (frequency_hz <= problem.max_frequency_hz))


@given(seeds)
@deterministic
def test_random_frequency_is_the_best_rank_at_its_frequency(seed: int) -> None:
    """Against brute force over every rank with E1 and E2 at the drawn frequency."""
    problem = random_problem(seed, 100)
    frequency_hz = draw_frequency_hz(problem, seed, 1, "full")
    best = np.zeros(problem.num_clients, np.int64)
    for rank in range(1, 129):
        work = problem.workload
        with np.errstate(divide="ignore"):
            airtime_s = work.uplink_bits(rank) / problem.uplink_bps + work.downlink_bits(rank) / problem.downlink_bps
        fits = problem.workload.cycles(rank) / frequency_hz + airtime_s <= problem.deadline_s
        fits &= energy_j(problem, rank, frequency_hz) <= problem.energy_budget_j
        fits &= (rank <= problem.rank_cap) & np.isfinite(airtime_s)
        fits &= work.memory_bytes(rank) <= problem.memory_budget_bytes
        best[fits] = rank
    np.testing.assert_array_equal(random_frequency(problem, frequency_hz), best)


def test_who_has_no_frequency_is_not_asked_rank_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(problem: Problem, rank: np.ndarray) -> np.ndarray:
        asked.append(len(rank))
        return feasible(problem, rank)

    monkeypatch.setattr("splitrank.planning.solvers.random_frequency.feasible", counted)
    assert not random_frequency(random_problem(0, 100), np.full(100, np.nan)).any()
    assert len(asked) == 2  # the guess, and one more


def test_random_frequency_on_a_range_of_one_point() -> None:
    """A client for which rank 1 only just fits can still draw its one frequency."""
    problem = random_problem(5, 2000)
    alive = exact(problem) > 0
    cycles = problem.workload.cycles(1)
    spare_s, _ = compute_slack(problem, 1)
    with np.errstate(divide="ignore"):
        needed_hz = cycles / spare_s
    tight = replace(problem, max_frequency_hz=np.where(alive, needed_hz, problem.max_frequency_hz))
    frequency_hz = draw_frequency_hz(tight, 5, 1)
    fits = feasible(tight, 1)
    assert np.count_nonzero(fits) > 300
    np.testing.assert_array_equal(random_frequency(tight, frequency_hz) > 0, fits)


def test_a_million_clients_in_one_call() -> None:
    problem = random_problem(0, 1_000_000)
    started = time.perf_counter()
    rank = exact(problem)
    assert time.perf_counter() - started < 10
    assert np.all(feasible(problem, np.maximum(rank, 1))[rank > 0])
    assert not np.any(feasible(problem, rank + 1)[rank < problem.rank_cap])
