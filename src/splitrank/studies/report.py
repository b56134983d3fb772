"""Write one HTML file about one run or many: what was learnt in every round, and what it cost against the budgets.

It opens without a network. Runs that differ in nothing but the seed are drawn as their mean and range.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

from splitrank.config import flatten, plain_values
from splitrank.errors import InputError
from splitrank.federation.export_forms import export_folder, export_text
from splitrank.files import write_atomically
from splitrank.studies.report_charts import ACCURACY, BITS, JOULES, SECONDS, Line, charts_of, line_of, plain, shortened
from splitrank.studies.report_page import MISSING, NO_RANK, number_cell, page, table, text_cell
from splitrank.studies.report_shares import share_charts
from splitrank.studies.run_reader import RecordedRun, read_run
from splitrank.studies.sweep import Settings, trial_name
from splitrank.studies.totals import Aggregate, best_accuracy, last_accuracy, mean_rank, slowest, total

_LOG = logging.getLogger("splitrank")

_TRIALS = "members"
_NO_LIMIT = "no limit"

_Column = tuple[Aggregate, Callable[[float], str]]
_RESULTS: dict[str, _Column] = {
    "last accuracy": (last_accuracy, ACCURACY.show),
    "best accuracy": (best_accuracy, ACCURACY.show),
    "mean rank": (lambda run: mean_rank(run) if run.has_rank else None, plain),
}
_COSTS: dict[str, _Column] = {
    "rounds recorded": (lambda run: len(run.rounds) - 1, plain),
    "rounds asked for": (lambda run: run.config.federation.rounds, plain),
    "time of all rounds": (slowest("latency_s"), SECONDS.show),
    "energy of all clients": (total("energy_j"), JOULES.show),
    "bits up": (total("uplink_bits"), BITS.show),
    "bits down": (total("downlink_bits"), BITS.show),
}
_PREPARATION: dict[str, _Column] = {
    "one-off preparation time": (slowest("preparation_s"), SECONDS.show),
    "one-off preparation energy": (total("preparation_j"), JOULES.show),
}


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
    for what, value_of in (("data", _source), ("classes", lambda run: _text(run.data.labels))):
        found: dict[str, list[str]] = {}
        for run in runs:
            found.setdefault(value_of(run), []).append(str(run.folder))
        if len(found) > 1:
            sides = " but ".join(f"{shortened(value)} in {_listed(folders)}" for value, folders in found.items())
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
        [*charts_of(lines), *share_charts(lines)],
        facts=_facts(runs, lines),
        summary=_summary("What was reached, and what it cost", lines),
        details=_details(runs, lines),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _run_folders(folder: Path) -> list[Path]:
    trials = folder / _TRIALS
    if not trials.is_dir():
        return [folder]
    found = [entry for entry in trials.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    begun = [entry for entry in found if (entry / "rounds.jsonl").is_file()]
    for entry in set(found) - set(begun):
        _LOG.info(f"{entry.name} has no round yet and is left out.")
    return sorted(begun, key=lambda entry: _natural_order(entry.name))


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


# ---- words


def _source(run: RecordedRun) -> str:
    """Return where the texts are from; how many of them were drawn by which seed, told after it, may differ."""
    return _text(run.data.source).partition(";")[0]


def _text(value: object) -> str:
    return MISSING if value is None else value if isinstance(value, str) else _plain_text(value)


def _plain_text(value: object) -> str:
    if isinstance(value, float) and math.isinf(value):
        return _NO_LIMIT
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain_text, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _facts(runs: Sequence[RecordedRun], lines: Sequence[Line]) -> list[str]:
    data = runs[0].data
    classes = "unknown classes"
    if data.labels is not None:
        classes = f"{len(data.labels)} classes ({shortened(', '.join(data.labels))})"
    # Where the clients have texts of their own, the server knows their numbers from what they registered.
    own = int(runs[0].clients["samples"].loc[runs[0].rounds.index[-1:]].sum()) if len(runs[0].clients) else 0
    counts = {"training": data.train_texts or own, "test": data.test_texts}
    amounts = " and ".join(f"{count:,} {what} texts" for what, count in counts.items() if count is not None)
    sources = {_text(run.data.source) for run in runs}
    source = sources.pop() if len(sources) == 1 else _source(runs[0])
    measured = [run.config.workload.model == "measured" and not run.config.client.seconds_per_sample for run in runs]
    of_which = f"those of the simulated devices{', or planned for measured machines and links' * any(measured)}"
    if all(measured):
        of_which = "planned for the measured machines and links"
    facts = [
        f"Data: {source}; {classes}{f'; {amounts}' if amounts else ''}.",
        f"Accuracy and loss are measured. Latency, energy and bits are {of_which}, per round; a round takes as long as "
        "its slowest client.",
    ]
    results = {export_text(run.config) for run in runs if (run.folder / export_folder(run.config)).is_dir()}
    if results:
        facts.append(f"What a finished run leaves in its folder: {' or '.join(sorted(results))}.")
    if len(lines) < len(runs):
        facts.append(
            "Runs that differ only in their seed (or in threads, cache size or where their data lie) are drawn as one "
            "line: the mean of those that recorded the round, with a band from the lowest to the highest."
        )
    return facts


# ---- lines and their names


def _settings(run: RecordedRun) -> Settings:
    """Return every setting that has an effect, and the baseline that the run is if it is one."""
    return ({} if run.baseline is None else {"baseline": run.baseline}) | flatten(plain_values(run.config))


def _shown_settings(runs: Sequence[RecordedRun]) -> pd.DataFrame:
    """Return a row for each run, a column for each setting, values as text; missing where it has no effect."""
    return pd.DataFrame([{key: _text(value) for key, value in _settings(run).items()} for run in runs], dtype=object)


def _differing(settings: pd.DataFrame) -> list[str]:
    return [key for key in settings if settings[key].nunique(dropna=False) > 1]


def _lines(runs: Sequence[RecordedRun]) -> list[Line]:
    """Return a line for every run; runs that differ in nothing but [run] and where their data lie share one."""
    settings = _shown_settings(runs)
    asked = settings[[key for key in settings if not key.startswith("run.") and key != "data.path"]]
    numbers = asked.fillna(MISSING).agg(tuple, axis=1).factorize()[0]  # of each run's line
    telling, names = _telling_settings(asked.groupby(numbers).first()), _names(runs)
    lines = []
    for line in range(max(numbers) + 1):
        group = [run for run, of_run in zip(runs, numbers, strict=True) if of_run == line]
        label = names[group[0].folder]
        if len(group) > 1:
            varied = {key: value for key, value in _settings(group[0]).items() if key in telling}
            label = f"{trial_name({key: varied[key] for key in telling if key in varied})} ({len(group)} runs)"
        lines.append(line_of(label, group))
    return lines


def _telling_settings(settings: pd.DataFrame) -> list[str]:
    """Return as many of the settings as tell the rows apart."""
    differing = _differing(settings)
    # A key that only some have mostly follows from another one, such as planner.random_range from planner.method.
    common = [key for key in differing if settings[key].notna().all()]
    if common and not settings.duplicated(common).any():
        return common
    # Of keys that the same rows have and that tell the same ones apart, such as planner.max_rank and .rank_policy
    # where some have a fixed rank, the first says it all.
    first_of = {tuple(settings[key].factorize()[0]): key for key in reversed(differing) if key not in common}
    return [key for key in differing if key in common or key in first_of.values()]


def _names(runs: Sequence[RecordedRun]) -> dict[Path, str]:
    """Return each folder's run's name, with as much of the path before it as tells it from others of that name."""
    by_name: dict[str, list[Path]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run.folder)
    names = {}
    for name, folders in by_name.items():
        shared = os.path.commonpath([folder.resolve() for folder in folders])
        for folder in folders:
            names[folder] = name if len(folders) == 1 else str(folder.resolve().relative_to(shared))
    return names


# ---- tables


def _summary(caption: str, lines: Sequence[Line]) -> str:
    """Return a row for every line: what was reached, the settings in which the lines differ, what it cost."""
    runs = [run for line in lines for run in line.runs]
    settings = _shown_settings(runs)
    line_of_run = [index for index, line in enumerate(lines) for _ in line.runs]
    values = settings[_differing(settings)].fillna(MISSING).groupby(line_of_run)
    is_prepared = any(run.clients["preparation_s"].notna().any() for run in runs)
    rows = []
    for line, (_, own) in zip(lines, values, strict=True):
        results, costs = (
            {title: _result(line.runs, *column) for title, column in columns.items()}
            for columns in (_RESULTS, _COSTS | (_PREPARATION if is_prepared else {}))
        )
        if not line.runs[0].has_rank:
            results["mean rank"] = NO_RANK
        texts = {key: shortened(", ".join(map(shortened, own[key].unique()))) for key in own}
        rows.append(results | {key: text_cell(text) for key, text in texts.items()} | costs)
    cells = pd.DataFrame(rows, index=[text_cell(line.label) for line in lines])
    return table(caption, cells.rename_axis(columns="run"))


def _result(runs: Sequence[RecordedRun], of_run: Aggregate, show: Callable[[float], str]) -> str:
    values = [value for run in runs if (value := of_run(run)) is not None]
    if not values:
        return MISSING
    mean = values[0] if len(values) == 1 else fmean(values)
    low, high = min(values), max(values)
    return number_cell(mean, show(mean) + (f" ({show(low)} to {show(high)})" if low < high else ""))


def _details(runs: Sequence[RecordedRun], lines: Sequence[Line]) -> dict[str, str]:
    tables = {}
    if len(lines) < len(runs):
        caption, names = "Every run by itself", _names(runs)
        tables[caption] = _summary(caption, [line_of(names[run.folder], [run]) for run in runs])
    settings = _shown_settings(runs)
    shared = settings.iloc[0].drop(_differing(settings)).dropna()
    caption = "All settings" if len(runs) == 1 else "Settings that all runs share"
    cells = pd.DataFrame({"value": shared.map(text_cell)}).rename_axis(columns="setting")
    tables[caption] = table(caption, cells.set_axis([text_cell(key) for key in shared.index]))
    return tables
