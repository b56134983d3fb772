"""Share one band among clients that have a rank each.

    maximise Σ_i log(1 + r_i)  subject to  Σ_i B_i^min(r_i) <= B_total

The logarithm makes a further rank worth less to whoever has many. This is a knapsack with one choice for each client
(Sinha and Zoltners, "The multiple-choice knapsack problem", Operations Research 27(3), 1979). A price of the band
bounds it (Everett, "Generalized Lagrange multiplier method", Operations Research 11(3), 1963): at a price λ each
client takes the rank that is best for itself, and no allocation is better than

    min_λ Σ_i max_r (log(1 + r) - λ·B_i^min(r)) + λ·B_total
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from splitrank.planning.bandwidth import shared_out
from splitrank.planning.least_bands import bands_of_ranks
from splitrank.planning.problem import FloatArray, IntArray, Problem
from splitrank.planning.solvers.exact import exact

MOST_CLIENTS_FOR_OPTIMUM = 32
"""Fleets up to which the optimum is looked for."""

_MOST_STATES = 200_000
_HALVINGS = 100


def per_client_shares(problem: Problem) -> tuple[IntArray, FloatArray, float | None]:
    """Give each client a rank of its own, and what is left of the band in proportion.

    In small fleets dynamic programming finds the optimum. In large ones the ranks at the least price that the band
    can pay are filled up, the cheapest step first; the gap to the bound is told. The result is never below the ranks
    of an equal split.

    Args:
        problem: the round, all of whose clients can have their rank floors at once.

    Returns:
        ranks, sub-bands [Hz], and how far Σ log(1 + r) is from the bound, as a share of it; None for an optimum.
    """
    choices = _choices(problem)
    bounds = _bound(choices)
    equal = np.clip(np.minimum(exact(problem), problem.rank_ceiling) - choices.first, 0, None)
    starts = [bounds.steps, *([equal] if choices.needed_hz(equal) <= choices.total_hz else [])]
    steps = max((_filled(choices, start) for start in starts), key=choices.utility)
    is_best_of_all = bounds.price == 0  # everybody has its largest rank
    gap = None if is_best_of_all else max(0.0, 1.0 - choices.utility(steps) / bounds.utility)
    if problem.num_clients <= MOST_CLIENTS_FOR_OPTIMUM and (best := _best(choices, bounds, steps)) is not None:
        steps, gap = best, None
    rank = choices.first + steps
    return rank, shared_out(problem, rank, choices.at(steps)), gap


@dataclass(frozen=True)
class _Choices:
    """Each client's ranks from its floor on: what each needs, and is worth. Arrays have shape (R, I).

    Attributes:
        first: rank floor, shape (I,); step s is rank first + s.
        least_hz: B^min [Hz], infinite for a rank that the client cannot have.
        worth: log(1 + r), -inf for a rank that it cannot have.
        total_hz: B_total, with room for the rounding of equal shares.
    """

    first: IntArray
    least_hz: FloatArray
    worth: FloatArray
    total_hz: float

    def at(self, steps: IntArray) -> FloatArray:
        """Return the least sub-bands at steps of shape (I,)."""
        found: FloatArray = self.least_hz[steps, np.arange(len(steps))]
        return found

    def needed_hz(self, steps: IntArray) -> float:
        """Return the band that all need together."""
        return math.fsum(self.at(steps))

    def utility(self, steps: IntArray) -> float:
        """Return Σ log(1 + r)."""
        return math.fsum(self.worth[steps, np.arange(len(steps))])


@dataclass(frozen=True)
class _Bound:
    """The best price λ [1/Hz], the bound there, and steps that the band can pay at a price next to it."""

    price: float
    utility: float
    steps: IntArray


def _choices(problem: Problem) -> _Choices:
    assert problem.band is not None
    last = np.minimum(problem.rank_cap, problem.rank_ceiling)
    rank = problem.rank_floor + np.arange(int((last - problem.rank_floor).max()) + 1)[:, np.newaxis]
    least_hz = np.stack(list(bands_of_ranks(problem, problem.rank_floor, len(rank))))
    least_hz[rank > last] = np.inf
    # Two ranks may need the same to the last bit; a larger one never needs less.
    least_hz = np.maximum.accumulate(least_hz, axis=0)
    worth = np.where(np.isfinite(least_hz), np.log1p(rank), -np.inf)
    return _Choices(problem.rank_floor, least_hz, worth, problem.band.room_hz)


def _bound(choices: _Choices) -> _Bound:
    """Halve the price until two neighbouring floats enclose it; the dual is convex in it."""
    finite_hz = np.where(np.isfinite(choices.least_hz), choices.least_hz, 0.0)

    def at_price(price: float) -> tuple[IntArray, float, float]:
        value = choices.worth - price * finite_hz
        steps = np.argmax(value, axis=0)
        return steps, choices.needed_hz(steps), math.fsum(value.max(axis=0)) + price * choices.total_hz

    steps, needed_hz, utility = at_price(0.0)
    if needed_hz <= choices.total_hz:
        return _Bound(0.0, utility, steps)
    best, price = utility, 0.0
    low, high = 0.0, 1.0 / choices.total_hz
    cheap, needed_hz, utility = at_price(high)
    while needed_hz > choices.total_hz and np.any(cheap):
        low, high = high, 2.0 * high
        cheap, needed_hz, utility = at_price(high)
    best, price = min((best, price), (utility, high))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        steps, needed_hz, utility = at_price(middle)
        best, price = min((best, price), (utility, middle))
        if needed_hz <= choices.total_hz:
            high, cheap = middle, steps
        else:
            low = middle
    return _Bound(price, best, cheap)


def _filled(choices: _Choices, steps: IntArray) -> IntArray:
    """Raise ranks one by one for as long as the band lasts, the one that costs least for its worth first."""
    steps, spare_hz = steps.copy(), choices.total_hz - choices.needed_hz(steps)
    queue: list[tuple[float, int, float]] = []

    def offer(client: int) -> None:
        step = steps[client] + 1
        if step < len(choices.worth) and math.isfinite(choices.least_hz[step, client]):
            more_hz = float(choices.least_hz[step, client] - choices.least_hz[step - 1, client])
            more = float(choices.worth[step, client] - choices.worth[step - 1, client])
            heapq.heappush(queue, (more_hz / more, client, more_hz))

    for client in range(len(steps)):
        offer(client)
    while queue:
        _, client, more_hz = heapq.heappop(queue)
        if more_hz <= spare_hz:
            spare_hz -= more_hz
            steps[client] += 1
            offer(client)
    # The differences are rounded; their sum must not be what breaks the band.
    return steps if choices.needed_hz(steps) <= choices.total_hz else _without_last(choices, steps)


def _without_last(choices: _Choices, steps: IntArray) -> IntArray:
    """Take back the rank that costs most until the band lasts."""
    steps = steps.copy()
    while choices.needed_hz(steps) > choices.total_hz and np.any(steps):
        cost_hz = choices.at(steps) - choices.at(np.maximum(steps - 1, 0))
        steps[int(np.argmax(np.where(steps > 0, cost_hz, -1.0)))] -= 1
    return steps


def _best(choices: _Choices, bound: _Bound, known: IntArray) -> IntArray | None:
    """Return the optimum by dynamic programming over the clients, None where there are too many states.

    A state is what the clients so far need and are worth. One that needs no less and is worth no more than another is
    dropped, and so is one that cannot reach the known allocation even if the rest are worth all that the price allows.
    """
    num_ranks, num_clients = choices.worth.shape
    finite_hz = np.where(np.isfinite(choices.least_hz), choices.least_hz, 0.0)
    most_worth = (choices.worth - bound.price * finite_hz).max(axis=0)
    rest_worth = np.append(np.cumsum(most_worth[::-1])[::-1], 0.0)
    rest_hz = np.append(np.cumsum(choices.least_hz[0, ::-1])[::-1], 0.0)
    enough = choices.utility(known) - 1e-9
    used_hz, worth = np.zeros(1), np.zeros(1)
    history: list[tuple[IntArray, IntArray]] = []
    for client in range(num_clients):
        hz = (used_hz[:, np.newaxis] + choices.least_hz[:, client]).ravel()
        value = (worth[:, np.newaxis] + choices.worth[:, client]).ravel()
        with np.errstate(invalid="ignore"):
            spare_hz = choices.total_hz - hz
            keep = (spare_hz >= rest_hz[client + 1] * (1 - 1e-12)) & (
                value + rest_worth[client + 1] + bound.price * spare_hz >= enough
            )
        index = np.flatnonzero(keep)
        index = index[np.lexsort((-value[index], hz[index]))]
        best_before = np.maximum.accumulate(np.append(-np.inf, value[index]))[:-1]
        index = index[value[index] > best_before]
        if len(index) > _MOST_STATES:
            return None
        history.append((index // num_ranks, index % num_ranks))
        used_hz, worth = hz[index], value[index]
    steps = np.zeros(num_clients, np.int64)
    within = np.flatnonzero(used_hz <= choices.total_hz)
    if not len(within):
        return known
    state = int(within[np.argmax(worth[within])])
    for client in reversed(range(num_clients)):
        before, step = history[client]
        steps[client], state = step[state], before[state]
    return steps if choices.utility(steps) >= choices.utility(known) else known
