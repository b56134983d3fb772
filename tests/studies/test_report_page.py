"""Promises of the report's page: one file that needs nothing else, no text taken for markup, readable by all."""

from __future__ import annotations

import re

import plotly.graph_objects as go
import pytest

from splitrank.studies.report import read_runs, write_report
from tests.studies.written_runs import (
    HOSTILE,
    Elements,
    chart_data,
    figures_of,
    make_run,
    records,
    report_of,
    without_scripts,
)

pytestmark = pytest.mark.usefixtures("small_pages")


def test_hostile_texts_stay_texts(tmp_path):
    lines = records(2)
    lines[1]["clients"][0]["binding"] = HOSTILE
    folder = make_run(
        tmp_path / "placeholder", lines, f"data.name={HOSTILE}", source=HOSTILE, labels=[HOSTILE, "<!-- --><script>"]
    )
    other = make_run(
        tmp_path / "other", records(2), "data.name=plain", source=HOSTILE, labels=[HOSTILE, "<!-- --><script>"]
    )
    runs, _ = read_runs([folder, other])
    object.__setattr__(runs[0], "name", HOSTILE)  # a folder's name cannot hold "/"
    write_report(runs, tmp_path / "out.html", HOSTILE)
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    tags = [tag for tag, _ in Elements(page).found]
    assert tags.count("script") == 2 + len(chart_data(page))
    assert not {"img", "b"} & set(tags)
    assert "<img" not in without_scripts(page)
    assert "&lt;img src=x onerror=alert(1)&gt;&lt;/script&gt;&lt;b&gt;" in without_scripts(page)
    assert not any(name.startswith("on") for _, attributes in Elements(page).found for name in attributes)
    for script in re.findall(r"Plotly\.newPlot.*?</script>", page, re.DOTALL):
        assert "<" not in script.removesuffix("</script>")
    # Plotly takes names and texts for markup once more.
    for traces in chart_data(page).values():
        for trace in traces:
            assert "<" not in trace["name"]
            assert not any("<" in text for text in trace["text"])
    assert any("&lt;img" in trace["name"] for trace in chart_data(page)["accuracy"])


def test_nothing_is_fetched(tmp_path, whole_page):
    page = report_of(tmp_path, make_run(tmp_path / "a", records(1)))
    assert page.count("* plotly.js v") == 1
    elements = Elements(page)
    assert [tag for tag, _ in elements.found].count("script") == 2 + len(chart_data(page))
    for tag, attributes in elements.found:
        assert "src" not in attributes, tag
        assert tag != "link" or attributes["href"] == "data:,"
    (policy,) = [a["content"] for t, a in elements.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("sha256-") == 2 + len(chart_data(page))
    assert "http" not in policy.lower().replace("http-equiv", "")


def test_plotly_knows_every_property_of_the_figures(tmp_path):
    """The report leaves out Plotly's own check, so that it is written sooner."""
    counts = {"data_summary": {"clients": {"names": [], "counts": [[1, 2], [3, 4], [5, 6]]}}}
    folders = [
        make_run(tmp_path / f"{rank}-{seed}", records(2), f"adapter.rank={rank}", f"run.seed={seed}", manifest=counts)
        for rank in (1, 4)
        for seed in (0, 1)
    ]
    figures = figures_of(report_of(tmp_path, *folders))
    assert "shares" in figures  # stacked bars; lines and bands are in the others
    for traces, layout in figures.values():
        go.Figure(traces, layout)


def test_for_screen_readers_and_phones(tmp_path):
    page = report_of(
        tmp_path, make_run(tmp_path / "a", records(2)), make_run(tmp_path / "b", records(2), "adapter.rank=4")
    )
    elements = Elements(page).found
    assert ("html", {"lang": "en"}) in elements
    assert any(a.get("name") == "viewport" and "width=device-width" in a["content"] for _, a in elements)
    charts = [a for _, a in elements if a.get("class") == "chart"]
    assert len(charts) == 10
    for chart in charts:
        assert chart["role"] == "img"
        assert "in round 2" in chart["aria-label"]
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(set(ids)) == len(ids)
    for _, attributes in elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
    assert all(a.get("scope") in ("col", "row") for t, a in elements if t == "th")
    tags = [tag for tag, _ in elements]
    assert tags.count("caption") == tags.count("table") == 12
    assert tags.count("details") == 11
    assert tags.count("h2") == 11
    assert [a["aria-pressed"] for t, a in elements if t == "button"] == ["true", "true"]
