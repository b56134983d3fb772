"""Many runs: sweeps, the paper's experiments, reports."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from splitrank.cli.common import (
    JobsOption,
    RayOption,
    SetOption,
    app,
    errors_as_exit_codes,
    fail,
    leave_at_once_when_interrupted,
)
from splitrank.errors import InputError, RunError


@app.command(
    # Rich would take [set] for markup.
    epilog="SWEEP.toml has a base, the table \\[set] with the settings that all trials share, \\[grid] or \\[\\[list]] "
    "with those that vary, and seeds; docs/studies.md has an example. The command writes results.csv, results.parquet, "
    "report.html and a run folder for each trial."
)
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml")],
    jobs: JobsOption = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; runs/<name of the file> if left out.")] = None,
    ray: RayOption = None,
) -> None:
    """Run every combination of a file's settings; the same command again runs what is missing."""
    with errors_as_exit_codes():
        from splitrank.studies.sweep import read_sweep

        trials = read_sweep(file)
        with leave_at_once_when_interrupted():
            from splitrank.studies.study import run_sweep

        folder = out or Path("runs") / file.stem
        _print_study(run_sweep(trials, folder, file.stem, jobs=_jobs(jobs), ray_address=ray), folder)
        print(f"Results: {folder / 'results.csv'}  (report: {folder / 'report.html'})", file=sys.stderr)


@app.command(
    epilog="EXPERIMENT is placement, rank, latency, energy or all; with --preset edge it is latency, energy, "
    "bandwidth, distance or all. The same command again runs what is missing."
)
def reproduce(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT")],
    preset: Annotated[str, typer.Option("--preset", help="small (a laptop), paper (a GPU) or edge.")] = "small",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds: 0, 1, and so on.")] = 3,
    overrides: SetOption = None,
    jobs: JobsOption = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; runs/reproduce-<preset> if left out.", show_default=False)
    ] = None,
    ray: RayOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate time and memory on this machine, in 20 s; train nothing.")
    ] = False,
) -> None:
    """Repeat the paper's experiments: a table, a figure, and a verdict on each thing that the paper expects."""
    with errors_as_exit_codes():
        from splitrank.config import parse_overrides
        from splitrank.studies.experiments import chosen_experiments, experiment_trials, read_study

        study, changed = read_study(preset), parse_overrides(overrides or [])
        experiments = {
            name: experiment_trials(study, name, changed, range(seeds))
            for name in chosen_experiments(study, experiment)
        }
        if dry_run:
            with leave_at_once_when_interrupted():
                from splitrank.studies.cost import dry_run as costs

            for line in costs(experiments, _jobs(jobs)):
                print(line, flush=True)
            return
        with leave_at_once_when_interrupted():
            from splitrank.studies.reproduce import reproduce as repeat

        folder, failed = out or Path("runs") / f"reproduce-{preset}", []
        for name, trials in experiments.items():
            print(f"{name}, {len(trials)} trials", flush=True)
            try:
                lines = repeat(study, name, trials, folder / name, jobs=_jobs(jobs), ray_address=ray)
                _print_study(lines, folder)
            except RunError as error:
                failed.append(str(error))
        if failed:
            raise RunError("\n".join(failed))


def _jobs(jobs: int) -> int:
    return jobs or os.cpu_count() or 1


def _print_study(lines: Iterator[str], folder: Path) -> None:
    try:
        for line in lines:
            print(line, flush=True)
    except KeyboardInterrupt:
        raise fail(f"Interrupted; the same command goes on with {folder}", 1) from None


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File to write; report.html in the RUN_DIR, or here if there are several.", show_default=False
        ),
    ] = None,
) -> None:
    """Draw runs, one or several overlaid, as one HTML file that opens without a network.

    RUN_DIR is the folder of a run, finished or not, or of a sweep.
    """
    with errors_as_exit_codes():
        from splitrank.studies.report import check_same_experiment, read_runs, write_report

        if out is not None and out.suffix != ".html":
            raise InputError(f"--out must be an .html file, got {out}; try --out report.html")
        runs, unreadable = read_runs(run_dirs)
        for problem in unreadable:
            print(f"Error: {problem}", file=sys.stderr)
        if not runs:
            if not unreadable:
                raise InputError(f"RUN_DIR must be a run or a sweep with trials, got {run_dirs[0]} without any")
            raise typer.Exit(2)
        check_same_experiment(runs)
        file = out or (run_dirs[0] / "report.html" if len(run_dirs) == 1 else Path("report.html"))
        write_report(runs, file, ", ".join(path.name for path in run_dirs))
        print(file)
        if unreadable:
            raise typer.Exit(1)
