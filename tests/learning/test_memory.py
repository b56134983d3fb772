"""Promise: a process keeps freed memory within a round, and gives it back at the end of one."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from splitrank import load_config
from splitrank.federation import model as federation_model
from splitrank.federation.loop import make_clients_of
from splitrank.federation.rounds import run_round

PROBE = """
from pathlib import Path
from splitrank.learning.memory import keep_freed_memory, return_freed_memory

def resident_mb():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024

keep_freed_memory()
before = resident_mb()
large, small = [], []
for _ in range(400):
    large.append(bytearray(512 * 1024))
    small.append(bytearray(4096))  # between two large ones, so that the top of the heap is never free
full = resident_mb()
del large
kept = resident_mb()
return_freed_memory()
print(full - before, kept - before, resident_mb() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_stays_until_it_is_given_back():
    ended = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    full, kept, returned = map(float, ended.stdout.split())
    assert full > 190
    assert kept > 0.95 * full
    assert returned < 0.1 * full


def test_every_round_gives_its_memory_back(tiny_config, monkeypatch):
    calls = []
    monkeypatch.setattr(federation_model, "return_freed_memory", lambda: calls.append(None))
    clients = make_clients_of(load_config(str(tiny_config)))
    state = clients.initial_state()
    for _ in range(2):
        state, _ = run_round(state, clients)
    clients.close()
    assert len(calls) == 2
