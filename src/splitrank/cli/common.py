"""Shared by all commands: the program and its groups, options, and errors as exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from splitrank.errors import InfeasibleError, InputError, RunError

app = typer.Typer(
    name="splitrank",
    help="Federated split LoRA fine-tuning under radio, time and energy budgets.",
    epilog="Try: splitrank run (the demo, which needs no network), splitrank plan paper. Exit codes: 0 done, 1 failed, "
    "2 bad usage or settings, 3 no rank fits the budgets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Show, check or explain settings.", no_args_is_help=True)
cache_app = typer.Typer(help="List or clear the cached output of frozen layers.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(cache_app, name="cache")
deploy_app = typer.Typer(help="Put a federation on real machines, through Flower.", no_args_is_help=True)
app.add_typer(deploy_app, name="deploy")

# In an epilog or docstring, not in an argument's own help: Typer 0.20 loses that under Click 8.5.
CONFIG_HELP = "CONFIG is a preset (offline, plain, paper, edge) or a TOML file of settings."
ConfigArgument = Annotated[str, typer.Argument(metavar="[CONFIG]", show_default=True)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, such as federation.rounds=5. Repeatable."),
]
JobsOption = Annotated[int, typer.Option("--jobs", min=0, help="Processes at a time; 0 = one per core.")]
RayOption = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster instead; its address, or auto.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def fail(message: str, code: int) -> typer.Exit:
    """Print a message, an error a line, and return what ends the program with a code."""
    for line in message.splitlines():
        print(f"Error: {line}", file=sys.stderr)
    return typer.Exit(code)


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Turn errors that a person can mend into their sentences and exit codes."""
    try:
        yield
    except InputError as error:
        raise fail(str(error), 2) from None
    except InfeasibleError as error:
        raise fail(str(error), 3) from None
    except RunError as error:
        raise fail(str(error), 1) from None
    except KeyboardInterrupt:
        raise fail("Interrupted.", 1) from None
    except BrokenPipeError:  # whoever read our output has gone; Python must not complain about it on leaving
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise fail(f"The operating system refused{where}: {error.strerror or error}", 1) from None


@contextmanager
def leave_at_once_when_interrupted() -> Iterator[None]:
    """For the seconds in which large libraries are imported: they turn a Ctrl-C into errors of their own."""

    def leave(*_: object) -> None:
        os.write(2, b"Error: Interrupted; nothing was written\n")
        os._exit(1)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
