"""Promise: what the server plans with is what machines and links were in the last rounds."""

from __future__ import annotations

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


@pytest.mark.parametrize("where", ["server", "client"])
def test_a_machine_timed_while_it_was_busy_is_soon_planned_as_it_is(tiny_config, monkeypatch, where):
    """And meanwhile it does not rest: it works at full clock."""

    def busy(*args):
        found = measured_machine(*args)
        return replace(found, seconds_per_sample=30 * found.seconds_per_sample)

    monkeypatch.setattr(worker, "measured_machine", busy)
    monkeypatch.setattr(nodes, "Post", Post)
    policy = ['planner.frequency_policy="least-latency"', f'planner.where="{where}"']
    config = load_config(str(tiny_config), [*MEASURED, *policy])
    clients = nodes.connect(None, config, load_data(config), tell_data=True)
    prepared = clients.post.worker._prepared
    timed_s = [prepared.machines[client].machine.seconds_per_sample for client in range(3)]
    _, record = run_round(clients.model.initial_state(), clients, config)
    for client, told in enumerate(record.clients):
        assert told["wall_compute_s"] < timed_s[client] * told["samples"] / 5
        assert prepared.machines[client].machine.seconds_per_sample < timed_s[client] / 5
    if where == "server":
        known_s = clients._measured().seconds_per_sample
        assert all(known_s[client] < timed_s[client] / 5 for client in range(3))
        assert clients.problem(2).num_clients == 3
    else:
        assert all(clients.known[client].machine is None for client in range(3))
    clients.post.worker.close()
    clients.close()
