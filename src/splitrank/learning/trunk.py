"""The cache of the frozen trunk: its output for every text, computed once, kept on disk, shared by all that follows.

Everything below the first trained layer is a constant function of the text, so clients, epochs, rounds, ranks and
later runs read the same file. It holds the tokens' hidden states back to back, unpadded, and is read with pread: a
mapped file would count as memory of the process.

Which bits a text gets may depend on the batch it was computed in, so the key covers the whole set of texts and what
else can change a bit: weights, token ids (hence tokenizer, texts and length), cut, precision, and the kind of
machine, thread count and torch version.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from splitrank.errors import InputError
from splitrank.files import folder_built_atomically, try_lock, wait_for_lock
from splitrank.learning.device import device_name
from splitrank.learning.encoder import Encoder
from splitrank.learning.layer import grid_width, num_rows
from splitrank.progress import track

_LOG = logging.getLogger("splitrank")

BATCH_TOKENS = 8192
"""Places in the grid that are computed at a time, in the trunk and in evaluation [tokens]."""

# Part of every key: to be raised when the layout of the file or what the encoder computes changes.
_FORMAT = 6


@dataclass(frozen=True, eq=False)
class TrunkOutputs:
    """The trunk's output of a list of texts, open for reading until :meth:`close`.

    Attributes:
        lengths: tokens of each text, int64, shape (num_texts,).
        built: whether this process had to compute it.
    """

    lengths: NDArray[np.int64]
    built: bool
    _starts: NDArray[np.int64]
    _hidden_size: int
    _precision: torch.dtype
    _file: IO[bytes]
    _lock: IO[str]

    def close(self) -> None:
        """Let the output be cleared away."""
        self._file.close()
        self._lock.close()

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Hidden states of some texts.

        Returns:
            the states, text after text, in the cache's precision, shape (num_rows, hidden_size), zero after the last
            token; and the tokens of each text, int64, shape (len(rows),).
        """
        lengths = self.lengths[rows]
        num_tokens = int(lengths.sum())
        hidden = torch.empty((num_rows(torch.from_numpy(lengths)), self._hidden_size), dtype=self._precision)
        hidden[num_tokens:] = 0.0
        as_bytes = hidden.view(torch.uint8).numpy()
        ends = np.cumsum(lengths)
        for place, start, length in zip(ends - lengths, self._starts[rows], lengths, strict=True):
            wanted = as_bytes[place : place + length]
            if os.preadv(self._file.fileno(), [wanted.data], int(start) * wanted.shape[1]) != wanted.nbytes:
                raise OSError(errno.EIO, "the trunk cache is shorter than its index", self._file.name)
        return hidden, torch.from_numpy(lengths)


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/splitrank``, else ``~/.cache/splitrank``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitrank"


def length_batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Split texts into batches of similar length of at most ``batch_tokens`` places in their grids (or one text)."""
    order = np.argsort(lengths, kind="stable")[::-1]
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // grid_width(int(lengths[order[start]])))
        yield order[start : start + count]
        start += count


def trunk_outputs(
    encoder: Encoder, token_ids: Sequence[NDArray[np.int32]], *, limit_bytes: float, what: str
) -> TrunkOutputs:
    """Open the cached trunk output of these texts, computing it first where it is missing.

    A file of the right size is taken to be right. A second process that wants the same texts waits for the first.
    Until the result is closed it cannot be cleared away.

    Args:
        encoder: whose trunk; see :class:`Encoder`.
        token_ids: unpadded token ids of each text.
        limit_bytes: most that all cached outputs together may take; the longest unused go first.
        what: name of the texts for the progress bar.

    Raises:
        InputError: the limit or the disk is too small.
    """
    distinct: dict[bytes, int] = {}
    entries = np.array([distinct.setdefault(ids.tobytes(), len(distinct)) for ids in token_ids], dtype=np.int64)
    texts = [np.frombuffer(ids, dtype=np.int32) for ids in distinct]
    entry_lengths = np.array([len(ids) for ids in texts], dtype=np.int64)
    key = _key(encoder, distinct)
    folder = cache_folder() / "trunk" / key
    row_bytes = encoder.hidden_size * encoder.precision.itemsize
    size = int(entry_lengths.sum()) * row_bytes

    lock_path = cache_folder() / "locks" / key
    notice = f"Another process works on the cached {what}; waiting for it."
    built = False
    # Between building and reading somebody may clear the cache: look again under the lock for reading.
    while True:
        lock = wait_for_lock(lock_path, shared=True, notice=notice)
        if _is_whole(folder, size):
            break
        lock.close()
        with wait_for_lock(lock_path, notice=notice):
            if not _is_whole(folder, size):
                _remove_leftovers(key)
                _make_room(size, limit_bytes, keep=key)
                _build(encoder, texts, entry_lengths, folder, what)
                built = True
    os.utime(folder / "about.json")
    starts = np.concatenate([[0], np.cumsum(entry_lengths)[:-1]])
    file = (folder / "hidden_states.bin").open("rb", buffering=0)
    return TrunkOutputs(
        entry_lengths[entries], built, starts[entries], encoder.hidden_size, encoder.precision, file, lock
    )


def _key(encoder: Encoder, texts: dict[bytes, int]) -> str:
    computed_by = (
        _FORMAT,
        torch.__version__,
        transformers.__version__,
        device_name(encoder.model.device),
        torch.get_num_threads(),
        BATCH_TOKENS,
    )
    what = (encoder.trunk_digest, encoder.cut_layer, encoder.precision, computed_by)
    digest = hashlib.sha256(repr(what).encode())
    for ids in texts:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(ids)
    return digest.hexdigest()[:32]


def _is_whole(folder: Path, size: int) -> bool:
    data = folder / "hidden_states.bin"
    return (folder / "about.json").is_file() and data.is_file() and data.stat().st_size == size


def _remove_leftovers(own_key: str) -> None:
    """Remove half-built folders of processes that were killed; ``own_key`` is locked by this process already."""
    for leftover in (cache_folder() / "trunk").glob(".*"):
        key = leftover.name.split(".")[1]
        lock = None if key == own_key else try_lock(cache_folder() / "locks" / key)
        if key == own_key or lock is not None:
            shutil.rmtree(leftover, ignore_errors=True)
        if lock is not None:
            lock.close()


def _build(
    encoder: Encoder,
    texts: Sequence[NDArray[np.int32]],
    lengths: NDArray[np.int64],
    folder: Path,
    what: str,
) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    row_bytes = encoder.hidden_size * encoder.precision.itemsize
    batches = list(length_batches(lengths, BATCH_TOKENS))
    size_mb = int(lengths.sum()) * row_bytes / 1e6
    _LOG.info(f"Computing the frozen trunk's output of {len(texts):,} {what} once ({size_mb:,.0f} MB).")
    try:
        with folder_built_atomically(folder) as building, (building / "hidden_states.bin").open("wb") as file:
            for batch in track(batches, f"trunk output, {what}", total=len(batches)):
                hidden = encoder.trunk([texts[entry] for entry in batch]).cpu()
                assert hidden.dtype == encoder.precision
                ends = np.cumsum(lengths[batch])
                for end, entry in zip(ends, batch, strict=True):
                    part = hidden.view(torch.uint8).numpy()[end - lengths[entry] : end]
                    if os.pwrite(file.fileno(), part.data, int(starts[entry]) * row_bytes) != part.nbytes:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            about = {
                "model": encoder.location,
                "cut_layer": encoder.cut_layer,
                "precision": str(encoder.precision).removeprefix("torch."),
                "texts": len(texts),
                "tokens": int(lengths.sum()),
            }
            (building / "about.json").write_text(json.dumps(about) + "\n")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _disk_full(int(lengths.sum()) * row_bytes) from None


def _disk_full(size: int) -> InputError:
    return InputError(
        f"The disk under {cache_folder()} must have {size / 1e9:.3g} GB free for the trunk cache, got less; free some, "
        "try `splitrank cache clear`, or set XDG_CACHE_HOME to a folder on a larger disk"
    )


@dataclass(frozen=True)
class CacheEntry:
    """One cached set of texts: its key, size [bytes], last use [s since 1970] and what ``about.json`` says."""

    key: str
    size_bytes: int
    used_at_s: float
    about: dict[str, str | int]


def list_cache() -> list[CacheEntry]:
    """Return all complete cached outputs, the longest unused first."""
    entries = []
    for about in (cache_folder() / "trunk").glob("*/about.json"):
        if about.parent.name.startswith("."):
            continue
        with suppress(OSError, ValueError):  # cleared by another process while we look, or damaged
            size = sum(file.stat().st_size for file in about.parent.iterdir())
            entries.append(CacheEntry(about.parent.name, size, about.stat().st_mtime, json.loads(about.read_text())))
    return sorted(entries, key=lambda entry: (entry.used_at_s, entry.key))


def clear_cache() -> tuple[int, int]:
    """Delete every cached output that nobody uses right now, and what killed processes left.

    Returns:
        bytes freed, and the number of outputs kept because a run reads or builds them.
    """
    freed = kept = 0
    folder = cache_folder() / "trunk"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        key = path.name.split(".")[1] if path.name.startswith(".") else path.name
        lock = try_lock(cache_folder() / "locks" / key)
        if lock is None:
            kept += 1
            continue
        with lock:
            freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    return freed, kept


def _make_room(size: int, limit_bytes: float, keep: str) -> None:
    if size > limit_bytes:
        raise InputError(
            f"run.cache_limit_gb must be at least {size / 1e9:.3g} for these texts, got {limit_bytes / 1e9:g}; raise "
            "it or take fewer rows with data.train_rows"
        )
    entries = [entry for entry in list_cache() if entry.key != keep]
    total = sum(entry.size_bytes for entry in entries)
    for entry in entries:
        if total + size <= limit_bytes:
            break
        lock = try_lock(cache_folder() / "locks" / entry.key)
        if lock is not None:
            with lock:
                shutil.rmtree(cache_folder() / "trunk" / entry.key, ignore_errors=True)
            total -= entry.size_bytes
    if total + size > limit_bytes:
        raise InputError(
            f"run.cache_limit_gb must be at least {(total + size) / 1e9:.3g} for these texts beside what is in use, "
            f"got {limit_bytes / 1e9:g}; raise it or take fewer rows with data.train_rows"
        )
    cache_folder().mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache_folder()).free < size:
        raise _disk_full(size)
