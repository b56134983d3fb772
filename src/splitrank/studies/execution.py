"""Run the members of a sweep: as processes on this machine, or as tasks on a Ray cluster.

A folder of members holds, for each of them, ``NAME.toml`` (its settings: ``splitrank run`` takes them), ``NAME.log``
(what it said) and ``NAME/`` (its run folder). Whoever runs a member computes the same bits, so it matters to nobody
where and beside what it ran.
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
from splitrank.federation.run_folder import resumed_config
from splitrank.files import folder_built_atomically, write_atomically
from splitrank.studies.recorded import read_run
from splitrank.studies.results import member_line
from splitrank.studies.sweep import Member

_LOG = logging.getLogger("splitrank")

_BAD_INPUT = 2
_TIMES_A_LOST_WORKER_IS_REPLACED = 3


@dataclass(frozen=True)
class Outcome:
    """How a member ended.

    Attributes:
        exit_code: 0 if it is finished.
        process_s: how long its process took [s].
        said: the last line of its log.
    """

    member: Member
    exit_code: int
    process_s: float
    said: str


def is_finished(member: Member, folder: Path) -> bool:
    """Whether a run folder holds all that the member would leave there."""
    try:
        run = read_run(folder)
        member_line(member, run)
    except (InputError, KeyError, TypeError, AttributeError, ValueError):  # damaged: the run itself says how
        return False
    last = run.records[-1]
    federation = member.config.federation
    reached = federation.target_accuracy is not None and last["accuracy"] >= federation.target_accuracy
    exported = (folder / export_folder(member.config)).is_dir()
    return exported and (reached or last["round"] >= federation.rounds)


def prepare(members: Sequence[Member], folder: Path) -> list[Member]:
    """Write every member's settings; those that are not finished yet.

    Raises:
        InputError: the folder is none, or holds something else: a run, another sweep, a member of the same name with
            other settings.
    """
    if (folder.parent / "config.toml").exists():
        raise InputError(f"--out must be a folder for many runs, got {folder.parent}, which is one run; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out must be a folder, got {folder.parent} where a file is in the way") from None
    if others := sorted({file.stem for file in folder.glob("*.toml")} - {member.name for member in members}):
        raise InputError(
            f"--out must be a folder of this very sweep, got {folder.parent} with {others[0]}, which it does not name "
            f"({len(others)} such members); remove them from {folder}, or choose another"
        )
    files = {member.name: (folder / f"{member.name}.toml", to_toml(member.config)) for member in members}
    for name, (file, content) in files.items():
        if file.is_file() and file.read_text(encoding="utf-8") != content:
            raise InputError(
                f"--out must be a folder of this very sweep, got {folder.parent} where {name} has other settings; "
                "choose another"
            )
    for file, content in files.values():
        if not file.is_file():
            write_atomically(file, content)
    for member in members:
        if (folder / member.name / "config.toml").is_file():
            _check_ran_as_asked(member, folder / member.name)
    return [member for member in members if not is_finished(member, folder / member.name)]


def _check_ran_as_asked(member: Member, run_dir: Path) -> None:
    try:
        resumed_config(run_dir, member.config, [])
    except ConfigError as error:
        raise InputError(f"{run_dir} must hold a run with the member's settings: {error.problems[0]}") from None


def run_members(members: Sequence[Member], folder: Path, jobs: int, ray_address: str | None) -> Iterator[Outcome]:
    """Run members that :func:`prepare` has named; yield each as it ends, in any order.

    One that fails is tried once more when all others have ended, alone on the machine, since memory is what members
    most often lack; but not if its settings or data cannot be used.

    Args:
        folder: of the members.
        jobs: how many processes at a time on this machine.
        ray_address: of a Ray cluster to use instead, as ``ray.init`` takes it.
    """
    if not members:
        return
    start = _on_ray(members, folder, ray_address) if ray_address else _locally(members, folder, jobs)
    failed = []
    for outcome in start:
        if outcome.exit_code in (0, _BAD_INPUT):
            yield outcome
        else:
            failed.append(outcome)
    for outcome in failed:
        _LOG.info(f"{outcome.member.name} failed ({outcome.said}); trying it again, alone.")
        yield from (
            _on_ray([outcome.member], folder, ray_address) if ray_address else _locally([outcome.member], folder, 1)
        )


def _locally(members: Sequence[Member], folder: Path, jobs: int) -> Iterator[Outcome]:
    started: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(jobs) as pool:  # each thread does nothing but wait for a process
        try:
            for future in as_completed([pool.submit(_run_here, member, folder, started) for member in members]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:  # none is left unless this was broken off
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)


def _run_here(member: Member, folder: Path, started: list[subprocess.Popen[bytes]]) -> Outcome:
    log, started_s = folder / f"{member.name}.log", time.perf_counter()
    settings, run_dir = folder / f"{member.name}.toml", folder / member.name
    command = [sys.executable, "-m", "splitrank.studies.member", str(settings), str(run_dir)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        started.append(process)
        exit_code = process.wait()
    return Outcome(member, exit_code, time.perf_counter() - started_s, _last_line(log, exit_code))


def _last_line(log: Path, exit_code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = lines[-1].removeprefix("Error: ") if lines else "it said nothing"
    return f"killed by signal {-exit_code}" if exit_code < 0 else said


def _on_ray(members: Sequence[Member], folder: Path, address: str | None) -> Iterator[Outcome]:
    """Each member as a task; its run folder comes back as an archive. Ray runs it again if its worker is lost."""
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
        for member in members:
            task = ray.remote(num_cpus=member.config.run.threads, max_retries=_TIMES_A_LOST_WORKER_IS_REPLACED)(
                _run_there
            )
            by_task[task.remote(member, _packed(folder / member.name))] = member
        waiting = list(by_task)
        while waiting:
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            member = by_task[ready]
            try:
                outcome, log, run_dir = ray.get(ready)
            except ray.exceptions.RayError as error:
                yield Outcome(member, 1, 0.0, str(error).splitlines()[0])
                continue
            write_atomically(folder / f"{member.name}.log", log)
            _unpack(run_dir, folder / member.name)
            yield outcome
    finally:
        ray.shutdown()


def _run_there(member: Member, begun: bytes) -> tuple[Outcome, bytes, bytes]:
    """On a worker: continue what was begun, in a temporary folder; what came out, its log and its run folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_atomically(folder / f"{member.name}.toml", to_toml(member.config))
        _unpack(begun, folder / member.name)
        outcome = _run_here(member, folder, [])
        return outcome, (folder / f"{member.name}.log").read_bytes(), _packed(folder / member.name)


def _packed(folder: Path) -> bytes:
    """A folder as an archive; empty where there is none."""
    archive = io.BytesIO()
    if folder.is_dir():
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(folder, arcname=".")
    return archive.getvalue()


def _unpack(archive: bytes, folder: Path) -> None:
    if archive:
        with folder_built_atomically(folder) as building, tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(building, filter="data")
