"""Who takes part in a round, by the settings, and what the ledger remembers of it. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from splitrank import streams
from splitrank.config import Config
from splitrank.planning.plan import Plan
from splitrank.planning.selection import Candidates, Choice, choose, next_in_turn

Ledger = Mapping[str, NDArray[np.float64]]

_LAST_CHOSEN, _NEXT_CLIENT = "last_chosen", "next_client"


def selects(config: Config) -> bool:
    """Return whether a round takes fewer clients than there are."""
    wanted = config.federation.clients_per_round
    return wanted is not None and wanted < config.federation.num_clients


def num_chosen(config: Config) -> int:
    """Return how many clients a round takes at most, those over ``clients_per_round`` included.

    k = min(I, ⌈K·(1 + over_selection)⌉)
    """
    federation = config.federation
    if federation.clients_per_round is None:
        return federation.num_clients
    # Rounded, since 10·1.1 is a little over 11.
    return min(
        federation.num_clients, math.ceil(round(federation.clients_per_round * (1 + federation.over_selection), 9))
    )


def choice_of(config: Config, plan: Plan, ledger: Ledger, round: int) -> Choice:
    """Choose among those who could take part in a round.

    Draws are of the stream (seed, "selection", round).

    Args:
        config: the settings.
        plan: of all who could take part.
        ledger: the run's, empty before its first round.
        round: round number.
    """
    num_clients = config.federation.num_clients
    candidates = Candidates(
        round=round,
        able=plan.participants,
        max_rank=plan.max_rank,
        drawn=streams.uniform_per_client(config.run.seed, "selection", round, num_clients),
        last_chosen=ledger.get(_LAST_CHOSEN, np.zeros(num_clients)),
        next_client=_next_client(ledger),
    )
    return choose(config.federation.selection, candidates, num_chosen(config))


def ledger_after(ledger: Ledger, plan: Plan, round: int) -> Ledger:
    """Return the ledger after a round's choice; as it was where everybody is asked."""
    if plan.chosen is None:
        return ledger
    last_chosen = ledger.get(_LAST_CHOSEN, np.zeros(len(plan.chosen)))
    return {
        **ledger,
        _LAST_CHOSEN: np.where(plan.chosen, float(round), last_chosen),
        _NEXT_CLIENT: np.array([float(next_in_turn(plan.chosen, _next_client(ledger)))]),
    }


def _next_client(ledger: Ledger) -> int:
    return int(ledger[_NEXT_CLIENT][0]) if _NEXT_CLIENT in ledger else 0
