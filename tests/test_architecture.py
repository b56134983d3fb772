"""Promise: imports point downwards and in no circle, files are short, tables complete, and planning needs no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

import splitrank
from splitrank.config import Config, load_config
from splitrank.federation.export_forms import EXPORTS
from splitrank.federation.model import method_of
from splitrank.federation.sizes import encoder_shape, trained_part
from splitrank.learning.adapters.methods import METHODS
from splitrank.learning.aggregation.rules import RULES
from splitrank.learning.updates.server_optimizer import SERVER_OPTIMIZERS
from splitrank.planning.costs.table import COSTS
from splitrank.planning.plan import OPTIMAL_SOLVERS, Method
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS

SOURCE = Path(splitrank.__file__).parent
GROUND = {"config", "errors", "files", "logs", "placement", "progress", "records", "streams", "traits", "units"}
ALLOWED = {
    "planning": {"planning", *GROUND} - {"config"},  # kernels take arrays and small dataclasses
    "learning": {"learning", *GROUND} - {"config"},
    "federation": {"federation", "planning", "learning", *GROUND},
    "studies": {"studies", "federation", "planning", "learning", *GROUND},
    "deployment": {"deployment", "federation", *GROUND},
    "cli": {"cli", "studies", "deployment", "federation", "learning", *GROUND},
    "ground": GROUND,
}
FORBIDDEN_IN_PLANNING = {"torch", "transformers", "peft", "pydantic", "scipy"}


def imports(file: Path) -> set[str]:
    """Dotted names of everything a module imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def place(file: Path) -> str:
    first = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    return first if first in ALLOWED else "ground"


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_point_downwards(file):
    if file.name in ("__init__.py", "__main__.py") and file.parent == SOURCE:
        return
    found = imports(file)
    inner = {name.split(".")[1] for name in found if name.startswith("splitrank.")}
    assert inner <= ALLOWED[place(file)], f"{file} imports {inner - ALLOWED[place(file)]}"
    if place(file) == "planning":
        assert not {name.split(".")[0] for name in found} & FORBIDDEN_IN_PLANNING


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


HEAVY = ["torch", "transformers", "scipy", "pandas", "matplotlib", "plotly"]
LOADED = f"import sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plan", "paper"],
        ["plan", "edge", "--json"],
        ["config", "show"],
        ["config", "explain", "budget"],
        ["methods"],
        ["run", "--help"],
        ["sweep", "--help"],
    ],
)
def test_commands_without_torch(arguments):
    code = f"""
import sys
sys.argv = ["splitrank", *{arguments!r}]
from splitrank.cli import app
try:
    app()
except SystemExit as end:
    assert not end.code
print("LOADED:", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    assert run_python(code).splitlines()[-1].split() == ["LOADED:"]


def test_import_is_light_and_names_resolve():
    assert run_python("import splitrank; " + LOADED).strip() == ""
    assert set(splitrank.__all__) == set(splitrank._HOME)
    for name in splitrank.__all__:
        assert getattr(splitrank, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        splitrank.no_such_name  # noqa: B018


# ---- limits

MAX_LINES, MAX_LINES_OF_A_CLASS = 450, 150

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in (SOURCE, ROOT / "tests", ROOT / "benchmarks") for file in folder.rglob("*.py"))
TEMPLATES = SOURCE / "deployment" / "templates"


def test_no_file_is_too_long():
    lengths = {file: len(file.read_text().splitlines()) for file in FILES}
    assert {file: lines for file, lines in lengths.items() if lines > MAX_LINES} == {}


def test_few_values_are_of_any_type():
    untyped = sum(file.read_text().count("dict[str, Any]") for file in SOURCE.rglob("*.py"))
    assert untyped <= 30


def test_no_class_is_too_long():
    lengths = {
        f"{file.name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES_OF_A_CLASS} == {}


# ---- the graph of modules


def dotted(file: Path) -> str:
    parts = ("splitrank", *file.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(file): file for file in SOURCE.rglob("*.py") if TEMPLATES not in file.parents}


def module_graph() -> dict[str, set[str]]:
    """Module → the modules of splitrank that it imports, inside functions, too; a package counts as its __init__."""
    graph = {}
    for name, file in MODULES.items():
        found = {one if one in MODULES else one.rpartition(".")[0] for one in imports(file)}
        graph[name] = found & set(MODULES)
    return graph


def reached_from(graph: dict[str, set[str]], start: str) -> set[str]:
    """All modules that a module imports, and that those import; itself only if there is a circle."""
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        if (module := waiting.pop()) not in reached:
            reached.add(module)
            waiting += graph[module]
    return reached


def test_no_module_imports_itself_in_a_circle():
    graph = module_graph()
    # The package's own names are resolved when first used; its __init__ imports them for type checkers alone.
    graph["splitrank"] = set()
    assert [module for module in graph if module in reached_from(graph, module)] == []


def test_the_wings_do_not_know_each_other():
    graph = module_graph() | {"splitrank": set()}
    for wing, other in (("planning", "learning"), ("learning", "planning")):
        for module in graph:
            if module.startswith(f"splitrank.{wing}"):
                assert not [one for one in reached_from(graph, module) if one.startswith(f"splitrank.{other}")], module


def test_a_clients_worker_knows_no_run_loop():
    graph = module_graph() | {"splitrank": set()}
    reached = reached_from(graph, "splitrank.federation.flower.worker")
    assert "splitrank.federation.flower.prepared" in reached
    assert not reached & {"splitrank.federation.loop", "splitrank.federation.rounds"}


@pytest.mark.parametrize("module", ["splitrank.planning.plan", "splitrank.planning.costs.table", "splitrank.traits"])
def test_the_planner_loads_no_torch(module):
    assert run_python(f"import {module}; " + LOADED).strip() == ""


PACKAGES = sorted(
    file
    for file in SOURCE.rglob("__init__.py")
    if file.parent != SOURCE and TEMPLATES not in file.parents  # the package's own lists its names
)


@pytest.mark.parametrize("file", PACKAGES, ids=lambda file: str(file.parent.relative_to(SOURCE)))
def test_a_package_says_what_it_is_and_lists_its_rooms(file):
    sentence, _, rooms = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")
    assert sentence.endswith(".")
    assert ". " not in sentence
    named = set(re.findall(r"``(\w+)``", rooms))
    there = {one.stem for one in file.parent.iterdir() if one.suffix == ".py" or (one / "__init__.py").is_file()}
    there -= {"__init__"}
    assert there <= named, f"{file.parent.name} does not list {sorted(there - named)}"


# ---- the tables of variants


def literal(table: str, key: str) -> set[str]:
    """The values that a setting may have."""
    return set(get_args(Config.model_fields[table].annotation.model_fields[key].annotation))


def test_every_adapter_method_has_its_line_in_every_table():
    methods = literal("adapter", "method")
    assert set(METHODS) == set(COSTS) == set(METHOD_TRAITS) == methods
    assert {kind.name for kind in METHODS.values()} == methods


def test_every_aggregation_rule_has_its_line_in_every_table():
    rules = literal("federation", "aggregation")
    assert set(RULES) == set(RULE_TRAITS) == rules
    assert all(rule.name == name and rule.traits is RULE_TRAITS[name] for name, rule in RULES.items())


def test_every_server_optimizer_is_a_setting():
    assert {"none", *SERVER_OPTIMIZERS} == literal("federation", "server_optimizer")
    assert all(kind().name == name for name, kind in SERVER_OPTIMIZERS.items())


def test_every_solver_is_a_setting():
    assert set(OPTIMAL_SOLVERS) < literal("planner", "method")
    assert set(get_args(Method)) == literal("planner", "method")


def test_every_export_has_its_folder():
    assert {traits.export for traits in METHOD_TRAITS.values()} <= set(EXPORTS)


@pytest.mark.parametrize("name", METHOD_TRAITS)
def test_a_method_takes_what_the_settings_pass(name):
    """Every field of its dataclass is passed, and what costs are told under the same name is the same."""
    config = load_config("offline", [f"adapter.method={name}", "workload.model=flops"])
    method, part = method_of(config), trained_part(config, encoder_shape(config))
    shared = {field.name for field in fields(method)} & {field.name for field in fields(part)}
    wanted = {"linears"} if "target_modules" in METHOD_TRAITS[name].settings else set()
    assert shared == wanted | ({"gate"} if name == "prefix" else set())
    assert all(getattr(method, field) == getattr(part, field) for field in shared)
