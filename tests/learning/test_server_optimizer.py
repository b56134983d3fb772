"""Promises of server optimisers: the published recursions in NumPy, Flower's own, and what they leave alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from splitrank.config import load_config
from splitrank.errors import InputError
from splitrank.federation.model import rule_of
from splitrank.learning.adapters.adapter import kind_of
from splitrank.learning.aggregation.rule import Combined, Rule, Starts, weights_of
from splitrank.learning.aggregation.rules import RULES
from splitrank.learning.updates.server_optimizer import (
    SERVER_OPTIMIZERS,
    FedAdam,
    FedAvgM,
    FedYogi,
    ServerOptimized,
    make_server_optimizer,
    with_server_optimizer,
)
from splitrank.traits import RULE_TRAITS, why_no_server_optimizer
from tests.learning.oracle import same_bits
from tests.learning.rule_checks import SAMPLES, adapter_of, drifted, one_rank, subject

ABLE = [name for name in RULES if why_no_server_optimizer(RULE_TRAITS[name]) is None]
STEPS = [FedAvgM(0.7, 0.8), FedAdam(0.05, 0.8, 0.95, 1e-2), FedYogi(0.05, 0.8, 0.95, 1e-2)]


def rounds(rule, count, name="lora", change=drifted, samples=SAMPLES):
    """Yield (start, plain rule's result, result) of some rounds, each from where the last one ended."""
    on, plain = subject(rule, name), RULES[rule.name]
    adapter, memory = adapter_of(on), {}
    for turn in range(count):
        starts = Starts(adapter, dict.fromkeys(range(4), adapter))
        updates = {client: change(on, adapter, client, turn) for client in starts.of}
        weights = weights_of({client: samples[client] for client in updates})
        result = rule.combine(starts, updates, weights, memory)
        yield starts, updates, plain.combine(starts, updates, weights, {}), result
        adapter, memory = result.adapter, result.memory


def by_hand(step, gradient, m, v):
    """One step of Reddi et al.'s algorithm 2, or of Hsu et al.'s equation, on float64 arrays."""
    if step.name == "fedavgm":
        m = step.momentum * m + gradient
        return -step.learning_rate * m, m, v
    m = step.beta1 * m + (1 - step.beta1) * gradient
    square = gradient * gradient
    if step.name == "fedadam":
        v = step.beta2 * v + (1 - step.beta2) * square
    else:
        v = v - (1 - step.beta2) * square * np.sign(v - square)
    return -step.learning_rate * m / (np.sqrt(v) + step.tau), m, v


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@pytest.mark.parametrize("name", ABLE)
def test_every_step_is_that_of_the_paper(name, step):
    rule, moments = with_server_optimizer(RULES[name], step), {}
    for turn, (starts, _, aggregate, result) in enumerate(rounds(rule, 4)):
        trained = RULE_TRAITS[name].trained(starts.whole.kinds, turn)
        for key, start in starts.whole.tensors.items():
            if kind_of(key) not in trained:
                assert torch.equal(result.adapter.tensors[key], start)
                continue
            before = start.numpy().astype(np.float64)
            initial = (np.zeros(before.shape), np.full(before.shape, 0.0 if step.name == "fedavgm" else step.tau**2))
            gradient = before - aggregate.adapter.tensors[key].numpy()
            moved, *moments[key] = by_hand(step, gradient, *moments.get(key, initial))
            np.testing.assert_allclose(result.adapter.tensors[key].numpy(), before + moved, rtol=1e-5, atol=1e-6)
        assert result.factor_averaging_error == aggregate.factor_averaging_error
        assert (result.adapter.rank, result.adapter.scaling) == (starts.whole.rank, starts.whole.scaling)


@pytest.mark.parametrize("method", ["lora", "dora", "full", "bitfit", "ia3", "bottleneck", "prefix"])
def test_without_momentum_and_at_rate_one_it_is_the_rule_alone(method):
    rule = with_server_optimizer(RULES["fedavg"], FedAvgM(1.0, 0.0))
    for _, _, aggregate, result in rounds(rule, 3, method):
        assert same_bits(result.adapter.tensors, aggregate.adapter.tensors)


def test_the_first_step_of_adam_is_not_corrected():
    """g = 1: m = 0.1, v = 0.99·τ² + 0.01, so a step of −η·0.1/(√v + τ)."""
    step = FedAdam()
    start = {part: torch.full((1,), value, dtype=torch.float64) for part, value in step.initial.items()}
    moved, after = step(torch.ones(1, dtype=torch.float64), start)
    assert float(moved) == pytest.approx(-1e-2 * 0.1 / (math.sqrt(0.99e-6 + 0.01) + 1e-3), rel=1e-9)
    assert float(after["m"]) == pytest.approx(0.1)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_memory_is_named_by_its_owner_and_the_rules_own_is_handed_on(step):
    seen = []

    def counts(starts, updates, weights, memory):
        seen.append(dict(memory))
        result = RULES["fedavg"].combine(starts, updates, weights, memory)
        return replace(result, memory={"rounds": memory.get("rounds", torch.zeros(1)) + 1})

    rule = with_server_optimizer(Rule("fedavg", RULE_TRAITS["fedavg"], counts), step)
    *_, (starts, _, _, result) = rounds(rule, 3)
    assert [{key: float(value) for key, value in memory.items()} for memory in seen] == [
        {}, {"rounds": 1.0}, {"rounds": 2.0},
    ]  # fmt: skip
    assert float(result.memory["rounds"]) == 3
    parts = {"fedavgm": ["v"]}.get(step.name, ["m", "v"])
    wanted = {f"{step.name}/{part}/{key}" for part in parts for key in starts.whole.tensors}
    assert set(result.memory) == {"rounds", f"{step.name}/turn", *wanted}
    for key, tensor in starts.whole.tensors.items():
        assert result.memory[f"{step.name}/v/{key}"].shape == tensor.shape
        assert result.memory[f"{step.name}/v/{key}"].dtype == torch.float32


def test_a_factor_that_is_not_trained_keeps_its_values_and_its_moments():
    """Even turns train B, odd ones A; momentum alone would go on moving the other."""
    traits = replace(RULE_TRAITS["fedavg"], trains=lambda kind, turn: kind != ("lora_A", "lora_B")[turn % 2])
    rule = with_server_optimizer(Rule("fedavg", traits, RULES["fedavg"].combine), FedAvgM(1.0, 0.9))
    memory = {}
    for turn, (starts, _, _, result) in enumerate(rounds(rule, 4)):
        still, moves = ("lora_A", "lora_B") if turn % 2 == 0 else ("lora_B", "lora_A")
        for path in ("wide", "labels"):
            assert torch.equal(result.adapter.tensors[f"{still}/{path}"], starts.whole.tensors[f"{still}/{path}"])
            assert not torch.equal(result.adapter.tensors[f"{moves}/{path}"], starts.whole.tensors[f"{moves}/{path}"])
            kept = f"fedavgm/v/{still}/{path}"
            assert (kept in result.memory) == (turn > 0)
            assert turn == 0 or torch.equal(result.memory[kept], memory[kept])
        assert int(result.memory["fedavgm/turn"]) == turn + 1
        memory = result.memory


def test_scalings_of_the_result_count():
    """A rule of one's own may return another scaling; the step is in that of the start."""
    on = subject(RULES["fedavg"], "lora")
    starts = one_rank(on)

    def first(starts, updates, weights, memory):
        return Combined(updates[0], {})

    own = Rule("first", replace(RULE_TRAITS["fedavg"], tags=frozenset({"keeps_basis"})), first)
    update = drifted(on, starts.whole, 0)
    assert update.scaling != starts.whole.scaling
    found = with_server_optimizer(own, FedAvgM(1.0, 0.0)).combine(starts, {0: update}, {0: 1.0}, {}).adapter
    assert found.scaling == starts.whole.scaling
    wanted = update.tensors["lora_B/wide"] * (update.scaling / starts.whole.scaling)
    assert torch.equal(found.tensors["lora_B/wide"], wanted)


@pytest.mark.parametrize("name", [name for name in RULES if name not in ABLE])
def test_rules_whose_basis_does_not_last_are_refused(name):
    with pytest.raises(InputError, match=f"the rule {name} must have no server optimiser, since it"):
        with_server_optimizer(RULES[name], FedAdam())


def test_a_rule_that_trains_parts_of_tensors_is_refused():
    parts = replace(RULES["fedavg"], selection=lambda name, tensor, client, turn: slice(0, 1))
    with pytest.raises(InputError, match="trains parts of tensors"):
        with_server_optimizer(parts, FedAdam())


def test_rules_that_are_able_are_these():
    assert {"fedavg", "ffa", "raflora", "median", "trimmed-mean"} <= set(ABLE)
    assert not {"flexlora", "fedex", "flora", "fedsvd", "hetlora"} & set(ABLE)


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_defaults_are_those_of_the_settings_and_tags_are_true(name):
    config = load_config("offline", [f"federation.server_optimizer={name}", "adapter.rank=4"])
    rule = rule_of(config)
    assert isinstance(rule.combine, ServerOptimized)
    assert rule.combine.step == SERVER_OPTIMIZERS[name]()
    assert rule == rule_of(config) != rule_of(load_config("offline"))
    assert rule.traits.tags == {"keeps_basis", "needs_fixed_rank"}
    slower = load_config(
        "offline", [f"federation.server_optimizer={name}", "adapter.rank=4", f"federation.{name}.learning_rate=0.5"]
    )
    assert rule_of(slower).combine.step.learning_rate == 0.5
    assert make_server_optimizer("none", {}) is None
    assert with_server_optimizer(RULES["fedavg"], None) is RULES["fedavg"]
    assert rule_of(load_config("offline")) is RULES["fedavg"]


def alike(on, start, client, turn):
    """Clients of one scaling, since Flower averages arrays as they come."""
    moved = drifted(on, start, client, turn)
    return start.with_tensors({name: tensor for name, tensor in moved.tensors.items() if kind_of(name) != "lora_B"})


@pytest.mark.extras
@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "FedYogi"])
def test_flowers_own_strategies_take_the_same_steps(name):
    """Departures: v starts at τ², in Flower at 0; and Flower corrects FedAdam's rate, in round t by exponents t + 1."""
    import flwr.serverapp.strategy as strategies

    from tests.learning.flower_strategies import arrays_of, replies_of

    own = SERVER_OPTIMIZERS[name.lower()](learning_rate=0.05)
    if name == "FedAvgM":
        theirs = strategies.FedAvgM(server_learning_rate=0.05, server_momentum=own.momentum)
    else:
        theirs = getattr(strategies, name)(eta=0.05, beta_1=own.beta1, beta_2=own.beta2, tau=own.tau)
    on, memory = subject(RULES["fedavg"], "lora"), {}
    adapter = adapter_of(on)
    for turn in range(4):
        starts = Starts(adapter, dict.fromkeys(range(4), adapter))
        updates = {client: alike(on, adapter, client, turn) for client in range(4)}
        arrays = arrays_of(adapter.tensors)
        if name == "FedAvgM":
            theirs.current_arrays = theirs.current_arrays or arrays
        else:
            theirs.current_arrays = {key: array.numpy() for key, array in arrays.items()}
        if name != "FedAvgM" and turn == 0:
            theirs.v_t = {key: np.full(array.numpy().shape, own.tau**2) for key, array in arrays.items()}
        step = own
        if name == "FedAdam":
            corrected = math.sqrt(1 - own.beta2 ** (turn + 2)) / (1 - own.beta1 ** (turn + 2))
            step = replace(own, learning_rate=0.05 * corrected)
        found, _ = theirs.aggregate_train(turn + 1, replies_of(updates, SAMPLES))
        rule = with_server_optimizer(RULES["fedavg"], step)
        result = rule.combine(starts, updates, weights_of(SAMPLES), memory)
        for key, tensor in result.adapter.tensors.items():
            np.testing.assert_allclose(found[key].numpy(), tensor.numpy(), rtol=1e-4, atol=2e-6)
        adapter, memory = result.adapter, result.memory
