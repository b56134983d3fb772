"""A report's page: charts and tables as one HTML file that asks for nothing else.

Whatever a user may have written passes through :func:`html.escape` on its way into the page, through ``_script_json``
into the charts' data, and once more through :func:`html.escape` where Plotly would read it as markup. The page's
content security policy lets only the two scripts of the page run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from plotly.offline import get_plotlyjs

from splitrank.studies.report_series import NUM_COLOURS, SYMBOLS, Chart, Line, Series

_PLOTLY_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
_MAX_MARKED_ROUNDS = 200
_MAX_HOVER_NAME = 60
_CROWD = 5
"""From so many lines on, bands are paler and one button hides them all."""

MISSING, NO_RANK = "–", "no rank"
"""Stand where there is no number."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what people read, and the exact number behind it if there is one."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows. All texts as the user wrote them, not escaped."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]


def page(
    title: str,
    lines: Sequence[Line],
    charts: Sequence[Chart],
    *,
    facts: Iterable[str],
    summary: Table,
    details: Iterable[Table],
) -> str:
    """The whole page.

    Args:
        title: heading and window title.
        lines: what the legend shows and hides.
        charts: in the page's order.
        facts: paragraphs above the summary.
        summary: the table on top.
        details: further tables, each folded away under its caption.
    """
    style, own_script = _asset("report.css"), f"\n{_asset('report.js')}"
    plotly = get_plotlyjs().replace("\r\n", "\n")
    policy = (
        f"default-src 'none'; script-src {_digest(plotly)} {_digest(own_script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{"".join(f"<p>{escape(fact)}</p>" for fact in facts)}
<noscript><p class="warning">The charts need JavaScript; the tables below them hold the same numbers.</p></noscript>
</header>
<main>
<section aria-labelledby="summary">
<h2 id="summary">Summary</h2>
{_table(summary)}
{"".join(_folded(table.caption, table) for table in details)}
</section>
{_legend(lines)}
<div class="charts">
{"".join(_section(chart, len(lines)) for chart in charts)}
</div>
</main>
<script type="application/json" id="report-data">{_script_json(_data(charts, lines))}</script>
<script>{plotly}</script>
<script>{own_script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return (resources.files("splitrank.studies") / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _script_json(value: Any) -> str:
    """JSON in which nothing can end the script element that holds it, nor open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) == 1:
        return ""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-line="{index}">{_mark(index, index // NUM_COLOURS)} '
        f"{escape(line.label)}</button>\n"
        for index, line in enumerate(lines)
    )
    if len(lines) >= _CROWD:
        buttons = f'<button type="button" class="all">Hide or show all</button>\n{buttons}'
    return f'<div class="legend" role="group" aria-label="Runs shown in all charts">\n{buttons}</div>'


def _mark(colour: int, symbol: int) -> str:
    style = f"color: var(--line-{colour % NUM_COLOURS})"
    return f'<span class="mark" aria-hidden="true" style="{style}">{SYMBOLS[symbol % len(SYMBOLS)]}</span>'


def _section(chart: Chart, num_lines: int) -> str:
    if chart.is_empty:
        content = '<p class="empty">Nothing has been recorded for this chart yet.</p>'
    else:
        content = (
            f'<p class="note">{_keys(chart, num_lines)} {escape(chart.note)}</p>\n'
            f'<div class="chart" id="chart-{chart.key}" role="img" aria-label="{escape(_description(chart))}"></div>\n'
            f"{_folded('The numbers as a table', _chart_table(chart))}"
        )
    return f"""<section aria-labelledby="heading-{chart.key}">
<h2 id="heading-{chart.key}">{chart.title}</h2>
{content}</section>
"""


def _keys(chart: Chart, num_lines: int) -> str:
    """What the shapes of the markers, or the fillings of the bars, stand for."""
    keys = [
        f"{_mark(place, place) if num_lines == 1 else SYMBOLS[place]} client {client}"
        for place, client in enumerate(chart.clients)
    ]
    for part, what in (chart.parts or {}).items():
        style = f' style="color: var(--line-{part})"' if num_lines == 1 else ""
        keys.append(f'<span class="part part-{part}" aria-hidden="true"{style}></span> {escape(what)}')
    return "".join(f'<span class="key">{key}</span>' for key in keys)


def _description(chart: Chart) -> str:
    """The chart in words: its axes, and where each line starts and ends."""
    kind = "Stacked bars" if chart.parts else "Line chart"
    sentences = [f"{kind}: {chart.quantity.axis} over rounds."]
    for series in [*chart.series, *chart.budgets][:6]:
        recorded = [place for place, value in enumerate(series.values) if value is not None]
        if recorded:
            first, last = recorded[0], recorded[-1]
            sentences.append(
                f"{series.name}: {series.texts[first]} in round {series.rounds[first]}, "
                f"{series.texts[last]} in round {series.rounds[last]}."
            )
    return " ".join([*sentences, "All numbers are in the table below."])


def _folded(summary: str, table: Table) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{_table(table)}\n</details>\n"


def _table(table: Table) -> str:
    classes = [' class="text"' if _is_text(column) else "" for column in zip(*table.rows, strict=True)]
    head = "".join(
        f'<th scope="col"{of_column}>{escape(name)}</th>'
        for of_column, name in zip(classes, table.columns, strict=True)
    )
    body = ""
    for first, *others in table.rows:
        cells = "".join(
            f"<td{of_column}>{_content(cell)}</td>" for of_column, cell in zip(classes[1:], others, strict=True)
        )
        body += f'<tr><th scope="row"{classes[0]}>{_content(first)}</th>{cells}</tr>\n'
    # A box that scrolls must be reachable by keyboard, hence the tabindex, and then wants a name.
    return (
        f'<div class="scroll tall" role="region" tabindex="0" aria-label="{escape(table.caption)}">\n'
        f"<table><caption>{escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>"
        "</table></div>"
    )


def _is_text(column: Sequence[Cell]) -> bool:
    return any(cell.value is None and cell.text not in (MISSING, NO_RANK) for cell in column)


def _content(cell: Cell) -> str:
    if cell.value is None:
        return escape(cell.text)
    return f'<data value="{json.dumps(cell.value)}">{escape(cell.text)}</data>'


def _chart_table(chart: Chart) -> Table:
    """The chart's numbers: a row for every round, a column for every line, three where a range is drawn."""
    columns, by_round = ["round"], []
    for series in [*chart.series, *chart.budgets]:
        if chart.parts:
            shown = [(series.name, series.values, series.texts)]
        else:
            ends = [("", series.values)]
            if series.low is not None and series.high is not None:
                ends = [(": mean", series.values), (": lowest", series.low), (": highest", series.high)]
            shown = [
                (series.name + what, values, ["" if value is None else chart.quantity.show(value) for value in values])
                for what, values in ends
            ]
        for name, values, texts in shown:
            columns.append(name)
            cells = (
                Cell(text, value) if value is not None else Cell(MISSING)
                for text, value in zip(texts, values, strict=True)
            )
            by_round.append(dict(zip(series.rounds, cells, strict=True)))
    rounds = sorted({round for series in chart.series for round in series.rounds})
    rows = [[Cell(str(round), round), *(cells.get(round, Cell(MISSING)) for cells in by_round)] for round in rounds]
    return Table(f"{chart.title}: {chart.quantity.axis}", columns, rows)


def _data(charts: Sequence[Chart], lines: Sequence[Line]) -> dict[str, Any]:
    """What the page's script needs."""
    rounds = [round for chart in charts for series in chart.series for round in series.rounds]
    last = max(rounds)
    margin = max(0.6, 0.02 * last)  # half a bar
    return {
        "num_colours": NUM_COLOURS,
        "is_crowded": len(lines) >= _CROWD,
        "round_range": [min(rounds) - margin, last + margin],
        "round_step": _whole_step(last),
        "charts": [
            {
                "key": chart.key,
                "axis": chart.quantity.axis,
                "tick_format": chart.quantity.tick_format,
                "from_zero": chart.from_zero,
                "step": _value_step(chart),
                "traces": [*_bands(chart), *(_trace(chart, series) for series in [*chart.series, *chart.budgets])],
            }
            for chart in charts
            if not chart.is_empty
        ],
    }


def _value_step(chart: Chart) -> int | None:
    """Distance of the vertical axis's ticks where they must be whole numbers; None where Plotly may choose."""
    heights: dict[tuple[int | None, int], float] = {}
    for place, series in enumerate(chart.series):
        pile = series.line if chart.parts else place  # the parts of a bar stand on each other
        for round, value in zip(series.rounds, series.high or series.values, strict=True):
            heights[pile, round] = heights.get((pile, round), 0) + (value or 0)
    return _whole_step(math.ceil(max(heights.values()))) if chart.quantity.is_whole else None


def _whole_step(last: int) -> int:
    """1, 2 or 5 times a power of ten, so that about ten ticks fit."""
    power: int = 10 ** max(0, int(math.log10(max(last, 1) / 10)))
    return next(step * power for step in (1, 2, 5, 10) if last <= 10 * step * power)


def _hover_name(name: str) -> str:
    """Short enough for a label; what tells names apart stands at their ends more often than in the middle."""
    half = _MAX_HOVER_NAME // 2
    return name if len(name) <= _MAX_HOVER_NAME else f"{name[:half]}…{name[-half:]}"


def _trace(chart: Chart, series: Series) -> dict[str, Any]:
    is_budget = series.dash == "dot"
    trace: dict[str, Any] = {
        "name": escape(_hover_name(series.name)),
        "x": series.rounds,
        "y": series.values,
        "text": [escape(text) for text in series.texts],
        "hovertemplate": "<b>%{fullData.name}</b><br>round %{x}<br>%{text}<extra></extra>",
        "meta": {"line": series.line, "colour": series.colour, "kind": "line", "part": series.part},
    }
    if chart.parts:
        # Bars with one offset group stand on each other, those of other groups beside them.
        trace["meta"]["kind"] = "bar"
        return {
            **trace,
            "type": "bar",
            "offsetgroup": str(series.line),
            "hovertext": trace["text"],
            "textposition": "none",
        }
    is_marked = not is_budget and len(series.rounds) <= _MAX_MARKED_ROUNDS
    symbol = _PLOTLY_SYMBOLS[series.symbol] + ("-open" if series.dash == "dash" else "")
    return {
        **trace,
        "type": "scatter",
        "mode": "lines+markers" if is_marked else "lines",
        "cliponaxis": False,  # a marker on the axis is drawn whole
        "line": {"dash": series.dash, "width": 1.5 if is_budget else 2},
        "marker": {"symbol": symbol, "size": 8 if len(series.rounds) <= 40 else 5},
    }


def _bands(chart: Chart) -> list[dict[str, Any]]:
    """Closed shapes from the lowest to the highest, one for every stretch of rounds without a gap."""
    bands = []
    for series in chart.series:
        if chart.parts or series.low is None or series.high is None:
            continue
        x: list[int | None] = []
        y: list[float | None] = []
        for stretch in _stretches(series):
            ends = [*stretch, *reversed(stretch)]
            x += [series.rounds[place] for place in ends] + [None]
            y += [series.low[place] for place in stretch] + [series.high[place] for place in reversed(stretch)] + [None]
        meta = {"line": series.line, "colour": series.colour, "kind": "band", "part": 0}
        bands.append(
            {"type": "scatter", "mode": "lines", "fill": "toself", "hoverinfo": "skip", "x": x, "y": y, "meta": meta}
        )
    return bands


def _stretches(series: Series) -> list[list[int]]:
    stretches: list[list[int]] = [[]]
    for place, value in enumerate(series.values):
        if value is not None:
            stretches[-1].append(place)
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]
