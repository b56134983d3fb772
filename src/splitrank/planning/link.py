"""From channel gain, bandwidth and power to bits per second (Xie and Wen, equations 6 and 10)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shannon_bps(
    bandwidth_hz: NDArray[np.float64],
    gain: NDArray[np.float64],
    power_w: NDArray[np.float64],
    noise_power_w: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Rate of each client on its own orthogonal sub-band.

    s_i = B_i · log2(1 + h_i·P_i / N0_i)

    Equation (6) with the uplink's gain and power, equation (10) with the downlink's.

    Args:
        bandwidth_hz: B, sub-band [Hz], shape (I,), > 0.
        gain: h, channel power gain, shape (I,), >= 0; 0 gives rate 0.
        power_w: P, transmit power in the sub-band [W], shape (I,), > 0.
        noise_power_w: N0, noise power in the sub-band [W], shape (I,), > 0.

    Returns:
        rate s [bit/s], shape (I,).
    """
    # log1p keeps the rate of a deep fade, where 1 + SNR rounds to 1.
    rate_bps: NDArray[np.float64] = bandwidth_hz * np.log1p(gain * power_w / noise_power_w) / np.log(2.0)
    return rate_bps


def full_band_bps(
    bandwidth_hz: NDArray[np.float64],
    gain: NDArray[np.float64],
    power_w: NDArray[np.float64],
    noise_power_w: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Rate at which each client could receive a broadcast over the whole band.

    s_i = (Σ_j B_j) · log2(1 + h_i·P_i / N0_i)

    What the paper's text calls "broadcast"; its equations (9) and (10) are unicast. Power spectral density is that of
    the sub-bands, so a client's signal-to-noise ratio is the same as on its own sub-band. A broadcast runs at the
    rate of the slowest client that it must reach.

    Args:
        bandwidth_hz: B, sub-band [Hz], shape (I,), > 0.
        gain: h, channel power gain, shape (I,), >= 0.
        power_w: P, transmit power per sub-band [W], shape (I,), > 0.
        noise_power_w: N0, noise power in the sub-band [W], shape (I,), > 0.

    Returns:
        rate s [bit/s], shape (I,).
    """
    return np.sum(bandwidth_hz) * shannon_bps(np.ones_like(bandwidth_hz), gain, power_w, noise_power_w)
