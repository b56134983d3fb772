"""Promise: a client with a head of its own evaluates on its own test texts, or on a share that it holds out."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from splitrank import load_config
from splitrank.config import plain_values
from splitrank.deployment.init import init
from splitrank.errors import InputError
from splitrank.federation import wire
from splitrank.federation.flower.client_config import read_client_config
from splitrank.federation.flower.personal import PersonalStore
from splitrank.federation.flower.worker import Worker
from splitrank.federation.model import load_model
from splitrank.learning.adapters.adapter import to_vector
from splitrank.learning.aggregation.rules import RULES

pytestmark = pytest.mark.extras
LABELS = [f"class-{index}" for index in range(4)]


# rsLoRA's scaling has no meaning at rank 0, before training.
@pytest.fixture(params=[("lora", "fedavg"), ("rslora", "fedavg"), ("lora", "fedsa")], ids="-".join)
def asked(request, tiny_config, tiny_texts, tmp_path):
    """A function from a client's own settings to its answer to `evaluate` before any training, and its amounts."""
    init(tmp_path / "federation", server="192.0.2.1", num_clients=3, port=9092)
    folder = tmp_path / "federation" / "client-1"
    for name in ("ca.crt", "client.crt", "client.key", "node.key", "trusted.yaml"):
        (folder / name).touch()
    method, rule = request.param
    keeps = ['model.head="local"'] if rule == "fedavg" else []
    more = ["adapter.rank=2", f"adapter.method={method}", f"federation.aggregation={rule}"]
    config = load_config(str(tiny_config), [*keeps, *more])
    model = load_model(config, LABELS)
    settings = {key: value for key, value in plain_values(model.config).items() if key != "data"}
    trunk = model.encoder.trunk_digest
    common = {"settings": settings, "labels": LABELS, "trunk_sha256": trunk, "run": "c" * 32, "client": None}
    workers = []

    def ask(own: str) -> tuple[dict, dict]:
        text = (folder / "client.toml").read_text()
        (folder / "client.toml").write_text(text.replace('path = "train.csv"', own))
        workers.append(Worker(read_client_config(folder / "client.toml")))
        joined, _ = workers[-1].answer({**common, "kind": "join", "measure": False}, np.zeros(0, np.float32))
        adapter = model.initial_state().adapter
        sent = wire.downlink(adapter, RULES[rule])
        header = {**common, "kind": "evaluate", "round": 0, "rank": 0, "personal_round": 0, **wire.header(sent, 0)}
        evaluated, _ = workers[-1].answer(header, to_vector(sent).numpy())
        return joined, evaluated

    yield ask
    for worker in workers:
        worker.close()


def test_on_the_test_file_of_its_folder(asked, tiny_texts):
    joined, evaluated = asked(f'path = "{tiny_texts}"')
    assert joined["samples"] == 192
    assert evaluated["count"] == 64
    assert evaluated["hits"] == 16  # an untrained head puts all texts into one class
    assert evaluated["loss_sum"] == pytest.approx(64 * np.log(4), rel=0.1)
    assert set(evaluated) == {"kind", "client", "hits", "loss_sum", "count"}  # three numbers, no text, no label


@pytest.mark.parametrize(("share", "count"), [("", 38), ("[client]\ntest_share = 0.5", 96)])
def test_on_a_share_held_out_where_there_is_one_file(share, count, asked, tiny_texts, tmp_path):
    with (tiny_texts / "train.csv").open() as file:
        assert len(list(csv.reader(file))) == 193
    joined, evaluated = asked(f'path = "{tiny_texts / "train.csv"}"\n{share}')
    assert (joined["samples"], evaluated["count"]) == (192 - count, count)


def test_a_run_is_named_by_digits_alone():
    """A hostile server cannot point a client to files elsewhere."""
    for run in ("../../../etc", "a" * 31, "A" * 32, None, 7, "a" * 32 + "\n"):
        with pytest.raises(InputError, match="run must be 32 hexadecimal digits"):
            PersonalStore.of(run, 1)
