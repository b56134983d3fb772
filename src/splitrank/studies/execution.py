"""Run the trials of a sweep: as processes on this machine, or as tasks on a Ray cluster.

The folder ``members`` holds, for each of them, ``NAME.toml`` (its settings: ``splitrank run`` takes them),
``NAME.log`` and ``NAME/`` (its run folder). A trial gives the same bits wherever it runs, and whatever runs beside it.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from splitrank.config import to_toml
from splitrank.errors import ConfigError, InputError
from splitrank.federation.export_forms import export_folder
from splitrank.federation.resume import resumed_config
from splitrank.federation.stopping import stop_reason
from splitrank.files import folder_built_atomically, write_atomically
from splitrank.studies.run_reader import read_run
from splitrank.studies.sweep import Trial

_LOG = logging.getLogger("splitrank")

_BAD_INPUT = 2
_TIMES_A_LOST_WORKER_IS_REPLACED = 3


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        exit_code: 0 if it is finished.
        process_s: how long its process took [s].
        last_log_line: without its ``Error:``.
    """

    trial: Trial
    exit_code: int
    process_s: float
    last_log_line: str


def is_finished(trial: Trial, folder: Path) -> bool:
    """Return whether a run folder holds all that the trial would leave there."""
    try:
        rounds = read_run(folder).rounds
    except InputError:  # damaged: the run itself says how
        return False
    stopped = stop_reason(trial.config, list(rounds["accuracy"])) is not None
    is_exported = (folder / export_folder(trial.config)).is_dir()
    return bool(is_exported and (stopped or rounds.index[-1] >= trial.config.federation.rounds))


def pending_trials(trials: Sequence[Trial], folder: Path) -> list[Trial]:
    """Write every trial's settings, and return the trials that are not finished yet.

    Raises:
        InputError: the folder is not one, or holds something else: a run, another sweep, a trial of the same name with
            other settings.
    """
    if (folder.parent / "config.toml").exists():
        raise InputError(f"--out must be a folder for many runs, got {folder.parent}, which is one run; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out must be a folder, got {folder.parent} where a file is in the way") from None
    if others := sorted({file.stem for file in folder.glob("*.toml")} - {trial.name for trial in trials}):
        raise InputError(
            f"--out must be a folder of this very sweep, got {folder.parent} with {others[0]}, which it does not name "
            f"({len(others)} such trials); remove them from {folder}, or choose another"
        )
    files = {trial.name: (folder / f"{trial.name}.toml", to_toml(trial.config)) for trial in trials}
    for name, (file, content) in files.items():
        if file.is_file() and file.read_text(encoding="utf-8") != content:
            raise InputError(
                f"--out must be a folder of this very sweep, got {folder.parent} where {name} has other settings; "
                "choose another"
            )
    for file, content in files.values():
        if not file.is_file():
            write_atomically(file, content)
    for trial in trials:
        if (folder / trial.name / "config.toml").is_file():
            _check_ran_as_asked(trial, folder / trial.name)
    return [trial for trial in trials if not is_finished(trial, folder / trial.name)]


def _check_ran_as_asked(trial: Trial, run_dir: Path) -> None:
    try:
        resumed_config(run_dir, trial.config, [])
    except ConfigError as error:
        raise InputError(f"{run_dir} must hold a run with the trial's settings: {error.problems[0]}") from None


def run_trials(trials: Sequence[Trial], folder: Path, jobs: int, ray_address: str | None) -> Iterator[Outcome]:
    """Run trials that :func:`pending_trials` has named; yield each outcome as it comes, in any order.

    One that fails is tried once more when all others have ended, alone on the machine, since memory is what trials
    most often lack; but not if its settings or data cannot be used.

    Args:
        folder: of the trials.
        jobs: how many processes at a time on this machine.
        ray_address: of a Ray cluster to use instead, as ``ray.init`` takes it.
    """
    if not trials:
        return
    start = _on_ray(trials, folder, ray_address) if ray_address else _locally(trials, folder, jobs)
    failed = []
    for outcome in start:
        if outcome.exit_code in (0, _BAD_INPUT):
            yield outcome
        else:
            failed.append(outcome)
    for outcome in failed:
        _LOG.info(f"{outcome.trial.name} failed ({outcome.last_log_line}); trying it again, alone.")
        yield from (
            _on_ray([outcome.trial], folder, ray_address) if ray_address else _locally([outcome.trial], folder, 1)
        )


def _locally(trials: Sequence[Trial], folder: Path, jobs: int) -> Iterator[Outcome]:
    started: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(jobs) as pool:  # each thread does nothing but wait for a process
        try:
            for future in as_completed([pool.submit(_run_here, trial, folder, started) for trial in trials]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:  # none is left unless this was broken off
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)


def _run_here(trial: Trial, folder: Path, started: list[subprocess.Popen[bytes]]) -> Outcome:
    log, started_s = folder / f"{trial.name}.log", time.perf_counter()
    settings, run_dir = folder / f"{trial.name}.toml", folder / trial.name
    command = [sys.executable, "-m", "splitrank.studies.trial", str(settings), str(run_dir)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        started.append(process)
        exit_code = process.wait()
    return Outcome(trial, exit_code, time.perf_counter() - started_s, _last_line(log, exit_code))


def _last_line(log: Path, exit_code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("Error: ") if lines else "its log is empty"
    return f"killed by signal {-exit_code}" if exit_code < 0 else last


def _on_ray(trials: Sequence[Trial], folder: Path, address: str | None) -> Iterator[Outcome]:
    """Run each trial as a task; its run folder comes back as an archive. Ray runs it again if its worker is lost."""
    try:
        import ray
    except ImportError:
        raise InputError('--ray needs Ray; install it with: pip install "splitrank[flower]"') from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray prints a warning about its future
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"--ray must be the address of a running Ray cluster, got {address!r}: {error}") from None
    try:
        by_task = {}
        for trial in trials:
            task = ray.remote(num_cpus=trial.config.run.threads, max_retries=_TIMES_A_LOST_WORKER_IS_REPLACED)(
                _run_there
            )
            by_task[task.remote(trial, _packed(folder / trial.name))] = trial
        waiting = list(by_task)
        while waiting:
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            trial = by_task[ready]
            try:
                outcome, log, run_dir = ray.get(ready)
            except ray.exceptions.RayError as error:
                yield Outcome(trial, 1, 0.0, str(error).splitlines()[0])
                continue
            write_atomically(folder / f"{trial.name}.log", log)
            _unpack(run_dir, folder / trial.name)
            yield outcome
    finally:
        ray.shutdown()


def _run_there(trial: Trial, begun: bytes) -> tuple[Outcome, bytes, bytes]:
    """Continue on a worker, in a temporary folder, and return the outcome, the log and the run folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_atomically(folder / f"{trial.name}.toml", to_toml(trial.config))
        _unpack(begun, folder / trial.name)
        outcome = _run_here(trial, folder, [])
        return outcome, (folder / f"{trial.name}.log").read_bytes(), _packed(folder / trial.name)


def _packed(folder: Path) -> bytes:
    """Return a folder as an archive; empty if it does not exist."""
    archive = io.BytesIO()
    if folder.is_dir():
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(folder, arcname=".")
    return archive.getvalue()


def _unpack(archive: bytes, folder: Path) -> None:
    if archive:
        with folder_built_atomically(folder) as building, tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(building, filter="data")
