"""Progress bars on a terminal's stderr, shown by the commands and not by the library."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


_shows_bars = False


def show_bars() -> None:
    """Show bars from now on, as the commands do; a library that is only imported shows none."""
    global _shows_bars
    _shows_bars = True


@cache
def _console() -> Console:
    """Return the one console of all bars: they nest only on the same one."""
    from rich.console import Console

    return Console(stderr=True)


def track(items: Iterable[T], description: str, total: int, *, done: int = 0) -> Iterator[T]:
    """Yield ``items`` under a progress bar that vanishes when they are done; without a terminal, or where nobody
    asked for bars, just yield them.

    Bars nest. ``done`` of the ``total`` items were finished before.
    """
    if not (_shows_bars and _console().is_terminal):
        yield from items
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # With both streams on one terminal, lines printed meanwhile must go above the bar; a piped stdout stays untouched.
    shares_terminal = sys.stdout.isatty()
    with Progress(*columns, console=_console(), transient=True, redirect_stdout=shares_terminal) as progress:
        yield from progress.track(items, total=total, completed=done, description=description)
