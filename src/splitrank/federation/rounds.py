"""One round of the method, top to bottom.

Xie and Wen, "Fine-tuning method for pre-trained model RoBERTa based on federated split learning and low-rank
adaptation": plan the largest LoRA rank that every client's budgets allow, train the last layers at that rank on
every client, average what they learnt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from splitrank.config import Config
from splitrank.learning.adapters.lora import Adapter, resize
from splitrank.learning.aggregation.fedavg import factor_averaging_error, fedavg
from splitrank.learning.client import Evaluation, Update
from splitrank.planning.plan import Plan, plan_json
from splitrank.planning.problem import Problem
from splitrank.records import RoundRecord


@dataclass(frozen=True, eq=False)
class State:
    """All that one round hands to the next.

    Attributes:
        round: last finished round, 0 before training.
        adapter: the global adapter, with the head where it is shared.
        local_heads: client → its own head, where ``model.head = "local"``.
    """

    round: int
    adapter: Adapter
    local_heads: Mapping[int, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Missed:
    """A participant that gave no update, and why; ``wall`` as in :class:`Update`."""

    reason: str
    wall: Mapping[str, float] = field(default_factory=dict)


class Clients(Protocol):
    """The clients as a round sees them, wherever they run."""

    @property
    def num_samples(self) -> Sequence[int]:
        """Training texts of each client."""

    def problem(self, round: int) -> Problem:
        """The round's problem P1: links, processors, workload and budgets of every client."""

    def plan(self, problem: Problem, round: int) -> Plan:
        """The largest common rank that fits, and every client's frequency; a client that fits none sits out."""

    def train(self, start: State, plan: Plan, round: int) -> Mapping[int, Update | Missed]:
        """Let every participant train on its own texts, starting from one adapter, at the plan's frequency."""

    def evaluate(self, state: State) -> Evaluation:
        """Judge the state's model on the test texts."""


def run_round(state: State, clients: Clients, config: Config) -> tuple[State, RoundRecord]:
    """Draw channels, plan, resize, train, aggregate, evaluate.

    A client that can do no rank this round sits out; a round in which nobody can take part leaves the model as it
    is and is recorded as infeasible. A participant that gives no update is left out, and the others are averaged
    without it, unless fewer than ``federation.min_clients`` are left: the model then stays as it is, too.

    Returns:
        the state after the round, and its record.

    Raises:
        RunError: training diverged on a client.
    """
    started_s = time.perf_counter()
    seed, round = config.run.seed, state.round + 1

    problem = clients.problem(round)
    plan = clients.plan(problem, round)

    replies: Mapping[int, Update | Missed] = {}
    if plan.participants.any():
        start = replace(state, adapter=resize(state.adapter, plan.rank, seed=seed, round=round))
        replies = clients.train(start, plan, round)
    updates, missed = _sorted_out(replies, config.federation.min_clients)

    error = None
    if updates:
        adapters = [update.adapter for update in updates.values()]
        num_samples = [update.num_samples for update in updates.values()]
        averaged = fedavg(adapters, num_samples)
        error = factor_averaging_error(adapters, num_samples, averaged)
        heads = {client: update.local_head for client, update in updates.items() if update.local_head}
        state = State(round, averaged, {**state.local_heads, **heads})
    else:
        state = replace(state, round=round)

    evaluation = clients.evaluate(state)
    record = RoundRecord(
        round=round,
        status=plan.status,
        rank=plan.rank,
        accuracy=evaluation.accuracy,
        loss=evaluation.loss,
        macro_f1=evaluation.macro_f1,
        worst_client_accuracy=evaluation.worst_client_accuracy,
        factor_averaging_error=error,
        clients=_client_records(plan, problem, clients, updates, missed),
        wall_s=time.perf_counter() - started_s,
    )
    return state, record


def _sorted_out(
    replies: Mapping[int, Update | Missed], min_clients: int
) -> tuple[dict[int, Update], dict[int, Missed]]:
    """Updates in the order of the clients, none if there are too few; and who gave none, or gave it in vain."""
    updates = {client: reply for client, reply in sorted(replies.items()) if isinstance(reply, Update)}
    missed = {client: reply for client, reply in replies.items() if isinstance(reply, Missed)}
    if len(updates) >= min_clients:
        return updates, missed
    too_few = Missed(f"a round needs {min_clients} updates (federation.min_clients), got {len(updates)}")
    return {}, missed | dict.fromkeys(updates, too_few)


def _client_records(
    plan: Plan, problem: Problem, clients: Clients, updates: Mapping[int, Update], missed: Mapping[int, Missed]
) -> list[dict[str, Any]]:
    bits, num_samples = problem.workload.payload_bits(plan.rank), clients.num_samples
    records: list[dict[str, Any]] = plan_json(plan, problem)["clients"]
    for client, record in enumerate(records):
        update = updates.get(client)
        record.update(
            uplink_bits=float(bits[client]) if update else 0.0,
            downlink_bits=float(bits[client]) if update or client in missed else 0.0,
            train_loss=update.train_loss if update else None,
            samples=num_samples[client],
            energy_budget_j=float(problem.energy_j[client]),
            dropped=update is None,
        )
        if client in missed:
            record["missed"] = missed[client].reason
        reply = update or missed.get(client)
        record.update(reply.wall if reply else {})
    return records
