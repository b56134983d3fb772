"""Promise: what the server plans with is what machines and links were in the last rounds."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from splitrank import load_config, load_data
from splitrank.federation.flower import nodes, worker
from splitrank.federation.flower.machine import measured_machine
from splitrank.federation.flower.payload import NO_FLOATS
from splitrank.federation.flower.post import Reply
from splitrank.federation.rounds import run_round

pytestmark = pytest.mark.extras

MEASURED = [
    'workload.model="measured"',
    "client.capacitance=1e-27",
    "budget.latency_s=600",
    "budget.energy_j=1e6",
    "run.threads=1",
]


class Post:
    """A post that has workers of this process answer, node n standing for client n."""

    def __init__(self, grid: None) -> None:
        self.asked: set[int] = set()
        self.open: list[tuple[int, Reply]] = []
        self.worker = worker.Worker(None)

    def nodes(self):
        return [0, 1, 2]

    def ask(self, requests, message_type, *, group):
        self.open = [(node, self.answer(node, *request)) for node, request in requests.items()]
        self.asked.update(requests)

    def answers(self):
        while self.open:
            yield self.open.pop()

    def exchange(self, requests, message_type, *, group, wait_s):
        return [self.answer(node, *request) for node, request in requests]

    def answer(self, node, header, floats=NO_FLOATS):
        return Reply(*self.worker.answer({**header, "client": node}, floats), after_s=1.0)


@pytest.fixture
def connected(tiny_config, monkeypatch):
    """A function from further settings to clients that have joined."""
    monkeypatch.setattr(nodes, "Post", Post)
    made = []

    def connect(*settings: str) -> nodes.NodeClients:
        config = load_config(str(tiny_config), [*MEASURED, *settings])
        made.append(nodes.connect(None, config, load_data(config), tell_data=True))
        return made[-1]

    yield connect
    for clients in made:
        clients.post.worker.close()
        clients.close()


def test_training_at_a_set_clock_is_counted_at_full_clock(connected, monkeypatch):
    """It takes as long as it takes there, without rests."""
    monkeypatch.setattr(worker, "at_frequency", lambda frequency_hz: nullcontext(True))
    clients = connected("budget.latency_s=20")
    before = dict(clients.known)
    _, record = run_round(clients.model.initial_state(), clients, clients.model.config)
    for client, told in enumerate(record.clients):
        machine = before[client].machine
        share = told["frequency_hz"] / machine.reference_frequency_hz
        assert share < 0.5
        assert told["wall_compute_s"] < told["compute_s"] / 2
        full_clock_s = told["samples"] * (
            machine.seconds_per_sample + machine.seconds_per_sample_per_rank * told["rank"]
        )
        (slowness,) = clients.post.worker._prepared.machines[client].slowness
        assert slowness * full_clock_s < told["wall_compute_s"] * share


@pytest.mark.parametrize("where", ["server", "client"])
def test_a_machine_timed_while_it_was_busy_is_soon_planned_as_it_is(connected, monkeypatch, where):
    """And meanwhile it does not rest: it works at full clock."""

    def busy(*args):
        found = measured_machine(*args)
        return replace(found, seconds_per_sample=30 * found.seconds_per_sample)

    monkeypatch.setattr(worker, "measured_machine", busy)
    clients = connected('planner.frequency_policy="least-latency"', f'planner.where="{where}"')
    estimates = clients.post.worker._prepared.machines
    timed_s = [estimates[client].machine.seconds_per_sample for client in range(3)]
    _, record = run_round(clients.model.initial_state(), clients, clients.model.config)
    for client, told in enumerate(record.clients):
        assert told["wall_compute_s"] < timed_s[client] * told["samples"] / 5
        assert estimates[client].machine.seconds_per_sample < timed_s[client] / 5
        known = clients.known[client].machine
        assert known == (estimates[client].machine if where == "server" else None)
