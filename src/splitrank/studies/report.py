"""One HTML file about one run or many: what was learnt in every round, and what it cost against the budgets.

It opens without a network. Runs that differ in nothing but the seed are drawn as their mean and range.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from splitrank.config import flatten, plain_values
from splitrank.errors import InputError
from splitrank.federation.export_forms import export_folder, export_text
from splitrank.files import write_atomically
from splitrank.studies.recorded import RecordedRun, read_run
from splitrank.studies.report_charts import charts_of
from splitrank.studies.report_page import MISSING, NO_RANK, Cell, Table, page
from splitrank.studies.report_series import ACCURACY, BITS, Line, plain
from splitrank.studies.sweep import member_name
from splitrank.studies.totals import best_accuracy, has_rank, last_accuracy, mean_rank, numbers, slowest, total

_LOG = logging.getLogger("splitrank")

_MEMBERS = "members"
_MAX_SHOWN_VALUE = 80
_NO_LIMIT = "no limit"


def read_runs(folders: Sequence[Path]) -> tuple[list[RecordedRun], list[str]]:
    """Read run folders, each once; a folder with a sub-folder ``members`` stands for all run folders in that.

    Returns:
        the runs that can be read, and a sentence for each that cannot.
    """
    runs: dict[Path, RecordedRun] = {}
    unreadable = []
    for folder in folders:
        try:
            for run_folder in _run_folders(folder):
                try:
                    if run_folder.resolve() not in runs:
                        runs[run_folder.resolve()] = read_run(run_folder)
                except InputError as error:
                    unreadable.append("; ".join(str(error).splitlines()))
        except OSError as error:
            unreadable.append(f"{error.filename or folder} must be readable, got: {error.strerror}")
    return list(runs.values()), unreadable


def check_same_experiment(runs: Sequence[RecordedRun]) -> None:
    """Refuse to lay results of different experiments over each other.

    Raises:
        InputError: the runs differ in their data or their classes; the message says which runs, and in what.
    """
    for what, value_of in (("data", _source), ("classes", lambda run: _text(_data(run).get("labels")))):
        found: dict[str, list[str]] = {}
        for run in runs:
            found.setdefault(value_of(run), []).append(str(run.folder))
        if len(found) > 1:
            sides = " but ".join(f"{_short(value)} in {_listed(folders)}" for value, folders in found.items())
            raise InputError(f"The runs of one report must have the same {what}, got {sides}; make a report of each")


def write_report(runs: Sequence[RecordedRun], path: Path, title: str) -> None:
    """Write the report.

    Args:
        runs: of one experiment (:func:`check_same_experiment`), at least one.
        path: the file; it appears whole or not at all.
        title: its heading.

    Raises:
        InputError: there is no run, or the path is a folder.
    """
    if not runs:
        raise InputError("A report needs at least one run that can be read, got none; name a run's folder")
    if path.is_dir():
        raise InputError(f"--out must be a file, got the folder {path}; try {path / 'report.html'}")
    lines = _lines(runs)
    content = page(
        title,
        lines,
        charts_of(lines),
        facts=_facts(runs, lines),
        summary=_summary("What was reached, and what it cost", lines),
        details=_details(runs, lines),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _run_folders(folder: Path) -> list[Path]:
    members = folder / _MEMBERS
    if not members.is_dir():
        return [folder]
    found = [entry for entry in members.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    begun = [entry for entry in found if (entry / "rounds.jsonl").is_file()]
    for entry in set(found) - set(begun):
        _LOG.info(f"{entry.name} has no round yet and is left out.")
    return sorted(begun, key=lambda entry: _natural_order(entry.name))


def _natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _data(run: RecordedRun) -> dict[str, Any]:
    data = run.manifest.get("data")
    return data if isinstance(data, dict) else {}


def _source(run: RecordedRun) -> str:
    """Where the texts are from; how many of them were drawn by which seed, told after it, may differ."""
    return _text(_data(run).get("source")).partition(";")[0]


def _settings(run: RecordedRun) -> dict[str, Any]:
    """Dotted key → value of every setting that has an effect, and which baseline it is if it is one."""
    baseline = run.manifest.get("baseline")
    return ({} if baseline is None else {"baseline": baseline}) | flatten(plain_values(run.config))


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]


def _text(value: Any) -> str:
    return MISSING if value is None else value if isinstance(value, str) else _plain_text(value)


def _plain_text(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return _NO_LIMIT
    if isinstance(value, list):
        return f"[{', '.join(map(_plain_text, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_VALUE else f"{text[: _MAX_SHOWN_VALUE - 1]}…"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _names(runs: Sequence[RecordedRun]) -> dict[Path, str]:
    """Folder → the run's name, with as much of the path before it as tells it from others of that name."""
    by_name: dict[str, list[Path]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run.folder)
    names = {}
    for name, folders in by_name.items():
        shared = os.path.commonpath([folder.resolve() for folder in folders])
        for folder in folders:
            names[folder] = name if len(folders) == 1 else str(folder.resolve().relative_to(shared))
    return names


def _lines(runs: Sequence[RecordedRun]) -> list[Line]:
    """One line for every run; runs that differ in nothing but [run] and where their data lie share one."""
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        asked = {
            key: value for key, value in _settings(run).items() if not key.startswith("run.") and key != "data.path"
        }
        groups.setdefault(json.dumps(asked, sort_keys=True), []).append(run)
    asked_by_group = [json.loads(key) for key in groups]
    names = _names(runs)
    lines = []
    for group, asked in zip(groups.values(), asked_by_group, strict=True):
        if len(group) == 1:
            label = names[group[0].folder]
        else:
            label = f"{_what_varies(asked, asked_by_group)} ({len(group)} runs)"
        lines.append(Line(label, tuple(group)))
    return lines


def _what_varies(asked: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """A group's settings, as far as they tell it from the other groups."""
    differing = _differing(others)
    # A key that only some have mostly follows from another one, such as planner.random_range from planner.method.
    common = [key for key in differing if all(key in other for other in others)]
    is_enough = len({json.dumps([other[key] for key in common]) for other in others}) == len(others)
    # Of keys that the same groups have and that tell the same ones apart, such as planner.max_rank and .rank_policy
    # where some have a fixed rank, the first says it all.
    telling = {_pattern(key, others): key for key in reversed(differing) if key not in common}.values()
    shown = [key for key in differing if key in common or (key in telling and not is_enough)]
    return member_name({key: asked[key] for key in shown if key in asked})


def _pattern(key: str, others: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """Return for each group the first one with the same value of a setting, -1 where it has none."""
    values = [other.get(key) for other in others]
    return tuple(values.index(value) if key in other else -1 for value, other in zip(values, others, strict=True))


def _facts(runs: Sequence[RecordedRun], lines: Sequence[Line]) -> list[str]:
    data = _data(runs[0])
    labels = data.get("labels")
    classes = (
        f"{len(labels)} classes ({_short(', '.join(map(str, labels)))})"
        if isinstance(labels, list)
        else "unknown classes"
    )
    # Where the clients have texts of their own, the server knows their numbers from what they registered.
    own = sum(client.get("samples", 0) for client in runs[0].records[-1]["clients"])
    texts = [data.get("train_texts") or own, data.get("test_texts")]
    amounts = " and ".join(f"{count:,} {what} texts" for count, what in zip(texts, ("training", "test"), strict=True)
                           if isinstance(count, int))  # fmt: skip
    sources = {_text(_data(run).get("source")) for run in runs}
    source = sources.pop() if len(sources) == 1 else _source(runs[0])
    facts = [f"Data: {source}; {classes}{f'; {amounts}' if amounts else ''}."]
    measured = [run.config.workload.model == "measured" and not run.config.client.seconds_per_sample for run in runs]
    if all(measured):
        of_which = "planned for the measured machines and links"
    else:
        of_which = f"those of the simulated devices{', or planned for measured machines and links' * any(measured)}"
    facts.append(
        f"Accuracy and loss are measured. Latency, energy and bits are {of_which}, per round; a round takes as long as "
        "its slowest client."
    )
    results = {export_text(run.config) for run in runs if (run.folder / export_folder(run.config)).is_dir()}
    if results:
        facts.append(f"What a finished run leaves in its folder: {' or '.join(sorted(results))}.")
    if len(lines) < len(runs):
        facts.append(
            "Runs that differ only in their seed (or in threads, cache size or where their data lie) are drawn as one "
            "line: the mean of those that recorded the round, with a band from the lowest to the highest."
        )
    return facts


@dataclass(frozen=True)
class _Column:
    """A column of the summary: its heading, a run's number, how that is shown, and what a run without one says."""

    title: str
    of: Callable[[RecordedRun], float | None]
    show: Callable[[float], str]
    absent: Callable[[RecordedRun], str] = lambda run: MISSING


def _time(seconds: float) -> str:
    return f"{plain(seconds)} s"


def _energy(joules: float) -> str:
    return f"{plain(joules)} J"


def _mean_rank(run: RecordedRun) -> float | None:
    return mean_rank(run) if has_rank(run) else None


_RESULTS = [
    _Column("last accuracy", last_accuracy, ACCURACY.show),
    _Column("best accuracy", best_accuracy, ACCURACY.show),
    _Column("mean rank", _mean_rank, plain, lambda run: MISSING if has_rank(run) else NO_RANK),
]
_COSTS = [
    _Column("rounds recorded", lambda run: max(record["round"] for record in run.records), plain),
    _Column("rounds asked for", lambda run: run.config.federation.rounds, plain),
    _Column("time of all rounds", slowest("latency_s"), _time),
    _Column("energy of all clients", total("energy_j"), _energy),
    _Column("bits up", total("uplink_bits"), BITS.show),
    _Column("bits down", total("downlink_bits"), BITS.show),
]
_PREPARATION = [
    _Column("one-off preparation time", slowest("preparation_s"), _time),
    _Column("one-off preparation energy", total("preparation_j"), _energy),
]


def _summary(caption: str, lines: Sequence[Line]) -> Table:
    """A row for every line: what was reached, the settings in which the lines differ, what it cost."""
    runs = [run for line in lines for run in line.runs]
    costs = _COSTS + (_PREPARATION if any(_PREPARATION[0].of(run) is not None for run in runs) else [])
    settings = [[_settings(run) for run in line.runs] for line in lines]
    differing = _differing([one for group in settings for one in group])
    rows = [
        [
            Cell(line.label),
            *(_result(column, line.runs) for column in _RESULTS),
            *(Cell(_values_text(group, key)) for key in differing),
            *(_result(column, line.runs) for column in costs),
        ]
        for line, group in zip(lines, settings, strict=True)
    ]
    titles = [*(column.title for column in _RESULTS), *differing, *(column.title for column in costs)]
    return Table(caption, ["run", *titles], rows)


def _values_text(settings: Sequence[dict[str, Any]], key: str) -> str:
    texts = list(dict.fromkeys(_short(_text(one.get(key))) for one in settings))
    return _short(", ".join(texts))


def _result(column: _Column, runs: Sequence[RecordedRun]) -> Cell:
    values = numbers(column.of(run) for run in runs)
    if not values:
        return Cell(column.absent(runs[0]))
    mean = values[0] if len(values) == 1 else fmean(values)
    low, high = min(values), max(values)
    return Cell(column.show(mean) + (f" ({column.show(low)} to {column.show(high)})" if low < high else ""), mean)


def _details(runs: Sequence[RecordedRun], lines: Sequence[Line]) -> list[Table]:
    tables = []
    if len(lines) < len(runs):
        names = _names(runs)
        tables.append(_summary("Every run by itself", [Line(names[run.folder], (run,)) for run in runs]))
    settings = [_settings(run) for run in runs]
    differing = _differing(settings)
    shared = [[Cell(key), Cell(_text(value))] for key, value in settings[0].items() if key not in differing]
    caption = "All settings" if len(runs) == 1 else "Settings that all runs share"
    tables.append(Table(caption, ["setting", "value"], shared))
    return tables
