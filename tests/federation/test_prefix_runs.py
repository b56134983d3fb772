"""Promise: a prefix has one length for a whole run, which the planner chooses in the first round that trains."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from splitrank import load_config, load_data, make_clients, predict, run
from splitrank.errors import ConfigError
from tests.records import equal_records

SETTINGS = [
    "model.precision=fp32",
    'workload.model="flops"',
    "client.flops_per_cycle=4.0",
    "federation.rounds=4",
    'radio.fading="rayleigh"',
]
PREFIX = [*SETTINGS, 'adapter.method="prefix"']


@pytest.fixture
def config_of(tiny_config):
    return lambda *settings: load_config(str(tiny_config), list(settings))


def test_the_first_rounds_choice_stays(config_of, tmp_path):
    planned = [record.rank for record in run(config_of(*SETTINGS), tmp_path / "lora")][1:]
    assert len(set(planned)) > 1  # the channels ask for other ranks in other rounds
    records = list(run(config_of(*PREFIX), tmp_path / "prefix"))
    (tokens,) = {client.rank for record in records[1:] for client in record.clients if not client.dropped}
    assert tokens > 1
    list(islice(run(config_of(*PREFIX), tmp_path / "broken"), 3))
    list(run(config_of(*PREFIX), tmp_path / "broken", resume=True))
    assert equal_records(tmp_path / "broken") == equal_records(tmp_path / "prefix")


def test_it_is_a_floor_and_a_ceiling_once_something_is_trained(config_of):
    config = config_of(*PREFIX)
    clients = make_clients(config, load_data(config))
    state = clients.initial_state()
    free = clients.problem(state)
    assert free.rank_floor.max() == 1
    assert free.rank_ceiling.min() > 5
    start = clients.model.method.resize(state.adapter, 5, distribution="svd", seed=0, round=1)
    settled = clients.problem(type(state)(1, 1, start))
    assert np.array_equal([settled.rank_floor, settled.rank_ceiling], np.full((2, 3), 5))
    clients.close()


def test_gates_are_a_setting_of_prefixes_and_travel_with_the_result(config_of, tmp_path):
    with pytest.raises(ConfigError, match=r'adapter\.prefix\.gate .*read where adapter\.method = "prefix"'):
        config_of("adapter.prefix.gate=true")
    config = config_of(*PREFIX, "adapter.prefix.gate=true", "adapter.rank=6", "federation.rounds=2")
    records, data = list(run(config, tmp_path / "run")), load_data(config)
    found = list(predict(tmp_path / "run", data.test_texts))
    hits = [data.label_names[label] == told.label for label, told in zip(data.test_labels, found, strict=True)]
    assert np.mean(hits) == pytest.approx(records[-1].accuracy)
    assert "gate = true" in (tmp_path / "run" / "config.toml").read_text()


def test_each_client_its_own_length_is_refused(config_of):
    with pytest.raises(ConfigError, match=r'rank_policy must be "common" for adapter\.method = "prefix"'):
        config_of(*PREFIX, 'planner.rank_policy="per-client"')
