"""A real node's own disk: it keeps what is personal, trained and never sent, and the merged parts.

A round's part, the one it was trained from and the one before lie under
``$XDG_DATA_HOME/splitrank/personal/<run>/<client>/``, readable by their owner alone. A request names the round to start
from, so a server that goes on from an older checkpoint finds the part of that round. The server itself keeps no more
than each part's round and SHA-256, by which the client knows it again.

The merged parts of the last request lie beside them, so that a worker that is started again need not be sent them anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from splitrank.errors import InputError
from splitrank.federation.state import State
from splitrank.files import write_privately

_MAX_RUNS = 100
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_ROUND, _DIGEST = "personal_round", "personal_sha256"


def digest_record(round: int, sha256: str) -> dict[str, Tensor]:
    """Return what the server keeps of a client's personal part."""
    return {_ROUND: torch.tensor(round), _DIGEST: torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8)}


def personal_order(state: State, client: int) -> dict[str, int | str]:
    """Return what a request says of the personal part to start from: its round, 0 if there is none, and its digest."""
    kept = state.local.get(client)
    if not kept:
        return {_ROUND: 0, _DIGEST: ""}
    return {_ROUND: int(kept[_ROUND]), _DIGEST: bytes(kept[_DIGEST].tolist()).hex()}


@dataclass(frozen=True)
class PersonalStore:
    """Where a client keeps its personal parts of a run, and the merged ones.

    Attributes:
        folder: of the run and client.
    """

    folder: Path

    @classmethod
    def of(cls, run_id: object, client: int) -> PersonalStore:
        """Return the store of a run and client.

        Raises:
            InputError: a run's name that is none, as a hostile server may send it.
        """
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
            raise InputError(f"run must be 32 hexadecimal digits, got {str(run_id)[:60]!r}")
        home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
        return cls(home / "splitrank" / "personal" / run_id / str(client))

    def write(self, round: int, tensors: Mapping[str, Tensor], *, started_from: int) -> str:
        """Keep a round's part, and let go of what no server can ask for any more; return its SHA-256.

        Args:
            round: that it was trained in.
            tensors: the part.
            started_from: the round of the part that it was trained from, 0 for none. The server names that one again
                if it does not get or take this update, and the one before if it goes back a checkpoint.
        """
        content = self._write(self._file(round), tensors)
        rounds = {int(file.stem.removeprefix("round-")) for file in self.folder.glob("round-*.safetensors")}
        before = max((kept for kept in rounds if kept < started_from), default=round)
        for old in rounds - {before, started_from, round}:
            self._file(old).unlink(missing_ok=True)
        return hashlib.sha256(content).hexdigest()

    def read(self, round: int, sha256: object) -> dict[str, Tensor] | None:
        """Return a round's part, None if it is lost or another than the server has the digest of."""
        try:
            content = self._file(round).read_bytes()
            return load(content) if hashlib.sha256(content).hexdigest() == sha256 else None
        except (OSError, SafetensorError):
            return None

    def write_merged(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep the merged parts of a start, in the place of earlier ones."""
        self._write(self._merged, tensors)

    def read_merged(self) -> dict[str, Tensor]:
        """Return the merged parts of the last start; nothing where they are lost."""
        try:
            return load(self._merged.read_bytes())
        except (OSError, SafetensorError):
            return {}

    def _write(self, file: Path, tensors: Mapping[str, Tensor]) -> bytes:
        if not self.folder.is_dir():
            self._make_room()
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        write_privately(file, content)
        return content

    def _make_room(self) -> None:
        """Make the folder, nobody else's to read, and let go of the runs that were longest unused."""
        runs = self.folder.parent.parent
        for folder in (runs, self.folder.parent, self.folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        oldest_first = sorted(runs.iterdir(), key=lambda run: run.stat().st_mtime)
        for old in oldest_first[:-_MAX_RUNS]:
            shutil.rmtree(old, ignore_errors=True)

    @property
    def _merged(self) -> Path:
        return self.folder / "merged.safetensors"

    def _file(self, round: int) -> Path:
        return self.folder / f"round-{round:06d}.safetensors"
