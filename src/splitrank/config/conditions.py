"""When a setting is read: conditions on other settings, stated beside the field as data.

A setting that is given although its conditions do not hold is refused, one that is not given is left out of what is
written, and the documentation says when each is read; all three from the same condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]
"""Values by dotted key, None for what is left out."""


@dataclass(frozen=True)
class Condition:
    """A condition on other settings, under which a setting is read.

    Attributes:
        keys: the other settings, dotted.
        words: the condition, as it follows "read where".
        test: tells from their values, in the order of ``keys``, whether it holds.
    """

    keys: tuple[str, ...]
    words: str
    test: Callable[..., bool]

    def holds(self, settings: Settings) -> bool:
        """Return whether the condition holds."""
        return self.test(*self._values(settings))

    def found(self, settings: Settings) -> str:
        """Return, in words, what the other settings are."""
        return " and ".join(
            f"{key} is {_shown(value)}" for key, value in zip(self.keys, self._values(settings), strict=True)
        )

    def _values(self, settings: Settings) -> list[Any]:
        return [settings[key] for key in self.keys]


def one_of(key: str, values: Sequence[str]) -> Condition:
    """Return the condition that a setting has one of some values."""
    return Condition((key,), f"{key} = {quoted(values)}", lambda value: value in values)


def other_than(key: str, value: str) -> Condition:
    """Return the condition that a setting has another value, or none."""
    return Condition((key,), f'{key} is not "{value}"', lambda found: found != value)


def given(key: str) -> Condition:
    """Return the condition that a setting is given."""
    return Condition((key,), f"{key} is given", lambda value: value is not None)


def left_out(*keys: str) -> Condition:
    """Return the condition that at least one of some settings is left out."""
    return Condition(keys, f"{' or '.join(keys)} is left out", lambda *values: None in values)


def limited(key: str) -> Condition:
    """Return the condition that a budget is not inf."""
    return Condition((key,), f"{key} is a limit", lambda value: not math.isinf(value))


def quoted(names: Sequence[str]) -> str:
    """Return names for a sentence: ``"a" or "b"``."""
    return " or ".join(f'"{name}"' for name in names)


def _shown(value: Any) -> str:
    return (
        "left out"
        if value is None
        else f'"{value}"'
        if isinstance(value, str)
        else "given"
        if isinstance(value, tuple)
        else str(value)
    )
