"""Promises of ``train.proximal`` in a run: none at 0, less drift above, the same through Flower, and its costs."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank import load_config, load_data, make_clients, run
from splitrank.errors import ConfigError
from tests.federation.test_costs import workload_of
from tests.federation.test_run import run_all
from tests.records import equal_records

SETTINGS = ["model.precision=fp32", "federation.rounds=2", "adapter.rank=2", "budget.energy_j=inf"]


def clients_of(config_file, *more):
    config = load_config(str(config_file), [*SETTINGS, *more])
    return make_clients(config, load_data(config))


def test_at_zero_it_is_not_there_at_all(tiny_config, tmp_path):
    for name, more in (("left-out", []), ("zero", ["train.proximal=0.0"]), ("pulled", ["train.proximal=1.0"])):
        run_all(tiny_config, tmp_path / name, *SETTINGS, *more)
    assert equal_records(tmp_path / "left-out") == equal_records(tmp_path / "zero")
    assert equal_records(tmp_path / "left-out")[1] != equal_records(tmp_path / "pulled")[1]
    for weight, count in ((0.0, 2), (1.0, 3)):
        clients = clients_of(tiny_config, f"train.proximal={weight}")
        state = clients.initial_state()
        assert len(clients.model.task(state.adapter, state, clients.rule, 0).terms) == count
        clients.close()


@pytest.mark.parametrize("head", ["full", "local"])
def test_clients_drift_less_the_stronger_the_pull(head, tiny_config):
    """With a head of its own, which nothing pulls, a client's head moves on."""
    drifts, heads = [], []
    for weight in (0.0, 1.0, 100.0):
        more = [f"train.proximal={weight}", f"model.head={head}", "federation.local_epochs=3"]
        clients = clients_of(tiny_config, *more)
        state = clients.initial_state()
        start = clients.model.method.resize(state.adapter, 2, distribution="svd", seed=0, round=1)
        update = clients.train_client(0, start, state)
        drifts.append(float((update.adapter.to_vector() - start.to_vector()).norm()))
        own = state.local.get(0, {})
        heads.append(sum(float((update.personal[name] - own[name]).square().sum()) ** 0.5 for name in own))
        clients.close()
    assert drifts[0] > drifts[1] > 2 * drifts[2] > 0
    assert head == "full" or min(heads) > 0.5 * max(heads)


@pytest.mark.extras
@pytest.mark.parametrize("more", [[], ['model.head="local"'], ['adapter.method="dora"', 'workload.model="flops"']])
def test_through_flower_it_is_the_same(more, tiny_config, tmp_path):
    from tests.flower_in_process import flower

    config = load_config(str(tiny_config), [*SETTINGS, "budget.latency_s=inf", "train.proximal=3.0", *more])
    expected = list(run(config, tmp_path / "run"))
    with flower() as (connect, _):
        found = list(run(config, tmp_path / "flower", connect=connect))
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert all(len(record.trained) == 3 for record in (one, other))
        assert [client.train_loss for client in one.clients] == [client.train_loss for client in other.clients]
        assert one.accuracy == other.accuracy


@pytest.mark.parametrize(
    ("method", "per_rank", "constant"),
    [("lora", 41_472, 593_668), ("dora", 41_472, 593_668 + 20_736), ("bitfit", 0, 593_668 + 25_344)],
)
def test_its_operations_count_once_a_step(method, per_rank, constant):
    """Six for each trained number, in 2 steps of at most 1,000 of 2,000 texts, at 32 operations a cycle."""
    settings = [f"adapter.method={method}", "train.batch_size=1000", "federation.local_epochs=3"]
    settings += ["client.samples=2000", "client.flops_per_cycle=32.0"]
    if method != "bitfit":
        settings.append('adapter.target_modules="all-linear"')
    plain, pulled = workload_of(*settings), workload_of(*settings, "train.proximal=0.1")
    steps, rank = 3 * 2, 8
    more = 6 * (constant + per_rank * rank) * steps / 32
    np.testing.assert_allclose(pulled.cycles(rank) - plain.cycles(rank), more, rtol=1e-6)
    for bits in ("uplink_bits", "downlink_bits"):
        np.testing.assert_array_equal(getattr(plain, bits)(rank), getattr(pulled, bits)(rank))


def test_what_is_not_trained_or_not_shared_costs_nothing():
    settings = ['adapter.target_modules="all-linear"', "model.head=local", "federation.aggregation=ffa"]
    plain, pulled = workload_of(*settings), workload_of(*settings, "train.proximal=0.1")
    assert np.all(pulled.cycles.constant == plain.cycles.constant)
    assert np.all(pulled.cycles.per_rank > plain.cycles.per_rank)


def test_the_papers_count_knows_no_step():
    paper = [workload_of('workload.model="paper"', f"train.proximal={weight}") for weight in (0.0, 0.1)]
    np.testing.assert_array_equal(paper[0].cycles(8), paper[1].cycles(8))


def test_a_weight_below_zero_is_refused():
    with pytest.raises(ConfigError, match=r"train\.proximal must be a finite number, 0 or greater, got -1"):
        load_config("offline", ["train.proximal=-1.0"])
