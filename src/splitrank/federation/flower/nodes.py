"""Clients that are Flower nodes: who is there, what they registered, and their rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from splitrank.config import Config, plain_values
from splitrank.errors import InputError, RunError
from splitrank.federation.budgets import ClientTexts, round_problem, round_workload
from splitrank.federation.flower.checks import checked_update
from splitrank.federation.flower.payload import NO_FLOATS, Header
from splitrank.federation.flower.post import Post, Reply
from splitrank.federation.in_process import held_out_shares
from splitrank.federation.model import Model, load_model
from splitrank.federation.rounds import Missed, State
from splitrank.learning.adapters import lora
from splitrank.learning.client import Evaluation, Update
from splitrank.learning.data import TextData
from splitrank.learning.trunk import TrunkOutputs
from splitrank.planning.plan import Plan
from splitrank.planning.problem import Problem
from splitrank.progress import say

_LOOK_EVERY_S = 0.5
_AMOUNTS = ("samples", "token_sum", "token_square_sum")


@dataclass(frozen=True, eq=False)
class NodeClients:
    """The nodes of a Flower run, each standing for one client. Implements :class:`loop.RunClients`.

    Attributes:
        model: judges on the server; the clients have their own.
        data: the server's texts, of which it uses the test texts.
        members: client → the node that stands for it.
        amounts: client → its registered amounts of text, in the order of ``ClientTexts``.
    """

    post: Post
    model: Model
    data: TextData
    test_outputs: TrunkOutputs
    test_rows: Sequence[NDArray[np.int64]]
    members: dict[int, int] = field(default_factory=dict)
    amounts: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def _config(self) -> Config:
        return self.model.config

    @property
    def texts(self) -> ClientTexts:
        """Amounts of text of each client, 0 for one that has never joined."""
        rows = [self.amounts.get(client, (0, 0, 0)) for client in range(self._config.federation.num_clients)]
        samples, token_sum, token_square_sum = np.array(rows, dtype=np.float64).T
        return ClientTexts(samples, token_sum, token_square_sum)

    @property
    def num_samples(self) -> list[int]:
        """Training texts of each client, 0 for one that has never joined."""
        return [int(samples) for samples in self.texts.samples]

    @property
    def trunk_computed(self) -> dict[str, bool]:
        """Whether the trunk's output had to be computed on the server."""
        return {"test": self.test_outputs.built}

    def close(self) -> None:
        """Let go of the cached trunk output."""
        self.test_outputs.close()

    def problem(self, round: int) -> Problem:
        """The round's draws and budgets; who is not there has an uplink of rate 0, so that it sits out."""
        present = self._gather(self._config.federation.min_clients)
        texts = self.texts
        counted = ClientTexts(*(np.maximum(amount, 1.0) for amount in vars(texts).values()))
        workload = round_workload(self._config, self.model.shape, counted)
        problem = round_problem(self._config, self.model.shape, workload, round, sit_out=True)
        is_here = np.isin(np.arange(problem.num_clients), present)
        return replace(problem, uplink_bps=np.where(is_here, problem.uplink_bps, 0.0))

    def train(self, start: State, plan: Plan, round: int) -> Mapping[int, Update | Missed]:
        """Send every participant the adapter, and gather what passes the checks until the round's time is over."""
        wait_s = self._config.federation.timeout_s
        floats = lora.to_flat(start.adapter).numpy()
        requests = {}
        for client in map(int, np.flatnonzero(plan.participants)):
            header = self._request("train", client, round=round, rank=plan.rank, duty_cycle=1.0, stop_after_s=wait_s)
            requests[self.members[client]] = (header, floats)
        replies = self.post.exchange(requests, MessageType.TRAIN, group=str(round), wait_s=wait_s)
        clients = {self.members[client]: client for client in self.members}
        return {clients[node]: self._checked(clients[node], reply, start, round) for node, reply in replies.items()}

    def evaluate(self, state: State) -> Evaluation:
        """Judge the state on the server's test texts."""
        return self.model.evaluate(self.test_outputs, self.data.test_labels, self.test_rows, state)

    def _checked(self, client: int, reply: Reply, start: State, round: int) -> Update | Missed:
        update = checked_update(
            reply,
            start.adapter,
            client=client,
            round=round,
            num_samples=self.amounts[client][0],
            training=self.model.local_training,
        )
        if isinstance(update, Missed):
            say(f"Round {round}, client {client}: {update.reason}")
        return update

    def _request(self, kind: str, client: int | None = None, **values: Any) -> Header:
        """A request's header: what every client needs to do anything, and the values of this one."""
        return {
            "kind": kind,
            "settings": plain_values(self._config),
            "labels": self.data.label_names,
            "trunk_sha256": self.model.encoder.trunk_digest,
            "client": client,
            **values,
        }

    def _gather(self, least: int) -> list[int]:
        """Clients that are there, new ones included, once there are enough of them.

        Raises:
            RunError: too few have come within federation.timeout_s.
        """
        started_s = time.monotonic()
        said = False
        while True:
            online = set(self.post.nodes())
            self._let_go(online)
            unknown = online - set(self.members.values()) - self.post.asked
            joins = {node: (self._request("join"), NO_FLOATS) for node in unknown}
            self.post.ask(joins, MessageType.QUERY, group="join")
            for node, reply in self.post.answers():
                self._register(node, reply)
            present = sorted(self.members)
            if len(present) >= least:
                return present
            if not said:
                say(f"{len(present)} of {least} clients are there; waiting for the others.")
                said = True
            if time.monotonic() - started_s > self._config.federation.timeout_s:
                raise RunError(
                    f"At least {least} clients must join within federation.timeout_s = "
                    f"{self._config.federation.timeout_s:.4g} s, got {len(present)}; start them, or raise it"
                )
            time.sleep(_LOOK_EVERY_S)

    def _let_go(self, online: set[int]) -> None:
        """Forget nodes that went; when they come back they are asked again what they have."""
        for client, node in list(self.members.items()):
            if node not in online:
                say(f"Client {client} has gone.")
                del self.members[client]
        self.post.asked.intersection_update(online)

    def _register(self, node: int, reply: Reply) -> None:
        """Take a node in as the client that it says it is, if it may be."""
        num_clients = self._config.federation.num_clients
        if reply.failure is not None:
            say(f"A node could not join: {reply.failure}")
            return
        numbers = [reply.header.get(name) for name in ("client", *_AMOUNTS)]
        client, *amounts = (number if _is_count(number) else -1 for number in numbers)
        if not 0 <= client < num_clients or min(amounts) < 1:
            say(f"A node was refused: a client's number must be below {num_clients} and its amounts of text positive.")
            return
        if client in self.members:
            say(f"A node was refused: another one already stands for client {client}.")
            return
        self.members[client] = node
        self.amounts[client] = (amounts[0], amounts[1], amounts[2])
        say(f"Client {client} joined with {amounts[0]} texts.")


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def connect(grid: Grid, config: Config, data: TextData) -> NodeClients:
    """Load the server's model and wait until all clients have joined.

    Raises:
        InputError, ConfigError: settings that the model or the texts cannot meet.
        RunError: too few clients joined in time.
    """
    if config.model.head == "local":
        raise InputError(
            'model.head must be "full", "out_proj" or "frozen" through Flower, since the server has no local heads to '
            'judge by, got "local"; leave it out'
        )
    model = load_model(config, data.label_names)
    test_outputs = model.prepare(model.tokenize(data.test_texts), "test texts")
    clients = NodeClients(Post(grid), model, data, test_outputs, held_out_shares(model.config, data))
    clients._gather(model.config.federation.num_clients)
    return clients
