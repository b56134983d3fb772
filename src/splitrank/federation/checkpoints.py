"""Checkpoints of a run: the newest two states, each a folder that appears whole or not at all.

A checkpoint holds the state's tensors, and a description with their SHA-256 and that of rounds.jsonl up to its round,
so that a truncated or altered file is found and named.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitrank.config import Config
from splitrank.errors import InputError, RunError
from splitrank.federation.state import State
from splitrank.files import folder_built_atomically, write_atomically
from splitrank.learning.adapters.adapter import Adapter

_LOG = logging.getLogger("splitrank")

FORMAT = 2
"""Of checkpoints: raised when what they hold, or what it means, changes."""

RAISABLE = ("rounds", "target_accuracy", "patience")
"""Keys of the table ``[federation]`` that a resumed run may change: to go on for longer."""

_KEPT = 2


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of the run in a folder.

    Attributes:
        run: the run folder.
    """

    run: Path

    def save(self, state: State, config: Config) -> None:
        """Write the state after a round, sealed with the settings; older ones go, but for the one before."""
        tensors = {f"adapter/{name}": tensor for name, tensor in state.adapter.tensors.items()}
        for client, personal in state.local.items():
            tensors.update({f"local/{client}/{name}": tensor for name, tensor in personal.items()})
        tensors.update({f"memory/{name}": tensor.clone() for name, tensor in state.memory.items()})
        tensors.update({f"ledger/{name}": torch.from_numpy(array.copy()) for name, array in state.ledger.items()})
        with folder_built_atomically(self._folder(state.round)) as building:
            try:
                save_file(
                    {name: tensor.contiguous() for name, tensor in tensors.items()}, building / "state.safetensors"
                )
            except SafetensorError as error:
                raise RunError(f"The checkpoint in {self.run} must be written, got: {error}") from None
            description = {
                "format": FORMAT,
                "round": state.round,
                "turn": state.turn,
                "rank": state.adapter.rank,
                "scaling": state.adapter.scaling,
                "tensors": list(state.adapter.tensors),
                "memory": list(state.memory),
                "ledger": list(state.ledger),
                "settings_sha256": _settings_digest(config),
                "state_sha256": _sha256((building / "state.safetensors").read_bytes()),
                "rounds_sha256": _sha256(b"".join(self._lines(state.round) or [])),
            }
            description["sha256"] = _sha256(json.dumps(description).encode())
            (building / "state.json").write_text(json.dumps(description, indent=2) + "\n")
        for old in self._rounds()[:-_KEPT]:
            shutil.rmtree(self._folder(old))

    def check_format(self) -> None:
        """Raise InputError where the newest checkpoint is of another format; what is damaged is for :meth:`load`."""
        for round in reversed(self._rounds()):
            try:
                description = json.loads((self._folder(round) / "state.json").read_text(encoding="utf-8"))
                found = description.get("format", 1)
            except (OSError, ValueError, AttributeError):
                continue
            if found != FORMAT:
                raise InputError(
                    f"{self.run} must be a run of this splitrank to be resumed, got checkpoints of format {found} "
                    f"instead of {FORMAT}; start a new run"
                )
            return

    def load(self, config: Config) -> State | None:
        """Return the newest complete state, with rounds.jsonl cut back to it; None where no round was finished.

        Args:
            config: the settings to go on with; all but what a resumed run may change must be those of the checkpoint.

        Raises:
            InputError: checkpoints exist but none is whole, every damaged file being named; or the settings differ.
        """
        damaged = []
        for round in reversed(self._rounds()):
            try:
                state, settings_sha256 = self._read(round)
            except (_DamagedFileError, KeyError) as error:
                problem = str(error)
                if isinstance(error, KeyError):
                    problem = f"{self._folder(round)} lacks {error}"
                damaged.append(problem)
                _LOG.warning(f"{problem}; falling back to the checkpoint before.")
                continue
            if settings_sha256 != _settings_digest(config):
                raise InputError(f"{self.run / 'config.toml'} was changed since the run started; start a new run")
            lines = self._lines(round)
            assert lines is not None
            write_atomically(self._records, b"".join(lines))
            for newer in [other for other in self._rounds() if other > round]:
                shutil.rmtree(self._folder(newer))
            return state
        if not damaged and self._lines(1) is not None:
            raise InputError(
                f"{self.run / 'checkpoint'} must hold the checkpoints of the rounds in {self._records.name}, got none; "
                "start a new run"
            )
        if damaged:
            raise InputError(f"No checkpoint in {self.run} is whole: {'; '.join(damaged)}; start a new run")
        self._records.unlink(missing_ok=True)
        return None

    def _read(self, round: int) -> tuple[State, str]:
        """Return a round's state, and the digest of the settings it was reached with."""
        folder = self._folder(round)
        path = folder / "state.json"
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
            seal = description.pop("sha256")
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise _DamagedFileError(f"{path} is missing or truncated") from None
        if seal != _sha256(json.dumps(description).encode()) or description["round"] != round:
            raise _DamagedFileError(f"{path} was changed after it was written")
        if description.get("format") != FORMAT:
            raise _DamagedFileError(f"{path} has another format than {FORMAT}")
        path = folder / "state.safetensors"
        try:
            if _sha256(path.read_bytes()) != description["state_sha256"]:
                raise _DamagedFileError(f"{path} is truncated or was changed after it was written")
            tensors = load_file(path)
        except (OSError, SafetensorError):
            raise _DamagedFileError(f"{path} is missing or unreadable") from None
        lines = self._lines(round)
        if lines is None or _sha256(b"".join(lines)) != description["rounds_sha256"]:
            raise _DamagedFileError(f"{self._records} is truncated or was changed in its first {round + 1} lines")
        return _state_of(round, description, tensors), description["settings_sha256"]

    def _lines(self, round: int) -> list[bytes] | None:
        """Lines of rounds.jsonl up to a round, None if it has not that many whole ones."""
        if not self._records.exists():
            return None
        lines = self._records.read_bytes().splitlines(keepends=True)[: round + 1]
        return lines if len(lines) == round + 1 and lines[-1].endswith(b"\n") else None

    @property
    def _records(self) -> Path:
        return self.run / "rounds.jsonl"

    def _folder(self, round: int) -> Path:
        return self.run / "checkpoint" / f"round-{round:06d}"

    def _rounds(self) -> list[int]:
        folders = (self.run / "checkpoint").glob("round-" + "[0-9]" * 6)
        return sorted(int(folder.name.removeprefix("round-")) for folder in folders if folder.is_dir())


class _DamagedFileError(Exception):
    """Says which file of a checkpoint cannot be trusted, and why."""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _state_of(round: int, description: dict[str, Any], tensors: Mapping[str, Tensor]) -> State:
    """Return the state that a checkpoint holds."""
    parts = {part: _under(f"{part}/", tensors) for part in ("adapter", "local", "memory", "ledger")}
    local: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["local"].items():
        client, _, own_name = name.partition("/")
        local.setdefault(int(client), {})[own_name] = tensor
    return State(
        round=round,
        turn=description["turn"],
        adapter=Adapter(
            description["rank"],
            description["scaling"],
            {name: parts["adapter"][name] for name in description["tensors"]},
        ),
        local=dict(sorted(local.items())),
        memory={name: parts["memory"][name] for name in description["memory"]},
        ledger={name: parts["ledger"][name].numpy() for name in description["ledger"]},
    )


def _under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _settings_digest(config: Config) -> str:
    """Return the SHA-256 of all settings but those that a resumed run may change, and those at their default.

    So a key that a later version adds does not make a run look changed.
    """
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for key in RAISABLE:
        settings.get("federation", {}).pop(key, None)
    settings.get("run", {}).pop("device", None)
    settings = {table: content for table, content in settings.items() if content}
    return _sha256(json.dumps(settings, sort_keys=True).encode())
