"""A client's worker that trains as it should and then spoils its answer, in another way each round.

python tests/deployment/hostile_worker.py CLIENT.toml
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from splitrank.federation.flower import worker_socket
from splitrank.federation.flower.client_config import read_client_config
from splitrank.federation.flower.payload import NO_FLOATS, Floats, Header
from splitrank.federation.flower.worker import Worker

SPOILT_ROUNDS = range(2, 10)


class _HangUp(Exception):  # noqa: N818
    """No answer at all."""


def spoilt(round: int, header: Header, floats: Floats) -> tuple[Header, Floats]:
    """What is sent instead of an honest answer."""
    match round:
        case 2:
            return header, np.full_like(floats, np.nan)
        case 3:
            return header, floats[:-1]
        case 4:
            return header, 1000 * floats
        case 5:
            return {**header, "samples": 10 * header["samples"]}, floats
        case 6:
            return {**header, "round": 5}, floats
        case 7:
            return {**header, "train_loss": 10**400}, floats
        case 8:
            return {"kind": "failure", "reason": "out of memory"}, NO_FLOATS
        case 9:
            raise _HangUp
    return header, floats


def main() -> None:
    own = read_client_config(Path(sys.argv[1]))
    worker = Worker(own)
    with worker_socket.listening(own.socket) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                header, floats = worker_socket.receive(connection)
                answer = worker.answer(header, floats)
                try:
                    worker_socket.send(connection, *spoilt(header.get("round", 0), *answer))
                except _HangUp:
                    continue


if __name__ == "__main__":
    main()
