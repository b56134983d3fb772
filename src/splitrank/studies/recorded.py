"""A run as its folder records it, finished or not, for whatever looks at many runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitrank.config import Config, load_config
from splitrank.errors import ConfigError, InputError


@dataclass(frozen=True)
class RecordedRun:
    """What a run left behind.

    Attributes:
        name: the folder's name.
        folder: where it lies.
        config: its settings, fully resolved.
        manifest: versions, hardware, data.
        records: the lines of rounds.jsonl, round 0 first, as JSON objects; at least one.
    """

    name: str
    folder: Path
    config: Config
    manifest: dict[str, Any]
    records: list[dict[str, Any]]


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
    manifest = _json(folder / "manifest.json")
    records = []
    path = folder / "rounds.jsonl"
    try:
        # A run that is at work may not have written all of its last line.
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be readable, got: {error}") from None
    for number, line in enumerate(lines, 1):
        record = _parsed(line, f"line {number} of {path}")
        if not {"round", "rank", "accuracy", "loss", "clients"} <= set(record):
            raise InputError(f"line {number} of {path} must be the record of a round, got {line[:60]!r}")
        if type(record["round"]) is not int or record["round"] != number - 1:
            raise InputError(f"line {number} of {path} must be round {number - 1}, got round {record['round']!r}")
        records.append(record)
    if not records:
        raise InputError(f"{path} must hold at least round 0, got an empty file")
    return RecordedRun(folder.name, folder, config, manifest, records)


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text(encoding="utf-8"), str(path))
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
