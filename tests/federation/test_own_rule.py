"""Promise: a rule or a method of one's own needs no change in the package.

The record counts what it sends, the manifest names it, and resuming asks for it again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

import pytest
import torch

from splitrank import load_config, load_data, make_clients, run
from splitrank.errors import ConfigError, InputError
from splitrank.learning.adapters.lora import Lora
from splitrank.learning.adapters.method import LocalTerms
from splitrank.learning.aggregation.rule import Combined, Rule, mean_of
from splitrank.learning.aggregation.rules import RULES
from splitrank.traits import RuleTraits


def largest_client(starts, updates, weights, memory):
    """Take the adapter of the client with the most texts, and count the rounds."""
    best = max(updates, key=weights.__getitem__)
    return Combined(updates[best], {"rounds": memory.get("rounds", torch.zeros(1)) + 1})


def only_b(starts, updates, weights, memory):
    """Average B, and the head where it is trained; A is as it was sent."""
    return Combined(starts.whole.with_tensors(mean_of(starts.whole.only("lora_B", "head"), updates, weights)), {})


LARGEST = Rule("largest-client", RuleTraits(frozenset({"keeps_basis"})), largest_client)
ALTERNATES = Rule(
    "alternates",
    RuleTraits(frozenset({"keeps_basis"}), "prefix", trains=lambda kind, turn: kind != ("lora_A", "lora_B")[turn % 2]),
    only_b,
)


def connected(rule=None, method=None):
    return lambda config: make_clients(config, load_data(config), rule=rule, method=method)


def test_it_runs_resumes_with_its_memory_and_is_named(tiny_config, tmp_path):
    config = load_config(str(tiny_config), ["federation.rounds=3"])
    list(run(config, tmp_path / "whole", connect=connected(LARGEST)))
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert manifest["own_rule"] == f"largest-client ({__name__}.largest_client)"
    list(islice(run(config, tmp_path / "run", connect=connected(LARGEST)), 2))
    with pytest.raises(InputError, match=r"rule must be the one .* largest-client \(.*\), got that of the settings"):
        list(run(config, tmp_path / "run", resume=True))
    list(run(config, tmp_path / "run", resume=True, connect=connected(LARGEST)))
    files = ("adapter/adapter_model.safetensors", "checkpoint/round-000003/state.safetensors")
    for file in files:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert all(client["dropped"] is False for line in _lines(tmp_path / "run")[1:] for client in line["clients"])


def test_a_built_in_rule_that_the_settings_do_not_name_is_asked_for_again(tiny_config, tmp_path):
    config = load_config(str(tiny_config), ["federation.rounds=2"])
    list(islice(run(config, tmp_path / "run", connect=connected(RULES["flexlora"])), 2))
    with pytest.raises(InputError, match=r"rule must be the one .* flexlora \(.*flexlora\), got that of the settings"):
        list(run(config, tmp_path / "run", resume=True))
    method = Lora(("query", "value"), 8.0)
    with pytest.raises(InputError, match=r"method must be the one .*, got Lora\(.*scaling=8.0"):
        list(run(config, tmp_path / "run", resume=True, connect=connected(RULES["flexlora"], method)))


def _lines(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_turns_decide_what_is_trained_sent_and_counted(tiny_config):
    """Even turns train B, odd ones A, and everything goes down."""
    config = load_config(
        str(tiny_config), ["adapter.rank=2", 'model.head="frozen"', 'adapter.target_modules=["intermediate"]']
    )
    clients = make_clients(config, load_data(config), rule=ALTERNATES)
    state, bits = clients.initial_state(), []
    for turn in range(3):
        workload = clients.problem(replace(state, round=5, turn=turn)).workload
        bits.append((workload.uplink_bits(2)[0], workload.downlink_bits(2)[0]))
    clients.close()
    up_b, up_a = (3 * width * 2 * 256 for width in (48, 32))  # layers, output or input, rank, bits
    assert bits == [(up_b, up_a + up_b), (up_a, up_a + up_b), (up_b, up_a + up_b)]


def test_what_is_sent_but_not_counted_is_refused_before_any_work(tiny_config, tmp_path):
    halves = replace(LARGEST, selection=lambda name, tensor, client, turn: slice(0, 1) if client else None)
    config = load_config(str(tiny_config))
    with pytest.raises(
        ConfigError, match=r"must send the numbers that are counted, 384 of client 1 at rank 1 in turn 0"
    ):
        list(run(config, tmp_path / "run", connect=connected(halves)))
    assert not (tmp_path / "run").exists()


def test_what_it_cannot_take_is_refused_before_any_work(tiny_config, tmp_path):
    config = load_config(str(tiny_config), ['planner.rank_policy="per-client"', 'federation.aggregation="flexlora"'])
    with pytest.raises(ConfigError, match='rank_policy must be "common" for the rule largest-client'):
        list(run(config, tmp_path / "run", connect=connected(LARGEST)))
    full = ['adapter.method="full"', 'workload.model="flops"']
    picky = replace(LARGEST, traits=replace(LARGEST.traits, needs=frozenset({"lora_A"})))
    with pytest.raises(ConfigError, match=r"adapter\.method must have lora_A for the rule largest-client, got 'full'"):
        list(run(load_config(str(tiny_config), full), tmp_path / "run", connect=connected(picky)))
    assert not (tmp_path / "run").exists()


def pulled(parameters, start):
    return 1e6 * sum((parameters[name] - start.tensors[name]).square().sum() for name in parameters)


@dataclass(frozen=True)
class Held(Lora):
    """LoRA whose steps are pulled back to where they started."""

    name: ClassVar[str] = "lora"
    terms: ClassVar[LocalTerms] = LocalTerms(penalty=pulled)


def test_a_method_of_ones_own(tiny_config, tmp_path):
    config = load_config(str(tiny_config), ["federation.rounds=1", "adapter.rank=2", "budget.latency_s=3"])
    method = Held(("query", "value"), 2.0)
    moved = {}
    for name, own in (("plain", None), ("held", method)):
        clients = make_clients(config, load_data(config), method=own)
        state = clients.initial_state()
        start = clients.model.method.resize(state.adapter, 2, distribution="svd", seed=0, round=1)
        update = clients.train_client(0, start, state)
        moved[name] = float((update.adapter.to_vector() - start.to_vector()).norm())
        clients.close()
    assert 0 < moved["held"] < 0.5 * moved["plain"]
    list(run(config, tmp_path / "run", connect=connected(method=method)))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["own_method"] == f"{method} ({__name__}.Held)"
