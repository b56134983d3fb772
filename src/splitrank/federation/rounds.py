"""One round of the method, top to bottom.

Xie and Wen, "Fine-tuning method for pre-trained model RoBERTa based on federated split learning and low-rank
adaptation": plan the largest LoRA rank that every client's budgets allow, train the last layers at that rank on
every client, average what they learnt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from splitrank.config import Config
from splitrank.federation.budgets import plan_round, round_problem
from splitrank.learning.adapters.lora import Adapter, resize
from splitrank.learning.aggregation.fedavg import factor_averaging_error, fedavg
from splitrank.learning.client import Evaluation, Update
from splitrank.planning.flops import EncoderShape
from splitrank.planning.plan import Plan, plan_json
from splitrank.planning.problem import Problem
from splitrank.planning.workload import Workload
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


class Clients(Protocol):
    """The clients as a round sees them, wherever they run."""

    @property
    def shape(self) -> EncoderShape:
        """Sizes of the encoder."""

    @property
    def workload(self) -> Workload:
        """Cost of a round as a function of the rank."""

    @property
    def num_samples(self) -> list[int]:
        """Training texts of each client."""

    def train(self, client: int, state: State, round: int) -> Update:
        """Train one client on its own texts, starting from the state's adapter."""

    def evaluate(self, state: State) -> Evaluation:
        """Judge the state's model on the test texts."""


def run_round(state: State, clients: Clients, config: Config) -> tuple[State, RoundRecord]:
    """Draw channels, plan, resize, train, aggregate, evaluate.

    A client that can do no rank this round sits out; a round in which nobody can take part leaves the model as it
    is and is recorded as infeasible.

    Returns:
        the state after the round, and its record.

    Raises:
        RunError: training diverged on a client.
    """
    started_s = time.perf_counter()
    seed, round = config.run.seed, state.round + 1

    problem = round_problem(config, clients.shape, clients.workload, round, sit_out=True)
    plan = plan_round(config, problem, round, sit_out=True)
    participants = [int(client) for client in np.flatnonzero(plan.participants)]

    error = None
    updates: dict[int, Update] = {}
    if participants:
        start = replace(state, adapter=resize(state.adapter, plan.rank, seed=seed, round=round))
        updates = {client: clients.train(client, start, round) for client in participants}
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
        clients=_client_records(plan, problem, clients, updates),
        wall_s=time.perf_counter() - started_s,
    )
    return state, record


def _client_records(
    plan: Plan, problem: Problem, clients: Clients, updates: Mapping[int, Update]
) -> list[dict[str, Any]]:
    bits = problem.workload.payload_bits(plan.rank)
    records: list[dict[str, Any]] = plan_json(plan, problem)["clients"]
    for client, record in enumerate(records):
        update = updates.get(client)
        record.update(
            uplink_bits=float(bits[client]) if update else 0.0,
            downlink_bits=float(bits[client]) if update else 0.0,
            train_loss=update.train_loss if update else None,
            samples=clients.num_samples[client],
            energy_budget_j=float(problem.energy_j[client]),
            dropped=update is None,
        )
    return records
