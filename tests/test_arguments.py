"""Promise: a wrong argument of a public function or of a variant's own class is one clear sentence, before any work."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitrank import load_config, load_data, make_clients, plan_report, predict, run, run_round
from splitrank.errors import InputError
from splitrank.learning.adapters.dora import Dora
from splitrank.learning.adapters.lora import Lora
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.aggregation.rules import RULES
from splitrank.traits import MethodTraits, RuleTraits

PLAIN = RuleTraits(frozenset({"keeps_basis"}))
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "load_data": (lambda: load_data("offline"), "config must be a Config, got 'offline'; load_config"),
    "plan_report": (lambda: plan_report("paper", 1), "config must be a Config, got 'paper'; load_config"),
    "round": (lambda: plan_report(load_config("paper"), 0), "round must be at least 1, got 0; "),
    "run": (lambda: next(run("offline", Path("x"))), "config must be a Config, got 'offline'; load_config"),
    "out": (lambda: next(run(load_config("offline"), 3)), "out must be a Path or a str, got 3; "),
    "run_round": (lambda: run_round("clients", None), "state must be a State, got 'clients'; clients.initial_state()"),
    "predict": (lambda: next(predict(3, ["a"])), "run must be a Path or a str, got 3; "),
    "texts": (lambda: next(predict("runs/x", "a text")), "texts must be a list of texts, got 'a text'; "),
    "linears": (lambda: Lora(("nope",), 2.0), r"Lora.linears must be a tuple of some of query, .*, got ('nope',)"),
    "scaling": (lambda: Dora(("query",), 0.0), "Dora.scaling must be finite and > 0, got 0.0; "),
    "dropout": (lambda: Lora(("query",), 2.0, 1.0), "Lora.dropout must be at least 0 and below 1, got 1.0; "),
    "traits": (lambda: Rule("own", "additive", max), "traits must be a RuleTraits, got 'additive'; "),
    "combine": (lambda: Rule("own", PLAIN, "mean"), "combine must be a function of starts, updates, weights and mem"),
    "tags": (lambda: RuleTraits(frozenset({"aditive"})), "tags must be among exact, unequal_ranks, additive, keeps_b"),
    "distribution": (lambda: RuleTraits(frozenset(), "first"), "distribution must be among svd, prefix, got {'first'}"),
    "contract": (lambda: MethodTraits(frozenset(), "none", "peft"), "contract must be among product, prefix, once, f"),
    "export": (lambda: MethodTraits(frozenset(), "fixed", "onnx"), "export must be among peft, model, splitrank, go"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_one_sentence(name):
    call, sentence = WRONG[name]
    with pytest.raises((InputError, ValueError)) as refused:
        call()
    assert re.match(re.escape(sentence).replace(r"\.\*", ".*"), str(refused.value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"rule": "ffa"}, r"rule must be a Rule or None, got 'ffa'; .*federation\.aggregation"),
        ({"rule": RULES["ffa"].combine}, r"rule must be a Rule or None, got <function ffa"),
        ({"method": "dora"}, r"method must be a Method or None, got 'dora'; .*adapter\.method"),
        ({"method": Lora}, r"method must be a Method or None, got <class"),
    ],
)
def test_make_clients_says_what_it_takes(wrong, sentence, tiny_config):
    config = load_config(str(tiny_config))
    data = load_data(config)
    with pytest.raises(InputError, match=f"^{sentence}"):
        make_clients(config, data, **wrong)
    with pytest.raises(InputError) as refused:
        make_clients("offline", None, **wrong)
    assert [line.partition(" ")[0] for line in str(refused.value).splitlines()] == ["config", "data", *wrong]


def test_all_wrong_settings_of_a_method_are_said_at_once():
    with pytest.raises(ValueError, match=r"^Lora\.linears .*\nLora\.scaling .*\nLora\.dropout .*$"):
        Lora("query", -1.0, 2.0)


def test_a_rule_that_returns_no_combined_is_told_what_to_return(tiny_config):
    config = load_config(str(tiny_config), ["federation.rounds=1"])
    forgets = replace(RULES["fedavg"], name="forgets", combine=lambda starts, *rest: starts.whole)
    clients = make_clients(config, load_data(config), rule=forgets)
    with pytest.raises(InputError, match=r"the rule forgets must return Combined\(adapter, memory\)"):
        run_round(clients.initial_state(), clients)
    clients.close()


def test_a_folder_may_be_named_by_a_text(tiny_config, tmp_path):
    config = load_config(str(tiny_config), ["federation.rounds=1"])
    records = list(run(config, str(tmp_path / "run")))
    assert len(records) == 2
    assert len(list(predict(str(tmp_path / "run"), ["market"]))) == 1
