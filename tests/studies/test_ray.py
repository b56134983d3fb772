"""Promise: a sweep on a Ray cluster gives what it gives here, also when a worker is lost on the way."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest

from splitrank.studies.study import run_sweep
from splitrank.studies.sweep import read_sweep

pytestmark = [
    pytest.mark.extras,
    # Ray leaves sockets and processes to the garbage collector and speaks of its own future.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def kill_one_worker() -> None:
    """Kill the first Ray worker that has begun to run a trial."""
    until_s = time.monotonic() + 300
    while time.monotonic() < until_s:
        for process in psutil.Process().children(recursive=True):
            try:
                if "studies.trial" in " ".join(process.cmdline()):
                    os.kill(process.parent().pid, signal.SIGKILL)
                    process.kill()
                    return
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    raise AssertionError("no worker began")


def test_the_same_table_even_if_a_worker_is_lost(tiny_sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    trials = read_sweep(tiny_sweep)
    list(run_sweep(trials, tmp_path / "here", "tiny", jobs=2, ray_address=None))
    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    said = list(run_sweep(trials, tmp_path / "there", "tiny", jobs=1, ray_address="local"))
    killer.join()
    assert len(said) == 2
    assert (tmp_path / "here" / "results.csv").read_bytes() == (tmp_path / "there" / "results.csv").read_bytes()
    for trial in trials:
        assert (tmp_path / "there" / "members" / trial.name / "adapter").is_dir()
        assert (tmp_path / "there" / "members" / f"{trial.name}.log").read_text()
