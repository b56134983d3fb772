"""Share one band among clients so that all together spend least energy at their ranks.

    minimise Σ_i E_i(B_i)  subject to  Σ_i B_i <= B_total and B_i >= B_i^min(r_i)

At the lowest frequency that is in time E_i = ξ + γ·C|D| + P·T_ul(B) + Ω·(C|D|)³/S(B)². A rate is concave in the
sub-band, so airtimes are convex, S is concave and E_i is convex and falls. So at the optimum a further hertz saves
everybody the same, λ, but for those who are at their least sub-band and would save less, and halving λ finds it.
"""

from __future__ import annotations

import math

import numpy as np

from splitrank.planning.bandwidth import shared_out
from splitrank.planning.least_bands import band_of, min_band, with_rates
from splitrank.planning.problem import FloatArray, IntArray, Problem, compute_slack, downlink_s, uplink_s
from splitrank.planning.workload import Rank

_HALVINGS = 200
_CLOSE = 1e-12


def least_energy_shares(problem: Problem) -> tuple[IntArray, FloatArray, None]:
    """Give all their rank floors, and the sub-bands with which they spend least together."""
    rank = problem.rank_floor
    least_hz = min_band(problem, rank)
    return rank, shared_out(problem, rank, _cheapest(problem, rank, least_hz)), None


def saved_j_per_hz(problem: Problem, rank: Rank, bandwidth_hz: FloatArray) -> FloatArray:
    """Return what a further hertz saves each client [J/Hz], -dE/dB, >= 0.

    -dE/dB = P·A_ul + 2·Ω·(C|D|)³/S³·(A_ul + A_dl),  A = -dT/dB

    Args:
        problem: the round, with a band.
        rank: shape (I,).
        bandwidth_hz: B, at which the rank fits, > 0, shape (I,).
    """
    band, at = band_of(problem), with_rates(problem, bandwidth_hz)
    snr = band.uplink_snr * (band.share_hz / bandwidth_hz)
    up_s, down_s = uplink_s(at, rank), downlink_s(at, rank)
    with np.errstate(invalid="ignore", divide="ignore"):
        # s = B·log(1 + SNR): s'/s = (1 - SNR/((1 + SNR)·log(1 + SNR)))/B
        growth = (1.0 - snr / ((1.0 + snr) * np.log1p(snr))) / bandwidth_hz
    up = np.where(up_s > 0, up_s * growth, 0.0)
    down = 0.0 if band.is_broadcast else down_s / bandwidth_hz
    left_s, _ = compute_slack(at, rank)
    cycles = problem.workload.cycles(rank)
    saved: FloatArray = problem.uplink_power_w * up + 2 * problem.capacitance * (cycles / left_s) ** 3 * (up + down)
    return saved


def _cheapest(problem: Problem, rank: IntArray, least_hz: FloatArray) -> FloatArray:
    """Return the sub-bands at the price that the band can just pay."""
    total_hz = band_of(problem).total_hz
    if math.fsum(least_hz) >= total_hz:
        return least_hz
    start_hz = np.maximum(least_hz, total_hz * 1e-15)
    narrow, wide = start_hz, np.full(len(least_hz), total_hz)
    steepest, flattest = saved_j_per_hz(problem, rank, narrow), saved_j_per_hz(problem, rank, wide)
    high, low = float(steepest.max()), max(float(flattest.min()), 1e-300)
    if high == 0:
        return least_hz
    for _ in range(_HALVINGS):
        if high - low <= _CLOSE * high:
            break
        price = math.sqrt(low) * math.sqrt(high)
        found = _at_price(problem, rank, price, narrow, wide)
        if math.fsum(found) <= total_hz:
            high, narrow = price, found
        else:
            low, wide = price, np.maximum(found, narrow)
    return np.maximum(narrow, least_hz)


def _at_price(problem: Problem, rank: IntArray, price: float, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return where a further hertz saves no more than the price, between two sub-bands."""
    for _ in range(_HALVINGS):
        if np.all(high - low <= _CLOSE * high):
            break
        middle = np.sqrt(low) * np.sqrt(high)
        worth = saved_j_per_hz(problem, rank, middle) > price
        low, high = np.where(worth, middle, low), np.where(worth, high, middle)
    return low
