"""The slices of the adapter that a client has chosen for itself in a round, where the rule lets clients choose.

A client tries all of them for an epoch, chooses, and starts anew. It tells its choice in the header of its update, and
the rule then means the same on both sides: what is trained, sent and checked is what was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitrank.errors import InputError
from splitrank.federation.model import Model
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.lora_a2 import OfSlices, Slices, factor_of, rank_sent
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.client import FULL_SPEED, Task, Throttle, train_client
from splitrank.learning.trunk import TrunkOutputs


def with_slices(rule: Rule, slices: Slices) -> Rule:
    """Return the rule as it holds for a client that trains some slices."""
    return replace(rule, selection=OfSlices(rule.select, slices))


def rule_of_client(
    model: Model,
    rule: Rule,
    task: Task,
    rank: int,
    texts: TrunkOutputs,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    throttle: Throttle = FULL_SPEED,
) -> Rule:
    """Return the rule as it holds for a client in a round; where the rule lets clients choose, after a trial epoch.

    Args:
        model: it holds the trial afterwards.
        rule: for all clients.
        task: of the round.
        rank: of the client's plan, as many slices of each linear as it may send.
        texts, rows, labels, throttle: as in :func:`learning.client.train_client`.
    """
    if rule.choose is None:
        return rule
    once = replace(model.local_training, local_epochs=1)
    tried = train_client(model.adapted, task, texts, rows, labels, once, throttle=throttle).adapter
    return with_slices(rule, rule.choose(task.start, tried, factor_of(rule.traits, task.turn), rank))


def slices_header(rule: Rule) -> dict[str, Any]:
    """Return what the header of an update says of a client's choice; nothing where it has none."""
    chosen = rule.selection
    return (
        {"slices": {path: list(some) for path, some in chosen.slices.items()}} if isinstance(chosen, OfSlices) else {}
    )


def told_rule(told: Mapping[str, Any], start: Adapter, rule: Rule, rank: int, turn: int) -> tuple[Rule, float | None]:
    """Return the rule as it holds for a client by its header, and the rank to which what it sends amounts.

    Args:
        told: the update's header.
        start: the adapter that the client was sent.
        rule: for all clients.
        rank: of the client's plan.
        turn: of the round.

    Raises:
        InputError: slices that there are not, or more than were planned.
    """
    if rule.choose is None:
        return rule, None
    kind, slices = factor_of(rule.traits, turn), told.get("slices")
    if not isinstance(slices, dict) or not slices.keys() <= start.of_kind(kind).keys():
        raise InputError(f"slices must name linears with adapters, got {str(slices)[:60]}")
    for path, some in slices.items():
        if not _is_choice(some, start.rank):
            raise InputError(
                f"slices must be directions below {start.rank} in rising order, got {str(some)[:60]} of {path}"
            )
    sent = rank_sent(start, kind, slices)
    if sent > rank * (1 + 1e-9):
        raise InputError(f"slices must amount to rank {rank} at most, as planned, got {sent:.6g}")
    return with_slices(rule, slices), sent


def _is_choice(some: object, rank: int) -> bool:
    """Return whether a value is a list of one or more directions below a rank, each once, in rising order."""
    if not isinstance(some, Sequence) or not some or not all(type(j) is int and 0 <= j < rank for j in some):
        return False
    return all(before < after for before, after in pairwise(some))
