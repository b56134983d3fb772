"""One round of the method, top to bottom.

Xie and Wen, "Fine-tuning method for pre-trained model RoBERTa based on federated split learning and low-rank
adaptation": plan the largest LoRA rank that every client's budgets allow, train the last layers at that rank on
every client, average what they learnt. Other adapters, other rules and a rank for each client go the same way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from splitrank import streams
from splitrank.config import Config
from splitrank.errors import check_types
from splitrank.federation.backlog import note_received, still_held
from splitrank.federation.clients import Clients, NoUpdate
from splitrank.federation.pruning import pruned
from splitrank.federation.selection import ledger_after
from splitrank.federation.state import State
from splitrank.learning.aggregation.distribute import distribute, merge_rest
from splitrank.learning.aggregation.rule import Combined, Rule, Starts, weights_of
from splitrank.learning.client import Update
from splitrank.planning.plan import Plan, client_plans
from splitrank.planning.problem import Problem
from splitrank.records import ClientRecord, RoundRecord


def run_round(state: State, clients: Clients) -> tuple[State, RoundRecord]:
    """Draw channels, choose and plan, resize, train, aggregate, evaluate.

    A client that can do no rank this round sits out; a round in which nobody can take part leaves the model as it
    is and is recorded as infeasible. A participant that gives no update is left out, and the others are averaged
    without it, unless fewer than ``federation.min_clients`` are left: the model then stays as it is, too.

    Returns:
        the state after the round, and its record.

    Raises:
        InputError: an argument of another type, or a rule that does not return a `Combined`.
        RunError: training diverged on a client.
    """
    check_types(state=(state, State, "clients.initial_state() returns the first"))
    started_s = time.perf_counter()
    problem = clients.problem(state)
    plan = clients.plan(problem, state)
    state, problem, plan = keep_what_is_cut(state, problem, plan, clients)
    state = replace(state, ledger=ledger_after(state.ledger, plan, state.round + 1))
    starts = starts_of(state, plan, clients)
    replies = clients.train(starts, plan, state) if starts.of else {}
    in_time = first_replies(replies, plan, state.round + 1, clients.config)
    updates, missed = split_replies(in_time, clients.config.federation.min_clients)
    state = note_received(state, replies, problem.num_clients)
    state, updates = pruned(state, starts, updates, clients.rule, problem.num_clients)
    state, combined = aggregate(state, starts, updates, clients.rule)
    evaluation = clients.evaluate(state)
    record = RoundRecord(
        round=state.round,
        status=plan.status,
        rank=plan.largest_rank,
        accuracy=evaluation.accuracy,
        loss=evaluation.loss,
        macro_f1=evaluation.macro_f1,
        worst_client_accuracy=evaluation.worst_client_accuracy,
        factor_averaging_error=combined.factor_averaging_error if combined else None,
        clients=_client_records(plan, problem, clients, updates, missed),
        wall_s=time.perf_counter() - started_s,
        diagnostics=dict(combined.diagnostics) if combined else {},
    )
    return state, record


def keep_what_is_cut(state: State, problem: Problem, plan: Plan, clients: Clients) -> tuple[State, Problem, Plan]:
    """Merge what the plan's smaller rank would cut off, for a rule that merges; no other state or plan changes.

    What is merged is sent and computed, too, so the round is planned anew, and if the rank falls once more that is
    merged as well.
    """
    keeps_largest = clients.config.planner.rank_policy == "per-client"
    while "merges" in clients.rule.traits.tags and not keeps_largest and 0 < plan.largest_rank < state.adapter.rank:
        adapter = merge_rest(state.adapter, plan.largest_rank, clients.model.method, clients.rule)
        state = replace(state, adapter=adapter, ledger=still_held(state, adapter))
        problem = clients.problem(state)
        plan = clients.plan(problem, state)
    return state, problem, plan


def starts_of(state: State, plan: Plan, clients: Clients) -> Starts:
    """Return what each participant starts from: the global adapter at its planned rank."""
    ranks = {int(client): int(plan.rank[client]) for client in np.flatnonzero(plan.participants)}
    if not ranks:
        return Starts(state.adapter, {})
    config = clients.config
    return distribute(
        state.adapter,
        ranks,
        clients.model.method,
        clients.rule,
        keeps_largest=config.planner.rank_policy == "per-client",
        seed=config.run.seed,
        round=state.round + 1,
    )


def first_replies(
    replies: Mapping[int, Update | NoUpdate], plan: Plan, round: int, config: Config
) -> Mapping[int, Update | NoUpdate]:
    """Return the replies with only as many updates as a round wants, the first by planned time; the others are late.

    Bonawitz et al., "Towards federated learning at scale", MLSys 2019, choose 1.3 times as many devices as they want,
    so that those who fail or are slow hold nobody up. Equal times follow a drawn order, stream (seed, "over-selection",
    round).
    """
    updates = [client for client, reply in replies.items() if isinstance(reply, Update)]
    wanted = config.federation.clients_per_round
    if plan.chosen is None or wanted is None or len(updates) <= wanted:
        return replies
    drawn = streams.uniform_per_client(config.run.seed, "over-selection", round, len(plan.chosen))
    by_time = sorted(updates, key=lambda client: (plan.latency_s[client], drawn[client]))
    why = f"it came after the first {wanted} (federation.clients_per_round)"
    return {**replies, **{client: NoUpdate(why, replies[client].wall, late=True) for client in by_time[wanted:]}}


def split_replies(
    replies: Mapping[int, Update | NoUpdate], min_clients: int
) -> tuple[dict[int, Update], dict[int, NoUpdate]]:
    """Return updates in the order of the clients, none if there are too few; and who gave none, or gave it in vain."""
    updates = {client: reply for client, reply in sorted(replies.items()) if isinstance(reply, Update)}
    missed = {client: reply for client, reply in replies.items() if isinstance(reply, NoUpdate)}
    if len(updates) >= min_clients:
        return updates, missed
    too_few = NoUpdate(f"a round needs {min_clients} updates (federation.min_clients), got {len(updates)}")
    return {}, missed | dict.fromkeys(updates, too_few)


def aggregate(state: State, starts: Starts, updates: Mapping[int, Update], rule: Rule) -> tuple[State, Combined | None]:
    """Return the state after the round, and what the rule says of it; without updates the model stays as it is."""
    if not updates:
        return replace(state, round=state.round + 1), None
    adapters = {client: update.adapter for client, update in updates.items()}
    weights = weights_of({client: update.num_samples for client, update in updates.items()})
    combined = rule.combine(starts, adapters, weights, state.memory)
    hint = f"the rule {rule.name} must return Combined(adapter, memory)"
    check_types(combined=(combined, Combined, hint))
    personal = {client: update.personal for client, update in updates.items() if update.personal}
    after = State(
        round=state.round + 1,
        turn=state.turn + 1,
        adapter=combined.adapter,
        local=dict(sorted({**state.local, **personal}.items())),
        memory=combined.memory,
        ledger=still_held(state, combined.adapter),
    )
    return after, combined


def _client_records(
    plan: Plan, problem: Problem, clients: Clients, updates: Mapping[int, Update], missed: Mapping[int, NoUpdate]
) -> list[ClientRecord]:
    sent = plan.rank.astype(np.float64)
    for client, one in updates.items():
        if one.rank_sent is not None:
            sent[client] = one.rank_sent
    uplink_bits, downlink_bits = problem.workload.uplink_bits(sent), problem.workload.downlink_bits(plan.rank)
    num_samples = clients.num_samples
    records = []
    for client, planned in enumerate(client_plans(plan, problem)):
        update, gone = updates.get(client), missed.get(client)
        reply = update or gone
        told: dict[str, Any] = {**(reply.wall if reply else {}), **(update.notes if update else {})}
        records.append(
            ClientRecord(
                **vars(planned),
                uplink_bits=float(uplink_bits[client]) if update or (gone and gone.late) else 0.0,
                downlink_bits=float(downlink_bits[client]) if reply else 0.0,
                train_loss=update.train_loss if update else None,
                samples=num_samples[client],
                energy_budget_j=float(problem.energy_budget_j[client]),
                dropped=update is None,
                missed=gone.reason if gone else None,
                late=True if gone and gone.late else None,
                **told,
            )
        )
    return records
