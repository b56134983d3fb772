"""Who takes part where a round does not take everybody: an order of the clients that can, of which the first do.

A selection is one function, from what is known of the clients to a priority for each, and one line in ``SELECTIONS``.
Equal priorities follow a drawn order. What a selection remembers is when each client was last chosen, and with whom a
turn goes on: both are in the run's ledger, so a resumed run chooses the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from splitrank.planning.problem import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Candidates:
    """What a selection may go by. Arrays have shape (I,).

    Attributes:
        round: counted from 1.
        able: clients that can take part.
        max_rank: r_i*, each client's largest rank.
        drawn: a number in [0, 1) for each client, new in every round.
        last_chosen: the round in which each was last chosen, 0 for never.
        next_client: with whom round-robin goes on.
    """

    round: int
    able: BoolArray
    max_rank: IntArray
    drawn: FloatArray
    last_chosen: FloatArray
    next_client: int


@dataclass(frozen=True)
class Selection:
    """A selection: ``priority`` of every client, the lowest first, and what it went by in a client's case."""

    priority: Callable[[Candidates], FloatArray | IntArray]
    reason: Callable[[Candidates, int], str]


@dataclass(frozen=True)
class Choice:
    """Who takes part, and for every client that could what decided; ``""`` for one that cannot. Shape (I,)."""

    chosen: BoolArray
    reasons: tuple[str, ...]


def choose(name: str, candidates: Candidates, most: int) -> Choice:
    """Choose among the clients that can take part; all of them where there are no more than ``most``.

    Args:
        name: a key of ``SELECTIONS``.
        candidates: what is known of the clients.
        most: how many to choose, >= 1.
    """
    selection = SELECTIONS[name]
    order = np.lexsort((candidates.drawn, selection.priority(candidates)))
    chosen = np.zeros_like(candidates.able)
    chosen[order[candidates.able[order]][:most]] = True
    able = candidates.able.tolist()
    return Choice(
        chosen, tuple(selection.reason(candidates, client) if able[client] else "" for client in range(len(able)))
    )


def next_in_turn(chosen: BoolArray, next_client: int) -> int:
    """Return with whom round-robin goes on: after the last of the chosen, counted from where it stood."""
    if not chosen.any():
        return next_client
    places = (np.flatnonzero(chosen) - next_client) % len(chosen)
    return int((next_client + places.max() + 1) % len(chosen))


def _in_drawn_order(candidates: Candidates) -> FloatArray:
    """McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017."""
    return candidates.drawn


def _in_turn(candidates: Candidates) -> IntArray:
    num_clients = len(candidates.able)
    return (np.arange(num_clients) - candidates.next_client) % num_clients


def _largest_rank_first(candidates: Candidates) -> IntArray:
    """Those who can do most now, as Nishio and Yonetani choose by resources (FedCS, ICC 2019): the weak may never."""
    return -candidates.max_rank


def _longest_wait_first(candidates: Candidates) -> FloatArray:
    """Whoever was chosen least recently, so that nobody waits more than ⌈I/K⌉ − 1 rounds in which it is able.

    In each such round K others go before it, and nobody twice: who was chosen has waited less from then on, whether it
    is able or not.
    """
    return candidates.last_chosen


def _wait(candidates: Candidates, client: int) -> str:
    last = int(candidates.last_chosen[client])
    return f"last chosen in round {last}" if last else "never chosen before"


SELECTIONS: Mapping[str, Selection] = {
    "random": Selection(_in_drawn_order, lambda candidates, client: f"drew {candidates.drawn[client]:.6f}"),
    "round-robin": Selection(_in_turn, lambda candidates, client: f"{_in_turn(candidates)[client]} from the turn"),
    "largest-rank": Selection(
        _largest_rank_first, lambda candidates, client: f"could do rank {candidates.max_rank[client]}"
    ),
    "fair": Selection(_longest_wait_first, _wait),
}
