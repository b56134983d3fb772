"""Promise: a round survives clients that fail, lie, die or come back, and a run its server; the record tells, and what
is learnt is what the same clients would have learnt in one process."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from splitrank.federation.flower.client_config import read_client_config
from splitrank.federation.flower.supervisor import commands
from tests.deployment import hostile_worker, slow_worker
from tests.deployment.flower_processes import (
    Deployment,
    deployment,
    server_settings,
    wait_for,
)
from tests.deployment.hostile_worker import SPOILT_ROUNDS
from tests.deployment.in_process import in_process
from tests.deployment.slow_worker import SLOW_ROUND
from tests.records import records_of, without_wall

pytestmark = pytest.mark.field

# What the record must say of the hostile client's answers.
REJECTIONS = (
    "an update must be finite, got NaN or infinity",
    "numbers, got",
    "an update may move by",
    "samples must be 1 to the 64 registered, got 640",
    "round must be 6, got 5",
    "header must be JSON, its whole numbers of 64 bits at most",
    "out of memory",
    "EOFError: the other side closed the connection",
)


def missed(lines: list[dict], client: int) -> dict[int, str]:
    """Round → why the client's update is missing."""
    told = {line["round"]: line["clients"][client] for line in lines[1:]}
    assert all(entry["dropped"] for entry in told.values() if "missed" in entry)
    return {round: entry["missed"] for round, entry in told.items() if "missed" in entry}


def away(lines: list[dict], client: int) -> list[int]:
    """Rounds that the client was not asked to take part in."""
    told = {line["round"]: line["clients"][client] for line in lines[1:]}
    return [round for round, entry in told.items() if entry["dropped"] and "missed" not in entry]


def start_with(worker: ModuleType, deployed: Deployment, client: int) -> None:
    """A client whose worker is another one."""
    file = deployed.folder / f"client-{client}" / "client.toml"
    own = commands(read_client_config(file), file)
    own["worker"] = [sys.executable, str(worker.__file__), str(file)]
    for name, command in own.items():
        deployed.running.start(f"client-{client}-{name}", *command)


def test_hostile_answers(tiny_settings, tiny_texts, tmp_path):
    settings = server_settings(tiny_settings, rounds=SPOILT_ROUNDS.stop, timeout_s=60)
    with deployment(tmp_path / "flower", settings, tiny_texts) as deployed:
        deployed.start_server()
        deployed.start_client(0)
        deployed.start_client(1)
        start_with(hostile_worker, deployed, 2)
        deployed.wait_for_nodes(60)
        deployed.start_run()
        deployed.wait_until_finished(180)
        lines = without_wall(records_of(deployed.run_folder))
    reasons = missed(lines, 2)
    assert list(reasons) == list(SPOILT_ROUNDS)
    for reason, expected in zip(reasons.values(), REJECTIONS, strict=True):
        assert expected in reason
    assert not missed(lines, 0) | missed(lines, 1)
    assert lines == in_process(settings, tiny_texts, tmp_path / "in-process", lines)


def test_a_client_ten_times_as_slow_as_planned_is_left_out(tiny_settings, tiny_texts, tmp_path):
    """The least-energy policy spreads its training over the latency budget, so that it cannot keep that."""
    latency_s, grace_s = 12.0, 2.0
    settings = server_settings(tiny_settings, rounds=200, num_clients=2, grace_s=grace_s) + "[adapter]\nrank = 4\n"
    for before, after in (("latency_s = 0.3", f"latency_s = {latency_s}"), ("energy_j = 0.12", "energy_j = 1e9")):
        settings = settings.replace(before, after)
    measured = settings + '[workload]\nmodel = "measured"\n'
    with deployment(tmp_path / "flower", measured, tiny_texts, num_clients=2) as deployed:
        deployed.start_server()
        deployed.start_client(0)
        start_with(slow_worker, deployed, 1)
        deployed.wait_for_nodes(60)
        deployed.start_run()
        deployed.wait_for_rounds(SLOW_ROUND + 1, 240)
        lines = records_of(deployed.run_folder)
    assert list(missed(lines, 1)) == [SLOW_ROUND]
    assert missed(lines, 1)[SLOW_ROUND].startswith(("no answer within 14 s", "the round's time was over"))
    assert not missed(lines, 0)
    assert lines[SLOW_ROUND]["wall_s"] < latency_s + grace_s + 3.0
    expected = in_process(settings, tiny_texts, tmp_path / "in-process", lines)
    assert [line["accuracy"] for line in lines] == [line["accuracy"] for line in expected]
    trained = [[client.get("train_loss") for client in line["clients"]] for line in lines]
    assert trained == [[client.get("train_loss") for client in line["clients"]] for line in expected]


def test_a_client_that_dies_or_leaves_comes_back(tiny_settings, tiny_texts, tmp_path):
    settings = server_settings(tiny_settings, rounds=200, min_clients=2, timeout_s=30)
    with deployment(tmp_path / "flower", settings, tiny_texts) as deployed:
        deployed.start()
        deployed.wait_for_nodes(60)
        deployed.start_run()

        def takes_part_after(round: int) -> bool:
            return any(not line["clients"][2]["dropped"] for line in records_of(deployed.run_folder)[round + 1 :])

        # Its SuperNode dies in mid-round; its supervisor starts another.
        wait_for(lambda: "Round 2: training" in deployed.running.log("client-2"), 120, "round 2 has begun", 0.01)
        assert deployed.kill("client-2", "flower-supernode") == 1
        wait_for(lambda: takes_part_after(2), 150, "client 2 is back", 1.0)

        # It leaves, and comes late.
        left_after = deployed.rounds()
        deployed.stop("client-2")
        wait_for(
            lambda: away(records_of(deployed.run_folder), 2)[-1:] > [left_after], 60, "a round went without it", 1.0
        )
        came_after = deployed.rounds()
        deployed.start_client(2)
        wait_for(lambda: takes_part_after(came_after), 60, "client 2 is back again", 1.0)
        lines = without_wall(records_of(deployed.run_folder))
    assert 2 in missed(lines, 2)
    assert not missed(lines, 0) | missed(lines, 1)
    assert lines == in_process(settings, tiny_texts, tmp_path / "in-process", lines)


def test_a_server_that_dies_goes_on(tiny_settings, tiny_texts, tmp_path):
    settings = server_settings(tiny_settings, rounds=6, min_clients=3, timeout_s=120)
    expected = in_process(settings, tiny_texts, tmp_path / "in-process")
    with deployment(tmp_path / "flower", settings, tiny_texts) as deployed:
        deployed.start()
        deployed.start_run()
        deployed.wait_for_rounds(2, 90)
        deployed.kill("server")
        deployed.kill("run")
        assert 2 <= deployed.rounds() < 6
        deployed.start_server()
        deployed.start_run()
        deployed.wait_until_finished(150)
        assert without_wall(records_of(deployed.run_folder)) == expected
