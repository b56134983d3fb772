"""Run a sweep to its end: run what is missing, tell how each trial ended, write table and report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from splitrank.errors import InputError, RunError
from splitrank.files import try_lock
from splitrank.progress import track
from splitrank.studies.execution import is_finished, pending_trials, run_trials
from splitrank.studies.report import write_report
from splitrank.studies.results import table_of, write_table
from splitrank.studies.run_reader import RecordedRun, read_run
from splitrank.studies.sweep import Trial

_LOG = logging.getLogger("splitrank")


def run_sweep(trials: Sequence[Trial], out: Path, title: str, *, jobs: int, ray_address: str | None) -> Iterator[str]:
    """Run the trials that are not finished in ``out/members``, then write ``results.csv`` and ``report.html``.

    Yields:
        a line for each trial as it ends: accuracy, seconds, name.

    Raises:
        InputError: ``out`` holds other trials, or the cluster cannot be reached.
        RunError: some failed, each named with the last line of its log; the others' results are written all the same.
    """
    folder, started_s = out / "members", time.perf_counter()
    missing = pending_trials(trials, folder)
    lock = try_lock(out / ".lock")
    if lock is None:
        raise InputError(f"{out} must not be in use, but another process runs trials in it; wait for it or stop it")
    with lock:
        if len(missing) < len(trials):
            _LOG.info(f"{len(trials) - len(missing)} of {len(trials)} trials were finished before.")
        if missing:
            where = f"on Ray at {ray_address}" if ray_address else f"{min(jobs, len(missing))} at a time"
            _LOG.info(f"To run: {len(missing)}, {where}; settings, logs and run folders are in {folder}.")
        failed = []
        for outcome in track(run_trials(missing, folder, jobs, ray_address), title, total=len(missing)):
            name, took = outcome.trial.name, f"{outcome.process_s:6.0f} s"
            if outcome.exit_code == 0:
                accuracy = read_run(folder / name).rounds["accuracy"].iloc[-1]
                yield f"{100 * accuracy:7.1f} % {took}  {name}"
            else:
                failed.append(f"{name}: {outcome.last_log_line} (its log is {folder / f'{name}.log'})")
                yield f"   failed {took}  {name}"
        _write_results(trials, out, title)
    if missing:
        _LOG.info(f"Finished {len(missing) - len(failed)} in {(time.perf_counter() - started_s) / 60:.1f} minutes.")
    if failed:
        raise RunError(
            "\n".join([f"{len(failed)} of {len(trials)} trials failed; the same command tries them again:", *failed])
        )


def _write_results(trials: Sequence[Trial], out: Path, title: str) -> None:
    finished = [trial for trial in trials if is_finished(trial, out / "members" / trial.name)]
    runs = [read_run(out / "members" / trial.name) for trial in finished]
    if runs:
        _check_same_texts(runs)
        write_table(table_of(finished, runs), out / "results")
        write_report(runs, out / "report.html", title)


def _check_same_texts(runs: Sequence[RecordedRun]) -> None:
    """Refuse runs that drew the same rows from the same place but found other texts there.

    Raises:
        RunError: the data changed between two trials.
    """
    found: dict[str, RecordedRun] = {}
    for run in runs:
        drawn = f"{run.config.data} {run.config.run.seed}"
        first = found.setdefault(drawn, run)
        if first.data.sha256 != run.data.sha256:
            raise RunError(
                f"The texts must be the same for all trials, but they changed between {first.name} and {run.name}; "
                "remove the trials of before, or choose another --out"
            )
