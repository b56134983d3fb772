"""Promise: docs/paper.md names what exists, covers the whole paper, and prints what it says it prints."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from splitrank.cli import app

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "docs" / "paper.md"
DOCUMENTS = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]\n]+)\]\(([^)\s]+)\)")


def relative_links(document: Path) -> list[tuple[str, Path]]:
    """Text and target of every link that does not leave the repository, code blocks left out."""
    prose = FENCE.sub("", document.read_text(encoding="utf-8"))
    links = [(text, target.partition("#")[0]) for text, target in LINK.findall(prose)]
    return [(text, document.parent / target) for text, target in links if target and ":" not in target]


@cache
def names_in_python(file: Path) -> set[str]:
    """Dotted names of what a module defines, down to the members of its classes: ``stem.Class.member``."""

    def names(body: list[ast.stmt], prefix: str) -> set[str]:
        found = set()
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(f"{prefix}.{node.name}")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {f"{prefix}.{target.id}" for target in targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.ClassDef):
                found |= names(node.body, f"{prefix}.{node.name}")
        return found

    return names(ast.parse(file.read_text(encoding="utf-8")).body, file.stem)


@cache
def names_in_toml(file: Path) -> set[str]:
    """Dotted keys of a preset."""
    tables: dict[str, dict[str, Any]] = tomllib.loads(file.read_text(encoding="utf-8"))
    return {f"{table}.{key}" for table, content in tables.items() for key in content}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_to_files(document: str) -> None:
    assert not [target for _, target in relative_links(ROOT / document) if not target.exists()]


def test_names_in_links_exist_in_the_linked_file() -> None:
    """A link whose text is code names ``stem.name`` in a Python file, ``table.key`` in a preset."""
    wrong, checked = [], 0
    for text, target in relative_links(PAPER):
        readers = {".py": names_in_python, ".toml": names_in_toml}
        if not (text.startswith("`") and "." in text and target.suffix in readers):
            continue
        checked += 1
        if text.strip("`") not in readers[target.suffix](target):
            wrong.append(f"{text} in {target.name}")
    assert not wrong
    assert checked > 50


def first_cells(heading: str, level: str) -> list[str]:
    """First column of the tables below a heading, up to the next heading of any level."""
    section = PAPER.read_text(encoding="utf-8").partition(f"\n{level} {heading}\n")[2]
    assert section, f"no heading {heading}"
    rows = [line for line in re.split(r"\n#+ ", section)[0].splitlines() if line.startswith("|")]
    return [row.split("|")[1] for row in rows]


@pytest.mark.parametrize(
    ("heading", "level", "last"), [("Equation map", "##", 23), ("Algorithm 1", "###", 15)], ids=["equations", "lines"]
)
def test_every_equation_and_every_line_of_algorithm_1_has_its_row(heading: str, level: str, last: int) -> None:
    numbers = [int(number) for cell in first_cells(heading, level) for number in re.findall(r"\((\d+)\)", cell)]
    assert numbers == list(range(1, last + 1))


def test_references_to_misprints_and_gaps_lead_to_a_row() -> None:
    text = PAPER.read_text(encoding="utf-8")
    rows = set(first_cells("Misprints and gaps", "##"))
    known = {cell.strip() for cell in rows if re.fullmatch(r" [MG]\d+ ", cell)}
    assert known >= {"M1", "M15", "G1", "G10"}
    assert set(re.findall(r"\b[MG]\d+\b", FENCE.sub("", text))) <= known


def test_snippets_print_what_stands_below_them() -> None:
    """In order and in one interpreter, as the document says."""
    blocks = FENCE.findall(PAPER.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {}
    ran = 0
    for number, (language, code) in enumerate(blocks):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"block {number} of {PAPER.name}", "exec"), namespace)
        language_below, stated = blocks[number + 1]
        assert language_below == "", f"block {number} has no output below it"
        assert printed.getvalue() == stated, f"block {number}"
        ran += 1
    assert ran >= 6


def test_commands_print_what_stands_below_them() -> None:
    ran = 0
    for _, block in FENCE.findall(PAPER.read_text(encoding="utf-8")):
        first, _, stated = block.partition("\n")
        if not first.startswith("$ "):
            continue
        program, *arguments = shlex.split(first.removeprefix("$ "))
        assert program == "splitrank"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0
        assert result.stdout == stated, first
        ran += 1
    assert ran == 2
