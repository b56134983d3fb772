"""Promise: a round takes those whom the settings choose, alone, says so, and a resumed run chooses the same."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from splitrank import Config, load_config, load_data, make_clients, run
from splitrank.errors import ConfigError
from splitrank.federation.plan_report import plan_lines, plan_report
from splitrank.federation.problems import plan_round, planned_problem
from splitrank.federation.radio import sub_bands_hz
from splitrank.federation.round_lines import round_lines
from splitrank.federation.rounds import run_round
from splitrank.federation.selection import num_chosen
from splitrank.federation.state import State
from splitrank.planning.selection import SELECTIONS
from splitrank.studies.run_reader import read_run
from splitrank.studies.totals import slowest
from tests.federation.test_run import adapter_bytes
from tests.records import equal_records, records_of
from tests.studies.written_runs import chart_data, report_of

FIVE = ["federation.num_clients=5", "client.max_frequency_hz={uniform=[1e8, 2e8]}", "federation.rounds=3"]
OVER = ['planner.frequency_policy="least-latency"', "federation.over_selection=0.5"]

every_selection = pytest.mark.parametrize("name", SELECTIONS)


@pytest.fixture
def config_of(tiny_config):
    """A function from further settings to those of a run with five clients, of which each round takes two."""

    def make(*more: str) -> Config:
        return load_config(str(tiny_config), [*FIVE, "federation.clients_per_round=2", *more])

    return make


@every_selection
def test_a_round_is_that_of_the_chosen(name, config_of, tmp_path):
    config = config_of(f"federation.selection={name}", "budget.energy_j=[0.12, 0.12, 0.11, 0.12, 0.1001]")
    list(run(config, tmp_path / "run"))
    for record in records_of(tmp_path / "run")[1:]:
        by_choice = {True: [], False: []}
        for client in record["clients"]:
            by_choice[client["chosen"]].append(client)
        assert len(by_choice[True]) == 2
        assert record["rank"] == min(client["max_rank"] for client in by_choice[True])
        for client in by_choice[True]:
            assert client["rank"] == record["rank"]
            assert client["train_loss"] > 0
            assert client["uplink_bits"] > 0
        for client in by_choice[False]:
            assert (client["rank"], client["dropped"], client["train_loss"]) == (0, True, None)
            assert client["uplink_bits"] == client["downlink_bits"] == 0
            assert client["energy_j"] is None
            assert ("chosen_by" in client) != ("shortfall" in client)
    # It goes on to the same bits, whatever it remembers.
    list(islice(run(config, tmp_path / "broken"), 2))
    list(run(config, tmp_path / "broken", resume=True))
    assert equal_records(tmp_path / "broken") == equal_records(tmp_path / "run")
    assert adapter_bytes(tmp_path / "broken") == adapter_bytes(tmp_path / "run")


def test_one_round_alone_is_the_same_as_in_a_run(config_of):
    """What a round chooses follows from the state, not from what was drawn before."""
    config = config_of("federation.selection=fair", "budget.energy_j=inf", "budget.latency_s=inf")  # all are able
    clients = make_clients(config, load_data(config))
    states = [clients.initial_state()]
    records = []
    for _ in range(3):
        state, record = run_round(states[-1], clients)
        states.append(state)
        records.append(record)
    for before, record in reversed(list(zip(states, records, strict=False))):
        assert replace(run_round(before, clients)[1], wall_s=0) == replace(record, wall_s=0)
    chosen = [[client.client for client in record.planned if client.chosen] for record in records]
    assert len({*chosen[0], *chosen[1], *chosen[2]}) == 5
    assert states[-1].ledger["last_chosen"].tolist() == [
        max(round for round, of_round in enumerate(chosen, start=1) if client in of_round) for client in range(5)
    ]
    clients.close()


def test_the_average_weighs_the_chosen_by_their_samples(config_of):
    config = config_of("federation.partition=quantity", "federation.partition_alpha=1.0", "budget.energy_j=inf")
    clients = make_clients(config, load_data(config))
    seen = {}

    def combine(starts, updates, weights, memory):
        seen.update(weights)
        return clients.rule.combine(starts, updates, weights, memory)

    spied = replace(clients, rule=replace(clients.rule, combine=combine))
    _, record = run_round(clients.initial_state(), spied)
    chosen = [client for client in record.planned if client.chosen]
    total = sum(client.samples for client in chosen)
    assert seen == {client.client: pytest.approx(client.samples / total) for client in chosen}
    assert len({client.samples for client in record.planned}) > 2
    clients.close()


def test_all_per_round_is_the_run_of_before(tiny_config, tmp_path):
    two = "federation.rounds=2"
    list(run(load_config(str(tiny_config), [two]), tmp_path / "before"))
    list(run(load_config(str(tiny_config), [two, "federation.clients_per_round=3"]), tmp_path / "all"))
    assert equal_records(tmp_path / "all") == equal_records(tmp_path / "before")
    assert adapter_bytes(tmp_path / "all") == adapter_bytes(tmp_path / "before")
    for one in ("before", "all"):
        assert not any("chosen" in client for record in records_of(tmp_path / one) for client in record["clients"])
        newest = sorted((tmp_path / one / "checkpoint").iterdir())[-1]
        assert json.loads((newest / "state.json").read_text())["ledger"] == []


@pytest.mark.extras
@pytest.mark.parametrize(
    "settings",
    [
        ["federation.selection=round-robin"],
        ["federation.selection=fair", 'planner.where="client"'],
        ["federation.selection=largest-rank", 'model.head="local"', *OVER],
        ["federation.selection=random", 'federation.aggregation="flexlora"', 'planner.rank_policy="per-client"'],
    ],
    ids=lambda settings: settings[0].partition("=")[2],
)
def test_through_flower_only_the_chosen_are_asked_to_train(settings, config_of, tmp_path):
    from tests.flower_in_process import Messenger, flower

    class Five(Messenger):
        num_nodes = 5

    config = config_of(*settings)
    with flower(Five) as (connect, messengers):
        list(islice(run(config, tmp_path / "flower", connect=connect), 2))
        list(run(config, tmp_path / "flower", resume=True, connect=connect))
    list(run(config, tmp_path / "run"))
    mine, theirs = equal_records(tmp_path / "flower"), equal_records(tmp_path / "run")
    if config.planner.where == "client":  # tells nothing but its rank
        mine, theirs = (
            [[client["chosen"] for client in one["clients"]] for one in all_[1:]] for all_ in (mine, theirs)
        )
    elif config.model.head == "local":
        for one in (*mine, *theirs):
            one.pop("macro_f1")
            one["loss"] = pytest.approx(one["loss"], rel=1e-12)
    assert mine == theirs
    asked = {
        (header["round"], header["client"])
        for messenger in messengers
        for header, *_ in messenger.sent
        if header["kind"] == "train"
    }
    chosen = {
        (record["round"], client["client"])
        for record in records_of(tmp_path / "flower")[1:]
        for client in record["clients"]
        if client["chosen"]
    }
    assert asked == chosen


# ---- more than needed


def test_of_more_than_needed_the_first_count(config_of, tmp_path):
    config = config_of(*OVER)
    assert num_chosen(config) == 3
    list(run(config, tmp_path / "run"))
    for record in records_of(tmp_path / "run")[1:]:
        chosen = [client for client in record["clients"] if client["chosen"]]
        assert len(chosen) == 3
        late = max(chosen, key=lambda client: client["latency_s"])
        assert [client["client"] for client in chosen if client.get("late")] == [late["client"]]
        assert late["missed"] == "it came after the first 2 (federation.clients_per_round)"
        assert (late["dropped"], late["train_loss"]) == (True, None)
        # It has computed and sent for nothing.
        assert late["energy_j"] > 0
        assert late["uplink_bits"] == late["downlink_bits"] > 0
    read = read_run(tmp_path / "run")
    kept = [
        max(client["latency_s"] for client in record["clients"] if client["chosen"] and not client["dropped"])
        for record in records_of(tmp_path / "run")[1:]
    ]
    assert slowest("latency_s")(read) == pytest.approx(sum(kept))  # nobody waited for who came too late


@pytest.mark.extras
def test_one_too_many_stands_in_for_one_that_fails(config_of, tmp_path):
    from splitrank.federation.flower.payload import NO_FLOATS
    from tests.flower_in_process import Messenger, flower

    config = config_of(*OVER, "federation.rounds=1", "federation.min_clients=2")
    with flower(type("Five", (Messenger,), {"num_nodes": 5})) as (connect, _):
        (before,) = list(run(config, tmp_path / "whole", connect=connect))[1:]
    fails, late = next(one for one in before.trained), next(one for one in before.planned if one.late)

    class Failing(Messenger):
        num_nodes = 5

        def answer(self, node, header, floats=NO_FLOATS):
            reply = super().answer(node, header, floats)
            fails_now = header["kind"] == "train" and node == fails.client
            return type(reply)({"kind": "failure", "reason": "out of memory"}, None, 1.0) if fails_now else reply

    with flower(Failing) as (connect, _):
        (record,) = list(run(config, tmp_path / "failing", connect=connect))[1:]
    assert late.client in [client.client for client in record.trained]
    assert len(record.trained) == 2
    assert not any(client.late for client in record.planned)


def test_equal_times_follow_a_draw(config_of):
    """Not the clients' numbers: else the last would always be late."""
    config = config_of(
        *OVER, "radio.uplink_gain=[1e-3, 1e-3, 1e-3, 1e-3, 1e-3]", "radio.downlink_gain=[1e-3, 1e-3, 1e-3, 1e-3, 1e-3]",
        "radio.uplink_power_w=0.05", "client.max_frequency_hz=2e8", "data.train_rows=100", "federation.rounds=9",
    )  # fmt: skip
    clients = make_clients(config, load_data(config))
    state, places = clients.initial_state(), set()
    for _ in range(9):
        state, record = run_round(state, clients)
        chosen = [client for client in record.planned if client.chosen]
        assert len({client.latency_s for client in chosen}) == 1
        places |= {place for place, client in enumerate(chosen) if client.late}
    assert places == {0, 1, 2}
    clients.close()


def test_a_share_of_more_is_counted_without_rounding_errors(config_of):
    def chosen(clients: int, wanted: int, more: float) -> int:
        sizes = [f"federation.num_clients={clients}", f"federation.clients_per_round={wanted}"]
        config = config_of(*OVER[:1], *sizes, f"federation.over_selection={more}")
        return num_chosen(config)

    assert [chosen(100, 10, more) for more in (0, 0.1, 0.3, 0.31)] == [10, 11, 13, 14]
    assert chosen(12, 10, 0.3) == 12


# ---- links, plans, lines, pictures


def test_a_shared_band_is_shared_by_as_many_as_take_part(tiny_config):
    def config(*more: str) -> Config:
        # The total band of a layer takes the place of the bands of the file.
        return load_config(str(tiny_config), [*FIVE, "radio.total_bandwidth_hz=1e6", *more])

    assert sub_bands_hz(config()).tolist() == [2e5] * 5
    assert sub_bands_hz(config("federation.clients_per_round=2")).tolist() == [5e5] * 5
    assert sub_bands_hz(config("federation.clients_per_round=2", *OVER)).tolist() == [1e6 / 3] * 5
    # A broadcast has the whole band, however many share it.
    whole, two = (
        planned_problem(config('radio.downlink="broadcast"', "radio.noise_power_w=1e-6", *more), 1, require_all=True)
        for more in ([], ["federation.clients_per_round=2"])
    )
    np.testing.assert_allclose(two.downlink_bps, whole.downlink_bps, rtol=1e-12)


def test_a_plan_says_whom_the_first_round_takes(config_of, tmp_path):
    config = config_of("federation.selection=largest-rank", "client.samples=38", 'workload.model="flops"')
    report = plan_report(config, 1)
    chosen = [client["client"] for client in report["clients"] if client["chosen"]]
    ranks = sorted((client["max_rank"] for client in report["clients"]), reverse=True)
    assert report["selection"] == "largest-rank"
    assert report["rank"] == ranks[1]
    lines = list(plan_lines(report))
    assert lines[0].startswith(f"rank {ranks[1]} for the chosen (optimal, exact)")
    assert f"2 of 5 clients are chosen (largest-rank): {chosen[0]}, {chosen[1]}" in lines
    later = list(plan_lines(plan_report(config_of("federation.selection=fair"), 7)))
    assert any("clients are chosen (fair), as in a run's first round: " in line for line in later)
    everybody = plan_report(config_of("federation.clients_per_round=5"), 1)
    assert "selection" not in everybody
    assert not any("chosen" in client for client in everybody["clients"])


def test_a_plan_and_the_first_round_choose_the_same(config_of):
    for name in SELECTIONS:
        config = config_of(f"federation.selection={name}")
        clients = make_clients(config, load_data(config))
        state = clients.initial_state()
        problem = clients.problem(state)
        plan = clients.plan(problem, state)
        assert plan.chosen.tolist() == plan_round(config, problem, 1, require_all=True).chosen.tolist()
        clients.close()


def test_nobody_who_can_take_part_is_infeasible(config_of, tmp_path):
    config = config_of("budget.energy_j=0.1000001")
    report = plan_report(config, 1)
    assert report["status"] == "infeasible"
    assert not any(client["chosen"] for client in report["clients"])
    assert next(iter(plan_lines(report))) == "infeasible: no client can take part within its budgets"
    clients = make_clients(config, load_data(config), refuse_unable=False)
    before = clients.initial_state()
    state, record = run_round(before, clients)
    assert (record.status, state.turn, state.round) == ("infeasible", 0, 1)
    assert not state.ledger["last_chosen"].any()
    assert isinstance(state, State)
    clients.close()


def test_a_run_says_who_took_part(config_of, tmp_path):
    config = config_of(*OVER)
    records = list(run(config, tmp_path / "run"))
    lines = "\n".join(round_lines(records, config)).splitlines()
    told = [line for line in lines if line.startswith("      chosen (random): ")]
    assert len(told) == 3
    for record, line in zip(records[1:], told, strict=True):
        chosen = [client.client for client in record.planned if client.chosen]
        late = [client.client for client in record.planned if client.late]
        assert line == f"      chosen (random): {', '.join(map(str, chosen))}; of these {late[0]} came too late"
    page = report_of(tmp_path, tmp_path / "run")
    parts = {trace["name"]: trace["y"] for trace in chart_data(page)["binding"]}
    assert parts["run, not chosen"] == [None, 2, 2, 2]
    assert parts["run, sat out"] == [None, 1, 1, 1]  # the one that came too late


def test_settings_that_do_not_go_together_are_refused(tiny_config):
    def problems(*settings: str) -> str:
        with pytest.raises(ConfigError) as error:
            load_config(str(tiny_config), [*FIVE, *settings])
        return "\n".join(error.value.problems)

    assert "clients_per_round must be at most federation.num_clients = 5, got 6" in problems(
        "federation.clients_per_round=6"
    )
    assert "min_clients must be at most federation.clients_per_round = 2, or no round would" in problems(
        "federation.clients_per_round=2", "federation.min_clients=3"
    )
    assert "federation.selection must have an effect" in problems("federation.selection=fair")
    assert 'over_selection must be 0 for planner.frequency_policy = "least-energy"' in problems(
        "federation.clients_per_round=2", "federation.over_selection=0.3"
    )
    assert 'over_selection must be 0 for planner.where = "client"' in problems(
        "federation.clients_per_round=2", *OVER, 'planner.where="client"'
    )
