"""The mean common ranks that the documentation states for the paper's constants and for the edge constants.

Means over the seeds 0 to 199, each with its own channels, capacitances, powers and places.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from splitrank import streams, units
from splitrank.placement import target_linears
from splitrank.planning.channel import path_loss_gain, rayleigh_gain
from splitrank.planning.costs.cost import Count, TrainedPart, total
from splitrank.planning.costs.table import COSTS
from splitrank.planning.link import shannon_bps
from splitrank.planning.plan import make_plan
from splitrank.planning.problem import Problem
from splitrank.planning.solvers.random_frequency import draw_frequency_hz
from splitrank.planning.workload import (
    KNOWN_SHAPES,
    Payload,
    TrainingAmount,
    flops_workload,
    head_numbers,
    paper_workload,
)

SHAPE = KNOWN_SHAPES["roberta-base"]
ONES = np.ones(3)


def uniform(seed: int, purpose: str, low: float, high: float) -> np.ndarray:
    return low + (high - low) * streams.uniform_per_client(seed, purpose, 0, 3)


def part_of(targets: str) -> TrainedPart:
    """LoRA in the last three layers."""
    return TrainedPart(SHAPE, (9, 10, 11), target_linears(targets), "full", 4, frozenset({"lora_A", "lora_B"}))


def payload(targets: str, bits: float, head: int) -> Payload:
    count = total(COSTS["lora"].numbers(part_of(targets)).values()) + Count(head)
    return Payload(count, count, bits)


def paper_problem(seed: int, latency_s: float, energy_j: float) -> Problem:
    uplink_power_w = uniform(seed, "radio.uplink_power_w", 0.02, 0.1)
    up, down = (rayleigh_gain(1e-3 * ONES, seed, direction, 1) for direction in ("uplink", "downlink"))
    return Problem(
        workload=paper_workload(part_of("query-value").sizes(), 3, 40_000 * ONES, 1, payload("query-value", 256, 0)),
        uplink_bps=shannon_bps(1e6 * ONES, up, uplink_power_w, 1e-9 * ONES),
        downlink_bps=shannon_bps(1e6 * ONES, down, ONES, 1e-9 * ONES),
        uplink_power_w=uplink_power_w,
        capacitance=uniform(seed, "client.capacitance", 0.2e-25, 1e-25),
        max_frequency_hz=1e9 * ONES,
        circuit_energy_j=50 * ONES,
        energy_budget_j=energy_j * ONES,
        rank_cap=np.full(3, 128),
        latency_budget_s=latency_s,
    )


def edge_problem(seed: int, latency_s: float) -> Problem:
    mean_gain = path_loss_gain(uniform(seed, "radio.distance_m", 50, 500))
    up, down = (rayleigh_gain(mean_gain, seed, direction, 1) for direction in ("uplink", "downlink"))
    bandwidth_hz, samples = 360e3 * ONES, 2000 * ONES
    return Problem(
        workload=flops_workload(
            COSTS["lora"].flops(part_of("all-linear")),
            TrainingAmount(samples, 64 * samples, 64**2 * samples, epochs=1, batch_size=32),
            payload("all-linear", 32, head_numbers(768, 4, "full")),
            flops_per_cycle=32 * ONES,
        ),
        uplink_bps=shannon_bps(bandwidth_hz, up, 0.2 * ONES, units.noise_power_w(-174, bandwidth_hz, 5)),
        downlink_bps=shannon_bps(bandwidth_hz, down, 0.36 * ONES, units.noise_power_w(-174, bandwidth_hz, 9)),
        uplink_power_w=0.2 * ONES,
        capacitance=5e-28 * uniform(seed, "client.capacitance", 0.6, 1.4),
        max_frequency_hz=2e9 * uniform(seed, "client.max_frequency_hz", 0.7, 1.3),
        circuit_energy_j=5 * ONES,
        energy_budget_j=200 * ONES,
        rank_cap=np.full(3, 128),
        latency_budget_s=latency_s,
    )


def planned_rank(problem: Problem) -> int:
    return make_plan(problem, method="exact", frequency_policy="least-energy").largest_rank


@cache
def mean_ranks(latency_s: float, energy_j: float) -> tuple[float, float]:
    """Mean common rank of the planner and of random frequency on the same channel draws."""
    planned, drawn = [], []
    for seed in range(200):
        problem = paper_problem(seed, latency_s, energy_j)
        frequency_hz = draw_frequency_hz(problem, seed, 1)
        baseline = make_plan(
            problem, method="random-frequency", frequency_policy="least-energy", frequency_hz=frequency_hz
        )
        planned.append(planned_rank(problem))
        drawn.append(baseline.largest_rank)
    return float(np.mean(planned)), float(np.mean(drawn))


PAPER = [
    *[(600.0, 25e3, 2.0, 1.0), (1200.0, 25e3, 3.0, 1.3), (2400.0, 25e3, 4.3, 1.7), (4800.0, 25e3, 6.9, 2.1)],
    *[(9000.0, 25e3, 10.5, 2.5), (18000.0, 25e3, 16.6, 2.9), (36000.0, 25e3, 26.4, 3.2), (72000.0, 25e3, 42.0, 3.6)],
    *[(144000.0, 25e3, 67.0, 3.9), (18000.0, 100.0, 2.0, 1.0), (18000.0, 300.0, 3.5, 1.1), (18000.0, 1e3, 5.5, 1.1)],
    *[(18000.0, 3e3, 8.3, 1.2), (18000.0, 1e4, 12.2, 1.5), (18000.0, 1e5, 26.4, 7.9), (18000.0, 3e5, 38.0, 12.8)],
    *[(18000.0, 1e6, 57.0, 15.4), (18000.0, 3e6, 64.0, 15.4)],
]


@pytest.mark.parametrize(("latency_s", "energy_j", "planner", "random_frequency"), PAPER)
def test_mean_rank_of_the_paper_preset(
    latency_s: float, energy_j: float, planner: float, random_frequency: float
) -> None:
    """To 2 % or a tenth of a rank; the baseline, whose draws differ more, to 5 % or a tenth of a rank."""
    planned, drawn = mean_ranks(latency_s, energy_j)
    assert planned == pytest.approx(planner, rel=0.02, abs=0.1)
    assert drawn == pytest.approx(random_frequency, rel=0.05, abs=0.1)
    assert planned >= drawn


@pytest.mark.parametrize(
    ("latency_s", "mean", "tenth", "ninetieth"),
    [(240.0, 24.9, 11, 39), (300.0, 55.2, 34, 77), (600.0, 123.3, 128, 128)],
)
def test_mean_rank_of_the_edge_preset(latency_s: float, mean: float, tenth: float, ninetieth: float) -> None:
    """Charging the last layer with keys and values of all tokens would leave 12.5, 41.6 and 122.6."""
    ranks = [planned_rank(edge_problem(seed, latency_s)) for seed in range(200)]
    assert np.mean(ranks) == pytest.approx(mean, rel=0.01)
    np.testing.assert_allclose(np.percentile(ranks, [10, 90]), [tenth, ninetieth], atol=2)


def test_in_the_edge_preset_energy_binds_and_the_radio_counts() -> None:
    plans = [make_plan(edge_problem(s, 300.0), method="exact", frequency_policy="least-energy") for s in range(50)]
    words = np.concatenate([plan.binding for plan in plans])
    assert np.mean(words == "energy") > 0.95
    airtime_s = np.concatenate([plan.uplink_s + plan.downlink_s for plan in plans])
    assert 30 < np.nanmean(airtime_s) < 80
