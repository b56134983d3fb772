"""Clients that are Flower nodes, each standing for one client: their rounds."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from splitrank.config import Config, plain_values
from splitrank.errors import RunError
from splitrank.federation import wire
from splitrank.federation.able import check_able
from splitrank.federation.backlog import held_rows, merged_parts
from splitrank.federation.clients import NoUpdate
from splitrank.federation.costs import round_workload
from splitrank.federation.flower.checks import check_update
from splitrank.federation.flower.measurements import is_amount, latency_margin, measured, observe, wall_of
from splitrank.federation.flower.messenger import Messenger, Reply
from splitrank.federation.flower.payload import NO_FLOATS, Floats, Header, is_count
from splitrank.federation.flower.personal import personal_order
from splitrank.federation.flower.roster import Roster, request_maker
from splitrank.federation.in_process import check_counts, check_rule
from splitrank.federation.model import Model, load_model, rule_of
from splitrank.federation.partitions import partition_of, shares_to_test_on, unequal_class_counts
from splitrank.federation.problems import measured_problem, plan_round, round_problem
from splitrank.federation.pruning import with_settled_ranks
from splitrank.federation.sizes import BITS_PER_FLOAT32
from splitrank.federation.state import State
from splitrank.federation.texts import TextStats
from splitrank.learning.adapters.adapter import Adapter, to_vector
from splitrank.learning.aggregation.rule import Rule, Starts
from splitrank.learning.client import Evaluation, Update
from splitrank.learning.data import TextData
from splitrank.learning.encoder import drop_trunk
from splitrank.learning.partition import Partition
from splitrank.learning.trunk import TrunkOutputs
from splitrank.planning.plan import Plan
from splitrank.planning.problem import Problem

_LOG = logging.getLogger("splitrank")


@dataclass(frozen=True, eq=False)
class FlowerClients:
    """The nodes of a Flower run. Implements :class:`clients.Clients`.

    Attributes:
        model: evaluates on the server; the clients have their own.
        rule: how their work is aggregated.
        data: the server's texts, of which it uses the test texts.
        roster: the nodes that are online, and what they registered.
        run_id: name of the run.
        partition: who holds which rows of the settings' texts; None where the clients have texts of their own.
    """

    model: Model
    rule: Rule
    data: TextData
    test_outputs: TrunkOutputs
    test_rows: Sequence[NDArray[np.int64]]
    roster: Roster
    run_id: str
    partition: Partition | None

    @property
    def config(self) -> Config:
        """The settings, with nothing left to the machine or the data."""
        return self.model.config

    @property
    def messenger(self) -> Messenger:
        """The way to the nodes."""
        return self.roster.messenger

    @property
    def texts(self) -> TextStats:
        """Amounts of text of each client, 0 for one that has never joined."""
        return self.roster.texts

    @property
    def num_samples(self) -> list[int]:
        """Training texts of each client, 0 for one that has never joined."""
        return [int(samples) for samples in self.texts.samples]

    @property
    def trunk_computed(self) -> dict[str, bool]:
        """Return whether the trunk's output had to be computed on the server."""
        return {"test": self.test_outputs.built}

    def close(self) -> None:
        """Let go of the cached trunk output."""
        self.test_outputs.close()

    def initial_state(self) -> State:
        """Return the state of round 0; what is personal starts, and stays, on the clients."""
        return replace(self.model.initial_state(), local={})

    def problem(self, state: State) -> Problem:
        """Return the next round's links, machines and budgets; a client that is offline has an uplink of rate 0."""
        roster, config, shape = self.roster, self.config, self.model.shape
        roster.gather()
        counted = TextStats(*(np.maximum(amount, 1.0) for amount in vars(self.texts).values()))
        merged = merged_parts(state, self.model.encoder.family)
        if roster.measures:
            known = measured(self.roster)
            problem = measured_problem(config, shape, counted, known, state.turn, self.rule.traits, merged)
        else:
            workload = round_workload(config, shape, counted, state.turn, self.rule.traits, merged)
            problem = round_problem(config, shape, workload, state.round + 1, require_all=False)
        is_here = np.isin(np.arange(problem.num_clients), list(roster.present))
        present = replace(problem, uplink_bps=np.where(is_here, problem.uplink_bps, 0.0))
        return with_settled_ranks(present, state, self.model.method.traits)

    def plan(self, problem: Problem, state: State) -> Plan:
        """Return the next round's plan, by the server or (``planner.where``) from the ranks that the clients tell."""
        told = ask_for_ranks(self.roster, problem, state) if self.roster.asks_for_ranks else None
        return plan_round(
            self.config, problem, state.round + 1, require_all=False, ledger=state.ledger, told_max_rank=told,
            samples=np.maximum(self.texts.samples, 1.0),
        )  # fmt: skip

    def train(self, starts: Starts, plan: Plan, state: State) -> Mapping[int, Update | NoUpdate]:
        """Send every participant its start, and gather what passes the checks until the round's time is over."""
        wait_s = self.config.federation.timeout_s
        if self.roster.measures and math.isfinite(self.config.budget.latency_s):
            wait_s = self.config.budget.latency_s + self.config.federation.grace_s
        requests = []
        for client, start in starts.of.items():
            more, floats = _message(start, self.rule, held_rows(state, client), state.turn)
            header = self._order(plan, client, state, wait_s) | {"rank": start.rank} | more
            requests.append((self.roster.present[client].node, (header, floats)))
        replies = self.messenger.exchange(requests, MessageType.TRAIN, group=str(state.round + 1), wait_s=wait_s)
        results: dict[int, Update | NoUpdate] = {}
        for (client, start), (_, (_, floats)), reply in zip(starts.of.items(), requests, replies, strict=True):
            results[client] = self._checked(client, reply, start, state, int(plan.rank[client]))
            observe(self.roster, client, reply, results[client], state.round + 1, len(floats) * BITS_PER_FLOAT32)
        return results

    def _order(self, plan: Plan, client: int, state: State, wait_s: float) -> Header:
        """Return the request for an update; a client that plans for itself finds its own frequency from its link."""
        measures = self.roster.measures
        order: dict[str, Any] = {"round": state.round + 1, "measure": measures}
        if self.rule.choose is not None:
            order["num_slices"] = int(plan.rank[client])
        order.update(link=None, frequency_hz=None, planned_s=None, stop_after_s=wait_s)
        order |= personal_order(state, client)
        if measures:
            link = self.roster.present[client].link
            assert link is not None
            order["stop_after_s"] = wait_s - float(plan.uplink_s[client])
            if self.roster.asks_for_ranks:
                known = {name: getattr(link, name) for name in ("uplink_bps", "downlink_bps", "overhead_s")}
                order["link"] = {**known, "latency_margin": latency_margin(self.roster)}
            else:
                order.update(frequency_hz=float(plan.frequency_hz[client]), planned_s=float(plan.compute_s[client]))
        return self.roster.request("train", client, **order)

    def evaluate(self, state: State) -> Evaluation:
        """Evaluate the state on the server's test texts, or where something is personal on the clients' own."""
        if not self.model.personal:
            class_counts = unequal_class_counts(self.partition)
            return self.model.evaluate(self.test_outputs, self.data.test_labels, self.test_rows, state, class_counts)
        return evaluate_on_clients(self.roster, self.rule, state)

    def _checked(self, client: int, reply: Reply, start: Adapter, state: State, rank: int) -> Update | NoUpdate:
        """Return the update, or why there is none, with what the round really took."""
        node = self.roster.present[client]
        checked = check_update(
            reply,
            start,
            self.rule,
            client=client,
            round=state.round + 1,
            turn=state.turn,
            num_samples=node.amounts[0],
            training=self.model.local_training,
            rank=rank,
            has_personal=bool(self.model.personal),
        )
        if isinstance(checked, NoUpdate):
            _LOG.info(f"Round {state.round + 1}, client {client}: {checked.reason}")
        return replace(checked, wall={**checked.wall, **wall_of(reply, node.machine)})


def _message(start: Adapter, rule: Rule, held: Mapping[str, int], turn: int) -> tuple[Header, Floats]:
    """Return what a request says of a client's start, and the numbers that it carries."""
    sent = wire.downlink(start, rule, held)
    header = wire.header(sent, turn) | wire.merged_header(start, held)
    if digest := wire.merged_digest(start):
        header["merged_sha256"] = digest
    return header, to_vector(sent).numpy()


def ask_for_ranks(roster: Roster, problem: Problem, state: State) -> NDArray[np.int64]:
    """Ask every client for the largest rank of its own problem; 0 for one that is offline or tells none.

    A client is told what it needs for that: the server's estimate of its link, and the round's latency margin.
    """
    round, clients = state.round + 1, sorted(roster.present)
    requests = []
    for client in clients:
        link = {name: float(getattr(problem, name)[client]) for name in ("uplink_bps", "downlink_bps", "overhead_s")}
        link["latency_margin"] = problem.latency_margin
        header = roster.request(
            "max-rank", client, round=round, turn=state.turn, measure=roster.measures, link=link
        ) | wire.merged_header(state.adapter, held_rows(state, client))
        requests.append((roster.present[client].node, (header, NO_FLOATS)))
    wait_s = roster.config.federation.timeout_s
    replies = roster.messenger.exchange(requests, MessageType.QUERY, group=f"{round} ranks", wait_s=wait_s)
    max_rank = np.zeros(problem.num_clients, dtype=np.int64)
    for client, reply in zip(clients, replies, strict=True):
        told = reply.header.get("max_rank")
        if is_count(told) and told <= problem.rank_cap[client]:
            max_rank[client] = told
        else:
            _LOG.info(f"Round {round}, client {client}: no rank: {reply.failure or told}")
    return max_rank


def evaluate_on_clients(roster: Roster, rule: Rule, state: State) -> Evaluation:
    """Have every online client evaluate the shared adapter with its personal part on its own test texts.

    Accuracy and loss are means over all texts of all clients; they report hits, a sum of losses and a count, but
    no F1. Where nobody answers they are not a number, and null in the record.

    Raises:
        RunError: before the first round, where all that answered have no test text.
    """
    clients = sorted(roster.present)
    requests = []
    for client in clients:
        header = roster.request(
            "evaluate", client, round=state.round, rank=state.adapter.rank, **personal_order(state, client)
        )
        more, floats = _message(state.adapter, rule, held_rows(state, client), state.turn)
        requests.append((roster.present[client].node, (header | more, floats)))
    wait_s = roster.config.federation.timeout_s
    replies = roster.messenger.exchange(requests, MessageType.QUERY, group=f"{state.round} evaluate", wait_s=wait_s)
    told, num_evaluated = [], 0
    for client, reply in zip(clients, replies, strict=True):
        hits, loss_sum, count = (reply.header.get(name) for name in ("hits", "loss_sum", "count"))
        most = roster.present[client].test_samples
        if is_count(hits) and is_count(count) and hits <= count <= most and is_amount(loss_sum):
            num_evaluated += 1
            told += [(hits, loss_sum, count)] if count else []
        else:
            _LOG.info(f"Round {state.round}, client {client}: not evaluated: {reply.failure or reply.header}"[:1000])
    if num_evaluated and not told and state.round == 0:
        raise RunError(
            "At least one client must have test texts where something is personal, got none; "
            "give it a folder with test.*, or client.test_share"
        )
    if not told:
        return Evaluation(math.nan, math.nan, math.nan, math.nan)
    total = sum(count for _, _, count in told)
    return Evaluation(
        accuracy=sum(hits for hits, _, _ in told) / total,
        loss=math.fsum(loss_sum for _, loss_sum, _ in told) / total,
        macro_f1=math.nan,
        worst_client_accuracy=min(hits / count for hits, _, count in told),
    )


def connect(
    grid: Grid, config: Config, data: TextData, *, tell_data: bool, run_id: str, rule: Rule | None = None
) -> FlowerClients:
    """Load the server's model and wait until all clients, or after a while enough of them, have joined.

    Args:
        grid: Flower's.
        config: the settings.
        data: the server's texts.
        tell_data: whether the clients are told where the texts are, to take their shares of them.
        run_id: name of the run, by which clients find what they keep of it after a restart.
        rule: an aggregation rule of one's own, which every worker must have, too; None for that of the settings.

    Raises:
        InputError, ConfigError: settings that the model or the texts cannot meet.
        InfeasibleError: too few clients could ever take part.
        RunError: too few clients joined in time.
    """
    dealt = partition_of(config, data)
    rule = rule or rule_of(config)
    model = load_model(config, data.label_names, rule=rule)
    check_rule(rule, model.method, config)
    if rule != rule_of(config):
        check_counts(rule, model)
    test_ids = model.tokenize(data.test_texts)
    data = model.measure(data, None, test_ids)
    test_outputs = model.prepare(test_ids, "test texts")
    drop_trunk(model.encoder)
    settings = plain_values(model.config)
    if not tell_data:
        settings.pop("data")
    request = request_maker(settings, data.label_names, model.encoder.trunk_digest, run_id)
    roster = Roster(Messenger(grid), model.config, request)
    test_rows = shares_to_test_on(config, data, dealt)
    clients = FlowerClients(model, rule, data, test_outputs, test_rows, roster, run_id, dealt)
    roster.gather_all()
    if not roster.asks_for_ranks:
        check_able(model.config, clients.problem(clients.initial_state()))
    return clients
