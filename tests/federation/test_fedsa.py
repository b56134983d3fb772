"""Promises of FedSA-LoRA in a run: A is everybody's, B and the head are each client's own and never leave it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from splitrank import load_config, load_data, make_clients, run
from splitrank.errors import ConfigError
from splitrank.federation.rounds import run_round
from splitrank.learning.adapters.adapter import kind_of
from splitrank.learning.aggregation.rules import RULES
from tests.records import equal_records
from tests.test_config import problems

FEDSA = ['federation.aggregation="fedsa"', "adapter.rank=2", "federation.rounds=2", "train.learning_rate=5e-3"]


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_A_is_common_and_B_and_the_head_are_each_client_s(tiny_config, tmp_path):
    """The head also where ``model.head`` is not "local", as in the authors' settings."""
    config = load_config(str(tiny_config), FEDSA)
    assert config.model.head == "full"
    list(run(config, tmp_path / "run"))
    adapter = tmp_path / "run" / "adapter"
    exports = [load_file(adapter / f"client-{client}" / "adapter_model.safetensors") for client in range(3)]
    for name, tensor in exports[0].items():
        assert torch.equal(tensor, exports[1][name]) == ("lora_A" in name), name
    checkpoint = load_file(tmp_path / "run" / "checkpoint" / "round-000002" / "state.safetensors")
    kinds = {tuple(name.split("/")[:-1]) for name in checkpoint}
    assert {kind for where, *_, kind in kinds if where == "adapter"} == {"lora_A"}
    assert {kind for where, *_, kind in kinds if where == "local"} == {"lora_B", "head"}


def test_A_is_the_mean_and_who_is_absent_keeps_its_part(tiny_config):
    config = load_config(str(tiny_config), [*FEDSA, 'federation.partition="quantity"', "budget.energy_j=inf"])
    clients = make_clients(config, load_data(config))

    class Two(type(clients)):
        replies = None

        def problem(self, state):
            problem = super().problem(state)
            return replace(problem, uplink_bps=problem.uplink_bps * (np.arange(3) != 1))

        def train(self, starts, plan, state):
            type(self).replies = super().train(starts, plan, state)
            return self.replies

    state, _ = run_round(clients.initial_state(), clients)
    assert all(b.any() for client in range(3) for name, b in state.local[client].items() if kind_of(name) == "lora_B")
    two = Two(**vars(clients))
    after, record = run_round(state, two)
    clients.close()
    assert [client.dropped for client in record.planned] == [False, True, False]
    assert same(after.local[1], state.local[1])
    assert record.factor_averaging_error is None
    samples = {client: reply.num_samples for client, reply in two.replies.items()}
    assert samples[0] != samples[2]
    for client, reply in two.replies.items():
        assert same(after.local[client], reply.personal)
        assert reply.adapter.kinds == {"lora_A"}
    for name, tensor in after.adapter.tensors.items():
        mean = sum(samples[client] * two.replies[client].adapter.tensors[name].double() for client in samples)
        torch.testing.assert_close(tensor.double(), mean / sum(samples.values()), rtol=1e-6, atol=1e-8)


def test_a_client_alone_trains_as_with_fedavg(tiny_config, tmp_path):
    """To the same bits: nothing is lost on the way between the rounds, neither B nor the head."""
    alone = [
        *FEDSA,
        "federation.num_clients=1",
        'workload.model="flops"',
        "budget.energy_j=inf",
        "budget.latency_s=inf",
    ]
    list(run(load_config(str(tiny_config), alone), tmp_path / "fedsa"))
    list(run(load_config(str(tiny_config), [*alone, 'federation.aggregation="fedavg"']), tmp_path / "fedavg"))
    ours, theirs = (
        load_file(tmp_path / path / "adapter_model.safetensors")
        for path in ("fedsa/adapter/client-0", "fedavg/adapter")
    )
    assert same(ours, theirs)
    measures = ("accuracy", "loss", "macro_f1")
    for mine, other in zip(equal_records(tmp_path / "fedsa"), equal_records(tmp_path / "fedavg"), strict=True):
        assert [mine[name] for name in measures] == [other[name] for name in measures]


def test_a_planned_rank_is_refused_with_the_reason(tiny_config):
    (problem,) = problems('federation.aggregation="fedsa"')
    assert problem == (
        'adapter.rank must be given for federation.aggregation = "fedsa", which needs one rank in all rounds, got '
        "nothing; try adapter.rank = 8"
    )
    config = load_config(str(tiny_config))
    with pytest.raises(ConfigError, match=r"adapter\.rank must be given for the rule fedsa"):
        make_clients(config, load_data(config), rule=RULES["fedsa"])


def test_settings_of_what_stays_with_a_client(tiny_config):
    assert load_config("offline", [*FEDSA, "client.test_share=0.3"]).client.test_share == 0.3
    (problem,) = problems("client.test_share=0.3")
    assert 'it is read where model.head is "local" or federation.aggregation is "fedsa"' in problem
