"""Broken rules as sentences: key, rule, value, and what to try."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from splitrank.config.fields import settings_of
from splitrank.config.later import LATER_KEYS, LATER_VALUES
from splitrank.config.tables import Config
from splitrank.config.variants import Table


def sentences(error: ValidationError, given: Mapping[str, Any], root: type[Table] = Config) -> Iterable[str]:
    """Yield one sentence for every setting that pydantic refused.

    Args:
        error: pydantic's.
        given: the nested tables that it refused.
        root: the tables that they were read as.
    """
    known, seen = settings_of(root), set()
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        key = _longest_known(location, known)
        is_unknown = problem["type"] == "extra_forbidden" and key is None
        dotted = key or ".".join(location)
        if dotted in seen:
            continue
        seen.add(dotted)
        value = _value_at(given, dotted)
        if is_unknown:
            yield unknown_key(dotted, root)
        elif key is None:
            yield f"{dotted} must be a table of keys, got {shown(problem['input'])}"
        elif isinstance(value, str) and value in LATER_VALUES.get(key, ()):
            yield f'{key} = "{value}" is not available yet; try {known[key].rule.removeprefix("one of ")}'
        elif problem["type"] == "value_error":
            yield f"{key} must be {problem['ctx']['error']}, got {shown(value)}"
        else:
            yield f"{key} must be {known[key].rule}, got {shown(value)}"


def _longest_known(location: list[str], known: Mapping[str, Any]) -> str | None:
    """Return the setting in which an error lies; what follows its key is a place within its value."""
    prefixes = (".".join(location[:length]) for length in range(1, len(location) + 1))
    return next((key for key in prefixes if key in known), None)


def _value_at(tables: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tables = tables.get(part) if isinstance(tables, Mapping) else None
    return tables


def unknown_key(dotted: str, root: type[Table] = Config) -> str:
    """Return what to say of a key that there is not: later, misspelt, or in another table."""
    for later in LATER_KEYS:
        if dotted == later or dotted.startswith(later + "."):
            return f"{dotted} is not available yet; leave it out"
    close = similar_keys(dotted, root)
    hint = f"did you mean {close[0]}?" if close else "see `splitrank config show` for the keys there are"
    return f"{dotted} must be a known key, got an unknown one; {hint}"


def similar_keys(dotted: str, root: type[Table] = Config) -> list[str]:
    """Return known keys that may have been meant: spelt alike, or of the same name in another table."""
    known = list(settings_of(root))
    elsewhere = [name for name in known if name.rpartition(".")[2] == dotted.rpartition(".")[2]]
    return difflib.get_close_matches(dotted, known, n=1, cutoff=0.75) or elsewhere


def shown(value: Any) -> str:
    """Return a value for a sentence, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
