"""Promise: what docs/extending.md shows works as it stands there, and the files that it names exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from splitrank import traits
from splitrank.learning.adapters.method import attach, load
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.forward import reference_logits
from splitrank.planning.costs.table import COSTS
from splitrank.planning.solvers.exact import exact
from tests.learning import oracle, rule_checks
from tests.planning import test_costs
from tests.planning.problems import random_problem

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`(src/\S+\.py)`:\n\n```python\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE))


@pytest.fixture
def shown(monkeypatch):
    """A function from a folder to the module that the page shows in it."""

    def module_of(folder: str) -> ModuleType:
        ((path, code),) = [(path, code) for path, code in FILES.items() if Path(path).parent.name == folder]
        module = ModuleType(f"shown_{folder}")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look their annotations up
        exec(compile(code, path, "exec", dont_inherit=True), vars(module))
        return module

    return module_of


def line_of(name: str) -> object:
    """Return what the page's line of a table says of a variant."""
    (line,) = re.findall(rf'^    "{name}": (\w+Traits\(.*\)),$', TEXT, re.MULTILINE)
    return eval(line, vars(traits).copy())


def test_the_files_that_it_names_exist() -> None:
    own = {Path(path).relative_to("src/splitrank") for path in FILES}
    assert len(own) == 4
    named = set(re.findall(r"`?((?:[\w.]+/)*\w+\.(?:py|md))\b", TEXT)) - {"config.py"}
    package = ROOT / "src" / "splitrank"
    folders = [ROOT, ROOT / "docs", package, *(folder for folder in package.rglob("*") if folder.is_dir())]
    missing = {name for name in named if not any((folder / name).is_file() for folder in folders)}
    missing -= {str(path) for path in own} | {f"src/splitrank/{path}" for path in own}
    assert missing == set()
    assert len(named) > 25


def test_the_solver_finds_the_optimum(shown) -> None:
    solver = shown("solvers").linear_search
    for seed in range(5):
        problem = random_problem(seed, 200)
        np.testing.assert_array_equal(solver(problem), exact(problem))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_rule_keeps_all_promises(method: str, shown) -> None:
    rule = Rule("closest", line_of("closest"), shown("aggregation").closest)  # type: ignore[arg-type]
    assert rule_checks.failures(rule_checks.subject(rule, method)) == set()


def test_the_method_computes_what_its_tensors_say(tiny_model, monkeypatch, shown) -> None:
    monkeypatch.setitem(traits.METHOD_TRAITS, "norms", line_of("norms"))
    monkeypatch.setattr(oracle, "OWN_WEIGHTS", oracle.OWN_WEIGHTS | {"norm"})
    adapted = attach(oracle.fresh(tiny_model()), shown("adapters").Norms())
    assert adapted.forward is reference_logits
    ids = oracle.random_ids(64, oracle.LENGTHS)
    adapter = oracle.moved(oracle.begin(adapted, 1))
    wanted, wanted_gradients = oracle.expected(oracle.fresh(tiny_model()), adapter, ids)
    parameters = load(adapted, adapter)
    logits = adapted.logits(adapted.encoder.trunk(ids), torch.tensor(oracle.LENGTHS))
    oracle.assert_logits(logits, wanted)
    oracle.assert_gradients(oracle.gradients(logits, parameters), wanted_gradients)


def test_the_methods_costs_are_what_runs(monkeypatch, shown) -> None:
    (kind,) = re.findall(r"`(\"norm\": lambda path: .*?)` in `OF_A_LAYER`", TEXT)
    monkeypatch.setitem(traits.METHOD_TRAITS, "norms", line_of("norms"))
    monkeypatch.setitem(COSTS, "norms", shown("costs").NORMS)
    monkeypatch.setattr(test_costs, "OF_A_LAYER", eval(f"{{{kind}}}"))
    for layers in ([3], [1, 2], [0, 3]):
        test_costs.test_operations_equal_torchs_count("norms", {"norm"}, "all-linear", layers, "full")
    test_costs.test_numbers_are_those_of_the_parameters("norms", {"norm"}, "all-linear", 1)
