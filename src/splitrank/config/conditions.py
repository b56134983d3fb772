"""When a setting is read: conditions on other settings, stated beside the field as data.

A setting that is given although its conditions do not hold is refused, one that is not given is left out of what is
written, and the documentation says when each is read; all three from the same condition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Settings = Mapping[str, Any]
"""Values by dotted key, None for what is left out."""


class Condition(Protocol):
    """What must hold of other settings for a setting to be read."""

    @property
    def words(self) -> str:
        """The condition in words, as they follow "read where"."""

    def holds(self, settings: Settings) -> bool:
        """Return whether the condition holds."""

    def found(self, settings: Settings) -> str:
        """Return, in words, what stands against it."""


@dataclass(frozen=True)
class Is:
    """A setting has one of some values."""

    key: str
    values: tuple[str, ...]

    @property
    def words(self) -> str:
        """The condition in words."""
        return f"{self.key} = {quoted(self.values)}"

    def holds(self, settings: Settings) -> bool:
        """Return whether the setting has one of the values."""
        return settings[self.key] in self.values

    def found(self, settings: Settings) -> str:
        """Return the value that it has."""
        return f'{self.key} is "{settings[self.key]}"'


@dataclass(frozen=True)
class IsNot:
    """A setting has another value than one."""

    key: str
    value: str

    @property
    def words(self) -> str:
        """The condition in words."""
        return f'{self.key} is not "{self.value}"'

    def holds(self, settings: Settings) -> bool:
        """Return whether the setting has another value."""
        return bool(settings[self.key] != self.value)

    def found(self, settings: Settings) -> str:
        """Return the value that it has."""
        return f'{self.key} is "{self.value}"'


@dataclass(frozen=True)
class LeftOut:
    """At least one of some settings is left out."""

    keys: tuple[str, ...]

    @property
    def words(self) -> str:
        """The condition in words."""
        return f"{' or '.join(self.keys)} is left out"

    def holds(self, settings: Settings) -> bool:
        """Return whether one is left out."""
        return any(settings[key] is None for key in self.keys)

    def found(self, settings: Settings) -> str:
        """Return that it is given."""
        return f"{' and '.join(self.keys)} {'is' if len(self.keys) == 1 else 'are'} given"


@dataclass(frozen=True)
class Given:
    """A setting is given."""

    key: str

    @property
    def words(self) -> str:
        """The condition in words."""
        return f"{self.key} is given"

    def holds(self, settings: Settings) -> bool:
        """Return whether it is given."""
        return settings[self.key] is not None

    def found(self, settings: Settings) -> str:
        """Return that it is left out."""
        return f"{self.key} is left out"


@dataclass(frozen=True)
class Limited:
    """A budget is not inf."""

    key: str

    @property
    def words(self) -> str:
        """The condition in words."""
        return f"{self.key} is a limit"

    def holds(self, settings: Settings) -> bool:
        """Return whether there is a limit."""
        return not math.isinf(settings[self.key])

    def found(self, settings: Settings) -> str:
        """Return that there is none."""
        return f"{self.key} is inf, no limit"


def quoted(names: Sequence[str]) -> str:
    """Return names for a sentence: ``"a" or "b"``."""
    return " or ".join(f'"{name}"' for name in names)
