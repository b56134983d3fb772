"""Files: written whole or not at all, filled in from templates, and locked until their process ends."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LOG = logging.getLogger("splitrank")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _readable() -> int:
    """Return the mode of an ordinary new file; temporary ones are made private."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` so that a reader, or a crash, meets the old file or the new one, never a part."""
    _write(path, content.encode() if isinstance(content, str) else content, _readable())


def fill_in(template: str, values: Mapping[str, str]) -> str:
    """Return a template with every ``@NAME@`` replaced by the value of that name."""
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template


def write_privately(path: Path, content: bytes) -> None:
    """Write a file as :func:`write_atomically` does, that nobody but its owner can read."""
    _write(path, content, 0o600)


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def folder_built_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill; it becomes ``path``, replacing an older one, if all is well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(_readable())
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(_readable() | 0o111)
        if path.exists():
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, retired / path.name)
            os.replace(temporary, path)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def try_lock(path: Path, *, shared: bool = False) -> IO[str] | None:
    """Lock ``path`` (made if missing) for this process; ``None`` when another process holds it.

    The lock ends when the returned file is closed or its process dies, however it dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def wait_for_lock(path: Path, *, shared: bool = False, notice: str | None = None) -> IO[str]:
    """Lock ``path`` as :func:`try_lock` does, waiting for other processes; if it must, it says ``notice`` once."""
    while (lock := try_lock(path, shared=shared)) is None:
        if notice is not None:
            _LOG.info(notice)
            notice = None
        time.sleep(0.1)
    return lock
