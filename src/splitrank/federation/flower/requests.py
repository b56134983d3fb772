"""Requests to a client: their header and numbers are read and checked before any work.

A header comes from outside and is trusted in nothing; what is made of it here has types, and the sizes of this model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from splitrank.errors import InputError
from splitrank.federation import wire
from splitrank.federation.backlog import placed
from splitrank.federation.flower.payload import Floats, Header, is_count, is_finite
from splitrank.federation.flower.personal import PersonalStore
from splitrank.federation.flower.prepared import Prepared
from splitrank.federation.sizes import MergedParts, global_rank, rank_cap
from splitrank.learning.adapters.adapter import Adapter
from splitrank.traits import MERGED_KINDS

_LOG = logging.getLogger("splitrank")


@dataclass(frozen=True)
class LinkEstimate:
    """The server's estimate of a client's link, as the client is told.

    Attributes:
        uplink_bps, downlink_bps: rates [bit/s].
        overhead_s: time of an exchange beside bits and training [s].
        latency_margin: the share of T0 to keep free.
    """

    uplink_bps: float
    downlink_bps: float
    overhead_s: float
    latency_margin: float


@dataclass(frozen=True)
class PlanRequest:
    """A request to plan a round for oneself.

    Attributes:
        round, turn: of the round, and rounds aggregated before it.
        measures: whether the client's machine is measured, or its costs are simulated.
        link: as the server knows it.
        merged: the merged parts that it would be sent.
    """

    round: int
    turn: int
    measures: bool
    link: LinkEstimate
    merged: MergedParts


@dataclass(frozen=True)
class ClockPlan:
    """The clock that a plan has a client's machine train at [Hz], and the time that training then takes [s]."""

    frequency_hz: float
    compute_s: float


@dataclass(frozen=True, eq=False)
class TrainRequest:
    """A request to train.

    Attributes:
        round, turn: of the round, and rounds aggregated before it.
        start: the adapter to start from.
        rank: of the plan: the start's, or as many slices of each linear as may be sent where the client chooses them.
        personal: the client's own part to start from, by name.
        personal_lost: whether the part that was asked for is lost, so that this one is new.
        personal_round: the round of the part that was asked for, 0 for none.
        plan: the server's plan for the machine, or what the client needs to make its own; None where machines are
            simulated, so that training runs as fast as it can.
        stop_after_s: time from the request's arrival after which the update would be late [s].
    """

    round: int
    turn: int
    start: Adapter
    rank: int
    personal: Mapping[str, Tensor]
    personal_lost: bool
    personal_round: int
    plan: ClockPlan | PlanRequest | None
    stop_after_s: float


def read_plan_request(prepared: Prepared, header: Header) -> PlanRequest:
    """Return what a request says of a round that the client must plan.

    Raises:
        InputError: a number that is none, or merged parts that this model cannot have.
    """
    told = wire.told_merged(header, prepared.initial.adapter, prepared.rule)
    numbers = sum(math.prod(shape) for path, part in told.items() for shape in part.shapes(path, part.first).values())
    ranks = {path: part.rank for path, part in told.items()}
    merged = MergedParts(placed(ranks, prepared.model.encoder.family), float(numbers))
    link = header.get("link")
    names = ("uplink_bps", "downlink_bps", "overhead_s", "latency_margin")
    if not isinstance(link, dict) or not all(is_finite(link.get(name)) for name in names):
        raise InputError(f"link must have the numbers {', '.join(names)}, got {str(link)[:60]}")
    estimate = LinkEstimate(*(float(link[name]) for name in names))
    return PlanRequest(_count(header, "round"), _count(header, "turn"), bool(header["measure"]), estimate, merged)


def read_train_request(prepared: Prepared, client: int, header: Header, floats: Floats) -> TrainRequest:
    """Return what a request for an update asks for.

    Raises:
        InputError, LostMergedError: as :func:`read_start`, :func:`read_personal` and :func:`read_plan_request`.
    """
    start = read_start(prepared, client, header, floats)
    personal, is_lost = read_personal(prepared, client, header)
    plan: ClockPlan | PlanRequest | None = None
    if header["measure"] and header["frequency_hz"] is None:
        plan = read_plan_request(prepared, header)
    elif header["measure"]:
        plan = ClockPlan(float(header["frequency_hz"]), float(header["planned_s"]))
    return TrainRequest(
        round=_count(header, "round"),
        turn=_count(header, "turn"),
        start=start,
        rank=start.rank if prepared.rule.choose is None else _count(header, "num_slices", start.rank),
        personal=personal,
        personal_lost=is_lost,
        personal_round=_count(header, "personal_round"),
        plan=plan,
        stop_after_s=float(header["stop_after_s"]),
    )


def read_start(prepared: Prepared, client: int, header: Header, floats: Floats) -> Adapter:
    """Return the adapter that a request carries, its merged parts joined to those that the client has.

    Raises:
        InputError: a rank beyond what this model can have, or other tensors than the rank has.
        LostMergedError: the client does not have the merged parts that the server takes it to have.
    """
    model, rule = prepared.model, prepared.rule
    largest = global_rank(model.config) or rank_cap(model.config, model.shape)
    rank, turn = _count(header, "rank", largest), _count(header, "turn")
    vector, like = torch.from_numpy(floats.copy()), prepared.initial.adapter
    kept = PersonalStore.of(header.get("run"), client).read_merged() if header.get("merged") else {}
    seed = model.config.run.seed
    start = wire.received_start(
        header, vector, like, rank, turn, model.method, rule, seed, _count(header, "round"), kept=kept
    )
    if wire.merged_digest(start) != header.get("merged_sha256"):
        raise wire.LostMergedError
    return start


def keep_merged(start: Adapter, client: int, header: Header) -> Header:
    """Keep a start's merged parts, of which later requests bring what is new; return what the answer says of them."""
    digest = wire.merged_digest(start)
    if digest is None:
        return {}
    PersonalStore.of(header.get("run"), client).write_merged(start.only(*MERGED_KINDS))
    return {"merged_sha256": digest}


def read_personal(prepared: Prepared, client: int, header: Header) -> tuple[Mapping[str, Tensor], bool]:
    """Return the personal part of the round that a request names, and whether it was lost.

    Raises:
        InputError: a round that is no whole number, or a run's name that is none.
    """
    initial = prepared.initial.local.get(client, {})
    if not initial or not header.get("personal_round"):
        return initial, False
    round = _count(header, "personal_round")
    kept = PersonalStore.of(header.get("run"), client).read(round, header.get("personal_sha256"))
    shapes = {name: tensor.shape for name, tensor in initial.items()}
    if kept is None or {name: tensor.shape for name, tensor in kept.items()} != shapes:
        _LOG.info(f"The personal part of round {round} is lost; starting it afresh.")
        return initial, True
    return kept, False


def _count(header: Header, key: str, largest: int | None = None) -> int:
    """Return a header's whole number.

    Raises:
        InputError: it is none, or beyond the largest.
    """
    number = header.get(key)
    if not is_count(number) or (largest is not None and number > largest):
        rule = "a whole number, 0 or greater" if largest is None else f"0 to {largest}"
        raise InputError(f"{key} must be {rule}, got {str(number)[:60]}")
    return number
