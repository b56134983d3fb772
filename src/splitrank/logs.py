"""The library's log on stderr: plain lines for who types a command, with time, level and client where processes serve.

The library itself logs to ``logging.getLogger("splitrank")`` and prints nothing; commands and processes call
:func:`show_log` once.
"""

from __future__ import annotations

import logging
import sys


class _ToStderr(logging.Handler):
    """Writes to what stderr is at that moment: a progress bar puts its own in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Plain(logging.Formatter):
    """Sentences as they are; above INFO they begin with the level."""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.capitalize()}: " if record.levelno > logging.INFO else ""
        return level + record.getMessage()


def show_log(*, client: int | None = None, with_time: bool = False) -> None:
    """Show the library's log on stderr from now on; calling it again replaces how.

    Args:
        client: whose process this is, stands on every line.
        with_time: whether every line begins with time and level, as in a log file.
    """
    logger = logging.getLogger("splitrank")
    for handler in [one for one in logger.handlers if isinstance(one, _ToStderr)]:
        logger.removeHandler(handler)
    who = "" if client is None else f"client {client}: "
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}%(message)s") if with_time else _Plain())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
