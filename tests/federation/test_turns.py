"""Promise: a turn is a round that changed the model, so no other round decides which factor is trained next."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from splitrank import load_config, run
from splitrank.federation.clients import NoUpdate
from splitrank.federation.loop import make_clients_of
from splitrank.federation.rounds import run_round
from tests.records import equal_records

ALTERNATES = ["rolora", "lora-a2"]
INFEASIBLE, SILENT = 2, 3
ROUNDS = {1: "lora_B", INFEASIBLE: None, SILENT: None, 4: "lora_A", 5: "lora_B", 6: "lora_A"}
"""Round → the factor that is trained in it: in one round nobody is able to take part, in one nobody answers."""


class Disturbed:
    """Clients in this process, whom two rounds fail."""

    def __init__(self, config) -> None:
        self._clients = make_clients_of(config)

    def __getattr__(self, name):
        return getattr(self._clients, name)

    def problem(self, state):
        problem = self._clients.problem(state)
        return problem if state.round + 1 != INFEASIBLE else replace(problem, uplink_bps=0 * problem.uplink_bps)

    def train(self, starts, plan, state):
        replies = self._clients.train(starts, plan, state)
        return replies if state.round + 1 != SILENT else dict.fromkeys(replies, NoUpdate("gone"))


@pytest.fixture(params=ALTERNATES)
def config(request, tiny_config):
    # One fixed rank, so that factors change by training alone.
    settings = [f'federation.aggregation="{request.param}"', "adapter.rank=2", f"federation.rounds={len(ROUNDS)}"]
    if request.param == "lora-a2":  # all slices are trained
        settings.append("federation.lora-a2.rank=2")
    return load_config(str(tiny_config), [*settings, "budget.latency_s=inf", "budget.energy_j=inf"])


def test_rounds_without_an_aggregation_do_not_change_the_turn(config):
    clients, trained = Disturbed(config), {}
    state, record = run_round(clients.initial_state(), clients)
    trained[1] = "lora_B"
    # In round 1 A is as it was drawn, and B is no longer zero.
    drawn = clients.model.method.resize(clients.initial_state().adapter, 2, distribution="svd", seed=0, round=1)
    assert all(torch.equal(state.adapter.tensors[name], a) for name, a in drawn.only("lora_A").items())
    assert all(b.any() for b in state.adapter.only("lora_B").values())
    while state.round < len(ROUNDS):
        before = state.adapter
        state, record = run_round(state, clients)
        changed = {
            name.partition("/")[0]
            for name, tensor in state.adapter.tensors.items()
            if not torch.equal(tensor, before.tensors[name])
        }
        assert changed in ({"lora_A", "head"}, {"lora_B", "head"}, set())
        trained[state.round] = next(iter(changed - {"head"}), None)
        assert (record.status == "infeasible") == (state.round == INFEASIBLE)
        assert all(client.dropped for client in record.planned) == (ROUNDS[state.round] is None)
    assert trained == ROUNDS
    assert state.turn == 4
    clients.close()


def test_a_run_that_is_broken_off_after_every_round_has_the_same_turns(config, tmp_path):
    list(run(config, tmp_path / "whole", connect=Disturbed))
    next(run(config, tmp_path / "broken", connect=Disturbed))
    for _ in ROUNDS:
        next(run(config, tmp_path / "broken", resume=True, connect=Disturbed))
    list(run(config, tmp_path / "broken", resume=True, connect=Disturbed))
    assert equal_records(tmp_path / "broken") == equal_records(tmp_path / "whole")
    ours, theirs = (tmp_path / one / "adapter" / "adapter_model.safetensors" for one in ("broken", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_what_goes_up_is_counted_by_the_turn(tiny_config, tmp_path):
    """The linear is 48 × 32, so that B and A have different sizes; down go both."""
    settings = ['adapter.target_modules=["intermediate"]', 'federation.aggregation="rolora"', "adapter.rank=2"]
    free = ["budget.latency_s=inf", "budget.energy_j=inf", 'workload.model="flops"', 'model.head="frozen"']
    config = load_config(str(tiny_config), [*settings, *free, "federation.rounds=6"])
    records = list(run(config, tmp_path / "run", connect=Disturbed))
    up_b, up_a = (3 * width * 2 * 32 for width in (48, 32))  # layers, output or input, rank, bits
    numbers = {"lora_B": up_b, "lora_A": up_a, None: 0}
    for record in records[1:]:
        assert {client.uplink_bits for client in record.planned} == {numbers[ROUNDS[record.round]]}
        down = up_a + up_b if ROUNDS[record.round] or record.round == SILENT else 0
        assert {client.downlink_bits for client in record.planned} == {down}
    clients = Disturbed(config)
    state = clients.initial_state()
    turns = [clients.problem(replace(state, round=5, turn=turn)).workload.cycles(2)[0] for turn in range(3)]
    assert turns[0] == turns[2] != turns[1]
    clients.close()
