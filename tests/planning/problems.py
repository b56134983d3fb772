"""Random problems for the planner's tests: plenty of ordinary ones, and every way of being awkward."""

from __future__ import annotations

import numpy as np

from splitrank.planning.problem import Problem
from splitrank.planning.workload import Workload


def random_problem(seed: int, num_clients: int, latency_margin: float = 0.0) -> Problem:
    """Clients whose budgets are some multiple of what a rank near 30 costs, so that every constraint binds somewhere.

    One client in twelve has a gain of zero, one in twelve a circuit energy above its budget, one in twelve no energy
    limit, one in twelve a budget far too small, one in twelve an energy that no clock saves and one no other.
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
    return Problem(
        workload=Workload(cycles_constant, cycles_per_rank, bits_constant, bits_per_rank),
        uplink_bps=uplink_bps,
        downlink_bps=downlink_bps,
        uplink_power_w=uplink_power_w,
        capacitance=capacitance,
        joules_per_cycle=joules_per_cycle,
        max_frequency_hz=max_frequency_hz,
        circuit_energy_j=circuit_energy_j,
        energy_j=energy_j,
        rank_cap=rng.integers(1, 129, num_clients),
        latency_s=latency_s,
        latency_margin=latency_margin,
    )
