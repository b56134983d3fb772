"""Read a run's folder, finished or not: the one reader of ``rounds.jsonl`` for whatever looks at many runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from splitrank.config import Config, load_config
from splitrank.errors import ConfigError, InputError
from splitrank.traits import METHOD_TRAITS

ROUND_NUMBERS = ("rank", "accuracy", "loss", "macro_f1", "worst_client_accuracy", "factor_averaging_error")
"""Fields that every record has; null where the round has no such number."""

DIAGNOSTICS = ("truncation_error",)
"""Numbers of an aggregation rule's own that the report draws."""

CLIENT_NUMBERS = (
    *("rank", "max_rank", "latency_s", "energy_j", "energy_budget_j", "uplink_bits", "downlink_bits"),
    *("train_loss", "samples", "preparation_s", "preparation_j"),
)
"""Fields that a client's entry may have."""


@dataclass(frozen=True)
class DataDescription:
    """The data as ``manifest.json`` describes them; a field that is missing there is None.

    Attributes:
        source: where the texts are from; after a semicolon how many of them were drawn by which seed.
        labels: the classes, in their order.
        train_texts, test_texts: how many.
        sha256: of the texts and their labels.
        client_counts: training texts of each client in each class.
        client_names: of the clients, where a column of the data names them.
    """

    source: str | None = None
    labels: tuple[str, ...] | None = None
    train_texts: int | None = None
    test_texts: int | None = None
    sha256: str | None = None
    client_counts: tuple[tuple[int, ...], ...] | None = None
    client_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecordedRun:
    """A run as its folder holds it.

    Attributes:
        name: the folder's name.
        folder: its path.
        config: its settings, fully resolved.
        data: the texts that it learnt from.
        baseline: of splitrank 0.1.0, the baseline that the run is; None for a run of its settings.
        rounds: ``ROUND_NUMBERS`` and ``DIAGNOSTICS`` as float64, indexed by round, round 0 first; at least one row.
            NaN stands where a record has no finite number.
        clients: ``CLIENT_NUMBERS`` likewise, and ``client`` (index, -1 if it has none), ``binding`` (text or None) and
            ``dropped``, ``passed_over`` (it could take part and was not chosen), ``late`` (bool); a row for each client
            in each round, indexed by round.
    """

    name: str
    folder: Path
    config: Config
    data: DataDescription
    baseline: str | None
    rounds: pd.DataFrame
    clients: pd.DataFrame

    @property
    def has_rank(self) -> bool:
        """Return whether its adapters had a rank; records of a method without one say 1, of 0.1.0's baseline 0."""
        return METHOD_TRAITS[self.config.adapter.method].has_rank and self.baseline is None


def read_run(folder: Path) -> RecordedRun:
    """Read a run folder.

    Raises:
        InputError: it is none, or a file in it cannot be read; the message names the file.
    """
    if not (folder / "config.toml").is_file():
        raise InputError(f"RUN_DIR must be the folder of a run, got {folder} without config.toml")
    try:
        config = load_config(str(folder / "config.toml"))
    except ConfigError as error:
        raise InputError(f"{folder / 'config.toml'} must hold the settings of a run: {error}") from None
    manifest = _parsed(_text(folder / "manifest.json"), str(folder / "manifest.json"))
    baseline = manifest.get("baseline")
    rounds, clients = _read_rounds(folder / "rounds.jsonl")
    return RecordedRun(
        folder.name,
        folder,
        config,
        _data_description(manifest.get("data"), manifest.get("data_summary")),
        None if baseline is None else str(baseline),
        rounds,
        clients,
    )


def _data_description(told: object, summary: object) -> DataDescription:
    told = told if isinstance(told, dict) else {}
    labels = told.get("labels")
    source, sha256 = (None if (text := told.get(key)) is None else str(text) for key in ("source", "sha256"))
    train, test = (count if isinstance(count := told.get(key), int) else None for key in ("train_texts", "test_texts"))
    classes = tuple(map(str, labels)) if isinstance(labels, list) else None
    return DataDescription(source, classes, train, test, sha256, *_clients_described(summary))


def _clients_described(summary: object) -> tuple[tuple[tuple[int, ...], ...] | None, tuple[str, ...]]:
    """Return who holds how many texts of which class, and the clients' names, as far as a manifest tells."""
    clients = summary.get("clients") if isinstance(summary, dict) else None
    try:
        counts = tuple(tuple(map(int, counts)) for counts in clients["counts"])  # type: ignore[index]
        names = tuple(map(str, clients["names"]))  # type: ignore[index]
    except (TypeError, ValueError, KeyError):
        return None, ()
    return counts, names if len(names) == len(counts) else ()


def _read_rounds(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    lines = _text(path).split("\n")[:-1]  # a run that is at work may not have written all of its last line
    rounds, clients, index = [], [], []
    for round, line in enumerate(lines):
        where = f"line {round + 1} of {path}"
        record = _parsed(line, where)
        if not {"round", "clients", *ROUND_NUMBERS} <= set(record):
            raise InputError(f"{where} must be the record of a round, got {line[:60]!r}")
        if type(record["round"]) is not int or record["round"] != round:
            raise InputError(f"{where} must be round {round}, got round {record['round']!r}")
        rounds.append([*_numbers(record, ROUND_NUMBERS), *_numbers(record.get("diagnostics"), DIAGNOSTICS)])
        for entry in record["clients"] if isinstance(record["clients"], list) else []:
            if isinstance(entry, dict):
                client, binding, dropped = (entry.get(key) for key in ("client", "binding", "dropped"))
                known = (
                    client if isinstance(client, int) else -1,
                    binding if isinstance(binding, str) else None,
                    dropped is True,
                    entry.get("chosen") is False and "shortfall" not in entry,
                    entry.get("late") is True,
                )
                clients.append([*known, *_numbers(entry, CLIENT_NUMBERS)])
                index.append(round)
    if not rounds:
        raise InputError(f"{path} must hold at least round 0, got an empty file")
    columns = {"client": int, "binding": object, **dict.fromkeys(("dropped", "passed_over", "late"), bool)}
    columns |= dict.fromkeys(CLIENT_NUMBERS, float)
    return (
        pd.DataFrame(rounds, columns=[*ROUND_NUMBERS, *DIAGNOSTICS], dtype=float),
        pd.DataFrame(clients, index=index, columns=list(columns)).astype(columns),
    )


def _numbers(fields: object, keys: tuple[str, ...]) -> list[float]:
    """Return the values of some fields; NaN for each that is missing or no finite number."""
    return [_number(fields.get(key)) if isinstance(fields, dict) else math.nan for key in keys]


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else math.nan  # type: ignore[return-value]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be readable, got: {error}") from None


def _parsed(text: str, what: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise InputError(f"{what} must be a JSON object, got {text[:60]!r}")
    return parsed
