"""Promises of the report: every number as recorded, in charts, tables and summary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.studies.written_runs import (
    Elements,
    chart_data,
    client_entry,
    figures_of,
    make_run,
    records,
    report_of,
    round_record,
    sitting_out,
    without_scripts,
)

pytestmark = pytest.mark.usefixtures("small_pages")


def test_charts_hold_the_recorded_numbers(tmp_path):
    lines = records(4)
    charts = chart_data(report_of(tmp_path, make_run(tmp_path / "a", lines)))
    rounds = [0, 1, 2, 3, 4]
    for key, field in (("accuracy", "accuracy"), ("rank", "rank"), ("averaging", "factor_averaging_error")):
        (trace,) = charts[key]
        assert trace["x"] == rounds
        assert trace["y"] == [line[field] for line in lines]
    test, training = charts["loss"]
    assert test["y"] == [line["loss"] for line in lines]
    for line, mean in zip(lines[1:], training["y"][1:], strict=True):
        assert mean == pytest.approx(sum(client["train_loss"] for client in line["clients"]) / 3, rel=1e-15)
    for key, field in (
        ("latency", "latency_s"),
        ("energy", "energy_j"),
        ("uplink", "uplink_bits"),
        ("downlink", "downlink_bits"),
    ):
        for client in range(3):
            trace = charts[key][client]
            assert trace["y"] == [line["clients"][client].get(field) for line in lines]
            assert trace["name"] == f"a, client {client}"
    up, down = charts["bits"]
    assert up["y"] == [0, 3_003_000, 6_009_000, 9_018_000, 12_030_000]
    assert down["y"][-1] == 24_030_000
    budget = charts["latency"][3]
    assert (budget["name"], set(budget["y"])) == ("budget", {120})
    assert set(charts["energy"][3]["y"]) == {8.5}


def test_tables_hold_the_numbers_of_the_charts(tmp_path):
    page = report_of(
        tmp_path, make_run(tmp_path / "a", records(3)), make_run(tmp_path / "b", records(5), "adapter.rank=4")
    )
    elements = Elements(page)
    for key, caption in (
        ("accuracy", "Accuracy"),
        ("latency", "Latency"),
        ("binding", "What limits"),
        ("bits", "Bits sent so"),
    ):
        rows = elements.table(caption)
        for trace in chart_data(page)[key]:
            recorded = {round: value for round, value in zip(trace["x"], trace["y"], strict=True) if value is not None}
            shown = {
                json.loads(row["round"][1]): json.loads(row[trace["name"]][1]) for row in rows if row[trace["name"]][1]
            }
            assert shown == recorded


def test_what_limits_and_who_sat_out(tmp_path):
    lines = records(1)
    lines.append(round_record(2, [client_entry(0, 2, binding="energy"), sitting_out(1, binding="latency"),
                                  client_entry(2, 2, binding="energy")]))  # fmt: skip
    lines.append(
        round_record(3, [sitting_out(client, binding="energy") for client in range(3)], status="infeasible", rank=0,
                     factor_averaging_error=None)
    )  # fmt: skip
    page = report_of(tmp_path, make_run(tmp_path / "a", lines))
    parts = {trace["name"]: trace for trace in chart_data(page)["binding"]}
    assert parts["a, limited by energy"]["y"] == [None, 1, 2, 0]
    assert parts["a, limited by latency"]["y"] == [None, 0, 0, 0]
    assert parts["a, sat out"]["y"] == [None, 0, 1, 3]
    assert parts["a, sat out"]["text"][2] == "1 client: client 1 (latency)"
    assert "client 0 (energy), client 1 (energy), client 2 (energy)" in without_scripts(page)
    (rank,) = chart_data(page)["rank"]
    assert rank["y"] == [0, 5, 6, 0]
    (error,) = chart_data(page)["averaging"]
    assert error["y"][3] is None


def test_fillings_are_explained_and_axes_of_counts_are_whole(tmp_path):
    page = report_of(tmp_path, make_run(tmp_path / "a", records(2)))
    patterns = ["", "/", "x", ".", "|", "-"]
    for trace in chart_data(page)["binding"]:
        what = trace["name"].removeprefix("a, limited by ").removeprefix("a, ")
        filling = patterns.index(trace["marker"]["pattern"]["shape"])
        assert re.search(rf'class="part part-{filling}"[^>]*></span> {what}<', page)
    steps = {key: layout["yaxis"].get("dtick") for key, (_, layout) in figures_of(page).items()}
    assert (steps["binding"], steps["rank"], steps["accuracy"]) == (1, 1, None)


def test_a_round_for_nobody_has_its_budget_all_the_same(tmp_path):
    lines = records(3)
    lines[2] = round_record(2, [sitting_out(client, binding="energy") for client in range(3)], rank=0)
    charts = chart_data(
        report_of(tmp_path, make_run(tmp_path / "a", lines), make_run(tmp_path / "b", lines, "budget.latency_s=60"))
    )
    budgets = [trace["y"] for trace in charts["latency"] if "budget" in trace["name"]]
    assert budgets == [[None, 120, 120, 120]] * 3 + [[None, 60, 60, 60]] * 3


def test_long_names_are_told_apart_when_pointed_at(tmp_path):
    names = [f"{'long-' * 20}{number}" for number in (1, 2)]
    folders = [make_run(tmp_path / name, records(1), f"adapter.rank={len(names)}{name[-1]}") for name in names]
    shown = [trace["name"] for trace in chart_data(report_of(tmp_path, *folders))["rank"]]
    assert len(set(shown)) == 2
    assert all(len(name) <= 61 for name in shown)


def test_the_summary(tmp_path):
    lines = records(3)
    lines[2]["accuracy"] = 0.987654321
    page = report_of(tmp_path, make_run(tmp_path / "a", lines), make_run(tmp_path / "b", records(2), "adapter.rank=4"))
    first, second = Elements(page).table("What was reached")
    assert first["run"][0] == "a"
    assert first["adapter.rank"][0] == "–"
    assert second["adapter.rank"][0] == "4"
    assert "train.learning_rate" not in first
    assert json.loads(first["last accuracy"][1]) == lines[-1]["accuracy"]
    assert json.loads(first["best accuracy"][1]) == 0.987654321
    assert json.loads(first["mean rank"][1]) == 6
    assert json.loads(second["rounds recorded"][1]) == 2
    slowest = sum(max(client["latency_s"] for client in line["clients"]) for line in lines[1:])
    assert json.loads(first["time of all rounds"][1]) == pytest.approx(slowest, rel=1e-12)
    energy = sum(client["energy_j"] for line in lines[1:] for client in line["clients"])
    assert json.loads(first["energy of all clients"][1]) == pytest.approx(energy, rel=1e-12)
    assert json.loads(first["bits up"][1]) == 9_018_000
    assert json.loads(first["one-off preparation time"][1]) == 5.5
    assert json.loads(first["one-off preparation energy"][1]) == 0.75


def test_only_round_zero(tmp_path):
    page = report_of(tmp_path, make_run(tmp_path / "a", records(0)))
    charts = chart_data(page)
    assert charts["accuracy"][0]["x"] == [0]
    assert "latency" not in charts
    assert page.count("Nothing has been recorded for this chart yet.") >= 5
    (row,) = Elements(page).table("What was reached")
    assert row["mean rank"] == ("–", None)
    assert row["time of all rounds"] == ("–", None)


def test_values_that_are_not_numbers_are_gaps(tmp_path):
    lines = records(3)
    lines[2]["loss"] = None
    lines[2]["accuracy"] = "high"
    lines[3]["clients"][0]["latency_s"] = float("nan")  # json.dumps writes NaN, which Python reads back
    charts = chart_data(report_of(tmp_path, make_run(tmp_path / "a", lines)))
    assert charts["loss"][0]["y"][2] is None
    assert charts["accuracy"][0]["y"][2] is None
    assert charts["latency"][0]["y"][3] is None
    assert charts["latency"][1]["y"][3] == lines[3]["clients"][1]["latency_s"]


def test_budgets_that_differ_are_drawn_for_each(tmp_path):
    charts = chart_data(
        report_of(
            tmp_path, make_run(tmp_path / "a", records(2)), make_run(tmp_path / "b", records(2), "budget.latency_s=60")
        )
    )
    budgets = {trace["name"]: set(trace["y"]) for trace in charts["latency"] if "budget" in trace["name"]}
    assert budgets["a, client 0, budget"] == {None, 120}
    assert budgets["b, client 2, budget"] == {None, 60}
    assert [trace["name"] for trace in charts["energy"] if "budget" in trace["name"]] == ["budget"]


def test_a_budget_that_binds_nobody_is_not_drawn(tmp_path):
    def budgets(run: Path) -> int:
        return sum("budget" in trace["name"] for trace in chart_data(report_of(tmp_path, run))["latency"])

    assert budgets(make_run(tmp_path / "tight", records(2))) == 1
    page = report_of(tmp_path, make_run(tmp_path / "free", records(2), "budget.latency_s=1e9"))
    assert not any("budget" in trace["name"] for trace in chart_data(page)["latency"])
    assert "more than 100 times as much, and not drawn" in page


# ---- ranks of clients, no limits, no rank


def per_client_records(num_rounds: int = 2) -> list[dict[str, Any]]:
    """Client 0 trains at rank 3, client 1 at rank 4 and so on; what the mean lost is told."""
    lines = records(num_rounds)
    for line in lines[1:]:
        for client in line["clients"]:
            client["rank"] = 3 + client["client"]
        line.update(rank=5, factor_averaging_error=None, diagnostics={"truncation_error": 0.01 * line["round"]})
    return lines


FLEXLORA = ("federation.aggregation=flexlora", "planner.rank_policy=per-client")
NO_LIMITS = ("budget.latency_s=inf", "budget.energy_j=inf")


def without_limits(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for line in lines[1:]:
        for client in line["clients"]:
            client["energy_budget_j"] = None
    return lines


def test_ranks_that_differ_are_a_line_for_each_client(tmp_path):
    lines = per_client_records(3)
    lines[3]["clients"][1] = sitting_out(1, binding="energy")
    page = report_of(tmp_path, make_run(tmp_path / "a", lines, *FLEXLORA))
    drawn = {trace["name"]: trace["y"] for trace in chart_data(page)["rank"]}
    assert drawn == {"a, client 0": [0, 3, 3, 3], "a, client 1": [0, 4, 4, 0], "a, client 2": [0, 5, 5, 5]}
    assert "Rank of each client" in page
    (row,) = Elements(page).table("What was reached")
    assert json.loads(row["mean rank"][1]) == 4
    rows = {row["setting"][0]: row["value"][0] for row in Elements(page).table("All settings")}
    assert (rows["adapter.method"], rows["federation.aggregation"]) == ("lora", "flexlora")


def test_a_common_rank_is_one_line_whatever_the_policy(tmp_path):
    (rank,) = chart_data(report_of(tmp_path, make_run(tmp_path / "a", records(2), *FLEXLORA)))["rank"]
    assert rank["y"] == [0, 5, 6]


def test_what_the_mean_lost_is_drawn_where_it_is_told(tmp_path):
    charts = chart_data(report_of(tmp_path, make_run(tmp_path / "a", per_client_records(), *FLEXLORA)))
    assert charts["truncation"][0]["y"] == [None, 0.01, 0.02]
    assert "averaging" not in charts
    both = [make_run(tmp_path / "b", records(2)), make_run(tmp_path / "c", per_client_records(), *FLEXLORA)]
    charts = chart_data(report_of(tmp_path, *both))
    assert charts["averaging"][0]["y"] == [None, 0.1, 0.05]
    assert "truncation" not in chart_data(report_of(tmp_path, both[0]))


def test_no_limit_is_said_and_not_drawn(tmp_path):
    free = make_run(tmp_path / "free", without_limits(records(2)), *NO_LIMITS)
    page = report_of(tmp_path, free)
    for key in ("latency", "energy"):
        traces = chart_data(page)[key]
        assert [trace["name"] for trace in traces] == [f"free, client {client}" for client in range(3)]
        assert all(text.endswith("; no limit") for trace in traces for text in trace["text"][1:])
    assert page.count("There is no limit.") == 2
    rows = {row["setting"][0]: row["value"][0] for row in Elements(page).table("All settings")}
    assert (rows["budget.latency_s"], rows["budget.energy_j"]) == ("no limit", "no limit")

    # Beside a run with limits these are named as that run's.
    charts = chart_data(report_of(tmp_path, free, make_run(tmp_path / "held", records(2))))
    for key in ("latency", "energy"):
        names = [trace["name"] for trace in charts[key] if "budget" in trace["name"]]
        assert names == [f"held, client {client}, budget" for client in range(3)]
    assert charts["energy"][0]["text"][1].endswith("; no limit")


def test_one_client_may_have_no_limit(tmp_path):
    lines = records(2)
    for line in lines[1:]:
        line["clients"][1]["energy_budget_j"] = None
    page = report_of(tmp_path, make_run(tmp_path / "a", lines, "budget.energy_j=[8.5,inf,8.5]"))
    names = [trace["name"] for trace in chart_data(page)["energy"] if "budget" in trace["name"]]
    assert names == ["a, client 0, budget", "a, client 2, budget"]
    assert "the budget of each client where there is one" in page
    rows = {row["setting"][0]: row["value"][0] for row in Elements(page).table("All settings")}
    assert rows["budget.energy_j"] == "[8.5, no limit, 8.5]"


FULL = ("adapter.method=full", "workload.model=flops", *NO_LIMITS)


def rankless_records() -> list[dict[str, Any]]:
    lines = without_limits(records(2))
    for line in lines[1:]:
        line.update(rank=1, factor_averaging_error=None)
        for client in line["clients"]:
            client.update(rank=1, max_rank=1, binding="rank-cap")
    return lines


def test_a_method_without_a_rank_has_none_to_draw_or_to_limit(tmp_path):
    full = make_run(tmp_path / "full", rankless_records(), *FULL)
    page = report_of(tmp_path, full)
    assert not {"rank", "binding", "averaging"} & set(chart_data(page))
    (row,) = Elements(page).table("What was reached")
    assert row["mean rank"] == ("no rank", None)
    assert "What a finished run leaves" not in page
    (full / "model").mkdir()
    assert "leaves in its folder: a whole transformers model, in model/." in report_of(tmp_path, full)

    page = report_of(tmp_path, make_run(tmp_path / "lora", records(2)), full)
    assert {trace["name"] for trace in chart_data(page)["rank"]} == {"lora"}
    assert "Without a rank, and not drawn: full." in page
    assert [row["mean rank"][0] for row in Elements(page).table("What was reached")] == ["5.5", "no rank"]
    held = [trace for trace in chart_data(page)["binding"] if trace["name"].startswith("full")]
    assert not any(value for trace in held for value in trace["y"])


def test_who_sits_out_without_a_rank_is_counted(tmp_path):
    lines = rankless_records()
    lines[2]["clients"][1] = sitting_out(1, binding="energy")
    page = report_of(tmp_path, make_run(tmp_path / "full", lines, *FULL[:2]))
    (sat_out,) = chart_data(page)["binding"]
    assert (sat_out["name"], sat_out["y"]) == ("full, sat out", [None, 0, 1])
