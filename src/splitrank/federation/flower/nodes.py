"""Clients that are Flower nodes: who is there, what they registered, and their rounds."""

from __future__ import annotations

import math
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
from splitrank.federation.budgets import (
    BITS_PER_FLOAT32,
    ClientTexts,
    Measured,
    measured_problem,
    plan_round,
    round_problem,
    round_workload,
)
from splitrank.federation.flower.checks import checked_update
from splitrank.federation.flower.links import PROBE_FLOATS, Link, Probed, probed, probes
from splitrank.federation.flower.machine import UNKNOWN_MACHINE, Machine, machine_from
from splitrank.federation.flower.payload import NO_FLOATS, Header, is_count, is_finite
from splitrank.federation.flower.post import Post, Reply
from splitrank.federation.in_process import held_out_shares
from splitrank.federation.model import Model, load_model
from splitrank.federation.rounds import Missed, State
from splitrank.learning.adapters import lora
from splitrank.learning.client import Evaluation, Update
from splitrank.learning.data import TextData
from splitrank.learning.trunk import TrunkOutputs
from splitrank.planning.plan import Plan, plan_of_own_ranks
from splitrank.planning.problem import Problem
from splitrank.progress import say

_LOOK_EVERY_S = 0.5
_LONGEST_PROBE_S = 300.0
_AMOUNTS = ("samples", "token_sum", "token_square_sum")


@dataclass(frozen=True, eq=False)
class Member:
    """A node that stands for a client.

    Attributes:
        node: Flower's number of it.
        amounts: what it registered, samples, sum of tokens and sum of their squares.
        machine, link: what was measured, None where budgets are simulated; a client that plans for itself tells no
            machine.
    """

    node: int
    amounts: tuple[int, int, int]
    machine: Machine | None = None
    link: Link | None = None


@dataclass(frozen=True, eq=False)
class NodeClients:
    """The nodes of a Flower run, each standing for one client. Implements :class:`loop.RunClients`.

    Attributes:
        model: judges on the server; the clients have their own.
        data: the server's texts, of which it uses the test texts.
        settings: what the clients are told of the settings.
        present: client → the node that stands for it now.
        known: client → the node that stood for it last.
    """

    post: Post
    model: Model
    data: TextData
    test_outputs: TrunkOutputs
    test_rows: Sequence[NDArray[np.int64]]
    settings: Header
    present: dict[int, Member] = field(default_factory=dict)
    known: dict[int, Member] = field(default_factory=dict)

    @property
    def _config(self) -> Config:
        return self.model.config

    @property
    def _measures(self) -> bool:
        """Whether budgets are real: machines and links are measured, and a round has a deadline."""
        return self._config.workload.model == "measured" and self._config.client.seconds_per_sample is None

    @property
    def texts(self) -> ClientTexts:
        """Amounts of text of each client, 0 for one that has never joined."""
        clients = range(self._config.federation.num_clients)
        rows = [self.known[client].amounts if client in self.known else (0, 0, 0) for client in clients]
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
        """The round's links, machines and budgets; who is not there has an uplink of rate 0, so that it sits out."""
        self.gather()
        counted = ClientTexts(*(np.maximum(amount, 1.0) for amount in vars(self.texts).values()))
        if self._measures:
            problem = measured_problem(self._config, self.model.shape, counted, self._measured())
        else:
            workload = round_workload(self._config, self.model.shape, counted)
            problem = round_problem(self._config, self.model.shape, workload, round, sit_out=True)
        is_here = np.isin(np.arange(problem.num_clients), list(self.present))
        return replace(problem, uplink_bps=np.where(is_here, problem.uplink_bps, 0.0))

    def _measured(self) -> Measured:
        """What was measured, as arrays; a client that was never there gets harmless numbers."""
        members = [self.known.get(client) for client in range(self._config.federation.num_clients)]
        machines = [member.machine if member and member.machine else UNKNOWN_MACHINE for member in members]
        links = [member.link if member and member.link else Link() for member in members]
        return Measured(
            seconds_per_sample=np.array([machine.seconds_per_sample for machine in machines]),
            seconds_per_sample_per_rank=np.array([machine.seconds_per_sample_per_rank for machine in machines]),
            reference_frequency_hz=np.array([machine.reference_frequency_hz for machine in machines]),
            capacitance=np.array([machine.capacitance for machine in machines]),
            paced=np.array([machine.is_paced for machine in machines]),
            uplink_bps=np.array([link.uplink_bps for link in links]),
            downlink_bps=np.array([link.downlink_bps for link in links]),
            overhead_s=np.array([link.overhead_s for link in links]),
            latency_margin=self._latency_margin,
        )

    @property
    def _latency_margin(self) -> float:
        """Share of T0 that the setting, or else the straying of the links so far, keeps free."""
        slack_s = max(member.link.slack_s for member in self.present.values() if member.link)
        return self._config.planner.latency_margin or min(0.9, slack_s / self._config.budget.latency_s)

    def plan(self, problem: Problem, round: int) -> Plan:
        """The round's plan, by the server or, ``planner.where = "client"``, from the ranks that the clients tell."""
        if not self._asks_for_ranks:
            return plan_round(self._config, problem, round, sit_out=True)
        clients = sorted(self.present)
        requests = [
            (
                self.present[client].node,
                (self._request("max-rank", client, **self._known(problem, client, round)), NO_FLOATS),
            )
            for client in clients
        ]
        replies = self.post.exchange(
            requests, MessageType.QUERY, group=f"{round} ranks", wait_s=self._config.federation.timeout_s
        )
        max_rank = np.zeros(problem.num_clients, dtype=np.int64)
        for client, reply in zip(clients, replies, strict=True):
            told = reply.header.get("max_rank")
            if is_count(told) and told <= problem.rank_cap[client]:
                max_rank[client] = told
            else:
                say(f"Round {round}, client {client}: no rank: {reply.failure or told}")
        return plan_of_own_ranks(problem, max_rank, rank=self._config.adapter.rank)

    @property
    def _asks_for_ranks(self) -> bool:
        return self._config.planner.where == "client"

    def _known(self, problem: Problem, client: int, round: int) -> dict[str, Any]:
        """What a client needs for its own plan: the server's estimate of its link, and the round's latency margin."""
        link = {name: float(getattr(problem, name)[client]) for name in ("uplink_bps", "downlink_bps", "overhead_s")}
        return {"round": round, "measure": self._measures, "link": {**link, "latency_margin": problem.latency_margin}}

    def _order(self, plan: Plan, client: int, round: int, wait_s: float) -> Header:
        """The request for an update; a client that plans for itself finds its own frequency from its link."""
        order: dict[str, Any] = {"round": round, "rank": plan.rank, "measure": self._measures, "link": None}
        order.update(frequency_hz=None, planned_s=None, stop_after_s=wait_s)
        if self._measures:
            link = self.present[client].link
            assert link is not None
            order["stop_after_s"] = wait_s - float(plan.uplink_s[client])
            if self._asks_for_ranks:
                known = {name: getattr(link, name) for name in ("uplink_bps", "downlink_bps", "overhead_s")}
                order["link"] = {**known, "latency_margin": self._latency_margin}
            else:
                order.update(frequency_hz=float(plan.frequency_hz[client]), planned_s=float(plan.compute_s[client]))
        return self._request("train", client, **order)

    def train(self, start: State, plan: Plan, round: int) -> Mapping[int, Update | Missed]:
        """Send every participant the adapter, and gather what passes the checks until the round's time is over."""
        config, floats = self._config, lora.to_flat(start.adapter).numpy()
        wait_s = config.federation.timeout_s
        if self._measures:
            wait_s = config.budget.latency_s + config.federation.grace_s
        clients = [int(client) for client in np.flatnonzero(plan.participants)]
        requests = [
            (self.present[client].node, (self._order(plan, client, round, wait_s), floats)) for client in clients
        ]
        replies = self.post.exchange(requests, MessageType.TRAIN, group=str(round), wait_s=wait_s)
        results = {}
        for client, reply in zip(clients, replies, strict=True):
            results[client] = self._checked(client, reply, start, round)
            self._learn(client, reply, results[client], round, len(floats) * BITS_PER_FLOAT32)
        return results

    def evaluate(self, state: State) -> Evaluation:
        """Judge the state on the server's test texts."""
        return self.model.evaluate(self.test_outputs, self.data.test_labels, self.test_rows, state)

    def _checked(self, client: int, reply: Reply, start: State, round: int) -> Update | Missed:
        """The update, or why there is none, with what the round really took."""
        checked = checked_update(
            reply,
            start.adapter,
            client=client,
            round=round,
            num_samples=self.present[client].amounts[0],
            training=self.model.local_training,
        )
        if isinstance(checked, Missed):
            say(f"Round {round}, client {client}: {checked.reason}")
        machine = self.present[client].machine
        wall = {"wall_latency_s": reply.after_s}
        compute_s, busy_s, energy_j = (reply.header.get(name) for name in ("compute_s", "busy_s", "energy_j"))
        if _is_amount(compute_s):
            wall["wall_compute_s"] = compute_s
        if machine is not None and _is_amount(energy_j):
            wall["wall_energy_j"] = energy_j
        elif machine is not None and _is_amount(busy_s):
            wall["wall_energy_j"] = machine.power_w * busy_s
        return replace(checked, wall=wall)

    def _learn(self, client: int, reply: Reply, result: Update | Missed, round: int, bits: float) -> None:
        """Keep the estimates running; where no answer came the client is to join, and be measured, again.

        The first round teaches nothing of the link: half of an adapter is zeros then, and Flower sends equal pieces
        only once.
        """
        member = self.present[client]
        if member.link is None:
            return
        if reply.floats is None:
            del self.present[client]
            self.post.ask_again(member.node)
        elif isinstance(result, Update):
            if round > 1 and "wall_compute_s" in result.wall:
                member.link.took(reply.after_s, bits, bits, result.wall["wall_compute_s"])
            if member.machine is not None and (machine := machine_from(reply.header.get("machine"))) is not None:
                self.present[client] = self.known[client] = replace(member, machine=machine)

    def _request(self, kind: str, client: int | None = None, **values: Any) -> Header:
        """A request's header: what every client needs to do anything, and the values of this one."""
        return {
            "kind": kind,
            "settings": self.settings,
            "labels": self.data.label_names,
            "trunk_sha256": self.model.encoder.trunk_digest,
            "client": client,
            **values,
        }

    def gather_all(self) -> None:
        """Wait until all clients are there, or after a while until enough are; the others may join later.

        Raises:
            RunError: as in :meth:`gather`.
        """
        federation = self._config.federation
        if not self._gathered(federation.num_clients, federation.join_s):
            self.gather()

    def gather(self) -> None:
        """Take in who has come and let go who has left, until at least federation.min_clients are there.

        Raises:
            RunError: too few have come within federation.timeout_s.
        """
        federation = self._config.federation
        if not self._gathered(federation.min_clients, federation.timeout_s):
            raise RunError(
                f"At least {federation.min_clients} clients must join within federation.timeout_s = "
                f"{federation.timeout_s:.4g} s, got {len(self.present)}; start them, or raise it"
            )

    def _gathered(self, least: int, wait_s: float) -> bool:
        started_s = time.monotonic()
        said = False
        while True:
            self._let_go(set(self.post.nodes()))
            for node, reply in self.post.answers():
                if not self._register(node, reply):
                    self.post.ask_again(node)
            if len(self.present) >= least:
                return True
            if not said:
                say(f"{len(self.present)} of {least} clients are there; waiting for the others.")
                said = True
            if time.monotonic() - started_s > wait_s:
                return False
            time.sleep(_LOOK_EVERY_S)

    def _let_go(self, online: set[int]) -> None:
        """Forget nodes that went, and ask those that came, or came back, what they have."""
        for client, member in list(self.present.items()):
            if member.node not in online:
                say(f"Client {client} has gone.")
                del self.present[client]
        self.post.asked.intersection_update(online)
        new = online - {member.node for member in self.present.values()} - self.post.asked
        joins = {node: (self._request("join", measure=self._measures), NO_FLOATS) for node in new}
        self.post.ask(joins, MessageType.QUERY, group="join")

    def _register(self, node: int, reply: Reply) -> bool:
        """Take a node in as the client that it says it is, if it may be; gives whether it was."""
        num_clients = self._config.federation.num_clients
        if reply.failure is not None:
            say(f"A node could not join: {reply.failure}")
            return False
        numbers = [reply.header.get(name) for name in ("client", *_AMOUNTS)]
        client, *amounts = (number if is_count(number) else -1 for number in numbers)
        if not 0 <= client < num_clients or min(amounts) < 1:
            say(f"A node was refused: a client's number must be below {num_clients} and its amounts of text positive.")
            return False
        if client in self.present and self.present[client].node == node:
            return True  # it was asked again while its first answer was on the way
        if client in self.present:
            say(f"A node was refused: another one already stands for client {client}.")
            return False
        machine = link = None
        if self._measures:
            machine = None if self._asks_for_ranks else machine_from(reply.header.get("machine"))
            say(f"Client {client}: measuring its link.")
            link = self._measured_link(node) if machine or self._asks_for_ranks else None
            if link is None:
                say(f"A node was refused: client {client} or its link could not be measured.")
                return False
            say(f"Client {client}: {_spoken(machine, link)}")
        member = Member(node, (amounts[0], amounts[1], amounts[2]), machine, link)
        self.present[client] = self.known[client] = member
        say(f"Client {client} joined with {amounts[0]} texts.")
        return True

    def _measured_link(self, node: int) -> Link | None:
        """Measure a node's link by probes, each longer than the last, until one was long enough and agrees with it.

        The longest counts, since what else happens on the machines weighs least in it.
        """
        before: Probed | None = None
        for length in PROBE_FLOATS:
            requests = [(node, request) for request in probes(length)]
            replies = self.post.exchange(requests, MessageType.QUERY, group="probe", wait_s=_LONGEST_PROBE_S)
            failures = [reply.failure for reply in replies if reply.failure is not None]
            if failures:
                say(f"A probe failed: {failures[0]}")
                return None
            found, is_enough = probed(replies, length, before.short_s if before else math.inf)
            if is_enough and before is not None and found.agrees_with(before):
                return Link(found)
            before = found
        return Link(before) if before else None


def _spoken(machine: Machine | None, link: Link) -> str:
    rates = f"{_mbps(link.uplink_bps)} Mbit/s up, {_mbps(link.downlink_bps)} down"
    spoken_link = f"link {rates}, {link.overhead_s:.2g} s beside"
    if machine is None:
        return f"keeps its machine to itself; {spoken_link}"
    return (
        f"{machine.cores} cores at {machine.reference_frequency_hz / 1e9:.2f} GHz ({machine.clock}), "
        f"{machine.seconds_per_sample * 1e3:.3g} ms and {machine.seconds_per_sample_per_rank * 1e6:.3g} µs per rank "
        f"and text, {machine.power_w:.3g} W ({machine.power_from}); {spoken_link}"
    )


def _mbps(rate_bps: float) -> str:
    return f"{rate_bps / 1e6:.3g}" if rate_bps < 1e9 else "over 1000"


def _is_amount(value: Any) -> TypeGuard[float]:
    return is_finite(value) and value >= 0


def connect(grid: Grid, config: Config, data: TextData, *, tell_data: bool) -> NodeClients:
    """Load the server's model and wait until all clients, or after a while enough of them, have joined.

    Args:
        grid: Flower's.
        config: the settings.
        data: the server's texts.
        tell_data: whether the clients are told where the texts are, to take their shares of them.

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
    settings = plain_values(model.config)
    if not tell_data:
        settings.pop("data")
    clients = NodeClients(Post(grid), model, data, test_outputs, held_out_shares(model.config, data), settings)
    clients.gather_all()
    return clients
