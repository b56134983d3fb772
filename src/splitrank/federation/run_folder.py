"""A run's folder: what was asked, what happened, and everything needed to go on after a crash.

config.toml      the fully resolved settings; `splitrank run` on it reproduces rounds.jsonl
manifest.json    versions, hardware, seed, data
rounds.jsonl     one line a round, round 0 first
checkpoint/      the newest two states; an older one serves if the newest is damaged
adapter/         the result in PEFT's format, or model/, a whole transformers folder
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from splitrank.config import Config, load_config, to_toml, with_values
from splitrank.errors import ConfigError, InputError
from splitrank.federation.checkpoints import RAISABLE, Checkpoints
from splitrank.files import try_lock, write_atomically
from splitrank.records import RoundRecord

Manifest = dict[str, Any]
"""The content of manifest.json."""


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
        return self.path / "rounds.jsonl"

    def append(self, record: RoundRecord) -> None:
        """Add a round's line to rounds.jsonl and see it on the disk."""
        with self.records.open("a", encoding="utf-8") as file:
            file.write(record.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=2) + "\n")

    def read_manifest(self) -> Manifest:
        return read_manifest(self.path)

    @property
    def checkpoints(self) -> Checkpoints:
        """The states that the run can go on from."""
        return Checkpoints(self.path)


@contextmanager
def next_free_folder(preset: str) -> Iterator[Path]:
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
    write_atomically(path / "config.toml", to_toml(config))  # last: what makes the folder one that can be resumed
    return folder


def open_to_resume(path: Path) -> RunFolder:
    """Take hold of the folder of an interrupted run.

    Raises:
        InputError: no run is there, or another process holds it.
    """
    _check_is_run(path)
    folder = RunFolder(path, _lock_or_refuse(path))
    for leftover in (*path.glob(".*.*"), *(path / "checkpoint").glob(".*")):  # of a process that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return folder


def _check_is_run(path: Path) -> None:
    if not (path / "config.toml").is_file():
        raise InputError(
            f"--resume needs the folder of a run, got {path} without config.toml; leave --resume out to start"
        )


def resumed_config(path: Path, asked: Config | None, overrides: list[str]) -> Config:
    """Settings of a resumed run: the folder's own, with more rounds, a higher target or more patience where asked for.

    It may also compute on another device, as a run with ``run.device = "auto"`` does on another machine.

    Args:
        path: the run folder.
        asked: what the command line asks for, or None to take the folder's settings.
        overrides: ``--set`` arguments that apply to the folder's settings where ``asked`` is None.

    Raises:
        ConfigError: a setting other than those differs, or one of the first three is lowered.
    """
    _check_is_run(path)
    saved = load_config(str(path / "config.toml"))
    if asked is None:
        asked = load_config(str(path / "config.toml"), overrides)
    # What a run resolves by itself is not the user's doing.
    resolved: dict[str, Any] = {}
    if asked.run.threads == 0:
        resolved["run.threads"] = saved.run.threads
    if asked.model.precision == "auto":
        resolved["model.precision"] = saved.model.precision
    if asked.model.num_labels is None:
        resolved["model.num_labels"] = saved.model.num_labels
    resolved |= absolute_paths(asked)
    if resolved:
        asked = with_values(asked, resolved)
    before, after = saved.model_dump(), asked.model_dump()
    problems = []
    for table, content in before.items():
        for key, value in content.items():
            wanted = after[table][key]
            if wanted == value:
                continue
            if (table, key) == ("run", "device"):
                continue
            if table == "federation" and key in RAISABLE and _goes_on(saved, key, wanted):
                continue
            rule = "the same or more" if key in RAISABLE else "the same"
            if key == "rounds" and saved.train.schedule == "linear":
                rule = "the same, since a linear train.schedule spans all rounds,"
            problems.append(f"{table}.{key} must be {rule} when a run is resumed: {value!r} in {path}, got {wanted!r}")
    if problems:
        raise ConfigError(problems)
    return asked


def _goes_on(saved: Config, key: str, wanted: Any) -> bool:
    """Return whether a run would go on for longer with another value of a raisable key, and may."""
    value = getattr(saved.federation, key)
    if key == "rounds":
        return bool(wanted > value) and saved.train.schedule == "constant"
    return value is not None and (wanted is None or bool(wanted > value))


def absolute_paths(config: Config) -> dict[str, str]:
    """Return the settings that name a folder or file, by dotted key, so that they do so from anywhere."""
    resolved = {}
    if config.data.path is not None:
        resolved["data.path"] = str(Path(config.data.path).expanduser().resolve())
    for key, name in (("data.name", config.data.name), ("model.name", config.model.name)):
        if name is not None and (key, name) != ("data.name", "docstrings") and Path(name).is_dir():
            resolved[key] = str(Path(name).resolve())
    return resolved


def run_id(path: Path) -> str:
    """Return the name that a run through Flower gave itself; a folder that no state was saved in yet has none."""
    try:
        return str(json.loads((path / "manifest.json").read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return secrets.token_hex(16)


def read_manifest(path: Path) -> Manifest:
    """Return what the manifest.json of a run folder says.

    Raises:
        InputError: it is missing or says something else.
    """
    path = path / "manifest.json"
    try:
        manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(manifest[key], dict) for key in ("data", "model", "versions", "hardware")):
            raise ValueError
        if not all(isinstance(sha, str) for sha in (manifest["data"]["sha256"], manifest["model"]["trunk_sha256"])):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} must be the manifest of a run, got something else; start a new run") from None
    return manifest


def check_unchanged(path: Path, manifest: Mapping[str, Any], key: str, sha256: str) -> None:
    """Check that a run goes on with what it started with.

    Args:
        path: the run folder.
        manifest: what its manifest.json says.
        key: ``"data"`` or ``"model"``.
        sha256: of what there is now.

    Raises:
        InputError: texts or weights have changed.
    """
    what, digest = {"data": ("texts", "sha256"), "model": ("weights", "trunk_sha256")}[key]
    if manifest[key][digest] != sha256:
        raise InputError(
            f"The {what} must be those the run in {path} started with, but they have changed since "
            f"({key} {sha256[:12]} instead of {manifest[key][digest][:12]}); start a new run"
        )


def largest_class_share(path: Path) -> float | None:
    """Return the share that the largest class has of a run's test texts; None for a run that did not record it."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return float(manifest["data_summary"]["largest_class_share"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def update_config(folder: RunFolder, config: Config) -> None:
    """Write the settings of a run that goes on for longer."""
    write_atomically(folder.path / "config.toml", to_toml(config))
