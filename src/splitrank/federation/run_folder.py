"""A run's folder, held by one process: what was asked, what happened, and everything needed to go on after a crash.

config.toml      the fully resolved settings; `splitrank run` on it reproduces rounds.jsonl
manifest.json    versions, hardware, seed, data
rounds.jsonl     one line a round, round 0 first
checkpoint/      the newest two states; an older one serves if the newest is damaged
adapter/         the result in PEFT's format, or model/, a whole transformers folder
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from splitrank.config import Config, to_toml
from splitrank.errors import InputError
from splitrank.federation.checkpoints import Checkpoints
from splitrank.files import try_lock, write_atomically
from splitrank.records import RoundRecord


@dataclass(frozen=True)
class RunFolder:
    """A run folder that this process holds until :meth:`close`."""

    path: Path
    _lock: IO[str]

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    @property
    def records(self) -> Path:
        """The file rounds.jsonl."""
        return self.path / "rounds.jsonl"

    def append(self, record: RoundRecord) -> None:
        """Add a round's line to rounds.jsonl and see it on the disk."""
        with self.records.open("a", encoding="utf-8") as file:
            file.write(record.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write manifest.json."""
        write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=2) + "\n")

    def write_config(self, config: Config) -> None:
        """Write config.toml, which makes the folder one of a run that can be resumed."""
        write_atomically(self.path / "config.toml", to_toml(config))

    @property
    def checkpoints(self) -> Checkpoints:
        """The states that the run can go on from."""
        return Checkpoints(self.path)


def read_records(path: Path) -> list[RoundRecord]:
    """Return the records of a run folder."""
    return [RoundRecord.from_json(line) for line in (path / "rounds.jsonl").read_bytes().splitlines()]


def num_recorded(path: Path) -> int:
    """Rounds that a run folder has on record, round 0 included."""
    records = path / "rounds.jsonl"
    return records.read_bytes().count(b"\n") if records.is_file() else 0


def check_new(path: Path) -> None:
    """Check, before any work, that a run may start in a folder.

    Raises:
        InputError: it holds something, another run holds it, or it is no folder.
    """
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"--out must be a folder, got {path} where {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--out must be a folder that can be written, got {path} where {nearest} is read-only")
    if (path / ".lock").exists():
        _lock_or_refuse(path).close()
    if path.is_dir():
        _check_empty(path)


def _check_empty(path: Path) -> None:
    started = (path / "config.toml").exists()
    # A process that was killed before it had written the settings left nothing of worth.
    if started or any(file.name != "manifest.json" and not file.name.startswith(".") for file in path.iterdir()):
        hint = (
            "add --resume to go on with it, or choose another" if (path / "config.toml").exists() else "choose another"
        )
        raise InputError(f"--out must be a new or empty folder, got {path} with files in it; {hint}")


def _lock_or_refuse(path: Path) -> IO[str]:
    lock = try_lock(path / ".lock")
    if lock is None:
        holder = (path / ".lock").read_text().strip() or "unknown"
        raise InputError(
            f"{path} must not be in use, but another run holds it (process {holder}); wait for it or stop it"
        )
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def create(path: Path, config: Config, manifest: Mapping[str, Any]) -> RunFolder:
    """Make the folder of a new run."""
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path, _lock_or_refuse(path))
    _check_empty(path)
    folder.write_manifest(manifest)
    folder.write_config(config)  # last
    return folder


def open_to_resume(path: Path) -> RunFolder:
    """Take hold of the folder of an interrupted run.

    Raises:
        InputError: no run is there, or another process holds it.
    """
    check_is_run(path)
    folder = RunFolder(path, _lock_or_refuse(path))
    for leftover in (*path.glob(".*.*"), *(path / "checkpoint").glob(".*")):  # of a process that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return folder


def check_is_run(path: Path) -> None:
    """Raise InputError where no run was started in a folder."""
    if not (path / "config.toml").is_file():
        raise InputError(
            f"--resume needs the folder of a run, got {path} without config.toml; leave --resume out to start"
        )
