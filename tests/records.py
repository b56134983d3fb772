"""What a run left on record, and what of it two equal runs must share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's rounds.jsonl."""
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


def without_wall(value: Any) -> Any:
    """Return records without what measures real time, which differs between equal runs."""
    if isinstance(value, dict):
        return {key: without_wall(item) for key, item in value.items() if "wall" not in key}
    return [without_wall(item) for item in value] if isinstance(value, list) else value


def equal_records(folder: Path) -> list[dict[str, Any]]:
    """Return a run's records as an equal run has them."""
    found: list[dict[str, Any]] = without_wall(records_of(folder))
    return found
