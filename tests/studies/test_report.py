"""Promises of the report: one file that needs nothing else, every number as recorded, no text taken for markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from splitrank.config import load_config, to_toml
from splitrank.errors import InputError
from splitrank.studies.report import check_same_experiment, read_runs, write_report

HOSTILE = "<img src=x onerror=alert(1)></script><b>"
SOURCE = "reviews of 2026"


@pytest.fixture(autouse=True)
def small_pages(request, monkeypatch):
    """Spare most tests the megabytes of Plotly's script."""
    if "whole_page" not in request.fixturenames:
        monkeypatch.setattr("splitrank.studies.report_page.get_plotlyjs", lambda: "/* Plotly */")


@pytest.fixture
def whole_page():
    """Ask for pages as they are."""


def client_entry(client: int, round: int, **changes: Any) -> dict[str, Any]:
    """What a client leaves in a round in which it trained; odd decimals, so that rounding would show."""
    return {
        "client": client,
        "rank": 4 + round,
        "max_rank": 5 + round,
        "latency_s": 100.123456789 + client + round / 7,
        "energy_j": 6.1 + client / 3 + round / 11,
        "binding": ("latency", "energy", "frequency", "rank-cap")[(client + round) % 4],
        "uplink_bits": 1e6 + 1000.0 * round,
        "downlink_bits": 2e6 + 1000.0 * round,
        "train_loss": 1.2345678901234567 / (round + client),
        "samples": 10,
        "energy_budget_j": 8.5,
        "dropped": False,
    } | changes


def sitting_out(client: int, **changes: Any) -> dict[str, Any]:
    nothing = {"rank": 0, "max_rank": 0, "latency_s": None, "energy_j": None, "train_loss": None}
    return client_entry(client, 1, **nothing, uplink_bits=0.0, downlink_bits=0.0, dropped=True, **changes)


def round_record(round: int, clients: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "round": round,
        "status": "optimal" if round else None,
        "rank": 4 + round if round else 0,
        "accuracy": 1 - 0.7123456789012345 / (round + 1),
        "loss": 1.3862943611198906 / (round + 1),
        "macro_f1": 0.5,
        "worst_client_accuracy": 0.4,
        "factor_averaging_error": 0.1 / round if round else None,
        "clients": clients,
        "wall_s": 1.5,
    } | changes


def records(num_rounds: int, num_clients: int = 3) -> list[dict[str, Any]]:
    before = [
        {"client": client, "samples": 10, "preparation_s": 5.5, "preparation_j": 0.25} for client in range(num_clients)
    ]
    after = [
        round_record(round, [client_entry(client, round) for client in range(num_clients)])
        for round in range(1, num_rounds + 1)
    ]
    return [round_record(0, before), *after]


def make_run(
    folder: Path,
    lines: list[dict[str, Any]],
    *overrides: str,
    source: Any = SOURCE,
    labels: Any = ("good", "bad"),
    manifest: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder by hand."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(load_config("offline", ["budget.latency_s=120", *overrides])))
    data = {"source": source, "labels": list(labels), "train_texts": 3000, "test_texts": 1000}
    (folder / "manifest.json").write_text(json.dumps({"data": data, **(manifest or {})}))
    (folder / "rounds.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def report_of(tmp_path: Path, *folders: Path, title: str = "Report") -> str:
    runs, unreadable = read_runs(folders)
    assert unreadable == []
    check_same_experiment(runs)
    write_report(runs, tmp_path / "out.html", title)
    return (tmp_path / "out.html").read_text(encoding="utf-8")


def chart_data(page: str) -> dict[str, list[dict[str, Any]]]:
    """Chart → its traces, bands left out, as the page holds them."""
    (found,) = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    return {
        chart["key"]: [trace for trace in chart["traces"] if trace["meta"]["kind"] != "band"]
        for chart in json.loads(found)["charts"]
    }


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the texts of table cells, folded-away tables included."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[tuple[str, str | None]]]] = []
        self.captions: list[str] = []
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.found.append((tag, attributes))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(("", None))
        elif tag == "data":
            self.tables[-1][-1][-1] = ("", attributes["value"])
        elif tag == "caption":
            self.captions.append("")
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "caption" in self._inside[-2:]:
            self.captions[-1] += data
        elif {"th", "td"} & set(self._inside[-2:]):
            text, value = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, value)

    def table(self, caption: str) -> list[dict[str, tuple[str, str | None]]]:
        """Rows of the table whose caption begins so, by column."""
        (table,) = [t for t, c in zip(self.tables, self.captions, strict=True) if c.startswith(caption)]
        header = [text for text, _ in table[0]]
        assert len(set(header)) == len(header)
        return [dict(zip(header, row, strict=True)) for row in table[1:]]


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


# ---- numbers


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
    for trace in chart_data(page)["binding"]:
        what = trace["name"].removeprefix("a, limited by ").removeprefix("a, ")
        assert re.search(rf'class="part part-{trace["meta"]["part"]}"[^>]*></span> {what}<', page)
    (found,) = re.findall(r'id="report-data">(.*?)</script>', page, re.DOTALL)
    steps = {chart["key"]: chart["step"] for chart in json.loads(found)["charts"]}
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


# ---- many runs, many clients


def test_runs_that_differ_in_the_seed_are_a_mean_with_its_range(tmp_path):
    folders = []
    for rank in (2, 4):
        for seed in range(3):
            lines = records(2 + seed)
            for line in lines:
                line["accuracy"] = 0.1 * seed + 0.01 * line["round"] + 0.001 * rank
            name = tmp_path / f"rank={rank},seed={seed}"
            folders.append(make_run(name, lines, f"adapter.rank={rank}", f"run.seed={seed}"))
    page = report_of(tmp_path, *folders)
    two, four = chart_data(page)["accuracy"]
    assert two["name"] == "rank=2 (3 runs)"
    assert two["x"] == [0, 1, 2, 3, 4]
    assert two["y"] == pytest.approx([0.102, 0.112, 0.122, 0.182, 0.242])
    assert four["y"][0] == pytest.approx(0.104)
    row = Elements(page).table("Accuracy")[2]
    assert json.loads(row["rank=2 (3 runs): lowest"][1]) == pytest.approx(0.022)
    assert json.loads(row["rank=2 (3 runs): highest"][1]) == pytest.approx(0.222)
    assert "band from the lowest to the highest" in page
    assert len(Elements(page).table("Every run by itself")) == 6
    (band, _) = [trace for trace in _traces(page, "accuracy") if trace["meta"]["kind"] == "band"]
    assert band["y"][2] == pytest.approx(0.022)
    assert band["y"][-4] == pytest.approx(0.222)


def _traces(page: str, key: str) -> list[dict[str, Any]]:
    (found,) = re.findall(r'id="report-data">(.*?)</script>', page, re.DOTALL)
    return next(chart["traces"] for chart in json.loads(found)["charts"] if chart["key"] == key)


def test_a_group_is_named_by_what_sets_it_apart(tmp_path):
    """And by no setting that only follows from another one, such as the range of random draws."""
    folders = [
        make_run(tmp_path / f"{method}-{energy}-{seed}", records(1), f"planner.method={method}",
                 f"budget.energy_j={energy}", f"run.seed={seed}")
        for method in ("exact", "random-frequency") for energy in (4, 8) for seed in (0, 1)
    ]  # fmt: skip
    names = [trace["name"] for trace in chart_data(report_of(tmp_path, *folders))["rank"]]
    assert names == [
        "energy_j=4,method=exact (2 runs)",
        "energy_j=8,method=exact (2 runs)",
        "energy_j=4,method=random-frequency (2 runs)",
        "energy_j=8,method=random-frequency (2 runs)",
    ]


def test_groups_of_planned_and_fixed_rank_are_told_apart(tmp_path):
    folders = [
        make_run(tmp_path / f"{number}-{seed}", records(1), *overrides, f"run.seed={seed}")
        for number, overrides in enumerate(([], ["adapter.rank=4"]))
        for seed in (0, 1)
    ]
    names = [trace["name"] for trace in chart_data(report_of(tmp_path, *folders))["rank"]]
    assert names == ["max_rank=128 (2 runs)", "rank=4 (2 runs)"]
    only = [trace["name"] for trace in chart_data(report_of(tmp_path, *folders[:2]))["rank"]]
    assert only == ["all (2 runs)"]


def test_a_baseline_is_not_averaged_with_the_run_of_the_same_settings(tmp_path):
    lora = make_run(tmp_path / "lora", records(2))
    lines = records(2)
    for line in lines[1:]:
        for client in line["clients"]:
            for key in ("latency_s", "energy_j", "binding", "energy_budget_j"):
                del client[key]
    full = make_run(tmp_path / "full", lines, "run.seed=1", manifest={"baseline": "full fine-tuning"})
    page = report_of(tmp_path, lora, full)
    assert [trace["name"] for trace in chart_data(page)["accuracy"]] == ["lora", "full"]
    rows = Elements(page).table("What was reached")
    assert [row["baseline"][0] for row in rows] == ["–", "full fine-tuning"]
    assert rows[1]["energy of all clients"] == ("–", None)


def test_many_clients_are_a_mean_with_its_range(tmp_path):
    lines = records(2, num_clients=50)
    page = report_of(tmp_path, make_run(tmp_path / "a", lines, "federation.num_clients=50"))
    band, mean, budget = _traces(page, "latency")
    times = [client["latency_s"] for client in lines[1]["clients"]]
    assert mean["y"][1] == pytest.approx(sum(times) / 50)
    assert {min(times), max(times)} <= set(band["y"])
    assert budget["name"] == "budget"


def test_more_runs_than_colours(tmp_path):
    folders = [make_run(tmp_path / f"r{n}", records(1), f"train.learning_rate={n}e-4") for n in range(1, 13)]
    traces = chart_data(report_of(tmp_path, *folders))["accuracy"]
    looks = [(trace["meta"]["colour"], trace["marker"]["symbol"]) for trace in traces]
    assert len(set(looks)) == 12


# ---- reading


def test_a_sweep_stands_for_its_runs_in_natural_order(tmp_path):
    for rank in (16, 4, 1):
        make_run(tmp_path / "sweep" / "members" / f"rank={rank}", records(1), f"adapter.rank={rank}")
    (tmp_path / "sweep" / "members" / "rank=1.log").write_text("noise")
    (tmp_path / "sweep" / "members" / ".hidden").mkdir()
    runs, unreadable = read_runs([tmp_path / "sweep"])
    assert [run.name for run in runs] == ["rank=1", "rank=4", "rank=16"]
    assert unreadable == []


def test_what_cannot_be_read_is_named_and_the_rest_drawn(tmp_path):
    good = make_run(tmp_path / "good", records(1))
    torn = make_run(tmp_path / "torn", records(1))
    (torn / "rounds.jsonl").write_text('{"round": 0, "acc')
    odd = make_run(tmp_path / "odd", [round_record(0, []) | {"round": "first"}])
    bad = make_run(tmp_path / "bad", records(1))
    (bad / "config.toml").write_text("[federation]\nrounds = -1\nnum_clients = 0\n")
    runs, unreadable = read_runs([good, tmp_path / "missing", torn, odd, bad, good])
    assert [run.name for run in runs] == ["good"]
    assert len(unreadable) == 4
    for folder, sentence in zip(("missing", "torn", "odd", "bad"), unreadable, strict=True):
        assert folder in sentence
        assert "\n" not in sentence


def test_runs_of_one_name_keep_apart(tmp_path):
    page = report_of(
        tmp_path,
        make_run(tmp_path / "a" / "run", records(1)),
        make_run(tmp_path / "b" / "run", records(1), "adapter.rank=4"),
        make_run(tmp_path / "b" / "a" / "run", records(1), "adapter.rank=8"),
        make_run(tmp_path / "b" / "other", records(1), "adapter.rank=2"),
    )
    assert [trace["name"] for trace in chart_data(page)["rank"]] == ["a/run", "b/run", "b/a/run", "other"]


def test_other_data_or_classes_are_refused(tmp_path):
    one = make_run(tmp_path / "one", records(1))
    other = make_run(tmp_path / "other", records(1), source="news")
    classes = make_run(tmp_path / "classes", records(1), labels=["good", "so-so", "bad"])
    with pytest.raises(InputError, match=r"same data, got reviews of 2026 in .*one but news in .*other"):
        check_same_experiment(read_runs([one, other])[0])
    with pytest.raises(InputError, match=r'same classes, .*"so-so".* in .*classes'):
        check_same_experiment(read_runs([one, classes])[0])
    check_same_experiment(read_runs([one])[0])


def test_other_rows_of_the_same_texts_are_the_same_experiment(tmp_path):
    """A sweep over seeds draws other rows; they may be laid over each other, and the page names no seed."""
    drawn = [
        make_run(tmp_path / f"seed-{seed}", records(1), source=f"news of 2026; 100 of 900 training rows by seed {seed}")
        for seed in (0, 1)
    ]
    assert "Data: news of 2026; 2 classes" in report_of(tmp_path, *drawn)


def test_nothing_to_report_and_a_folder_in_the_way(tmp_path):
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "out.html", "Report")
    runs, _ = read_runs([make_run(tmp_path / "a", records(1))])
    with pytest.raises(InputError, match=r"must be a file, got the folder .* try .*report\.html"):
        write_report(runs, tmp_path / "a", "Report")


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    runs, _ = read_runs([make_run(tmp_path / "a", records(1))])
    out = tmp_path / "new" / "report.html"
    write_report(runs, out, "Report")
    before = out.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(runs, out, "Another")
    assert out.read_bytes() == before
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


# ---- the page


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
    assert tags.count("script") == 3
    assert not {"img", "b"} & set(tags)
    assert "<img" not in without_scripts(page)
    assert "&lt;img src=x onerror=alert(1)&gt;&lt;/script&gt;&lt;b&gt;" in without_scripts(page)
    assert not any(name.startswith("on") for _, attributes in Elements(page).found for name in attributes)
    (data,) = re.findall(r'id="report-data">(.*?)</script>', page, re.DOTALL)
    assert not set("<>&") & set(data)
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
    assert [tag for tag, _ in elements.found].count("script") == 3
    for tag, attributes in elements.found:
        assert "src" not in attributes, tag
        assert tag != "link" or attributes["href"] == "data:,"
    (policy,) = [a["content"] for t, a in elements.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy.lower().replace("http-equiv", "")


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


def test_members_that_have_not_begun_are_left_out_and_said(tmp_path, capsys):
    make_run(tmp_path / "sweep" / "members" / "begun", records(1))
    (tmp_path / "sweep" / "members" / "waiting").mkdir()
    runs, unreadable = read_runs([tmp_path / "sweep"])
    assert [run.name for run in runs] == ["begun"]
    assert unreadable == []
    assert "waiting has no round yet" in capsys.readouterr().err


def test_a_budget_that_binds_nobody_is_not_drawn(tmp_path):
    def budgets(run: Path) -> int:
        return sum("budget" in trace["name"] for trace in chart_data(report_of(tmp_path, run))["latency"])

    assert budgets(make_run(tmp_path / "tight", records(2))) == 1
    page = report_of(tmp_path, make_run(tmp_path / "free", records(2), "budget.latency_s=1e9"))
    assert not any("budget" in trace["name"] for trace in chart_data(page)["latency"])
    assert "more than 100 times as much, and not drawn" in page
