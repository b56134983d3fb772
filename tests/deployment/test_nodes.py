"""Promise: what the server plans with is what machines and links were in the last rounds."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from splitrank import load_config, load_data
from splitrank.federation.flower import flower_clients, local_client, prepared
from splitrank.federation.flower.device_profile import profile_device
from splitrank.federation.rounds import run_round
from tests.flower_in_process import Messenger

pytestmark = pytest.mark.extras

MEASURED = [
    'workload.model="measured"',
    "client.capacitance=1e-27",
    "budget.latency_s=600",
    "budget.energy_j=1e6",
    "run.threads=1",
]


@pytest.fixture
def connected(tiny_config, monkeypatch):
    """A function from further settings to clients that have joined."""
    monkeypatch.setattr(flower_clients, "Messenger", Messenger)
    made = []

    def connect(*settings: str) -> flower_clients.FlowerClients:
        config = load_config(str(tiny_config), [*MEASURED, *settings])
        made.append(flower_clients.connect(None, config, load_data(config), tell_data=True, run_id="0" * 32))
        return made[-1]

    yield connect
    for clients in made:
        clients.messenger.worker.close()
        clients.close()


def test_training_at_a_set_clock_is_counted_at_full_clock(connected, monkeypatch):
    """It takes as long as it takes there, without rests."""
    monkeypatch.setattr(local_client, "at_frequency", lambda frequency_hz: nullcontext(True))
    clients = connected("budget.latency_s=20")
    before = dict(clients.roster.known)
    _, record = run_round(clients.model.initial_state(), clients)
    for client, told in enumerate(record.clients):
        machine = before[client].machine
        share = told.frequency_hz / machine.reference_frequency_hz
        assert share < 0.5
        assert told.wall_compute_s < told.compute_s / 2
        full_clock_s = told.samples * (machine.seconds_per_sample + machine.seconds_per_sample_per_rank * told.rank)
        (slowness,) = clients.messenger.worker._prepared.machines[client].slowness
        assert slowness * full_clock_s < told.wall_compute_s * share


@pytest.mark.parametrize("where", ["server", "client"])
def test_a_machine_timed_while_it_was_busy_is_soon_planned_as_it_is(connected, monkeypatch, where):
    """And meanwhile it does not rest: it works at full clock."""

    def busy(*args):
        found = profile_device(*args)
        return replace(found, seconds_per_sample=30 * found.seconds_per_sample)

    monkeypatch.setattr(prepared, "profile_device", busy)
    clients = connected('planner.frequency_policy="least-latency"', f'planner.where="{where}"')
    estimates = clients.messenger.worker._prepared.machines
    timed_s = [estimates[client].machine.seconds_per_sample for client in range(3)]
    _, record = run_round(clients.model.initial_state(), clients)
    for client, told in enumerate(record.clients):
        assert told.wall_compute_s < timed_s[client] * told.samples / 5
        assert estimates[client].machine.seconds_per_sample < timed_s[client] / 5
        known = clients.roster.known[client].machine
        assert known == (estimates[client].machine if where == "server" else None)


def test_without_a_time_limit_a_round_waits_as_long_as_the_timeout(connected, monkeypatch):
    clients = connected("budget.latency_s=inf", "budget.energy_j=inf", "federation.timeout_s=77", "adapter.rank=2")
    waited, exchange = [], clients.messenger.exchange

    def watched(requests, message_type, *, group, wait_s):
        waited.append(wait_s)
        return exchange(requests, message_type, group=group, wait_s=wait_s)

    monkeypatch.setattr(clients.messenger, "exchange", watched)
    _, record = run_round(clients.model.initial_state(), clients)
    assert waited == [77.0]
    for told in record.clients:
        assert not told.dropped
        assert told.frequency_hz == told.frequency_range_hz[1]
