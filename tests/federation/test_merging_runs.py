"""Promise: fedex and flora send what they merge, counted, to everybody who lacks it, and no d × k for each client.

Six linears of 32 × 32 and three clients at rank 3, of whom client 1 is away in round 3.
"""

from __future__ import annotations

from itertools import islice

import pytest

from splitrank import load_config, load_data, make_clients, run
from splitrank.federation.rounds import run_round
from splitrank.learning.adapters.merged import merged_ranks
from tests.federation.merging_rules import Absent
from tests.records import equal_records

SETTINGS = [
    "model.precision=fp32", 'workload.model="flops"', "client.flops_per_cycle=4.0", "planner.max_rank=3",
    "budget.energy_j=1", "federation.rounds=4",
]  # fmt: skip
ROW = 6 * (32 + 32) * 32
"""Bits of one row of every linear's merged part, or of one direction of all factors."""
CASES = {
    "fedex": ['federation.aggregation="fedex"'],
    "fedex-cut": ['federation.aggregation="fedex"', "federation.merged_rank=4"],
    "flora": ['federation.aggregation="flora"'],
    "flora-rslora": ['federation.aggregation="flora"', 'adapter.method="rslora"'],
    "flora-cut": ['federation.aggregation="flora"', "federation.merged_rank=5"],
}


def connect(config):
    return Absent(make_clients(config, load_data(config)), {3})


def bits(records, client, name):
    return [record["clients"][client][name] for record in records[1:]]


@pytest.fixture(scope="module")
def finished(tiny_settings, tmp_path_factory):
    """A function from a case to the folder of its run."""
    folder = tmp_path_factory.mktemp("merging")
    (folder / "tiny.toml").write_text(tiny_settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "xdg-cache"))
        done = {}

        def of(case):
            config = load_config(str(folder / "tiny.toml"), [*SETTINGS, *CASES[case]])
            if case not in done:
                done[case] = folder / case
                list(run(config, done[case], connect=connect))
            return config, done[case]

        yield of


def test_fedex_sends_k_minus_one_times_r_rows_a_round(finished):
    """Six, not the nine of K·r: in round 4 four rows more, of the two clients of round 3, than fit 32·32/64 = 16."""
    _, folder = finished("fedex")
    records = equal_records(folder)
    head = bits(records, 0, "uplink_bits")[0] - 3 * ROW
    once = head + 3 * ROW
    assert bits(records, 0, "downlink_bits") == [once, once + 6 * ROW, once + 6 * ROW, once + 3 * ROW]
    assert bits(records, 1, "downlink_bits") == [once, once + 6 * ROW, 0.0, once + 9 * ROW]
    assert all(record["factor_averaging_error"] > 0 for record in records[1:])


def test_flora_sends_the_stack_alone_and_no_factors(finished):
    """Nine rows of three clients, then as many, which is more than a dense part: 32·32 numbers instead of 18·64."""
    _, folder = finished("flora")
    records = equal_records(folder)
    up = bits(records, 0, "uplink_bits")
    head, dense = up[0] - 3 * ROW, 6 * 32 * 32 * 32
    assert up == 4 * [head + 3 * ROW]
    assert bits(records, 0, "downlink_bits") == [head, head + 9 * ROW, head + dense, head + dense]
    assert bits(records, 1, "downlink_bits") == [head, head + 9 * ROW, 0.0, head + dense]
    assert [record["factor_averaging_error"] for record in records[1:]] == 4 * [None]


@pytest.mark.parametrize(("case", "rank", "factors"), [("fedex-cut", 4, 3), ("flora-cut", 5, 0)])
def test_what_is_cut_is_sent_anew_each_round(case, rank, factors, finished):
    _, folder = finished(case)
    records = equal_records(folder)
    head = bits(records, 0, "uplink_bits")[0] - 3 * ROW
    once = head + factors * ROW
    assert bits(records, 0, "downlink_bits") == [once, *3 * [once + rank * ROW]]
    assert all(0 < record["diagnostics"]["merged_truncation_error"] < 1 for record in records[1:])


def checkpoint(folder) -> bytes:
    return (sorted((folder / "checkpoint").glob("round-*"))[-1] / "state.safetensors").read_bytes()


@pytest.mark.parametrize("case", ["fedex-cut", "flora"])
def test_a_broken_run_goes_on_to_the_same_bits(case, finished, tmp_path):
    config, folder = finished(case)
    list(islice(run(config, tmp_path / "broken", connect=connect), 3))
    list(run(config, tmp_path / "broken", resume=True, connect=connect))
    assert equal_records(tmp_path / "broken") == equal_records(folder)
    assert checkpoint(tmp_path / "broken") == checkpoint(folder)


@pytest.mark.extras
@pytest.mark.parametrize("case", list(CASES))
def test_through_flowers_messages(case, finished, tmp_path):
    from tests.federation.test_backlog import posts_of_absent
    from tests.flower_in_process import flower

    config, folder = finished(case)
    with flower(posts_of_absent({3})) as (flower_connect, _):
        list(run(config, tmp_path / "flower", connect=flower_connect))
    assert equal_records(tmp_path / "flower") == equal_records(folder)
    assert checkpoint(tmp_path / "flower") == checkpoint(folder)


def test_flora_with_a_rank_for_each_client_stacks_all_of_them(tiny_config):
    own = ["planner.max_rank=6", 'planner.rank_policy="per-client"', 'federation.aggregation="flora"']
    config = load_config(str(tiny_config), [*SETTINGS, *own])
    clients = make_clients(config, load_data(config))
    state, record = run_round(clients.initial_state(), clients)
    ranks = [client.rank for client in record.clients]
    assert set(merged_ranks(state.adapter).values()) == {sum(ranks) if sum(ranks) <= 16 else None}
    assert state.adapter.rank == 0
    before = clients.evaluate(state)
    idle, _ = run_round(state, Absentees(clients))  # nobody answers: nothing changes
    assert clients.evaluate(idle) == before
    clients.close()


class Absentees:
    """Clients of whom nobody answers."""

    def __init__(self, clients) -> None:
        self._clients = clients

    def __getattr__(self, name):
        return getattr(self._clients, name)

    def train(self, starts, plan, state):
        return {}
