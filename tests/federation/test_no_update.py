"""Promise: a round survives clients that give no update, and says who they were and why."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch

from splitrank import load_config, load_data, make_clients, run
from splitrank.errors import ConfigError, RunError
from splitrank.federation.clients import NoUpdate
from splitrank.federation.in_process import InProcessClients
from splitrank.federation.loop import make_clients_of
from splitrank.federation.rounds import run_round
from splitrank.learning.client import Throttle


class _Watched(InProcessClients):
    """Clients of whom some miss every round."""

    missing: tuple[int, ...] = ()

    def train(self, starts, plan, state):
        updates = dict(super().train(starts, plan, state))
        return {
            client: NoUpdate("gone", {"wall_latency_s": 1.5}) if client in self.missing else update
            for client, update in updates.items()
        }


def watched(config, *missing):
    clients = make_clients_of(config)
    known = _Watched(**vars(clients))
    object.__setattr__(known, "missing", missing)
    return known


def test_the_others_are_averaged(tiny_config, tmp_path):
    config = load_config(str(tiny_config))
    list(run(config, tmp_path / "run", connect=lambda settings: watched(settings, 1)))
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    for record in records[1:]:
        client = record["clients"][1]
        assert client["dropped"] is True
        assert (client["missed"], client["wall_latency_s"], client["uplink_bits"]) == ("gone", 1.5, 0.0)
        assert client["downlink_bits"] > 0
        assert not any(other["dropped"] for other in (record["clients"][0], record["clients"][2]))
    assert records[-1]["accuracy"] != records[0]["accuracy"]


def test_too_few_leave_the_model_as_it_is(tiny_config):
    config = load_config(str(tiny_config), ["federation.min_clients=3"])
    clients = watched(config, 0)
    state = clients.initial_state()
    after, record = run_round(state, clients)
    clients.close()
    assert after.round == 1
    assert after.adapter is state.adapter
    assert record.clients[0].missed == "gone"
    assert "needs 3 updates (federation.min_clients), got 2" in record.clients[1].missed
    assert all(client.dropped for client in record.clients)
    assert record.factor_averaging_error is None


def test_more_clients_than_there_are_cannot_be_needed(tiny_config):
    with pytest.raises(ConfigError, match=r"min_clients must be at most federation\.num_clients = 3, got 4"):
        load_config(str(tiny_config), ["federation.min_clients=4"])


def test_pace_takes_time_and_changes_nothing(tiny_config):
    config = load_config(str(tiny_config))
    clients = make_clients(config, load_data(config))
    start = clients.initial_state()

    def trained(throttle: Throttle):
        rows, labels = clients.train_rows[0], clients.data.train_labels
        task = clients.model.task(start.adapter, start, clients.rule, 0)
        return clients.model.train(task, clients.train_outputs, rows, labels, throttle=throttle)

    quick = trained(Throttle())
    begun_s = time.monotonic()
    slow = trained(Throttle(slowdown=1e3, planned_s=1.0))
    assert 1.0 <= time.monotonic() - begun_s < 3.0
    ours, theirs = quick.adapter.tensors, slow.adapter.tensors
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(RunError, match="given up"):
        trained(Throttle(stop_at_s=time.monotonic()))
    clients.close()


def test_a_pace_that_is_ahead_rests_no_longer_than_its_clock_asks():
    """A machine that is quicker than its plan is as much quicker at a lower clock; one at full clock never rests."""
    for slowdown, at_least_s, at_most_s in ((1.0, 0.0, 0.02), (3.0, 0.25, 0.5)):
        throttle = Throttle(slowdown=slowdown, planned_s=60.0)
        begun_s = time.monotonic()
        for step in range(5):
            time.sleep(0.03)
            throttle.wait(begun_s, (step + 1) / 5)
        assert at_least_s <= throttle.rested_s <= at_most_s
        assert time.monotonic() - begun_s - throttle.rested_s < 0.3


def test_updates_in_any_order_give_the_same_model(tiny_config):
    config = load_config(str(tiny_config))
    clients = make_clients(config, load_data(config))
    state = clients.initial_state()

    class Backwards(InProcessClients):
        def train(self, starts, plan, state):
            return dict(reversed(super().train(starts, plan, state).items()))

    one, _ = run_round(state, clients)
    other, _ = run_round(replace(state), Backwards(**vars(clients)))
    clients.close()
    ours, theirs = one.adapter.tensors, other.adapter.tensors
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
