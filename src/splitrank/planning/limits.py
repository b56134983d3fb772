"""Find out what keeps a client from a rank: which constraint of P1 rules it out, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitrank.planning.problem import (
    BoolArray,
    FloatArray,
    IntArray,
    Problem,
    compute_slack,
    downlink_s,
    energy_j,
    frequency_range_hz,
    uplink_s,
)
from splitrank.planning.workload import Rank


def binding(problem: Problem, max_rank: IntArray, frequency_hz: FloatArray | None = None) -> NDArray[np.str_]:
    """Return what keeps each client from ``max_rank`` + 1.

    In this order: ``"rank-cap"``; ``"memory"``; ``"latency"`` if S <= 0, airtime alone uses up T0; ``"energy"`` if
    W <= 0 or f_en < min(f_lat, f_max); else ``"frequency"``, too slow at full speed.

    Args:
        problem: the round.
        max_rank: r_i*, shape (I,).
        frequency_hz: the frequency, if it was given rather than planned; it then takes the place of f_max.

    Returns:
        words, shape (I,).
    """
    blocked_by = _blocked_by(problem, max_rank + 1, frequency_hz)
    return np.select(blocked_by, _ORDER, default="frequency")


def _blocked_by(problem: Problem, rank: IntArray, frequency_hz: FloatArray | None) -> list[BoolArray]:
    """Return whether cap, memory, airtime or energy rules out a rank that does not fit; see `binding`."""
    ceiling_hz = _ceiling_hz(problem, frequency_hz)
    cycles = problem.workload.cycles(rank)
    spare_s, spare_j = compute_slack(problem, rank)
    # f_en < f_max says it all: where f_lat <= f_max, a rank that does not fit has f_en < f_lat, hence f_en < f_max.
    with np.errstate(over="ignore"):
        needed_j = problem.capacitance * cycles * ceiling_hz**2
    costly = (spare_j <= 0) | (spare_j < needed_j) | ~(needed_j < np.inf)
    # Not "spare_s <= 0": without a time limit a client without a link has no S at all.
    too_large = problem.workload.memory_bytes(rank) > problem.memory_budget_bytes
    return [rank > problem.rank_cap, too_large, ~(spare_s > 0), costly]


_ORDER = ["rank-cap", "memory", "latency", "energy"]
"""Constraints in the order in which they are asked; what none of them rules out is too slow at full speed."""


def _ceiling_hz(problem: Problem, frequency_hz: FloatArray | None) -> FloatArray:
    # fmin: a client for which no frequency could be drawn has NaN and is judged by its f_max.
    return problem.max_frequency_hz if frequency_hz is None else np.fmin(frequency_hz, problem.max_frequency_hz)


UNITS = {"rank-cap": "rank", "latency": "s", "energy": "J", "frequency": "Hz", "bandwidth": "Hz", "memory": "bytes"}
"""The quantity in which each constraint is measured."""


@dataclass(frozen=True)
class Shortfalls:
    """Why clients cannot take part: each needs more of something than it has. Arrays of shape (I,).

    Attributes:
        constraint: a key of `UNITS`, ``""`` for a client that is able.
        needed: how much the client needs, infinite at rate 0, NaN if able.
        available: how much it has, NaN if able.
    """

    constraint: NDArray[np.str_]
    needed: FloatArray
    available: FloatArray


def shortfalls(problem: Problem, rank: Rank, able: BoolArray, frequency_hz: FloatArray | None = None) -> Shortfalls:
    """Return what blocks a rank, and by how much, for each client that cannot do it.

    ``"memory"``: what training holds against M_0 [bytes]; ``"latency"``: airtime against the deadline [s];
    ``"energy"``: all the energy of the round at f_lat, or at f_max where f_lat is above it, against E_0 [J];
    ``"frequency"``: f_lat against f_max [Hz].

    Args:
        problem: the round.
        rank: the rank that was wanted, shape (I,) or one for all, >= 1.
        able: clients that can do it, shape (I,).
        frequency_hz: the frequency, if it was given rather than planned; energy is then that of the given frequency
            and f_lat is set against it.
    """
    if np.all(able):
        nothing = np.full(problem.num_clients, np.nan)
        return Shortfalls(np.full(problem.num_clients, ""), nothing, nothing)
    ranks = np.full(problem.num_clients, rank)
    low_hz, _ = frequency_range_hz(problem, ranks)
    used_hz = low_hz if frequency_hz is None else np.where(np.isnan(frequency_hz), low_hz, frequency_hz)
    ceiling_hz = _ceiling_hz(problem, frequency_hz)
    airtime_s = uplink_s(problem, ranks) + downlink_s(problem, ranks) + problem.overhead_s
    memory_bytes = problem.workload.memory_bytes(ranks)
    needed_j = energy_j(problem, ranks, np.fmin(used_hz, ceiling_hz))
    kinds = [able, *_blocked_by(problem, ranks, frequency_hz)]
    return Shortfalls(
        constraint=np.select(kinds, ["", *_ORDER], default="frequency"),
        needed=np.select(kinds, [np.nan, ranks, memory_bytes, airtime_s, needed_j], default=low_hz),
        available=np.select(
            kinds,
            [np.nan, problem.rank_cap, problem.memory_budget_bytes, problem.deadline_s, problem.energy_budget_j],
            default=ceiling_hz,
        ),
    )


def band_shortfalls(found: Shortfalls, on_whole_band: Shortfalls, least_hz: FloatArray, share_hz: float) -> Shortfalls:
    """Return why clients cannot share a band: each needs more of it than an equal share, or more than there is.

    Args:
        found: shortfalls of clients that were not asked to share.
        on_whole_band: those of clients for which the whole band is not enough, at its rates.
        least_hz: B^min [Hz], shape (I,), NaN for a client that was not asked or has what it needs.
        share_hz: an equal share [Hz].
    """
    needs = [np.isinf(least_hz), least_hz > share_hz]
    return Shortfalls(
        constraint=np.select(needs, [on_whole_band.constraint, "bandwidth"], default=found.constraint),
        needed=np.select(needs, [on_whole_band.needed, least_hz], default=found.needed),
        available=np.select(needs, [on_whole_band.available, share_hz], default=found.available),
    )
