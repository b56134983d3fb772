"""A run's folder: what was asked, what happened, and everything needed to go on after a crash.

    config.toml      the fully resolved settings; `splitrank run` on it reproduces rounds.jsonl
    manifest.json    versions, hardware, seed, data
    rounds.jsonl     one line a round, round 0 first
    checkpoint/      the newest two states; an older one serves if the newest is damaged
    adapter/         the result, in PEFT's format

A checkpoint is a folder that appears whole or not at all. It holds the state's tensors, and a description with their
SHA-256 and that of rounds.jsonl up to its round, so that a truncated or altered file is found and named.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitrank.config import Config, load_config, to_toml, with_values
from splitrank.errors import ConfigError, InputError, RunError
from splitrank.federation.rounds import State
from splitrank.files import folder_built_atomically, try_lock, write_atomically
from splitrank.learning.adapters.lora import from_tensors
from splitrank.progress import say
from splitrank.records import RoundRecord

_KEPT_CHECKPOINTS = 2
# What a resumed run may change: to go on for longer.
_RAISABLE = ("rounds", "target_accuracy")


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

    def last_accuracy(self) -> float:
        """Accuracy of the newest recorded round."""
        return float(json.loads(self.records.read_bytes().splitlines()[-1])["accuracy"])

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=2) + "\n")

    def read_manifest(self) -> dict[str, Any]:
        path = self.path / "manifest.json"
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if not all(isinstance(manifest[key], dict) for key in ("data", "model", "versions", "hardware")):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{path} must be the manifest of a run, got something else; start a new run") from None
        return manifest

    def save_checkpoint(self, state: State, config: Config) -> None:
        """Write the state after a round, sealed with the settings; older ones go, but for the one before."""
        tensors = {f"adapter/{name}": tensor for name, tensor in state.adapter.tensors().items()}
        for client, head in state.local_heads.items():
            tensors.update({f"local_head/{client}/{name}": tensor for name, tensor in head.items()})
        with folder_built_atomically(self._checkpoint(state.round)) as building:
            try:
                save_file(
                    {name: tensor.contiguous() for name, tensor in tensors.items()}, building / "state.safetensors"
                )
            except SafetensorError as error:
                raise RunError(f"The checkpoint in {self.path} must be written, got: {error}") from None
            description = {
                "round": state.round,
                "rank": state.adapter.rank,
                "scaling": state.adapter.scaling,
                "settings_sha256": _settings_digest(config),
                "state_sha256": _sha256((building / "state.safetensors").read_bytes()),
                "rounds_sha256": _sha256(b"".join(self._lines(state.round) or [])),
            }
            description["sha256"] = _sha256(json.dumps(description).encode())
            (building / "state.json").write_text(json.dumps(description, indent=2) + "\n")
        for old in self._checkpoint_rounds()[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(self._checkpoint(old))

    def load_checkpoint(self, config: Config) -> State | None:
        """The newest complete state, with rounds.jsonl cut back to it; None where no round was finished.

        Args:
            config: the settings to go on with; all but what a resumed run may change must be those of the checkpoint.

        Raises:
            InputError: checkpoints exist but none is whole, every damaged file being named; or the settings differ.
        """
        damaged = []
        for round in reversed(self._checkpoint_rounds()):
            try:
                state, settings_sha256 = self._read_checkpoint(round)
            except _DamagedFileError as problem:
                damaged.append(str(problem))
                say(f"Warning: {problem}; falling back to the checkpoint before.")
                continue
            if settings_sha256 != _settings_digest(config):
                raise InputError(f"{self.path / 'config.toml'} was changed since the run started; start a new run")
            lines = self._lines(round)
            assert lines is not None
            write_atomically(self.records, b"".join(lines))
            for newer in [other for other in self._checkpoint_rounds() if other > round]:
                shutil.rmtree(self._checkpoint(newer))
            return state
        if damaged:
            raise InputError(f"No checkpoint in {self.path} is whole: {'; '.join(damaged)}; start a new run")
        self.records.unlink(missing_ok=True)
        return None

    def _read_checkpoint(self, round: int) -> tuple[State, str]:
        """A round's state, and the digest of the settings it was reached with."""
        folder = self._checkpoint(round)
        path = folder / "state.json"
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
            seal = description.pop("sha256")
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise _DamagedFileError(f"{path} is missing or truncated") from None
        if seal != _sha256(json.dumps(description).encode()) or description["round"] != round:
            raise _DamagedFileError(f"{path} was changed after it was written")
        path = folder / "state.safetensors"
        try:
            if _sha256(path.read_bytes()) != description["state_sha256"]:
                raise _DamagedFileError(f"{path} is truncated or was changed after it was written")
            tensors = load_file(path)
        except (OSError, SafetensorError):
            raise _DamagedFileError(f"{path} is missing or unreadable") from None
        lines = self._lines(round)
        if lines is None or _sha256(b"".join(lines)) != description["rounds_sha256"]:
            raise _DamagedFileError(f"{self.records} is truncated or was changed in its first {round + 1} lines")
        adapter = {name.removeprefix("adapter/"): t for name, t in tensors.items() if name.startswith("adapter/")}
        heads: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("local_head/"):
                _, client, path_in_model = name.split("/", 2)
                heads.setdefault(int(client), {})[path_in_model] = tensor
        state = State(round, from_tensors(adapter, description["rank"], description["scaling"]), heads)
        return state, description["settings_sha256"]

    def _lines(self, round: int) -> list[bytes] | None:
        """Lines of rounds.jsonl up to a round, None if it has not that many whole ones."""
        if not self.records.exists():
            return None
        lines = self.records.read_bytes().splitlines(keepends=True)[: round + 1]
        return lines if len(lines) == round + 1 and lines[-1].endswith(b"\n") else None

    def _checkpoint(self, round: int) -> Path:
        return self.path / "checkpoint" / f"round-{round:06d}"

    def _checkpoint_rounds(self) -> list[int]:
        folders = (self.path / "checkpoint").glob("round-" + "[0-9]" * 6)
        return sorted(int(folder.name.removeprefix("round-")) for folder in folders if folder.is_dir())


class _DamagedFileError(Exception):
    """Which file of a checkpoint cannot be trusted, and why."""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _settings_digest(config: Config) -> str:
    """SHA-256 of all settings but those that a resumed run may change."""
    settings = config.model_dump(mode="json")
    for key in _RAISABLE:
        del settings["federation"][key]
    return _sha256(json.dumps(settings, sort_keys=True).encode())


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
    """Settings of a resumed run: the folder's own, with more rounds or a higher target where asked for.

    Args:
        path: the run folder.
        asked: what the command line asks for, or None to take the folder's settings.
        overrides: ``--set`` arguments that apply to the folder's settings where ``asked`` is None.

    Raises:
        ConfigError: a setting other than those two differs, or one of them is lowered.
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
    if asked.data.path is not None:
        resolved["data.path"] = str(Path(asked.data.path).resolve())
    if Path(asked.model.name).is_dir():
        resolved["model.name"] = str(Path(asked.model.name).resolve())
    if resolved:
        asked = with_values(asked, resolved)
    before, after = saved.model_dump(), asked.model_dump()
    problems = []
    for table, content in before.items():
        for key, value in content.items():
            wanted = after[table][key]
            if wanted == value:
                continue
            if (table, key) == ("federation", "rounds") and wanted > value and saved.train.schedule == "constant":
                continue
            if (table, key) == ("federation", "target_accuracy") and value and (wanted is None or value < wanted):
                continue
            rule = "the same or more" if key in _RAISABLE else "the same"
            if key == "rounds" and saved.train.schedule == "linear":
                rule = "the same, since a linear train.schedule spans all rounds,"
            problems.append(f"{table}.{key} must be {rule} when a run is resumed: {value!r} in {path}, got {wanted!r}")
    if problems:
        raise ConfigError(problems)
    return asked


def update_config(folder: RunFolder, config: Config) -> None:
    """Write the settings of a run that goes on for longer."""
    write_atomically(folder.path / "config.toml", to_toml(config))
