"""Promise: a rank that a client has pruned never rises again, in one process, after a break and through Flower."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from splitrank import load_config, load_data, make_clients, run
from splitrank.errors import ConfigError
from splitrank.federation.in_process import check_rule
from splitrank.federation.model import method_of, rule_of
from splitrank.federation.pruning import pruned, with_settled_ranks
from splitrank.federation.rounds import run_round
from splitrank.federation.state import State
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.rule import Starts
from splitrank.learning.client import Update
from splitrank.traits import METHOD_TRAITS
from tests.records import equal_records

SETTINGS = [
    "model.precision=fp32", 'federation.aggregation="hetlora"', 'planner.rank_policy="per-client"',
    'workload.model="flops"', "client.flops_per_cycle=4.0", "budget.energy_j=1", "planner.max_rank=6",
    "federation.hetlora.gamma=0.7", "federation.hetlora.lambda=0.5",
]  # fmt: skip


def checkpoint(folder) -> bytes:
    return (sorted((folder / "checkpoint").glob("round-*"))[-1] / "state.safetensors").read_bytes()


def test_clients_train_at_the_smaller_of_planned_and_pruned_rank(tiny_config):
    clients = make_clients(config := load_config(str(tiny_config), SETTINGS), load_data(load_config(str(tiny_config))))
    assert clients.rule == rule_of(config)
    state, ceiling = clients.initial_state(), np.full(3, np.inf)
    falls, first_pruned = 0, None
    for _ in range(5):
        free = clients.problem(replace(state, ledger={}))
        planned = clients.plan(free, state).rank
        state, record = run_round(state, clients)
        ranks = np.array([client.rank for client in record.clients])
        assert list(ranks) == list(np.minimum(planned, ceiling))
        told = state.ledger["pruned_ranks"]
        assert np.all(told <= ceiling)
        for client in np.flatnonzero(told < ceiling):  # by one step of γ from the rank that was trained
            assert told[client] == max(1, int(0.7 * ranks[client] + 1e-9)) < ranks[client]
            falls += 1
            first_pruned = first_pruned or state.round
        ceiling = told
    clients.close()
    assert falls
    assert first_pruned > 1  # in round 1 all tails start from nothing
    assert record.factor_averaging_error > 0


def test_a_broken_run_remembers_and_flower_does_the_same(tiny_config, tmp_path):
    config = load_config(str(tiny_config), [*SETTINGS, "federation.rounds=4"])
    list(run(config, tmp_path / "run"))
    list(islice(run(config, tmp_path / "broken"), 4))
    list(run(config, tmp_path / "broken", resume=True))
    records = equal_records(tmp_path / "run")
    ranks = [[client["rank"] for client in record["clients"]] for record in records[1:]]
    assert ranks[-1] < ranks[0]
    assert equal_records(tmp_path / "broken") == records
    assert checkpoint(tmp_path / "broken") == checkpoint(tmp_path / "run")


@pytest.mark.extras
@pytest.mark.parametrize("where", ["server", "client"])
def test_through_flowers_messages(where, tiny_config, tmp_path):
    from tests.flower_in_process import flower

    config = load_config(str(tiny_config), [*SETTINGS, "federation.rounds=4", f'planner.where="{where}"'])
    list(run(config, tmp_path / "run"))
    with flower() as (connect, _):
        list(run(config, tmp_path / "flower", connect=connect))
    ours, theirs = equal_records(tmp_path / "flower"), equal_records(tmp_path / "run")
    ranks = [[[client["rank"] for client in record["clients"]] for record in records[1:]] for records in (ours, theirs)]
    assert ranks[0] == ranks[1]
    assert ranks[0][-1] < ranks[0][0]
    assert checkpoint(tmp_path / "flower") == checkpoint(tmp_path / "run")
    assert ours == theirs or where == "client"


def test_the_penalty_is_in_the_loss_and_not_in_the_record(tiny_config):
    """A strong λ makes tails smaller; the recorded loss of the first round, at rank 1, is of the texts alone."""
    tails = {}
    for weight in (0.0, 5.0):
        config = load_config(str(tiny_config), [*SETTINGS, f"federation.hetlora.lambda={weight}"])
        clients = make_clients(config, load_data(config))
        state = clients.initial_state()
        start = clients.model.method.resize(state.adapter, 4, distribution="prefix", seed=0, round=1)
        adapter = clients.train_client(0, start, state).adapter
        tails[weight] = sum(float(b[:, 2:].norm()) for b in adapter.of_kind("lora_B").values())
        clients.close()
    assert 0 < tails[5.0] < 0.7 * tails[0.0]


def test_the_ledger_notes_who_has_pruned():
    like = {"lora_A/x": torch.ones(4, 5), "lora_B/x": torch.ones(3, 4)}
    start = Adapter(4, 2.0, like)
    smaller = start.with_tensors({"lora_B/x": torch.cat([torch.ones(3, 3), torch.full((3, 1), 0.5)], 1)})
    updates = {1: Update(smaller, 0.0, 1, {}), 2: Update(start, 0.0, 1, {})}
    from splitrank.learning.aggregation.rules import RULES, make_rule

    rule = make_rule("hetlora", {"gamma": 0.99, "lambda": 0.0})
    state, cut = pruned(State(0, 0, start), Starts(start, {1: start, 2: start}), updates, rule, 4)
    assert list(state.ledger["pruned_ranks"]) == [np.inf, 3, np.inf, np.inf]
    assert (cut[1].adapter.rank, cut[2].adapter.rank) == (3, 4)
    assert cut[1].adapter.tensors["lora_A/x"].shape == (3, 5)
    assert cut[1].adapter.scaling == 2.0
    # A rank planned lower for a round prunes from there, and what another round prunes never gives it back.
    again, _ = pruned(state, Starts(start, {1: start}), {1: updates[1]}, rule, 4)
    assert list(again.ledger["pruned_ranks"]) == [np.inf, 3, np.inf, np.inf]
    same, kept = pruned(State(0, 0, start), Starts(start, {1: start, 2: start}), updates, RULES["fedavg"], 4)
    assert same.ledger == {}
    assert kept == updates


def test_a_problem_without_pruned_ranks_is_the_same(tiny_config):
    clients = make_clients(config := load_config(str(tiny_config)), load_data(config))
    state = clients.initial_state()
    problem = clients.problem(state)
    assert with_settled_ranks(problem, state, METHOD_TRAITS["lora"]) is problem
    ledger = {"pruned_ranks": np.array([1.0, np.inf, 2.0])}
    lower = with_settled_ranks(problem, replace(state, ledger=ledger), METHOD_TRAITS["lora"])
    assert list(lower.rank_ceiling) == [1, problem.rank_ceiling[1], 2]
    clients.close()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], 'planner.rank_policy must be "per-client" for federation.aggregation = "hetlora"'),
        (["adapter.rank=4"], 'adapter.rank must be left out for federation.aggregation = "hetlora"'),
        (['planner.rank_policy="per-client"', "federation.hetlora.gamma=0"], "federation.hetlora.gamma must be"),
        (['planner.rank_policy="per-client"', "federation.hetlora.lambda=-1"], "federation.hetlora.lambda must be"),
        (['planner.rank_policy="per-client"', "federation.hetlora.lambda_=1"], "federation.hetlora.lambda_ must be a"),
        (['federation.aggregation="ffa"', "federation.hetlora.gamma=0.9"], "hetlora.gamma must have an effect"),
        (['federation.aggregation="ffa"', "federation.merged_rank=4"], "federation.merged_rank must have an effect"),
        (['federation.aggregation="fedex"', 'adapter.method="dora"', 'workload.model="flops"'],
         'federation.aggregation must be "fedavg" or'),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(more, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config("offline", ['federation.aggregation="hetlora"', *more])
    assert sentence in str(caught.value)


def test_settings_of_a_rule_are_written_and_read_again(tmp_path):
    from splitrank.config import to_toml

    config = load_config("offline", SETTINGS)
    (tmp_path / "own.toml").write_text(text := to_toml(config))
    assert "[federation.hetlora]\ngamma = 0.7\nlambda = 0.5\n" in text
    assert load_config(str(tmp_path / "own.toml")) == config
    assert "hetlora" not in to_toml(load_config("offline"))


def test_a_rule_that_prunes_needs_a_rank_for_each_client(tiny_config):
    config = load_config(str(tiny_config))
    rule = rule_of(load_config("offline", SETTINGS))
    with pytest.raises(ConfigError, match='rank_policy must be "per-client" for the rule hetlora'):
        check_rule(rule, method_of(config), config)
