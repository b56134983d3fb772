"""Run folders written by hand, and readers of the report's page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from splitrank.config import load_config, to_toml
from splitrank.studies.report import check_same_experiment, read_runs, write_report

HOSTILE = "<img src=x onerror=alert(1)></script><b>"
SOURCE = "reviews of 2026"


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
    (folder / "rounds.jsonl").write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    return folder


def report_of(tmp_path: Path, *folders: Path, title: str = "Report") -> str:
    runs, unreadable = read_runs(folders)
    assert unreadable == []
    check_same_experiment(runs)
    write_report(runs, tmp_path / "out.html", title)
    return (tmp_path / "out.html").read_text(encoding="utf-8")


def figures_of(page: str) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Chart → its traces and its layout, as the page's scripts hold them."""
    decoder, figures = json.JSONDecoder(), {}
    for call in re.finditer(r'Plotly\.newPlot\(\s*"chart-(\w+)",\s*', page):
        traces, end = decoder.raw_decode(page, call.end())
        layout, _ = decoder.raw_decode(page, page.index("{", end))
        figures[call[1]] = traces, layout
    return figures


def chart_data(page: str) -> dict[str, list[dict[str, Any]]]:
    """Chart → its traces, bands left out."""
    return {
        key: [trace for trace in traces if trace.get("fill") != "toself"]
        for key, (traces, _) in figures_of(page).items()
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


def all_traces(page: str, key: str) -> list[dict[str, Any]]:
    """The traces of a chart, bands included."""
    return figures_of(page)[key][0]
