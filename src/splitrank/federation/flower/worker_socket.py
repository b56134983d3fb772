"""The socket between ClientApp and worker: a UNIX socket that only its owner can open. Needs no torch.

A message is two lengths, a header as JSON and an array's bytes; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from splitrank.errors import InputError
from splitrank.federation.flower.payload import Floats, Header

_LENGTHS = struct.Struct("!QQ")
_MAX_BYTES = 4_000_000_000

MAX_PATH_BYTES = 100
"""The longest path that a socket may have on every system that has them."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a socket whose folder is made for its owner alone; the socket is gone afterwards.

    Raises:
        InputError: the folder is none, another user's or open to others, somebody listens already, or another kind of
            file has the socket's name.
    """
    if path.parent.exists() and not path.parent.is_dir():
        raise InputError(f"socket must lie in a folder, got the file {path.parent}; name another one")
    if path.exists() and not path.is_socket():
        raise InputError(f"socket must be a new name or that of an old socket, got {path}, which is a file or folder")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = path.parent.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise InputError(f"socket must lie in a folder that only you can open, got {path.parent}; try chmod 700 on it")
    with suppress(OSError), socket.socket(socket.AF_UNIX) as other:
        other.connect(str(path))
        raise InputError(f"another worker listens on {path}; stop it, or name another socket")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        old_mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old_mask)
        listener.listen()
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def ask(path: Path, header: Header, floats: Floats, timeout_s: float) -> tuple[Header, Floats]:
    """Send a request to a worker and wait for its answer.

    Raises:
        OSError, EOFError: there is no worker, or it broke off, or took longer than the timeout.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        send(connection, header, floats)
        return receive(connection)


def send(connection: socket.socket, header: Header, floats: Floats) -> None:
    """Send one message."""
    text, numbers = json.dumps(header).encode(), floats.astype("<f4").tobytes()
    connection.sendall(_LENGTHS.pack(len(text), len(numbers)) + text)
    if numbers:  # an empty one has been received by now, and the other side may be gone
        connection.sendall(numbers)


def receive(connection: socket.socket) -> tuple[Header, Floats]:
    """Wait for one message.

    Raises:
        EOFError: the other side closed before it was whole.
        ValueError: it is not what :func:`send` sends.
    """
    text_length, numbers_length = _LENGTHS.unpack(_read(connection, _LENGTHS.size))
    if text_length + numbers_length > _MAX_BYTES or numbers_length % 4:
        raise ValueError(f"a message must have whole numbers and at most {_MAX_BYTES} bytes")
    header = json.loads(_read(connection, text_length))
    if not isinstance(header, dict):
        raise ValueError("a message's header must be a JSON object")
    return header, np.frombuffer(_read(connection, numbers_length), dtype="<f4").astype(np.float32)


def _read(connection: socket.socket, length: int) -> bytes:
    parts = bytearray(length)
    view = memoryview(parts)
    filled = 0
    while filled < length:
        received = connection.recv_into(view[filled:])
        if received == 0:
            raise EOFError("the other side closed the connection")
        filled += received
    return bytes(parts)
