"""Conversions between the decibel figures people write and the linear SI figures the program computes with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def db_to_linear(value_db: ArrayLike) -> NDArray[np.float64]:
    """10^(x/10): a power ratio from decibels. Shape as given."""
    return np.power(10.0, np.asarray(value_db, dtype=np.float64) / 10.0)


def dbm_to_watts(power_dbm: ArrayLike) -> NDArray[np.float64]:
    """10^((x-30)/10): watts from dBm. Shape as given."""
    return db_to_linear(np.asarray(power_dbm, dtype=np.float64) - 30.0)


def noise_power_w(psd_dbm_hz: ArrayLike, bandwidth_hz: ArrayLike, noise_figure_db: ArrayLike) -> NDArray[np.float64]:
    """Noise power in a sub-band, N0 = 10^((PSD + NF - 30)/10) · B.

    Args:
        psd_dbm_hz: noise power spectral density [dBm/Hz]; thermal noise at 290 K is -174.
        bandwidth_hz: sub-band B_i [Hz].
        noise_figure_db: receiver noise figure [dB].

    Returns:
        noise power [W], shape broadcast from the arguments.
    """
    density_w_hz = dbm_to_watts(np.asarray(psd_dbm_hz, dtype=np.float64) + np.asarray(noise_figure_db, np.float64))
    return density_w_hz * np.asarray(bandwidth_hz, dtype=np.float64)
