"""Promise: the examples run as they stand, without a network, are short, and print what they are about."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed(name: str) -> list[str]:
    """Run an example as a reader would; return the lines that it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Its own time, whatever else the machine does: a minute on one idle core, at most.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    return done.stdout.splitlines()


def test_all_examples_are_run_here_and_short() -> None:
    files = {file.name: file.read_text() for file in EXAMPLES.glob("*.py")}
    assert set(files) == {"plan_a_fleet.py", "own_rule.py", "compare_two_methods.py"}
    for name, text in files.items():
        assert len(text.splitlines()) < 60, name
        assert f"    python examples/{name}\n" in text


def test_plan_a_fleet() -> None:
    status, _, *rows, lacks, own = printed("plan_a_fleet.py")
    clients = [re.split(r"\s{2,}|(?<=\d) (?=\d)", row.strip()) for row in rows]
    assert [int(client[0]) for client in clients] == list(range(8))
    max_ranks = [int(client[3]) for client in clients]
    assert {client[4] for client in clients} == {"energy", "frequency", "latency"}
    assert max_ranks[-1] == 0
    assert clients[-1][5] == "sits out"
    assert status == f"optimal: rank {min(max_ranks[:-1])} for all who can take part"
    assert all(float(client[6]) == 300.0 and 0 < float(client[7]) <= 50.0 for client in clients[:-1])
    needed, available = map(int, re.findall(r"client 7 lacks latency: rank 1 takes (\d+), it has (\d+)", lacks)[0])
    assert needed > available == 300
    assert own.split(": ")[1].split() == [str(rank) for rank in max_ranks]


def test_plan_a_fleet_loads_no_torch() -> None:
    code = f"import runpy, sys; runpy.run_path({str(EXAMPLES / 'plan_a_fleet.py')!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.real
def test_own_rule() -> None:
    before, *rounds = printed("own_rule.py")
    accuracies = [float(line.rpartition(" ")[2].rstrip("%")) for line in (before, *rounds)]
    assert len(rounds) == 3
    assert all(re.fullmatch(r"round \d: rank 16, accuracy \d\d\.\d%", line) for line in rounds)
    assert accuracies[0] < 40
    assert accuracies[-1] > accuracies[0] + 25


@pytest.mark.real
def test_compare_two_methods() -> None:
    header, *rows = printed("compare_two_methods.py")
    assert header.split() == ["method", "accuracy", "Mbit", "up", "seconds"]
    found = {row.split()[0]: row.split()[1:] for row in rows}
    assert list(found) == ["lora", "dora"]
    head = 384 * 384 + 384 + 384 * 4 + 4
    factors, magnitudes = 3 * 8 * (4 * (384 + 384) + 2 * (1536 + 384)), 3 * (5 * 384 + 1536)
    for method, numbers in {"lora": head + factors, "dora": head + factors + magnitudes}.items():
        accuracy, megabits, seconds = found[method]
        assert float(accuracy.rstrip("%")) > 50
        assert megabits == f"{32 * numbers * 3 * 2 / 1e6:.2f}"
        assert float(seconds) > 0
