"""All clients in this process: one model serves them in turn, each sees only its own texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitrank.config import Config
from splitrank.federation.budgets import ClientTexts, plan_round, round_problem, round_workload
from splitrank.federation.model import Model, amounts_of_text, load_model
from splitrank.federation.rounds import State
from splitrank.learning.client import Evaluation, Update
from splitrank.learning.data import TextData
from splitrank.learning.partition import partition_iid
from splitrank.learning.trunk import TrunkOutputs
from splitrank.planning.plan import Plan
from splitrank.planning.problem import Problem
from splitrank.planning.workload import Workload


@dataclass(frozen=True, eq=False)
class InProcessClients:
    """Clients whose texts, weights and cache are on this machine. Implements :class:`rounds.Clients`.

    Attributes:
        model: encoder and adapters, shared by all clients.
        data: all labelled texts; ``train_rows`` and ``test_rows`` tell whose they are.
        workload: cost of a round as a function of the rank, for the texts that the clients really have.
        texts: amounts of text per client, as the planner counts them.
    """

    model: Model
    data: TextData
    train_outputs: TrunkOutputs
    test_outputs: TrunkOutputs
    train_rows: Sequence[NDArray[np.int64]]
    test_rows: Sequence[NDArray[np.int64]]
    workload: Workload
    texts: ClientTexts

    @property
    def config(self) -> Config:
        """The settings, with nothing left to the machine or the data."""
        return self.model.config

    @property
    def num_samples(self) -> list[int]:
        """Training texts of each client."""
        return [len(rows) for rows in self.train_rows]

    def close(self) -> None:
        """Let go of the cached trunk output."""
        self.train_outputs.close()
        self.test_outputs.close()

    def initial_state(self) -> State:
        """The state of round 0."""
        return self.model.initial_state()

    def problem(self, round: int) -> Problem:
        """The round's draws and budgets."""
        return round_problem(self.config, self.model.shape, self.workload, round, sit_out=True)

    def plan(self, problem: Problem, round: int) -> Plan:
        """The round's plan; whether the server or each client makes it is all the same here."""
        return plan_round(self.config, problem, round, sit_out=True)

    def train(self, start: State, plan: Plan, round: int) -> Mapping[int, Update]:
        """Train every participant of the plan, one after the other."""
        return {
            int(client): self.train_client(int(client), start, round) for client in np.flatnonzero(plan.participants)
        }

    def train_client(self, client: int, start: State, round: int) -> Update:
        """Train one client on its own texts for one round."""
        rows, labels = self.train_rows[client], self.data.train_labels
        return self.model.train(self.train_outputs, rows, labels, start, round=round, client=client)

    def evaluate(self, state: State) -> Evaluation:
        """Judge the state on the test texts."""
        return self.model.evaluate(self.test_outputs, self.data.test_labels, self.test_rows, state)

    @property
    def trunk_computed(self) -> dict[str, bool]:
        """Whether the trunk's output had to be computed, rather than found in the cache."""
        return {"training": self.train_outputs.built, "test": self.test_outputs.built}


def held_out_shares(config: Config, data: TextData) -> list[NDArray[np.int64]]:
    """Every client's share of the test texts, so that "the worst client" means something.

    With fewer texts than clients some clients have none.
    """
    num_shares = min(config.federation.num_clients, len(data.test_labels))
    return partition_iid(data.test_labels, num_shares, config.run.seed)


def make_clients(config: Config, data: TextData) -> InProcessClients:
    """Load the encoder, share out the texts, and open the trunk's cached output.

    Args:
        config: the settings; the clients' own ``config`` is the same with nothing left to the machine or the data.
        data: the labelled texts.

    Raises:
        InputError, ConfigError: settings that the model or the texts cannot meet.
    """
    train_rows = partition_iid(data.train_labels, config.federation.num_clients, config.run.seed)
    model = load_model(config, data.label_names)
    config = model.config
    train_ids = model.tokenize(data.train_texts)
    lengths = np.array([len(ids) for ids in train_ids], dtype=np.int64)
    texts = amounts_of_text([lengths[rows] for rows in train_rows])
    workload = round_workload(config, model.shape, texts)
    round_problem(config, model.shape, workload, 1, sit_out=True)  # finds impossible quantities before any work is done
    return InProcessClients(
        model=model,
        data=data,
        train_outputs=model.prepare(train_ids, "training texts"),
        test_outputs=model.prepare(model.tokenize(data.test_texts), "test texts"),
        train_rows=train_rows,
        test_rows=held_out_shares(config, data),
        workload=workload,
        texts=texts,
    )
