"""Promise: an import only points downwards, and what needs no torch loads none."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import splitrank

SOURCE = Path(splitrank.__file__).parent
GROUND = {"config", "errors", "files", "placement", "progress", "records", "streams", "units"}
ALLOWED = {
    "planning": {"planning", *GROUND} - {"config"},  # kernels take arrays and small dataclasses
    "learning": {"learning", *GROUND} - {"config"},
    "federation": {"federation", "planning", "learning", *GROUND},
    "studies": {"studies", "federation", "planning", "learning", *GROUND},
    "deployment": {"deployment", "federation", *GROUND},
    "cli": {"studies", "deployment", "federation", "learning", *GROUND},
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
