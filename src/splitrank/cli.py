"""The commands. Results go to stdout, progress and messages to stderr; exit codes: 0 done, 1 failed, 2 bad usage or
settings, 3 plan infeasible. Imports stand inside the commands, so that `--help` and `plan` load neither torch nor
transformers."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from splitrank.errors import InputError, RunError

app = typer.Typer(
    name="splitrank",
    help="Federated split LoRA fine-tuning under radio, time and energy budgets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Show or check the settings of a preset or file.", no_args_is_help=True)
cache_app = typer.Typer(help="List or clear the cached output of frozen trunks.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(cache_app, name="cache")

ConfigArgument = Annotated[
    str, typer.Argument(metavar="[CONFIG]", help="A preset (offline, paper, edge) or a TOML file.", show_default=True)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, such as federation.rounds=5. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _fail(message: str, code: int) -> typer.Exit:
    for line in message.splitlines():
        print(f"Error: {line}", file=sys.stderr)
    return typer.Exit(code)


@contextmanager
def _errors_as_exit_codes() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise _fail(str(error), 2) from None
    except RunError as error:
        raise _fail(str(error), 1) from None
    except KeyboardInterrupt:
        raise _fail("Interrupted.", 1) from None
    except BrokenPipeError:  # whoever read our output has gone; Python must not complain about it on leaving
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise _fail(f"The operating system refused{where}: {error.strerror or error}", 1) from None


@contextmanager
def _leave_at_once_when_interrupted() -> Iterator[None]:
    """For the seconds in which large libraries are imported: they turn a Ctrl-C into errors of their own."""

    def leave(*_: object) -> None:
        os.write(2, b"Error: Interrupted; nothing was written\n")
        os._exit(1)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
    pass


@app.command()
def plan(
    config: ConfigArgument = "offline",
    overrides: SetOption = None,
    round: Annotated[int, typer.Option("--round", min=1, help="Round whose channels are drawn.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Say which LoRA rank and which frequencies fit the budgets, without data or weights.

    CONFIG is a preset (offline, paper, edge) or a TOML file. Exit code 3 if no rank fits.
    """
    with _errors_as_exit_codes():
        from splitrank.config import load_config
        from splitrank.federation.plan_report import plan_lines, plan_report

        report = plan_report(load_config(config, overrides or []), round)
        print(json.dumps(report, indent=2) if as_json else "\n".join(plan_lines(report)))
    if report["status"] == "infeasible":
        raise typer.Exit(3)


@app.command()
def run(
    config: Annotated[
        str | None,
        typer.Argument(help="A preset (offline, paper, edge) or a TOML file; offline if left out.", show_default=False),
    ] = None,
    overrides: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder; the next free runs/<preset>-<n> if left out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train together: plan, train and aggregate round after round on real text.

    CONFIG is a preset (offline, paper, edge) or a TOML file; offline if left out.
    """
    with _errors_as_exit_codes():
        from splitrank.config import load_config

        if resume and out is None:
            raise InputError("--resume needs --out with the folder of the run to go on with")
        settings = None if resume and config is None else load_config(config or "offline", overrides or [])

        with _leave_at_once_when_interrupted():
            from splitrank.federation import run_folder
            from splitrank.federation.loop import run as run_rounds
            from splitrank.federation.round_lines import round_lines
            from splitrank.progress import track

        if resume:
            assert out is not None
            settings = run_folder.resumed_config(out, settings, overrides or [])
        assert settings is not None
        with nullcontext(out) if out else run_folder.next_free_folder(Path(config or "offline").stem) as folder:
            done = run_folder.num_recorded(folder) if resume else 0
            rounds = run_rounds(settings, folder, resume=resume)
            shown = (record.to_json() for record in rounds) if as_json else round_lines(rounds, settings)
            try:
                for line in track(shown, "rounds", total=settings.federation.rounds + 1, done=done):
                    print(line, flush=True)
            except KeyboardInterrupt:
                hint = f"go on with: splitrank run --resume --out {folder}"
                what = hint if (folder / "config.toml").exists() else "nothing was written"
                raise _fail(f"Interrupted; {what}", 1) from None
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                what = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
                raise RunError(
                    f"{what}; when that is mended, go on with: splitrank run --resume --out {folder}"
                ) from None
        print(f"Run folder: {folder}  (adapter: {folder / 'adapter'})", file=sys.stderr)


@app.command()
def predict(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to classify.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A CSV, TSV, JSONL or Parquet file of texts.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify texts with a finished run's adapter.

    RUN_DIR is the folder of a finished run; TEXT... are the texts, or give --file.
    """
    with _errors_as_exit_codes():
        if bool(texts) == bool(file):
            raise InputError("predict needs texts or --file FILE, one of them")

        with _leave_at_once_when_interrupted():
            from splitrank.federation.export import predict as predict_texts
            from splitrank.federation.export import texts_of_file
            from splitrank.learning.text_rules import checked_texts

        wanted = texts_of_file(run_dir, file) if file else checked_texts(list(texts or []))
        for text, prediction in zip(wanted, predict_texts(run_dir, wanted), strict=True):
            if as_json:
                row: dict[str, Any] = {
                    "label": prediction.label,
                    "probability": prediction.probability,
                    "text": text,
                }
                print(json.dumps(row, ensure_ascii=False))
            else:
                shown = textwrap.shorten(text, 80, placeholder="...")
                print(f"{prediction.label}	{prediction.probability:.3f}	{shown}")


@config_app.command("show")
def config_show(config: ConfigArgument = "offline", overrides: SetOption = None) -> None:
    """Print all settings that have an effect, defaults included, as TOML."""
    with _errors_as_exit_codes():
        from splitrank.config import load_config, to_toml

        print(to_toml(load_config(config, overrides or [])), end="")


@config_app.command("check")
def config_check(config: ConfigArgument = "offline", overrides: SetOption = None) -> None:
    """Check all settings and report every broken rule at once."""
    with _errors_as_exit_codes():
        from splitrank.config import load_config
        from splitrank.federation.budgets import check_if_known

        check_if_known(load_config(config, overrides or []))
        print(f"{config}: all settings are in order")


@cache_app.command("list")
def cache_list() -> None:
    """List the cached trunk outputs, the longest unused first."""
    with _errors_as_exit_codes():
        import time

        from splitrank.learning.trunk import cache_folder, list_cache

        entries = list_cache()
        for entry in entries:
            about = entry.about
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at_s))
            print(
                f"{entry.key[:12]}  {entry.size_bytes / 1e6:10,.1f} MB  {used}  {about['texts']:>9,} texts  "
                f"layer {about['cut_layer']}  {about['precision']}  {about['model']}"
            )
        total = sum(entry.size_bytes for entry in entries)
        print(f"{len(entries)} cached, {total / 1e6:,.1f} MB in {cache_folder()}", file=sys.stderr)


@cache_app.command("clear")
def cache_clear() -> None:
    """Delete the cached trunk outputs that no run uses right now."""
    with _errors_as_exit_codes():
        from splitrank.learning.trunk import clear_cache

        freed, kept = clear_cache()
        print(f"Freed {freed / 1e6:,.1f} MB; kept {kept} in use.", file=sys.stderr)
