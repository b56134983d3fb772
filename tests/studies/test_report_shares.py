"""Promise of the report: who holds how many texts of which class, in one picture however many there are."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank.studies.report_charts import NUM_COLOURS
from splitrank.studies.report_page import _PATTERNS
from tests.studies.written_runs import HOSTILE, Elements, chart_data, figures_of, make_run, records, report_of

pytestmark = pytest.mark.usefixtures("small_pages")


def told(counts, names=()) -> dict:
    return {"data_summary": {"clients": {"names": list(names), "counts": counts, "moves": []}}}


def run_of(folder, counts, *settings, names=(), labels=("good", "bad")):
    lines = records(1, len(counts) if isinstance(counts, list) and len(counts) < 5 else 3)
    return make_run(folder, lines, *settings, manifest=told(counts, names), labels=labels)


def test_each_clients_texts_stand_stacked_by_class(tmp_path):
    page = report_of(tmp_path, run_of(tmp_path / "a", [[30, 1], [0, 25], [7, 7]], names=["north", "south", HOSTILE]))
    traces, layout = figures_of(page)["shares"]
    assert [trace["name"] for trace in traces] == ["good", "bad"]
    assert [trace["x"] for trace in traces] == [[0, 1, 2]] * 2
    assert [trace["y"] for trace in traces] == [[30, 0, 7], [1, 25, 7]]
    assert traces[1]["text"][:2] == ["north: 1 text", "south: 25 texts"]
    assert "<br>%{xaxis.title.text} %{x}<br>" in traces[0]["hovertemplate"]
    assert (layout["barmode"], layout["xaxis"]["title"]["text"]) == ("stack", "client")
    assert {trace["offsetgroup"] for trace in traces} == {"None"}
    rows = Elements(page).table("Who holds what")
    assert [(row["client"][0], row["bad"][1]) for row in rows] == [("0", "1.0"), ("1", "25.0"), ("2", "7.0")]
    assert 'aria-label="Stacked bars: training texts over clients. good: north: 30 texts of client 0,' in page
    # The charts over rounds are as wide as the rounds.
    assert figures_of(page)["accuracy"][1]["xaxis"]["range"] == [-0.6, 1.6]


def test_of_many_classes_and_clients_the_largest_and_the_first_are_shown(tmp_path):
    counts = np.random.default_rng(0).integers(0, 9, (100, 20))
    counts[:, 4] += 20
    labels = [f"class {label}" for label in range(20)]
    page = report_of(tmp_path, run_of(tmp_path / "a", counts.tolist(), labels=labels))
    traces = chart_data(page)["shares"]
    assert len(traces) == NUM_COLOURS == len(_PATTERNS)
    assert traces[-1]["name"] == "13 other classes"
    assert "class 4" in [trace["name"] for trace in traces]
    assert all(len(trace["x"]) == 40 for trace in traces)
    # Nothing is lost but the clients that are not shown.
    assert np.sum([trace["y"] for trace in traces], axis=0).tolist() == counts[:40].sum(axis=1).tolist()
    rest = counts[40:].sum(axis=1)
    assert f"The first 40 of 100 clients; the others have {rest.min()} to {rest.max()} texts." in page


def test_runs_that_hold_the_same_share_a_bar_and_others_stand_side_by_side(tmp_path):
    same = [run_of(tmp_path / name, [[3, 1], [1, 3]], f"adapter.rank={rank}") for name, rank in (("a", 2), ("b", 4))]
    assert [trace["name"] for trace in chart_data(report_of(tmp_path, *same))["shares"]] == ["good", "bad"]
    other = run_of(tmp_path / "c", [[2, 2], [2, 2]], "adapter.rank=8")
    traces = chart_data(report_of(tmp_path, *same, other))["shares"]
    assert len(traces) == 6
    assert [trace["offsetgroup"] for trace in traces] == ["0", "0", "1", "1", "2", "2"]
    assert [trace["meta"]["line"] for trace in traces] == [0, 0, 1, 1, 2, 2]
    seeds = [run_of(tmp_path / f"s{seed}", [[3 + seed, 1], [1, 3 + seed]], f"run.seed={seed}") for seed in (0, 2)]
    page = report_of(tmp_path, *seeds)
    assert [trace["y"] for trace in chart_data(page)["shares"]] == [[4, 1], [1, 4]]
    assert "Of several runs the mean." in page


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"data_summary": {"clients": None}},
        {"data_summary": {"clients": {"names": [], "counts": [["a"]]}}},
        {"data_summary": {"clients": {"names": [], "counts": [[1, 2, 3]]}}},
        {"data_summary": {"clients": {"names": [], "counts": [[1], [2, 3]]}}},
        {"data_summary": {"clients": {"names": [], "counts": []}}},
        {"data_summary": {"clients": [1]}},
    ],
)
def test_where_nobody_knows_who_holds_what_there_is_no_picture(tmp_path, manifest):
    """Of older runs, and of deployments, whose server sees no training text."""
    page = report_of(tmp_path, make_run(tmp_path / "a", records(1), manifest=manifest))
    assert "shares" not in figures_of(page)
    assert "Who holds what" not in page
