"""Ranks that earlier rounds have settled: what a client has pruned for good, or the one rank of a whole run.

A plan may give a client less than it has pruned itself to, never more. The ledger keeps these as ``pruned_ranks``, one
for each client, infinite for one that has pruned nothing yet. Server and client both have what the client started from
and what it trained, so the server works out what the client would tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from splitrank.federation.state import State
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.rule import Rule, Starts
from splitrank.learning.client import Update
from splitrank.planning.problem import Problem
from splitrank.traits import RANK_AXIS, MethodTraits

_PRUNED = "pruned_ranks"


def pruned(
    state: State, starts: Starts, updates: Mapping[int, Update], rule: Rule, num_clients: int
) -> tuple[State, dict[int, Update]]:
    """Return updates cut to the ranks that their clients keep, and the state that remembers these.

    r_i ← min(r_i, kept), for a rule under which clients prune; otherwise nothing changes.
    """
    if rule.kept_rank is None or not updates:
        return state, dict(updates)
    ranks = state.ledger.get(_PRUNED, np.full(num_clients, np.inf)).copy()
    cut = {}
    for client, update in updates.items():
        kept = rule.kept_rank(starts.of[client], update.adapter)
        if kept < update.adapter.rank:
            ranks[client] = min(ranks[client], kept)
        cut[client] = replace(update, adapter=first_directions(update.adapter, kept))
    return replace(state, ledger={**state.ledger, _PRUNED: ranks}), cut


def first_directions(adapter: Adapter, rank: int) -> Adapter:
    """Return an adapter without its directions from a rank on, the others and their scaling as they were."""
    factors = adapter.only(*RANK_AXIS)
    shorter = {name: factors[name].narrow(RANK_AXIS[name.partition("/")[0]], 0, rank) for name in factors}
    return replace(adapter.with_tensors(shorter), rank=rank)


def with_settled_ranks(problem: Problem, state: State, traits: MethodTraits) -> Problem:
    """Return the problem with no client's rank above what it has pruned itself to.

    With a method whose rank is chosen once, it is the one at which the state's adapter was first trained.
    """
    if traits.contract == "once" and state.adapter.rank:
        rank = np.full(problem.num_clients, state.adapter.rank, dtype=np.int64)
        return replace(problem, rank_floor=rank, rank_ceiling=rank)
    if _PRUNED not in state.ledger:
        return problem
    ceiling = np.minimum(problem.rank_ceiling, state.ledger[_PRUNED]).astype(np.int64)
    return replace(problem, rank_ceiling=ceiling)
