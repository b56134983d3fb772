"""The errors that a person can mend, kept apart from our own mistakes (which stay ordinary exceptions)."""

from __future__ import annotations

import reprlib
from types import NoneType, UnionType
from typing import get_args


class InputError(Exception):
    """Something the user gave cannot be used: a setting, a file, a folder, a missing network.

    The message is one clear sentence (what must hold, what was found, what to try) and the command ends with exit
    code 2.
    """


class ConfigError(InputError):
    """One or more settings break a rule. ``problems`` holds one sentence for each, all found in one pass."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def check_types(**arguments: tuple[object, type | UnionType, str]) -> None:
    """Check what a Python caller passed: instances, not their classes.

    Args:
        arguments: name → (what was passed, its type, what to try).

    Raises:
        InputError: one line for each of another type.
    """
    problems = [
        f"{name} must be {_described(kind)}, got {reprlib.repr(value)}; {hint}"
        for name, (value, kind, hint) in arguments.items()
        if not isinstance(value, kind) or isinstance(value, type)
    ]
    if problems:
        raise InputError("\n".join(problems))


def _described(kind: type | UnionType) -> str:
    return " or ".join("None" if one is NoneType else f"a {one.__name__}" for one in get_args(kind) or (kind,))


class InfeasibleError(Exception):
    """Too few clients can take part within their budgets. The command ends with exit code 3."""


class RunError(Exception):
    """A run cannot go on although its settings are in order. The command ends with exit code 1; the folder resumes."""
