"""All clients in this process: one model serves them in turn, each sees only its own texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from splitrank.config import Config
from splitrank.errors import ConfigError, check_types
from splitrank.federation import wire
from splitrank.federation.able import check_able
from splitrank.federation.backlog import held_rows, merged_parts
from splitrank.federation.costs import round_workload
from splitrank.federation.model import Model, load_model, method_of, rule_of
from splitrank.federation.partitions import partition_of, shares_to_test_on, unequal_class_counts
from splitrank.federation.problems import plan_round, round_problem
from splitrank.federation.pruning import with_settled_ranks
from splitrank.federation.sizes import rank_cap, trained_part
from splitrank.federation.slices import rule_of_client, slices_header, told_rule
from splitrank.federation.state import State
from splitrank.federation.texts import TextStats, text_stats
from splitrank.learning.adapters.adapter import Adapter, to_vector
from splitrank.learning.adapters.method import Method
from splitrank.learning.aggregation.rule import Rule, Starts
from splitrank.learning.client import Evaluation, Update
from splitrank.learning.data import TextData
from splitrank.learning.encoder import drop_trunk
from splitrank.learning.partition import Partition
from splitrank.learning.trunk import TrunkOutputs
from splitrank.planning.costs.table import COSTS
from splitrank.planning.plan import Plan
from splitrank.planning.problem import Problem
from splitrank.traits import METHOD_TRAITS


@dataclass(frozen=True, eq=False)
class InProcessClients:
    """Clients whose texts, weights and cache are on this machine. Implements :class:`clients.Clients`.

    Attributes:
        model: encoder and adapters, shared by all clients.
        rule: how their work is aggregated.
        data: all labelled texts; ``partition`` and ``test_rows`` tell whose they are.
        texts: amounts of text per client, as the planner counts them.
    """

    model: Model
    rule: Rule
    data: TextData
    train_outputs: TrunkOutputs
    test_outputs: TrunkOutputs
    partition: Partition
    test_rows: Sequence[NDArray[np.int64]]
    texts: TextStats

    @property
    def config(self) -> Config:
        """The settings, with nothing left to the machine or the data."""
        return self.model.config

    @property
    def train_rows(self) -> Sequence[NDArray[np.int64]]:
        """Rows of the training texts of each client."""
        return self.partition.rows

    @property
    def num_samples(self) -> list[int]:
        """Training texts of each client."""
        return [len(rows) for rows in self.train_rows]

    def close(self) -> None:
        """Let go of the cached trunk output."""
        self.train_outputs.close()
        self.test_outputs.close()

    @property
    def run_id(self) -> None:
        """None: all that is personal is in the run's own checkpoints."""

    def initial_state(self) -> State:
        """Return the state of round 0."""
        return self.model.initial_state()

    def problem(self, state: State) -> Problem:
        """Return the next round's draws, workload and budgets."""
        merged = merged_parts(state, self.model.encoder.family)
        workload = round_workload(self.config, self.model.shape, self.texts, state.turn, self.rule.traits, merged)
        problem = round_problem(self.config, self.model.shape, workload, state.round + 1, require_all=False)
        return with_settled_ranks(problem, state, self.model.method.traits)

    def plan(self, problem: Problem, state: State) -> Plan:
        """Return the next round's plan; whether the server or each client makes it is all the same here."""
        return plan_round(
            self.config, problem, state.round + 1, require_all=False, ledger=state.ledger, samples=self.texts.samples
        )

    def train(self, starts: Starts, plan: Plan, state: State) -> Mapping[int, Update]:
        """Train every participant of the plan, one after the other."""
        return {
            client: self.train_client(client, start, state, int(plan.rank[client]))
            for client, start in starts.of.items()
        }

    def train_client(self, client: int, start: Adapter, state: State, rank: int | None = None) -> Update:
        """Train one client on its own texts for the round after a state; it has the messages' numbers, no others.

        Args:
            client: its index.
            start: what it is sent.
            state: before the round.
            rank: its planned rank, None for the start's.
        """
        model, rule, turn = self.model, self.rule, state.turn
        held = held_rows(state, client)
        sent = wire.downlink(start, rule, held)
        told = wire.header(sent, turn) | wire.merged_header(start, held)
        received = wire.received_start(
            told, to_vector(sent), model.initial_shared, start.rank, turn, model.method, rule, self.config.run.seed,
            state.round + 1, kept=start.tensors,
        )  # fmt: skip
        task = model.task(received, state, rule, client)
        own = self.train_outputs, self.train_rows[client], self.data.train_labels
        rank = rank or start.rank
        chosen = rule_of_client(model, rule, task, rank, *own)
        update = model.train(replace(task, select=chosen.select), *own)
        answer = wire.uplink(update.adapter, chosen, client, turn)
        told = wire.header(answer, turn) | slices_header(chosen)
        agreed, rank_sent = told_rule(told, start, rule, rank, turn)
        adapter = wire.received_update(told, to_vector(answer), start, agreed, client, turn)
        return replace(update, adapter=adapter, rank_sent=rank_sent)

    def evaluate(self, state: State) -> Evaluation:
        """Evaluate the state on the test texts."""
        class_counts = unequal_class_counts(self.partition)
        return self.model.evaluate(self.test_outputs, self.data.test_labels, self.test_rows, state, class_counts)

    @property
    def trunk_computed(self) -> dict[str, bool]:
        """Return whether the trunk's output had to be computed, rather than found in the cache."""
        return {"training": self.train_outputs.built, "test": self.test_outputs.built}


def check_rule(rule: Rule, method: Method, config: Config) -> None:
    """Check that a rule can take what a method trains.

    Raises:
        ConfigError: an adapter without the kinds that it needs, or ranks that differ where it takes one.
    """
    problems = []
    if missing := rule.traits.needs - method.traits.kinds:
        problems.append(f"adapter.method must have {min(missing)} for the rule {rule.name}, got {method.name!r}")
    elif not rule.traits.takes(method.traits.kinds):
        problems.append(
            f"adapter.method must be plain LoRA for the rule {rule.name}, which merges, got {method.name!r}"
        )
    if method.traits.export != METHOD_TRAITS[config.adapter.method].export:
        problems.append(
            f"adapter.method must be exported as the method {method.name} is, got {config.adapter.method!r}"
        )
    if config.planner.rank_policy == "per-client" and "unequal_ranks" not in rule.traits.tags:
        problems.append(f'planner.rank_policy must be "common" for the rule {rule.name}, got "per-client"')
    if "prunes" in rule.traits.tags and (config.planner.rank_policy == "common" or config.adapter.rank is not None):
        problems.append(f'planner.rank_policy must be "per-client" for the rule {rule.name}, under which ranks fall')
    if "needs_fixed_rank" in rule.traits.tags and method.traits.has_rank and config.adapter.rank is None:
        problems.append(f"adapter.rank must be given for the rule {rule.name}, which needs a fixed rank")
    if config.federation.server_optimizer != "none" and rule != rule_of(config):
        problems.append(
            'federation.server_optimizer must be "none" for a rule of one\'s own, got '
            f'"{config.federation.server_optimizer}"; give it one by '
            "splitrank.learning.updates.server_optimizer.with_server_optimizer"
        )
    most = config.federation.clients_per_round or config.federation.num_clients
    if most < rule.traits.min_updates:
        problems.append(
            f"a round must take at least {rule.traits.min_updates} clients for the rule {rule.name}, got {most}"
        )
    if "slices" in rule.traits.tags and rule != rule_of(config):
        problems.append(f'federation.aggregation must be "{rule.name}" for that rule, which has settings, got another')
    if problems:
        raise ConfigError(problems)


def check_counts(rule: Rule, model: Model) -> None:
    """Check, for a rule or a method of one's own, that what would be sent is what the planner counts.

    Raises:
        ConfigError: a rank, turn and client for which they differ.
    """
    config, method = model.config, model.method
    state = model.initial_state()
    for rank, turn in product({1, min(2, rank_cap(config, model.shape))}, (0, 1)):
        start = method.resize(state.adapter, rank, distribution=rule.traits.distribution, seed=config.run.seed, round=1)
        # "paper" leaves the head out by its own choice.
        start = replace(start, tensors={n: t for n, t in start.tensors.items() if not n.startswith("head/")})
        counts = COSTS[config.adapter.method].numbers(trained_part(config, model.shape, turn, rule.traits))
        counted = sum(counts[kind].at(rank) for kind in rule.traits.sent(counts, turn))
        for client in range(config.federation.num_clients):
            sent = sum(tensor.numel() for tensor in wire.uplink(start, rule, client, turn).values())
            if sent != counted:
                raise ConfigError(
                    [
                        f"the rule {rule.name} with the method {method.name} must send the numbers that are counted, "
                        f"{counted} of client {client} at rank {rank} in turn {turn}, got {sent}; its traits must say "
                        "which kinds it trains"
                    ]
                )


def make_clients(
    config: Config,
    data: TextData,
    *,
    rule: Rule | None = None,
    method: Method | None = None,
    refuse_unable: bool = True,
) -> InProcessClients:
    """Load the encoder, share out the texts, and open the trunk's cached output.

    Args:
        config: the settings; the clients' own ``config`` is the same with nothing left to the machine or the data.
        data: the labelled texts.
        rule: an aggregation rule of one's own; None for the one that the settings name.
        method: an adapter method of one's own; None for the one that the settings name. Costs are counted as for the
            named one, so it must have tensors of the same sizes.
        refuse_unable: whether to refuse a federation in which too few clients could ever take part, rather than let
            all of them sit out.

    Raises:
        InfeasibleError: too few clients could ever take part.
        InputError, ConfigError: settings that the model or the texts cannot meet; an argument of another type.
        TypeError: a method that the forward pass would leave out in part.
    """
    check_types(
        config=(config, Config, 'load_config("offline") returns one'),
        data=(data, TextData, "load_data(config) returns one"),
        rule=(rule, Rule | None, "the settings name a rule of the package, federation.aggregation"),
        method=(method, Method | None, "the settings name a method of the package, adapter.method"),
    )
    is_own = rule is not None or method is not None
    rule, method = rule or rule_of(config), method or method_of(config)
    check_rule(rule, method, config)
    dealt = partition_of(config, data)
    assert dealt is not None
    model = load_model(config, data.label_names, method, rule)
    config = model.config
    if is_own:
        check_counts(rule, model)
    train_ids, test_ids = model.tokenize(data.train_texts), model.tokenize(data.test_texts)
    data = model.measure(data, train_ids, test_ids)
    lengths = np.array([len(ids) for ids in train_ids], dtype=np.int64)
    texts = text_stats([lengths[rows] for rows in dealt.rows])
    workload = round_workload(config, model.shape, texts, rule=rule.traits)
    # Finds impossible quantities, and clients that never can take part, before any work is done.
    problem = round_problem(config, model.shape, workload, 1, require_all=False)
    if refuse_unable:
        check_able(config, problem)
    train_outputs, test_outputs = model.prepare(train_ids, "training texts"), model.prepare(test_ids, "test texts")
    drop_trunk(model.encoder)
    return InProcessClients(
        model=model,
        rule=rule,
        data=data,
        train_outputs=train_outputs,
        test_outputs=test_outputs,
        partition=dealt,
        test_rows=shares_to_test_on(config, data, dealt),
        texts=texts,
    )
