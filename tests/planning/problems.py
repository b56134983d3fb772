"""Random problems for the planner's tests: plenty of ordinary ones, and every way of being awkward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from splitrank.planning.plan import Plan
from splitrank.planning.problem import Problem
from splitrank.planning.workload import Affine, Workload


def random_problem(
    seed: int, num_clients: int, latency_margin: float = 0.0, *, has_time_limit: bool = True, may_be_free: bool = False
) -> Problem:
    """Clients whose budgets are some multiple of what a rank near 30 costs, so that every constraint binds somewhere.

    One client in twelve has a gain of zero, one in twelve a circuit energy above its budget, one in twelve no energy
    limit, one in twelve a budget far too small, one in twelve an energy that no clock saves and one no other. One
    in twelve has a limit of memory, half of these one that a rank meets exactly. A
    quarter of all clients receive more than they send.

    Args:
        has_time_limit: whether the latency budget is finite.
        may_be_free: whether some clients compute nothing, send nothing or receive nothing.
    """
    rng = np.random.default_rng(seed)

    def spread(low: float, high: float) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high), num_clients))

    latency_s = float(np.exp(rng.uniform(np.log(1.0), np.log(1e5))))
    max_frequency_hz, capacitance = spread(1e8, 5e9), spread(1e-29, 1e-24)
    typical_rank = spread(1.0, 200.0)
    cycles_per_rank = max_frequency_hz * latency_s * spread(1e-3, 2.0) / typical_rank
    cycles_constant = cycles_per_rank * np.where(rng.random(num_clients) < 0.5, -0.5, spread(0.1, 100.0))
    bits_per_rank = spread(1e3, 1e8)
    bits_constant = bits_per_rank * np.where(rng.random(num_clients) < 0.5, 0.0, spread(0.1, 100.0))
    airtime_s = latency_s * spread(1e-6, 2.0) / typical_rank
    uplink_share = rng.uniform(0.01, 0.99, num_clients)
    uplink_bps = bits_per_rank / (airtime_s * uplink_share)
    downlink_bps = bits_per_rank / (airtime_s * (1 - uplink_share))
    uplink_power_w = spread(1e-3, 1.0)
    circuit_energy_j = spread(1e-3, 1e2)
    compute_j = capacitance * np.maximum(cycles_per_rank, 1.0) * typical_rank * max_frequency_hz**2
    energy_j = circuit_energy_j + uplink_power_w * airtime_s * typical_rank + compute_j * spread(1e-3, 10.0)

    kind = rng.integers(0, 12, num_clients)
    uplink_bps[kind == 0] = 0.0
    downlink_bps[(kind == 0) & (rng.random(num_clients) < 0.5)] = 0.0
    circuit_energy_j[kind == 1] = energy_j[kind == 1] * rng.choice([1.0, 1.5], np.count_nonzero(kind == 1))
    energy_j[kind == 2] = np.inf
    energy_j[kind == 3] *= 1e-6
    downlink_bps[kind == 4] = 0.0
    joules_per_cycle = np.where((kind == 5) | (kind == 6), capacitance * max_frequency_hz**2, 0.0)
    capacitance[kind == 6] = 0.0
    other = np.random.default_rng((seed, 1))
    more = np.where(other.random(num_clients) < 0.25, other.uniform(1.0, 2.0, num_clients), 1.0)
    costs = [
        Affine(cycles_constant, cycles_per_rank),
        Affine(bits_constant, bits_per_rank),
        Affine(bits_constant * more, bits_per_rank * more),
    ]
    if may_be_free:
        costs = [_free_for(other.random(num_clients) < 0.2, cost) for cost in costs]
    third = np.random.default_rng((seed, 4))
    memory = [np.exp(third.uniform(np.log(low), np.log(1e9), num_clients)) for low in (1e6, 1e5)]
    room = (
        memory[0] + memory[1] * third.integers(0, 150, num_clients) + memory[1] * third.choice([0.0, 0.5], num_clients)
    )
    return Problem(
        workload=Workload(*costs, memory_bytes=Affine(*memory)),
        memory_budget_bytes=np.where(third.random(num_clients) < 1 / 12, room, np.inf),
        uplink_bps=uplink_bps,
        downlink_bps=downlink_bps,
        uplink_power_w=uplink_power_w,
        capacitance=capacitance,
        joules_per_cycle=joules_per_cycle,
        max_frequency_hz=max_frequency_hz,
        circuit_energy_j=circuit_energy_j,
        energy_budget_j=energy_j,
        rank_cap=rng.integers(1, 129, num_clients),
        latency_budget_s=latency_s if has_time_limit else np.inf,
        latency_margin=latency_margin,
    )


def _free_for(some: np.ndarray, cost: Affine) -> Affine:
    return Affine(np.where(some, 0.0, cost.constant), np.where(some, 0.0, cost.per_rank))


def roomy(num_clients: int = 1, **changes: Any) -> Problem:
    """Clients that spend 1 s computing at full speed and 1 s on the air per rank, 1 J and 0.1 J; caps at 50."""
    ones = np.ones(num_clients)
    bits = Affine(0 * ones, 1e6 * ones)
    fields: dict[str, Any] = {
        "workload": Workload(Affine(0 * ones, 1e9 * ones), bits, bits),
        "uplink_bps": 2e6 * ones,
        "downlink_bps": 2e6 * ones,
        "uplink_power_w": 0.2 * ones,
        "capacitance": 1e-27 * ones,
        "max_frequency_hz": 1e9 * ones,
        "circuit_energy_j": 1.0 * ones,
        "energy_budget_j": 1e6 * ones,
        "rank_cap": np.full(num_clients, 50),
        "latency_budget_s": 1000.0,
    }
    return Problem(**{**fields, **changes})


def fixed(problem: Problem, rank: int | None) -> Problem:
    """The same round at a fixed rank, if there is one."""
    return problem if rank is None else replace(problem, rank_floor=rank, rank_ceiling=rank)


def check_budgets(plan: Plan, problem: Problem) -> None:
    """E1 to E4 to 1e-9, computed from the equations of the paper rather than by the planner."""
    part, work, rank = plan.participants, problem.workload, np.maximum(plan.rank, 1)
    f, cycles = plan.frequency_hz, work.cycles(rank)
    with np.errstate(divide="ignore"):
        up_s, down_s = work.uplink_bits(rank) / problem.uplink_bps, work.downlink_bits(rank) / problem.downlink_bps
    deadline_s = problem.latency_budget_s * (1 - problem.latency_margin)
    time_s = cycles / f + up_s + down_s
    spent_j = problem.capacitance * (cycles / f) * f**3 + problem.joules_per_cycle * cycles
    spent_j = spent_j + problem.uplink_power_w * up_s + problem.circuit_energy_j
    assert np.all(time_s[part] <= deadline_s * (1 + 1e-9))
    assert np.all(spent_j[part] <= problem.energy_budget_j[part] * (1 + 1e-9))
    assert np.all((f[part] > 0) & (f[part] <= problem.max_frequency_hz[part]))
    assert np.all((work.memory_bytes(rank) <= problem.memory_budget_bytes)[part])
    assert plan.rank.dtype == np.int64
    np.testing.assert_array_equal(plan.rank > 0, part)
    assert np.all((plan.rank <= problem.rank_cap)[part])
    np.testing.assert_allclose(plan.latency_s[part], time_s[part])
    np.testing.assert_allclose(plan.energy_j[part], spent_j[part])
    np.testing.assert_allclose((plan.compute_s + plan.uplink_s + plan.downlink_s)[part], time_s[part])
    for field in ("frequency_hz", "frequency_low_hz", "frequency_high_hz", "compute_s", "uplink_s", "latency_s"):
        assert np.all(np.isnan(getattr(plan, field)) == ~part)
