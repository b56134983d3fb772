"""The errors that a person can mend, kept apart from our own mistakes (which stay ordinary exceptions)."""

from __future__ import annotations


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


class RunError(Exception):
    """A run cannot go on although its settings are in order. The command ends with exit code 1; the folder resumes."""
