"""Find the least sub-band with which a rank fits a client, for all clients at once.

With the time left for computing S(B) and the energy left for it W(B), a rank fits a client at a sub-band B exactly when
it has time to spare there:

    S(B) - C|D|/min(f_max, f_en(B)) >= 0,  f_en = sqrt(W(B)/(Ω·C|D|))

Airtimes are bits over rates that grow with B, so this grows too, and is close to a straight line in 1/B. The Illinois
method (Dowell and Jarratt, "A modified regula falsi method for computing the root of an equation", BIT 11, 1971) on
that scale encloses the least sub-band; whether a rank fits at an end is always asked of `feasible`, so that rounding
is the same as in every other part of a plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from splitrank.planning.link import Band
from splitrank.planning.problem import (
    BoolArray,
    FloatArray,
    IntArray,
    Problem,
    compute_slack,
    feasible,
    subproblem,
    unchecked,
)
from splitrank.planning.workload import Rank

_MOST_STEPS = 200
_CLOSED = 2.0**-46
_BLOCK = 16_384
_LEAST_S = 1e-300


def band_of(problem: Problem) -> Band:
    """Return the problem's band, which it must have."""
    assert problem.band is not None
    return problem.band


def with_rates(problem: Problem, bandwidth_hz: FloatArray | np.float64) -> Problem:
    """Return the problem at the rates of sub-bands, without checking it anew; those offline have no rate at any."""
    band, bands_hz = band_of(problem), np.asarray(bandwidth_hz)
    uplink_bps = np.where(problem.uplink_bps > 0, band.uplink_bps(bands_hz), 0.0)
    downlink_bps = problem.downlink_bps if band.is_broadcast else band.downlink_bps(bands_hz)
    return unchecked(problem, uplink_bps=uplink_bps, downlink_bps=downlink_bps)


def min_band(problem: Problem, rank: Rank) -> FloatArray:
    """Return each client's least sub-band with which a rank fits it.

    B_i^min(r) = min{B in [0, B_total] : r fits client i at the rates of B}

    The equal share is probed first. If the rank fits there it is the upper end of the bracket, so that whatever an
    equal split can do is found here, to the bit; else the whole band is. The end of the bracket that fits is returned
    once it is within 2^-46 of the other.

    Args:
        problem: the round, with a band; a broadcast is received at ``downlink_bps``.
        rank: r >= 1, one for all or in a shape that goes with (I,), such as (R, 1) for R ranks.

    Returns:
        B^min [Hz], in the shape of the rank for all clients; infinite where not even the whole band is enough, 0 where
        there is nothing to send.
    """
    found = []
    for bracket in _brackets(problem, rank):
        while bracket.is_open:
            bracket.narrow()
        found.append(bracket.high)
    return np.concatenate(found, axis=-1)


def bands_of_ranks(problem: Problem, first: int | IntArray, num_ranks: int) -> Iterator[FloatArray]:
    """Yield the least sub-bands of shape (I,) of one rank after another, from the first on, many worked out at once."""
    rows = max(1, 8 * _BLOCK // problem.num_clients)
    for start in range(0, num_ranks, rows):
        steps = np.arange(start, min(start + rows, num_ranks))[:, np.newaxis]
        yield from min_band(problem, first + steps)


def fits_together(problem: Problem, rank: Rank) -> bool:
    """Return whether all clients of a problem can have a rank at once: Σ_i B_i^min(r) <= B_total.

    The brackets are narrowed only until their ends tell. Equal shares need no sum, which rounding could make too large.
    """
    total_hz, share_hz = band_of(problem).total_hz, band_of(problem).share_hz
    if np.any(rank > problem.rank_cap):
        return False
    brackets = []
    for bracket in _brackets(problem, rank):
        if np.any(np.isinf(bracket.high)):
            return False
        brackets.append(bracket)
    while True:
        if all(np.all(one.high <= share_hz) for one in brackets):
            return True
        if _sum([one.high for one in brackets], total_hz) <= total_hz:
            return True
        if _sum([one.low for one in brackets], total_hz) >= total_hz:
            return False
        is_open = [one for one in brackets if one.is_open]
        if not is_open:
            return False
        for one in is_open:
            one.narrow()


def _sum(parts: list[FloatArray], limit: float) -> float:
    """Return a sum, without rounding where that might tell: clients in another order must not have another plan."""
    rough = math.fsum(np.sum(part) for part in parts)
    return rough if abs(rough - limit) > 1e-9 * limit else math.fsum(np.concatenate(parts))


def _brackets(problem: Problem, rank: Rank) -> Iterator[_Bracket]:
    """Yield brackets of all clients, block by block, so that a block's numbers stay in the processor's cache."""
    ranks = np.broadcast_to(rank, np.broadcast_shapes(np.shape(rank), (problem.num_clients,)))
    block = max(1, _BLOCK * problem.num_clients // ranks.size)
    if block >= problem.num_clients:
        yield _bracket(problem, ranks)
        return
    for first in range(0, problem.num_clients, block):
        part = slice(first, first + block)
        yield _bracket(subproblem(problem, part), ranks[..., part])


def _bracket(problem: Problem, rank: Rank) -> _Bracket:
    band = band_of(problem)
    share_hz, total_hz = np.float64(band.share_hz), np.float64(band.total_hz)
    at_share, spare_s = _fits(problem, rank, share_hz)
    low, high = np.where(at_share, 0.0, share_hz), np.where(at_share, share_hz, total_hz)
    low_s, high_s = np.where(at_share, -np.inf, spare_s), spare_s
    if not np.all(at_share):
        at_total, total_s = _fits(problem, rank, total_hz)
        high = np.where(at_share | at_total, high, np.inf)
        high_s = np.where(at_share, spare_s, total_s)
    if not np.all(problem.workload.uplink_bits(rank)):
        nothing_to_send, _ = _fits(problem, rank, np.float64(0.0))
        low, high = np.where(nothing_to_send, 0.0, low), np.where(nothing_to_send, 0.0, high)
    return _Bracket(problem, rank, low, high, low_s, high_s)


def _fits(problem: Problem, rank: Rank, bandwidth_hz: FloatArray | np.float64) -> tuple[BoolArray, FloatArray]:
    """Return whether a rank fits at sub-bands, and the time to spare [s], -inf where the energy is used up."""
    at = with_rates(problem, bandwidth_hz)
    cycles = problem.workload.cycles(rank)
    left_s, left_j = compute_slack(at, rank)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        energy_hz = np.sqrt(np.maximum(left_j, 0.0) / (problem.capacitance * cycles))
        spare_s = left_s - cycles / np.fmin(energy_hz, problem.max_frequency_hz)
    return feasible(at, rank), np.where(np.isnan(spare_s), -np.inf, spare_s)


@dataclass
class _Bracket:
    """Sub-bands between which the least ones are, in any shape (..., I).

    Attributes:
        problem: the clients.
        rank: the rank that is to fit.
        low: does not fit, or is 0 [Hz].
        high: fits, infinite where nothing does [Hz].
        low_s, high_s: time to spare at the ends [s], of one that has stayed for long only a part.
    """

    problem: Problem
    rank: Rank
    low: FloatArray
    high: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    side: FloatArray | float = 0.0
    steps: int = 0

    @property
    def is_open(self) -> bool:
        """Return whether some ends are still apart."""
        return self.steps < _MOST_STEPS and bool(np.any(self._apart()))

    def _apart(self) -> BoolArray:
        with np.errstate(invalid="ignore"):
            apart: BoolArray = self.high - self.low > _CLOSED * self.high
        return apart & np.isfinite(self.high)

    def narrow(self) -> None:
        """Move one end of each bracket."""
        self.steps += 1
        middle = self._middle()
        fits, spare_s = _fits(self.problem, self.rank, middle)
        # The time to spare is rounded, too, and must not contradict what fits.
        spare_s = np.where(fits, np.maximum(spare_s, 0.0), np.minimum(spare_s, -_LEAST_S))
        side = np.where(fits, 1.0, -1.0)
        stays = side == self.side  # the other end has now stayed for two steps: it must not hold the line
        self.low_s = np.where(fits, np.where(stays, self.low_s / 2, self.low_s), spare_s)
        self.high_s = np.where(fits, spare_s, np.where(stays, self.high_s / 2, self.high_s))
        self.low, self.high = np.where(fits, self.low, middle), np.where(fits, middle, self.high)
        self.side = side

    def _middle(self) -> FloatArray:
        low, high = self.low, self.high
        if self.steps % 4 == 0:
            guess = self._halfway()
        else:
            with np.errstate(all="ignore"):
                weight = self.high_s / (self.high_s - self.low_s)
                guess = 1.0 / (1.0 / high + weight * (1.0 / low - 1.0 / high))
                # No nearer to an end than it takes to close the bracket: the other end follows in one step (Brent).
                least = _CLOSED / 2 * high
                guess = np.clip(guess, low + least, high - least)
            inside = (guess > low) & (guess < high) & np.isfinite(self.low_s)
            if not np.all(inside):
                guess = np.where(inside, guess, self._halfway())
        # Ends that have met, and clients whom nothing fits, are asked again: no client's answer depends on the others.
        return np.where(self._apart(), guess, np.fmin(high, band_of(self.problem).total_hz))

    def _halfway(self) -> FloatArray:
        """Return the middle: of the exponents where the ends are far apart, else of the numbers."""
        low, high = self.low, self.high
        with np.errstate(invalid="ignore"):
            middle = np.where(
                low == 0, high / 8, np.where(high > 4 * low, np.sqrt(low) * np.sqrt(high), (low + high) / 2)
            )
        return np.clip(middle, low, high)
