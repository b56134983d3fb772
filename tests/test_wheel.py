"""Promise: the wheel holds all that the package needs; installed without the source tree it runs the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "splitrank"
PRESETS = sorted(file.stem for file in (SOURCE / "presets").glob("*.toml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], ROOT)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel in it; all that it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    call([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    call([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # In a .pth file they are searched last, and .pth files in them, an editable splitrank's too, are not read.
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python


@pytest.fixture
def splitrank(python: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that runs a command of the installed package from an empty folder and returns what it prints."""
    here = tmp_path / "here"
    here.mkdir()

    def run(*arguments: str) -> str:
        return call([str(python.parent / "splitrank"), *arguments], here)

    return run


def call(command: list[str], folder: Path) -> str:
    """Run a program in a folder, without this one's Python path and with a home of its own; return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "XDG"))}
    done = subprocess.run(command, cwd=folder, env={**kept, "HOME": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_in(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if "__pycache__" not in name}


def test_it_holds_every_file_of_the_package_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert {name for name in names if ".dist-info/" not in name} == {f"splitrank/{name}" for name in files_in(SOURCE)}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_installed_it_does_not_see_the_source(python, tmp_path):
    code = "import json, splitrank, sys; print(json.dumps([splitrank.__file__, sys.path]))"
    file, path = json.loads(call([str(python), "-c", code], tmp_path))
    assert Path(file).is_relative_to(python.parents[1])
    assert str(SOURCE.parent) not in path


def test_commands_that_need_files_of_the_package(splitrank, tmp_path):
    assert "Usage: splitrank" in splitrank("--help")
    assert "rank" in splitrank("plan", "paper")
    assert "budget.latency_s" in splitrank("config", "explain", "budget")
    for preset in PRESETS:
        assert "all settings are in order" in splitrank("config", "check", preset)
    splitrank("deploy", "init", "new", "--clients", "1")
    written = {name.replace("client-0/", "client/") for name in files_in(tmp_path / "here" / "new")}
    of_the_supervisor = {"client-proxy/nginx.conf"}  # filled in when a client starts
    assert written == files_in(SOURCE / "deployment" / "templates") - of_the_supervisor


@pytest.mark.real
def test_the_demo_from_an_empty_folder(splitrank, tmp_path):
    small = ["federation.rounds=1", "data.train_rows=120", "data.test_rows=60"]
    splitrank("run", "offline", *[word for setting in small for word in ("--set", setting)])
    folder = tmp_path / "here" / "runs" / "offline-1"
    report = folder / "report.html"
    page = report.read_text()
    report.unlink()
    splitrank("report", "runs/offline-1")
    assert report.read_text() == page
    label, probability, _ = splitrank("predict", "runs/offline-1", "Return the roots of a polynomial.").split("\t")
    assert label in ("stdlib", "scipy", "torch", "transformers")
    assert 0.25 <= float(probability) <= 1
