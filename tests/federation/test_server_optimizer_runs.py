"""Promises of ``federation.server_optimizer`` in a run: it learns, resumes to the same bits, also through Flower."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from splitrank import load_config, load_data, make_clients, run
from splitrank.config import to_toml
from splitrank.errors import ConfigError
from splitrank.federation.checkpoints import Checkpoints
from splitrank.federation.in_process import check_rule
from splitrank.federation.model import method_of
from splitrank.federation.rounds import run_round
from splitrank.learning.aggregation.rules import RULES
from splitrank.learning.updates.server_optimizer import FedAdam, with_server_optimizer
from tests.records import equal_records

SETTINGS = ["model.precision=fp32", "federation.rounds=3", "adapter.rank=2", "budget.energy_j=inf"]
SETTINGS += ["budget.latency_s=inf", "train.learning_rate=5e-3"]
OPTIMIZERS = ["fedavgm", "fedadam", "fedyogi"]


def config_of(file, name, *more):
    return load_config(str(file), [*SETTINGS, f'federation.server_optimizer="{name}"', *more])


def checkpoint(folder) -> bytes:
    return (sorted((folder / "checkpoint").glob("round-*"))[-1] / "state.safetensors").read_bytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns_and_a_broken_run_goes_on_to_the_same_bits(name, tiny_config, tmp_path):
    config = config_of(tiny_config, name)
    records = list(run(config, tmp_path / "run"))
    assert records[-1].loss < records[0].loss
    list(islice(run(config, tmp_path / "broken"), 2))
    list(run(config, tmp_path / "broken", resume=True))
    assert equal_records(tmp_path / "broken") == equal_records(tmp_path / "run")
    assert checkpoint(tmp_path / "broken") == checkpoint(tmp_path / "run")
    state = Checkpoints(tmp_path / "run").load(load_config(str(tmp_path / "run" / "config.toml")))
    assert {key.split("/")[0] for key in state.memory} == {name}
    assert int(state.memory[f"{name}/turn"]) == 3


def test_none_is_what_a_run_does_by_itself(tiny_config, tmp_path):
    list(run(load_config(str(tiny_config), SETTINGS), tmp_path / "left-out"))
    list(run(config_of(tiny_config, "none"), tmp_path / "none"))
    list(run(config_of(tiny_config, "fedavgm"), tmp_path / "fedavgm"))
    assert checkpoint(tmp_path / "none") == checkpoint(tmp_path / "left-out") != checkpoint(tmp_path / "fedavgm")


def test_what_stays_on_the_clients_is_left_alone(tiny_config):
    """Heads of their own are what the clients trained, whatever the server makes of the rest."""
    heads = {}
    for name in ("none", "fedadam"):
        config = config_of(tiny_config, name, 'model.head="local"')
        clients = make_clients(config, load_data(config))
        state, _ = run_round(clients.initial_state(), clients)
        heads[name], shared = state.local, state.adapter
        clients.close()
        assert not shared.only("head")
        assert not any("head" in key for key in state.memory)
    for client, own in heads["none"].items():
        assert all(torch.equal(heads["fedadam"][client][key], tensor) for key, tensor in own.items())


@pytest.mark.extras
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("fedadam", ['federation.aggregation="ffa"']),
        ("fedyogi", ['model.head="local"']),
        ("fedavgm", ['adapter.method="bitfit"', 'workload.model="flops"', 'federation.aggregation="median"']),
    ],
)
def test_through_flower_it_is_the_same(name, more, tiny_config, tmp_path):
    from tests.flower_in_process import flower

    settings = [one for one in SETTINGS if "bitfit" not in str(more) or "rank" not in one]
    config = load_config(str(tiny_config), [*settings, f'federation.server_optimizer="{name}"', *more])
    list(run(config, tmp_path / "run"))
    with flower() as (connect, _):
        found = list(run(config, tmp_path / "flower", connect=connect))
    assert all(len(record.trained) == 3 for record in found[1:])  # no update is too far from its start
    if "local" in str(more):
        ours, theirs = (equal_records(tmp_path / folder) for folder in ("flower", "run"))
        losses = [[[c["train_loss"] for c in record["clients"]] for record in told[1:]] for told in (ours, theirs)]
        assert losses[0] == losses[1]
        return
    assert checkpoint(tmp_path / "flower") == checkpoint(tmp_path / "run")
    assert equal_records(tmp_path / "flower") == equal_records(tmp_path / "run")


FIXED = "adapter.rank=4"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], 'adapter.rank must be given for federation.server_optimizer = "fedadam", since a planned rank'),
        ([FIXED, "federation.aggregation='flexlora'"], "which turns the basis of the factors in every round, got"),
        ([FIXED, "federation.aggregation='fedsvd'"], 'server_optimizer must be "none" for federation.aggregation = "f'),
        ([FIXED, "federation.aggregation='fedex'"], "which merges what the mean of the factors lacks, and a step"),
        ([FIXED, "federation.aggregation='flora'"], "which starts every round from new factors"),
        (["federation.aggregation='hetlora'", "planner.rank_policy='per-client'"], "which lets clients give up ranks"),
        ([FIXED, "federation.fedadam.beta1=1.0"], "federation.fedadam.beta1 must be a number from 0 up to"),
        ([FIXED, "federation.fedadam.tau=0"], "federation.fedadam.tau must be a finite number greater than 0"),
        ([FIXED, "federation.fedyogi.tau=0.1"], "federation.fedyogi.tau must have an effect"),
        ([FIXED, "federation.server_optimizer='adam'"], "must be one of 'none', 'fedavgm', 'fedadam' or 'fedyogi'"),
    ],
)
def test_what_makes_no_sense_is_refused(more, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config("offline", ["federation.server_optimizer='fedadam'", *more])
    assert sentence in str(caught.value)


def test_a_method_without_a_rank_needs_none():
    load_config("plain", ["adapter.method=bitfit", "federation.server_optimizer=fedadam"])


def test_its_settings_are_written_and_read_again(tmp_path):
    config = load_config("offline", ["federation.server_optimizer=fedadam", FIXED, "federation.fedadam.beta2=0.9"])
    (tmp_path / "own.toml").write_text(text := to_toml(config))
    assert "[federation.fedadam]\nlearning_rate = 0.01\nbeta1 = 0.9\nbeta2 = 0.9\ntau = 0.001\n" in text
    assert "fedyogi" not in text
    assert load_config(str(tmp_path / "own.toml")) == config


def test_a_rule_of_ones_own_is_given_its_optimiser_by_hand():
    fixed, planned = (load_config("offline", more) for more in ([FIXED], []))
    own = with_server_optimizer(RULES["raflora"], FedAdam())
    check_rule(own, method_of(fixed), fixed)
    with pytest.raises(ConfigError, match=r"adapter\.rank must be given for the rule raflora"):
        check_rule(own, method_of(planned), planned)
    named = load_config("offline", [FIXED, "federation.server_optimizer=fedadam"])
    with pytest.raises(ConfigError, match='server_optimizer must be "none" for a rule of one\'s own, got "fedadam"'):
        check_rule(RULES["raflora"], method_of(named), named)
