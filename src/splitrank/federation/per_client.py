"""Settings that may differ from client to client, as arrays.

Draws that describe a client (its power, capacitance, distance) happen once per run; the fading is drawn every round.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitrank import streams
from splitrank.config import Config, PerClient, Uniform

FloatArray = NDArray[np.float64]


def per_client(value: PerClient, key: str, config: Config) -> FloatArray:
    """Return one number per client; a ``{uniform = [low, high]}`` is drawn from the stream (seed, key), once per run.

    Returns:
        float64, shape (num_clients,).
    """
    num_clients = config.federation.num_clients
    if isinstance(value, Uniform):
        draws = streams.uniform_per_client(config.run.seed, key, 0, num_clients)
        return value.low + (value.high - value.low) * draws
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (num_clients,)).copy()
