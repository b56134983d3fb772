"""Promises of a plan in print: ranks that differ have a column, budgets without limit are said to have none."""

from __future__ import annotations

import json

import pytest

from splitrank.config import load_config
from splitrank.federation.plan_report import plan_lines, plan_report
from splitrank.federation.round_lines import round_lines
from splitrank.records import ClientRecord, RoundRecord


def report_of(*overrides: str):
    return plan_report(load_config("edge", overrides), 1)


def test_a_rank_for_each_client():
    report = report_of("planner.rank_policy=per-client", "federation.aggregation=flexlora")
    assert report["rank"] is None
    ranks = [client["rank"] for client in report["clients"]]
    assert ranks == [client["max_rank"] for client in report["clients"]]
    headline, sent, *rest = plan_lines(report)
    assert headline == f"a rank for each client: {min(ranks)} to {max(ranks)} (optimal, exact)"
    assert sent.startswith(f"trained and sent: {min(ranks) * 41_472:,} to {max(ranks) * 41_472:,} adapter parameters")
    header = next(line for line in rest if "max rank" in line)
    assert header.split()[:4] == ["client", "rank", "max", "rank"]
    rows = [line.split() for line in rest[rest.index(header) + 1 :]][:3]
    assert [int(row[1]) for row in rows] == ranks


def test_equal_ranks_need_no_column():
    headline, *rest = plan_lines(report_of())
    assert headline.startswith("rank ")
    header = next(line for line in rest if "max rank" in line)
    assert header.split()[:3] == ["client", "max", "rank"]


def test_a_method_without_a_rank():
    report = report_of("adapter.method=full", "budget.latency_s=3000", "budget.energy_j=3000")
    assert (report["rank"], report["adapter_parameters_per_rank"]) == (1, 0)
    assert report["adapter_parameters_constant"] == 21_263_616
    headline, sent, *_ = plan_lines(report)
    assert headline == "no rank to choose (optimal, exact)"
    assert sent == "trained and sent: 21,263,616 adapter parameters, 593,668 in the head"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "300 s and 200 J per client"),
        (["budget.latency_s=inf"], "no limit of time and 200 J per client"),
        (["budget.energy_j=inf"], "300 s and no limit of energy per client"),
        (["budget.latency_s=inf", "budget.energy_j=[inf, inf, inf]"], "no limit"),
        (["budget.energy_j=[inf, 200, 200]"], "300 s and an energy budget of its own per client"),
    ],
)
def test_budgets_without_limit(overrides, expected):
    report = report_of(*overrides)
    json.dumps(report, allow_nan=False)
    assert f"budgets of a round: {expected}" in list(plan_lines(report))
    for client in report["clients"]:
        assert (client["latency_budget_s"] is None) == ("budget.latency_s=inf" in overrides)


@pytest.mark.parametrize("no_energy_limit", [None, float("inf")])
def test_rounds_without_limit(no_energy_limit):
    plan = dict.fromkeys(("frequency_hz", "uplink_bps", "downlink_bps", "compute_s", "uplink_s", "downlink_s"), 1.0)
    sent = {"uplink_bits": 5.0, "downlink_bits": 7.0, "train_loss": 1.0, "samples": 4, "dropped": False}
    clients = [
        ClientRecord(
            **plan,
            **sent,
            **{"client": i, "rank": 4 + i, "max_rank": 9, "frequency_range_hz": [1.0, 1.0], "binding": "energy"},
            **{"latency_s": 2.0, "energy_j": 3.0 + i, "energy_budget_j": no_energy_limit},
        )
        for i in range(2)
    ]
    record = RoundRecord(1, "optimal", 4, 0.5, 1.0, 0.5, 0.5, None, clients)
    (line,) = round_lines([record], load_config("edge", ["budget.latency_s=inf", "budget.energy_j=inf"]))
    assert "2.0 s, no limit" in line
    assert "4.0 J, no limit" in line
    assert line.splitlines()[-1].split()[:2] == ["1", "4-5"]
