"""Draw a report's page: Plotly's figures and pandas' tables in one HTML file that asks for nothing else.

Whatever a user may have written passes through :func:`html.escape` on its way into the page, and once more on its way
into a figure, where Plotly would read it as markup; Plotly writes figures as JSON that cannot end a script. The page's
content security policy lets only the scripts of the page run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template

import pandas as pd
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from splitrank.studies.report_charts import NUM_COLOURS, NUM_SYMBOLS, Chart, Line, Series

# The lines' colours are told apart by people with any kind of colour vision, also by their lightness.
_COLOURS = {
    "page": ("#f5f6f7", "#101316"), "card": ("#ffffff", "#191d21"), "text": ("#1a1d20", "#e8eaec"),
    "muted": ("#5c646c", "#a3abb3"), "grid": ("#dfe3e6", "#333a41"), "focus": ("#0072b2", "#6bbcf0"),
    "line-0": ("#0072b2", "#47a8e8"), "line-1": ("#d55e00", "#ff8a45"), "line-2": ("#00805f", "#1fc498"),
    "line-3": ("#b3478c", "#e88cc0"), "line-4": ("#8a6d00", "#e0bf3a"), "line-5": ("#3a98c9", "#b5ddf7"),
    "line-6": ("#111111", "#ffffff"), "line-7": ("#7a828a", "#8d969e"),
}  # fmt: skip
"""Name → the colour by day and by night; in figures the page's script takes one for the other."""

_LIGHT = {name: light for name, (light, _) in _COLOURS.items()}
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'
_SYMBOLS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "cross": "✚", "x": "✖", "star": "★",
            "triangle-down": "▼"}  # fmt: skip
_PATTERNS = ("", "/", "x", ".", "|", "-", "\\", "+")
_AXIS = {"gridcolor": _LIGHT["grid"], "linecolor": _LIGHT["grid"], "zerolinecolor": _LIGHT["grid"], "automargin": True}
_LAYOUT = {
    "font": {"family": _FONT, "size": 13, "color": _LIGHT["text"]},
    "paper_bgcolor": _LIGHT["card"],
    "plot_bgcolor": _LIGHT["card"],
    "margin": {"l": 48, "r": 12, "t": 30, "b": 44},
    "barmode": "stack",
    "bargap": 0.25,
    "hovermode": "closest",
    "hoverlabel": {"align": "left", "bgcolor": _LIGHT["card"], "font": {"color": _LIGHT["text"]}},
    "showlegend": False,
    "uirevision": "keep",
}
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
}
_HOVER = "<b>%{fullData.name}</b><br>%{xaxis.title.text} %{x}<br>%{text}<extra></extra>"
_Trace = dict[str, object]
_WHERE = {"round": "in round", "client": "of client"}
_MAX_MARKED_ROUNDS, _MAX_LARGE_MARKED_ROUNDS = 200, 40
_MAX_HOVER_NAME = 60
_MAX_DESCRIBED = 6
_CROWD = 5
"""From so many lines on, bands are paler and one button hides them all."""

MISSING, NO_RANK = "–", "no rank"
"""Stand where there is no number."""


def page(
    title: str,
    lines: Sequence[Line],
    charts: Sequence[Chart],
    *,
    facts: Iterable[str],
    summary: str,
    details: Mapping[str, str],
) -> str:
    """Return the whole page.

    Args:
        title: heading and window title.
        lines: for the buttons that show and hide them.
        charts: in the page's order.
        facts: paragraphs above the summary.
        summary: the table on top.
        details: caption → a further table, folded away under it.
    """
    of_rounds = [chart for chart in charts if chart.over == "round"]
    rounds = [round for chart in of_rounds for series in chart.series for round in series.numbers.index]
    colours = [" ".join(f"--{name}: {colours[night]};" for name, colours in _COLOURS.items()) for night in (0, 1)]
    content = Template((resources.files("splitrank.studies") / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        light=colours[0],
        dark=colours[1],
        font=_FONT,
        dark_of_light=json.dumps(dict(_COLOURS.values())),
        facts="".join(f"<p>{escape(fact)}</p>" for fact in facts),
        summary=summary + "".join(_folded(caption, table) for caption, table in details.items()),
        legend=_legend(lines),
        charts="".join(_section(chart, len(lines), min(rounds), max(rounds)) for chart in charts),
        plotly=get_plotlyjs().replace("\r\n", "\n"),
    )
    scripts = re.findall("<script>(.*?)</script>", content, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return content.replace("SCRIPT-DIGESTS", " ".join(f"'sha256-{digest}'" for digest in digests), 1)


# ---- tables


def text_cell(text: str) -> str:
    """Return a table's cell that holds words."""
    return f'<span class="text">{escape(text)}</span>'


def number_cell(value: float, text: str) -> str:
    """Return a table's cell that shows a number as text, with the exact number behind it."""
    return f'<data value="{json.dumps(value)}">{escape(text)}</data>'


def table(caption: str, cells: pd.DataFrame) -> str:
    """Return a table whose index names the rows, and whose columns' name stands above it.

    Args:
        caption: its heading.
        cells: from :func:`text_cell` and :func:`number_cell`, the index, too; the columns' names are not escaped.
    """
    columns = cells.reset_index().astype(str)
    is_text = [columns.iloc[:, place].str.startswith("<span").any() for place in range(columns.shape[1])]
    names = [text_cell(name) if words else escape(name)
             for name, words in zip([cells.columns.name, *cells.columns], is_text, strict=True)]  # fmt: skip
    with pd.option_context("display.max_colwidth", None):
        content = cells.set_axis(pd.Index(names[1:], name=names[0], dtype=object), axis=1).to_html(
            escape=False, border=0, na_rep=MISSING
        )
    head, body = content.replace("<thead>", f"<caption>{escape(caption)}</caption><thead>").split("<tbody>")
    content = head.replace("<th>", '<th scope="col">') + "<tbody>" + body.replace("<th>", '<th scope="row">')
    # A box that scrolls must be reachable by keyboard, hence the tabindex, and then wants a name.
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">{content}</div>\n'


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>\n"


def _numbers_table(chart: Chart) -> str:
    """Return the chart's numbers: a row for every round or client, a column for every line, three with a range."""
    columns = []
    for series in chart.series:
        ends = {": mean": "mean", ": lowest": "min", ": highest": "max"}
        for suffix, key in ends.items() if series.is_range and not chart.is_stacked else [("", "mean")]:
            values = series.numbers[key].dropna()
            # Beside the number who sat out, but not the budget, which has a column of its own.
            texts = series.numbers["text"] if chart.is_stacked else values.map(chart.quantity.show)
            cells = [number_cell(value, texts[round]) for round, value in values.items()]
            columns.append(pd.Series(cells, index=values.index, name=series.name + suffix, dtype=object))
    cells = pd.concat(columns, axis=1).reindex(sorted({round for one in chart.series for round in one.numbers.index}))
    cells = cells.set_axis([number_cell(round, str(round)) for round in cells.index])
    return table(f"{chart.title}: {chart.quantity.axis}", cells.rename_axis(columns=chart.over))


# ---- charts


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) == 1:
        return ""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-line="{index}">{_mark(index // NUM_COLOURS, index)} '
        f"{escape(line.label)}</button>\n"
        for index, line in enumerate(lines)
    )
    if len(lines) >= _CROWD:
        buttons = f'<button type="button" class="all">Hide or show all</button>\n{buttons}'
    return f'<div class="legend" role="group" aria-label="Runs shown in all charts">\n{buttons}</div>'


def _mark(symbol: int, colour: int | None) -> str:
    style = "" if colour is None else f' style="color: var(--line-{colour % NUM_COLOURS})"'
    return f'<span class="mark" aria-hidden="true"{style}>{[*_SYMBOLS.values()][symbol % NUM_SYMBOLS]}</span>'


def _section(chart: Chart, num_lines: int, first: int, last: int) -> str:
    content = '<p class="empty">Nothing has been recorded for this chart yet.</p>'
    if not chart.is_empty:
        drawn = _figure(chart, num_lines, first, last)
        drawing = to_html(
            drawn, _CONFIG, include_plotlyjs=False, full_html=False, validate=False, div_id=f"chart-{chart.key}"
        )
        content = (
            f'<p class="note">{_keys(chart, num_lines)} {escape(chart.note)}</p>\n'
            f'<div class="chart" role="img" aria-label="{escape(_description(chart))}">{drawing}</div>\n'
            f"{_folded('The numbers as a table', _numbers_table(chart))}"
        )
    heading = f'<h2 id="heading-{chart.key}">{chart.title}</h2>'
    return f'<section aria-labelledby="heading-{chart.key}">\n{heading}\n{content}</section>\n'


def _keys(chart: Chart, num_lines: int) -> str:
    """Return what the shapes of the markers, or the fillings of the bars, stand for."""
    keys = {}
    for series in chart.series:
        colour = series.colour if num_lines == 1 else None
        style = "" if colour is None else f' style="color: var(--line-{colour})"'
        filling = f'<span class="part part-{series.filling}" aria-hidden="true"{style}></span>'
        mark = filling if chart.is_stacked else _mark(series.symbol, colour)
        keys[series.key] = f'<span class="key">{mark} {escape(series.key)}</span>'
    return "".join(content for key, content in keys.items() if key)


def _description(chart: Chart) -> str:
    """Return the chart in words: its axes, and where each line starts and ends."""
    kind, where = "Stacked bars" if chart.is_stacked else "Line chart", _WHERE[chart.over]
    sentences = [f"{kind}: {chart.quantity.axis} over {chart.over}s."]
    for series in [one for one in chart.series if one.is_recorded][:_MAX_DESCRIBED]:
        texts = series.numbers["text"][series.numbers["mean"].notna()]
        ends = (f"{texts[place]} {where} {place}" for place in texts.index[[0, -1]])
        sentences.append(f"{series.name}: {', '.join(ends)}.")
    return " ".join([*sentences, "All numbers are in the table below."])


def _figure(chart: Chart, num_lines: int, first: int, last: int) -> dict[str, object]:
    """Return the figure in the colours of the day, over the rounds from ``first`` to ``last``, or all clients shown."""
    if chart.over != "round":
        first, last = 0, max(len(series.numbers) for series in chart.series) - 1
    margin = max(0.6, 0.02 * last)  # half a bar
    tops = [series.numbers["max"] for series in chart.series]
    if chart.is_stacked:
        found = dict.fromkeys(one.line for one in chart.series)
        tops = [sum(one.numbers["max"] for one in chart.series if one.line == line) for line in found]
    quantity = chart.quantity
    xaxis = {
        "title": {"text": chart.over},
        "range": [first - margin, last + margin],
        "dtick": _whole_step(last),
        "zeroline": False,
    }
    yaxis = {
        "title": {"text": quantity.axis},
        "tickformat": quantity.tick_format,
        "rangemode": "tozero" if quantity.from_zero else "normal",
        "dtick": _whole_step(math.ceil(pd.concat(tops).max())) if quantity.is_whole else None,
    }
    bands = [_band(one, num_lines) for one in chart.series if one.is_range and one.dash != "dot"]
    traces = [trace for series in chart.series for trace in (_bar(series) if chart.is_stacked else _line(series))]
    return {"data": [*bands, *traces], "layout": {**_LAYOUT, "xaxis": _AXIS | xaxis, "yaxis": _AXIS | yaxis}}


def _whole_step(last: int) -> int:
    """Return 1, 2 or 5 times a power of ten, so that about ten ticks fit."""
    power: int = 10 ** max(0, int(math.log10(max(last, 1) / 10)))
    return next(step * power for step in (1, 2, 5, 10) if last <= 10 * step * power)


def _colour(series: Series) -> str:
    return _LIGHT["muted" if series.colour is None else f"line-{series.colour}"]


def _trace(series: Series, key: str = "mean") -> _Trace:
    """Return what a bar and a line have in common; in a long name what tells it from others stands at its ends."""
    name, half = series.name, _MAX_HOVER_NAME // 2
    return {
        "name": escape(name if len(name) <= _MAX_HOVER_NAME else f"{name[:half]}…{name[-half:]}"),
        "x": series.numbers.index.tolist(),
        "y": series.numbers[key].tolist(),  # Plotly writes null for NaN
        "text": [escape(text) for text in series.numbers["text"]],
        "hovertemplate": _HOVER,
        "hoverlabel": {"bordercolor": _colour(series)},
        "meta": {"line": series.line},
        "visible": True,
    }


def _bar(series: Series) -> list[_Trace]:
    # Bars with one offset group stand on each other, those of other groups beside them.
    colour, trace = _colour(series), _trace(series)
    pattern = {"shape": _PATTERNS[series.filling], "bgcolor": _LIGHT["card"], "fgcolor": colour, "size": 7}
    edge = {"color": colour, "width": (series.numbers["mean"] > 0).astype(int).tolist()}
    marker = {"color": colour, "pattern": {**pattern, "fillmode": "replace"}, "line": edge}
    return [trace | {"type": "bar", "offsetgroup": str(series.line), "textposition": "none", "marker": marker}]


def _line(series: Series) -> list[_Trace]:
    """Return the line; of a budget that is not the same for all, the lowest and the highest."""
    is_budget = series.dash == "dot"
    num_rounds = len(series.numbers)
    size = 8 if num_rounds <= _MAX_LARGE_MARKED_ROUNDS else 5
    symbol = [*_SYMBOLS][series.symbol] + ("-open" if series.dash == "dash" else "")
    return [
        {
            **_trace(series, key),
            "type": "scatter",
            "mode": "lines" if is_budget or num_rounds > _MAX_MARKED_ROUNDS else "lines+markers",
            "cliponaxis": False,  # a marker on the axis is drawn whole
            "line": {"dash": series.dash, "width": 1.5 if is_budget else 2, "color": _colour(series)},
            "marker": {"symbol": symbol, "size": size, "color": _colour(series)},
        }
        for key in (("min", "max") if is_budget and series.is_range else ("mean",))
    ]


def _band(series: Series, num_lines: int) -> _Trace:
    """Return a closed shape from the lowest to the highest for every stretch of rounds without a gap."""
    x: list[int | None] = []
    y: list[float | None] = []
    gaps = series.numbers["mean"].isna()
    for _, stretch in series.numbers[~gaps].groupby(gaps.cumsum()[~gaps]):
        x += [*stretch.index, *stretch.index[::-1], None]
        y += [*stretch["min"], *stretch["max"][::-1], None]
    colour, opacity = _colour(series), 0.1 if num_lines >= _CROWD else 0.19
    return {
        "type": "scatter", "x": x, "y": y, "mode": "lines", "fill": "toself", "hoverinfo": "skip", "fillcolor": colour,
        "opacity": opacity, "visible": True, "line": {"width": 1, "color": colour}, "meta": {"line": series.line},
    }  # fmt: skip
