"""One federation: plan it, look at its texts, run it, use what it leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from splitrank.cli.common import (
    CONFIG_HELP,
    ConfigArgument,
    JsonOption,
    SetOption,
    app,
    errors_as_exit_codes,
    fail,
    leave_at_once_when_interrupted,
)
from splitrank.errors import InputError, RunError


@app.command(epilog=CONFIG_HELP)
def plan(
    config: ConfigArgument = "offline",
    overrides: SetOption = None,
    round: Annotated[int, typer.Option("--round", min=1, help="Round to plan; each has other channels.")] = 1,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the plan into a .png, .pdf or .svg file.")
    ] = None,
) -> None:
    """Say which LoRA rank and which processor frequencies fit the budgets, without data or weights."""
    with errors_as_exit_codes():
        from splitrank.config import load_config
        from splitrank.federation.plan_report import plan_lines, plan_report

        settings = load_config(config, overrides or [])
        report = plan_report(settings, round)
        if plot:
            from splitrank.studies.plan_plot import plot_plan

            plot_plan(settings, round, plot)
            print(f"Picture: {plot}", file=sys.stderr)
        print(json.dumps(report, indent=2) if as_json else "\n".join(plan_lines(report)))
    if report["status"] == "infeasible":
        raise typer.Exit(3)


@app.command(epilog=CONFIG_HELP)
def data(config: ConfigArgument = "offline", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what a run would make of its texts, without training: rows, classes, lengths, and what looks wrong."""
    with errors_as_exit_codes():
        from splitrank.config import load_config

        settings = load_config(config, overrides or [])
        with leave_at_once_when_interrupted():
            from splitrank.federation.data import data_summary

        summary = data_summary(settings)
        lines = (
            *summary.reading_lines(),
            *summary.length_lines(),
            summary.worth_line(),
            *summary.client_lines(),
        )
        print(json.dumps(summary.to_json(), indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


@app.command(epilog=CONFIG_HELP)
def run(
    config: Annotated[str | None, typer.Argument(metavar="[CONFIG]", show_default="offline")] = None,
    overrides: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder; the next free runs/<preset>-<n> if left out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a federation on real text: plan, train and aggregate, round after round."""
    with errors_as_exit_codes():
        from splitrank.config import load_config

        if resume and out is None:
            raise InputError("--resume needs --out with the folder of the run to go on with")
        settings = None if resume and config is None else load_config(config or "offline", overrides or [])

        with leave_at_once_when_interrupted():
            from splitrank.federation.export_forms import export_folder
            from splitrank.federation.loop import run as run_rounds
            from splitrank.federation.resume import resumed_config
            from splitrank.federation.round_lines import round_lines
            from splitrank.federation.run_folder import num_recorded, read_records
            from splitrank.federation.tracking import tracked
            from splitrank.progress import track

        if resume:
            assert out is not None
            settings = resumed_config(out, settings, overrides or [])
        assert settings is not None
        with nullcontext(out) if out else _next_free_folder(Path(config or "offline").stem) as folder:
            done = num_recorded(folder) if resume else 0
            rounds = tracked(run_rounds(settings, folder, resume=resume), settings.run.tracking, folder)
            shown = (record.to_json() for record in rounds) if as_json else round_lines(rounds, settings, folder)
            try:
                for line in track(shown, "rounds", total=settings.federation.rounds + 1, done=done):
                    print(line, flush=True)
            except KeyboardInterrupt:
                hint = f"go on with: splitrank run --resume --out {folder}"
                what = hint if (folder / "config.toml").exists() else "nothing was written"
                raise fail(f"Interrupted; {what}", 1) from None
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                what = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
                raise RunError(
                    f"{what}; when that is mended, go on with: splitrank run --resume --out {folder}"
                ) from None
        _write_report_of_run(folder)
        result = export_folder(settings)
        print(f"Run folder: {folder}  ({result}: {folder / result})", file=sys.stderr)
    if not any(record.trained for record in read_records(folder)):
        raise typer.Exit(3)


@contextmanager
def _next_free_folder(preset: str) -> Iterator[Path]:
    """Make and hold ``runs/<preset>-<n>`` with the smallest free n; it goes again if nothing was put into it."""
    root = Path("runs")
    root.mkdir(exist_ok=True)
    path = next(path for n in count(1) if _made(path := root / f"{preset}-{n}"))
    try:
        yield path
    finally:
        for folder in (path, root):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _made(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _write_report_of_run(folder: Path) -> None:
    from splitrank.studies.report import write_report
    from splitrank.studies.run_reader import read_run

    write_report([read_run(folder)], folder / "report.html", folder.name)


@app.command()
def predict(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A CSV, TSV, JSON or Parquet file of texts.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify texts with a finished run's adapter.

    RUN_DIR is the folder of a finished run. Give the texts as arguments, or a file of them with --file.
    """
    with errors_as_exit_codes():
        if bool(texts) == bool(file):
            raise InputError("predict needs texts or --file FILE, one of them")

        with leave_at_once_when_interrupted():
            from splitrank.federation.export import predict as predict_texts
            from splitrank.federation.export import texts_of_file
            from splitrank.learning.text_rules import checked_texts

        wanted = texts_of_file(run_dir, file) if file else checked_texts(list(texts or []))
        given = [text for text in wanted if text]
        predictions = iter(predict_texts(run_dir, given) if given else ())
        for text in wanted:
            found = next(predictions) if text else None
            label, probability = (found.label, found.probability) if found else (None, None)
            if as_json:
                row = {"label": label, "probability": probability, "text": text or None}
                print(json.dumps(row, ensure_ascii=False))
            else:
                print(f"{label or 'null'}\t{'null' if probability is None else f'{probability:.3f}'}\t{_shown(text)}")
    if empty := len(wanted) - len(given):
        rows = "1 row has" if empty == 1 else f"{empty} rows have"
        raise fail(f"{file}: {rows} no text and therefore no class (null)", 1)


def _shown(text: str) -> str:
    """Return a text on one line, the first 80 characters of it."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
