"""Random problems whose clients share a band, and the answers of brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from splitrank.planning.link import Band
from splitrank.planning.problem import Problem, feasible, subproblem
from splitrank.planning.workload import Affine
from tests.planning.problems import random_problem


def random_band_problem(
    seed: int, num_clients: int, *, is_broadcast: bool = False, most_ranks: int = 128, may_be_free: bool = False
) -> Problem:
    """The clients of `random_problem`, who now share a band.

    On equal shares of a band up to a thousand times as wide they would need the time that they needed there. In most
    problems the clients are some who can do rank 1 if they have all of the band; in one of eight they are any.
    """
    problem = random_problem(seed, 4 * num_clients, may_be_free=may_be_free)
    rng = np.random.default_rng((seed, 2))
    share_hz = float(np.exp(rng.uniform(np.log(1e4), np.log(1e8))))
    snr = np.exp(rng.uniform(np.log(1e-1), np.log(1e5), (2, problem.num_clients)))
    uplink_snr, downlink_snr = np.where([problem.uplink_bps > 0, problem.downlink_bps > 0], snr, 0.0)
    wide = Band(share_hz * num_clients, num_clients, uplink_snr, downlink_snr, is_broadcast)
    shares_hz = np.full(problem.num_clients, share_hz)
    work = problem.workload
    scaled = replace(
        work,
        uplink_bits=_scaled(work.uplink_bits, wide.uplink_bps(shares_hz), problem.uplink_bps),
        downlink_bits=_scaled(work.downlink_bits, wide.downlink_bps(shares_hz), problem.downlink_bps),
    )
    band = wide.widened(float(np.exp(rng.uniform(np.log(1e-3), 0.0))))

    def at(sub_band_hz: float) -> Problem:
        bands_hz = np.full(problem.num_clients, sub_band_hz)
        rates = {"uplink_bps": band.uplink_bps(bands_hz), "downlink_bps": band.downlink_bps(bands_hz)}
        caps = np.minimum(problem.rank_cap, most_ranks)
        return replace(problem, workload=scaled, **rates, band=band, rank_cap=caps)

    able = feasible(at(band.total_hz), 1)
    order = np.argsort(~able, kind="stable") if seed % 8 else np.arange(problem.num_clients)
    return subproblem(at(band.share_hz), order[:num_clients])


def _scaled(bits: Affine, new_bps: np.ndarray, old_bps: np.ndarray) -> Affine:
    factor = np.divide(new_bps, old_bps, out=np.ones_like(new_bps), where=old_bps > 0)
    return Affine(bits.constant * factor, bits.per_rank * factor)


def least_bands(problem: Problem, downlink_bps: np.ndarray | None = None) -> np.ndarray:
    """Try every rank with the constraints as the paper writes them, and bisect the sub-band on a log scale.

    Args:
        downlink_bps: of a broadcast; None where the downlink is on the sub-bands.

    Returns:
        shape (R, I), for ranks 1..R; infinite where not even the whole band is enough.
    """
    band, work = problem.band, problem.workload
    assert band is not None
    rank = np.arange(1, int(problem.rank_cap.max()) + 1)[:, np.newaxis]
    cycles, up_bits, down_bits = work.cycles(rank), work.uplink_bits(rank), work.downlink_bits(rank)
    density = band.uplink_snr * band.share_hz
    is_offline = problem.uplink_bps == 0

    def fits(hz: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            up_bps = np.where(is_offline, 0.0, hz * np.log2(1 + density / hz))
            down_bps = hz * np.log2(1 + band.downlink_snr) if downlink_bps is None else downlink_bps
            up_s = np.where(up_bits == 0, 0.0, up_bits / up_bps)
            down_s = np.where(down_bits == 0, 0.0, down_bits / down_bps)
            clock_hz = cycles / (problem.deadline_s - problem.overhead_s - up_s - down_s)
            fixed_j = problem.circuit_energy_j + problem.uplink_power_w * up_s + problem.joules_per_cycle * cycles
            spent_j = fixed_j + problem.capacitance * cycles * clock_hz**2
            in_time = (up_s + down_s + problem.overhead_s < problem.deadline_s) & (clock_hz <= problem.max_frequency_hz)
            in_memory = work.memory_bytes(rank) <= problem.memory_budget_bytes
            return in_memory & in_time & (spent_j <= problem.energy_budget_j) & (fixed_j < problem.energy_budget_j)

    high = np.full(cycles.shape, band.total_hz)
    able = fits(high) & (rank <= problem.rank_cap)
    low = high * 1e-15
    nothing = fits(low)
    for _ in range(60):
        middle = np.sqrt(low * high)
        good = fits(middle)
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    return np.where(able, np.where(nothing, 0.0, high), np.inf)


def is_close_call(least_hz: np.ndarray, problem: Problem) -> bool:
    """Whether rounding decides if some rank fits all together."""
    assert problem.band is not None
    needed = least_hz.sum(axis=1)
    return bool(np.any(np.abs(needed - problem.band.total_hz) < 1e-8 * problem.band.total_hz))


def best_common_rank(least_hz: np.ndarray, total_hz: float) -> int:
    """The largest rank at which all least sub-bands together fit, 0 if none."""
    return int(max(np.flatnonzero(least_hz.sum(axis=1) <= total_hz) + 1, default=0))


def most_participants(at_floor_hz: np.ndarray, total_hz: float) -> int:
    """The size of the largest set of clients that can do rank 1 together, by trying all sets."""
    clients = range(len(at_floor_hz))
    sets = (some for size in range(len(at_floor_hz) + 1) for some in itertools.combinations(clients, size))
    return max(len(some) for some in sets if at_floor_hz[list(some)].sum() <= total_hz)


def best_utility(least_hz: np.ndarray, total_hz: float) -> float:
    """The largest Σ log(1 + r) of all combinations of ranks that fit together, -inf if none does."""
    worth, needed = np.zeros(1), np.zeros(1)
    for client in range(least_hz.shape[1]):
        ranks = np.log(np.arange(2, least_hz.shape[0] + 2))
        worth = (worth[:, np.newaxis] + ranks).ravel()
        needed = (needed[:, np.newaxis] + least_hz[:, client]).ravel()
    return float(worth[needed <= total_hz].max(initial=-np.inf))
