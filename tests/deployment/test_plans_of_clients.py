"""Promise: with ``planner.where = "client"`` the ranks are those that the server would have planned, and the server
gets to know nothing but them."""

from __future__ import annotations

import json

import pytest

from tests.deployment.flower_processes import simulated
from tests.deployment.test_same_rounds import in_process, settings
from tests.records import records_of

__all__ = ["in_process", "settings"]

pytestmark = pytest.mark.deployment
PRIVATE = ("frequency_hz", "compute_s", "latency_s", "energy_j")


def test_same_ranks_and_nothing_else(in_process, settings, tiny_texts, tmp_path):
    config = tmp_path / "own.toml"
    config.write_text(settings + f'\n[planner]\nwhere = "client"\n\n[data]\npath = "{tiny_texts}"\n')
    rounds = json.loads(json.dumps(simulated(tmp_path, config, 3)))
    assert [record["rank"] for record in rounds] == [record["rank"] for record in in_process]
    assert [record["accuracy"] for record in rounds] == [record["accuracy"] for record in in_process]
    for record, other in zip(rounds[1:], in_process[1:], strict=True):
        for client, planned in zip(record["clients"], other["clients"], strict=True):
            assert client["max_rank"] == planned["max_rank"]
            assert all(client[name] is None for name in PRIVATE)
            assert client["binding"] == "private"
    assert not [name for record in records_of(tmp_path / "simulated") for name in record if name in PRIVATE]
