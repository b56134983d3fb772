"""The commands: results go to stdout, progress and messages to stderr; exit codes are 0 done, 1 failed, 2 bad usage or
settings, 3 infeasible.

Imports stand inside the commands, so that ``--help`` and ``plan`` load neither torch nor transformers. ``common``
(options, exit codes) · ``runs`` (plan, data, run, predict), ``studies`` (sweep, reproduce, report), ``tools`` (config,
methods, cache, deploy).
"""

from __future__ import annotations

from typing import Annotated

import typer

from splitrank.cli import runs, studies, tools
from splitrank.cli.common import app
from splitrank.logs import show_log
from splitrank.progress import show_bars

__all__ = ["app", "runs", "studies", "tools"]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"splitrank {version('splitrank')}")
        raise typer.Exit


@app.callback()
def _main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    show_log()
    show_bars()
