"""Promises of LoRA-A² in a run: clients train what they chose, send it, and what it costs them is counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from splitrank import load_config, load_data, make_clients, run
from splitrank.errors import ConfigError, InputError
from splitrank.federation import wire
from splitrank.federation.rounds import run_round
from splitrank.federation.slices import rule_of_client, slices_header, told_rule, with_slices
from splitrank.learning.adapters.adapter import kind_of
from splitrank.learning.aggregation.rules import RULES
from tests.test_config import problems

FREE = ["budget.latency_s=inf", "budget.energy_j=inf", 'workload.model="flops"']
A2 = ['federation.aggregation="lora-a2"', "federation.lora-a2.rank=4", *FREE, "train.learning_rate=5e-3"]


@pytest.fixture
def clients_of(tiny_config):
    """A function from further settings to clients in this process."""
    made = []

    def make(*more):
        config = load_config(str(tiny_config), [*A2, *more])
        made.append(make_clients(config, load_data(config)))
        return made[-1]

    yield make
    for clients in made:
        clients.close()


def test_with_all_slices_and_one_learning_rate_it_is_rolora(tiny_config, tmp_path):
    """To the same bits: the trial leaves nothing behind, neither in the weights nor in the draws."""
    common = [*FREE, "adapter.rank=4", "adapter.dropout=0.2", "federation.rounds=3"]
    rules = {"rolora": [], "lora-a2": ["federation.lora-a2.rank=4", "federation.lora-a2.learning_rate_ratio=1.0"]}
    for rule, own in rules.items():
        settings = [*common, *own, f'federation.aggregation="{rule}"']
        list(run(load_config(str(tiny_config), settings), tmp_path / rule))
    ours, theirs = (load_file(tmp_path / rule / "adapter" / "adapter_model.safetensors") for rule in rules)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def changed(before, after, kind) -> dict[str, torch.Tensor]:
    """Return where slices of a kind have changed, by path."""
    dim = 0 if kind == "lora_B" else 1
    old, new = before.of_kind(kind), after.of_kind(kind)
    return {path: (old[path] != new[path]).any(dim=dim) for path in old}


def test_a_client_changes_and_sends_its_slices_alone(clients_of):
    clients = clients_of("adapter.rank=1")
    state, _ = run_round(clients.initial_state(), clients)
    assert state.adapter.rank == 4
    counted = clients.problem(state)
    plan = clients.plan(counted, state)
    seen = {}

    class Watched(type(clients)):
        def train(self, starts, plan, state):
            seen.update(starts=starts, updates=super().train(starts, plan, state))
            return seen["updates"]

    after, record = run_round(state, Watched(**vars(clients)))
    num_linears = len(state.adapter.of_kind("lora_A"))
    chosen = []
    for client, update in seen["updates"].items():
        start = seen["starts"].of[client]
        assert start.rank == 4
        moved = changed(start, update.adapter, "lora_A")
        assert sum(int(slices.sum()) for slices in moved.values()) == num_linears  # rank 1, a slice of each on average
        assert not any(slices.any() for slices in changed(start, update.adapter, "lora_B").values())
        assert (update.rank_sent, record.planned[client].rank, plan.rank[client]) == (1.0, 1, 1)
        chosen.append(torch.cat(list(moved.values())))
    anybody = torch.stack(chosen).any(dim=0)
    assert not anybody.all()
    assert torch.equal(torch.cat(list(changed(state.adapter, after.adapter, "lora_A").values())), anybody)


def test_the_trial_and_the_whole_adapter_are_in_the_cycles(clients_of, tiny_config):
    """E + 1 epochs at the global rank whatever the client's; up goes the rank's share, down everything."""
    clients = clients_of("federation.local_epochs=2")
    config = load_config(str(tiny_config), ['federation.aggregation="rolora"', *FREE, "federation.local_epochs=2"])
    other = make_clients(config, load_data(config))
    for turn in (0, 1):
        ours, theirs = (
            one.problem(replace(one.initial_state(), round=turn, turn=turn)).workload for one in (clients, other)
        )
        for rank in (1, 3):
            np.testing.assert_allclose(ours.cycles(rank), theirs.cycles(4) * 3 / 2)
            np.testing.assert_array_equal(ours.uplink_bits(rank), theirs.uplink_bits(rank))
            np.testing.assert_array_equal(ours.downlink_bits(rank), theirs.downlink_bits(4))
    assert clients.problem(clients.initial_state()).rank_cap.tolist() == [4, 4, 4]
    other.close()


@pytest.mark.parametrize("model", ["paper", "measured"])
def test_so_they_are_where_operations_are_counted_otherwise(model, tiny_config):
    own = {"paper": [], "measured": ["client.seconds_per_sample=0.01", "client.seconds_per_sample_per_rank=0.001"]}
    if model == "measured":
        own["measured"].append("client.reference_frequency_hz=1e9")
    cycles = []
    for rule in ('"rolora"', '"lora-a2"'):
        settings = [f"federation.aggregation={rule}", *FREE[:2], f'workload.model="{model}"', *own[model]]
        config = load_config(str(tiny_config), settings)
        clients = make_clients(config, load_data(config))
        cycles.append(clients.problem(clients.initial_state()).workload.cycles)
        clients.close()
    np.testing.assert_allclose(cycles[1](1), 2 * cycles[0](8))
    np.testing.assert_allclose(cycles[1](3), 2 * cycles[0](8))


def test_linears_of_different_sizes_send_at_most_what_is_planned_and_that_is_recorded(clients_of):
    clients = clients_of('adapter.target_modules=["query", "intermediate"]', "adapter.rank=2", 'model.head="frozen"')
    told = {}

    class Watched(type(clients)):
        def train(self, starts, plan, state):
            told.update(super().train(starts, plan, state))
            return told

    problem = clients.problem(clients.initial_state())
    _, record = run_round(clients.initial_state(), Watched(**vars(clients)))
    planned = problem.workload.uplink_bits(2)
    start = clients.model.method.resize(clients.initial_state().adapter, 4, distribution="svd", seed=0, round=1)
    for client, update in told.items():
        moved = changed(start, update.adapter, "lora_B")
        numbers = sum(int(slices.sum()) * len(update.adapter.tensors[f"lora_B/{p}"]) for p, slices in moved.items())
        assert record.planned[client].uplink_bits == pytest.approx(32 * numbers)
        assert 32 * numbers <= planned[client]


def test_lora_B_learns_faster(clients_of):
    """AdamW's first step is the learning rate, whatever the gradient."""
    clients = clients_of("train.batch_size=64", "adapter.rank=4", "train.max_grad_norm=1e6")
    state, _ = run_round(clients.initial_state(), clients)
    farthest = {kind: max(float(t.abs().max()) for t in state.adapter.of_kind(kind).values()) for kind in ("lora_B",)}
    head = clients.initial_state().adapter.of_kind("head")
    moved = max(float((state.adapter.tensors[f"head/{path}"] - t).abs().max()) for path, t in head.items())
    assert farthest["lora_B"] == pytest.approx(5 * 5e-3, rel=1e-3)
    assert moved == pytest.approx(5e-3, rel=1e-3)


@pytest.fixture
def choice(clients_of):
    """The rule, a start, a client's header, and the numbers that it sends."""
    clients = clients_of()
    state = clients.initial_state()
    start = clients.model.method.resize(state.adapter, 4, distribution="svd", seed=0, round=1)
    task = clients.model.task(start, state, clients.rule, 0)
    rows, labels = clients.train_rows[0], clients.data.train_labels
    chosen = rule_of_client(clients.model, clients.rule, task, 2, clients.train_outputs, rows, labels)
    sent = wire.uplink(start, chosen, 0, 0)
    return clients.rule, start, {**wire.header(sent, 0), **slices_header(chosen)}


def test_both_sides_have_the_same_choice(choice):
    rule, start, told = choice
    agreed, sent = told_rule(told, start, rule, 2, 0)
    assert sent == 2.0
    assert agreed == with_slices(rule, told["slices"])
    assert {kind_of(name) for name, _ in told["tensors"]} == {"lora_B", "head"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda slices, path: None, "slices must name linears with adapters, got None"),
        (lambda slices, path: [1, 2], "slices must name linears with adapters"),
        (lambda slices, path: {**slices, "classifier": [0]}, "slices must name linears with adapters"),
        (lambda slices, path: {**slices, path: [4]}, "directions below 4 in rising order"),
        (lambda slices, path: {**slices, path: [-1]}, "directions below 4 in rising order"),
        (lambda slices, path: {**slices, path: [1, 1]}, "directions below 4 in rising order"),
        (lambda slices, path: {**slices, path: [2, 0]}, "directions below 4 in rising order"),
        (lambda slices, path: {**slices, path: [True]}, "directions below 4 in rising order"),
        (lambda slices, path: {**slices, path: []}, "directions below 4 in rising order"),
        (lambda slices, path: {**slices, path: "01"}, "directions below 4 in rising order"),
        (lambda slices, path: {key: [0, 1, 2, 3] for key in slices}, "slices must amount to rank 2 at most"),
    ],
)
def test_a_choice_that_is_none_is_refused(change, message, choice):
    rule, start, told = choice
    path = min(told["slices"])
    with pytest.raises(InputError, match=message):
        told_rule({**told, "slices": change(told["slices"], path)}, start, rule, 2, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["federation.lora-a2.rank=4", "adapter.rank=5"],
            r"adapter\.rank must be at most federation\.lora-a2\.rank = 4",
        ),
        (["federation.lora-a2.rank=800"], r"federation\.lora-a2\.rank must be at most 768, the smaller side"),
        (["federation.lora-a2.learning_rate_ratio=0"], r"federation\.lora-a2\.learning_rate_ratio must be"),
        (
            ['federation.aggregation="fedavg"', "federation.lora-a2.rank=4"],
            r"federation\.lora-a2\.rank must have an eff",
        ),
        (["federation.lora_a2.rank=4"], r"federation\.lora_a2"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    from splitrank.federation.sizes import encoder_shape

    with pytest.raises(ConfigError, match=message):
        encoder_shape(load_config("paper", ['federation.aggregation="lora-a2"', *settings]))


def test_the_rule_of_the_table_has_no_settings_and_is_refused_as_one_s_own(tiny_config):
    config = load_config(str(tiny_config))
    with pytest.raises(ConfigError, match=r'federation\.aggregation must be "lora-a2" for that rule'):
        make_clients(config, load_data(config), rule=RULES["lora-a2"])
    assert any("lora-a2" in problem for problem in problems("federation.lora-a2.rank=4"))
