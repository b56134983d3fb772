"""Named random streams: every draw in splitrank is keyed by (seed, purpose, round, client).

A stream depends on its key alone, so neither the order in which clients run, nor the number of processes, nor a
resumed run changes a draw. Counter-based Philox generators make a stream cheap to open anywhere (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Open the stream of one purpose, round and client.

    Args:
        seed: the run's seed, a non-negative integer.
        purpose: what is drawn, such as ``"uplink-fading"``; part of the key.
        round: round number, 0 for what is drawn once per run.
        client: client index, 0 for what is shared by all clients.
    """
    key = f"{seed}/{purpose}/{round}/{client}".encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def integer(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Draw one integer in [0, 2^63) to seed a generator that is not NumPy's."""
    return int(generator(seed, purpose, round, client).integers(0, 2**63))


def uniform_per_client(seed: int, purpose: str, round: int, num_clients: int) -> NDArray[np.float64]:
    """Draw one number in [0, 1) for each client from the stream (seed, purpose, round).

    Client i takes the i-th output of the stream: a client's draw does not depend on how many clients follow it, and
    a million clients cost one call. Other distributions follow by inverting their distribution function, which uses
    exactly one output per client.

    Returns:
        float64 array, shape (num_clients,).
    """
    return generator(seed, purpose, round).random(num_clients)
