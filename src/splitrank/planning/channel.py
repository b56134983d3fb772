"""Channel power gains: large-scale loss times Rayleigh fading.

A gain is static within a round, redrawn every round and independent for every client and direction: flat fading on
each client's sub-band, known perfectly to the planner (Xie and Wen, section 1.2, name a frequency-selective channel
but use one gain per client, as here).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitrank import streams


def rayleigh_gain(
    large_scale_gain: NDArray[np.float64], seed: int, direction: Literal["uplink", "downlink"], round: int
) -> NDArray[np.float64]:
    """Draw one round's power gains under Rayleigh fading.

    h_i = g_i · x_i,  x_i ~ Exp(1)

    The power of a Rayleigh amplitude is exponential; its distribution function is inverted, x = -ln(1 - u), so a
    client uses exactly one number of its stream. The paper's "Rayleigh coefficient" 1e-3 is read as g.

    Args:
        large_scale_gain: g, mean power gain, dimensionless, shape (I,), >= 0.
        seed: the run's seed.
        direction: up and down fade independently.
        round: round number, >= 1.

    Returns:
        power gain h, dimensionless, shape (I,).
    """
    uniform = streams.uniform_per_client(seed, f"{direction}-fading", round, len(large_scale_gain))
    return large_scale_gain * -np.log1p(-uniform)


def path_loss_gain(distance_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean power gain of an urban macro cell at 2 GHz.

    g = 10^(-(128.1 + 37.6 log10(d / 1 km)) / 10)

    3GPP TR 36.942, section 4.5.2, without shadowing. The paper has no distances.

    Args:
        distance_m: d, distance to the server [m], any shape, > 0.

    Returns:
        power gain g, dimensionless, shape as given.
    """
    loss_db = 128.1 + 37.6 * np.log10(distance_m / 1000.0)
    return np.power(10.0, -loss_db / 10.0)
