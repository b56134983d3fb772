"""From channel gain, bandwidth and power to bits per second (Xie and Wen, equations 6 and 10)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitrank.planning.quantities import Range, as_array, as_arrays, broken

FloatArray = NDArray[np.float64]


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


@dataclass(frozen=True)
class Band:
    """A band that clients share, in equal shares or in others.

    s_ul(B) = B·log2(1 + SNR_ul·B_eq/B),  s_dl(B) = B·log2(1 + SNR_dl),  B_eq = B_total/K

    Equation (6) at a fixed power and a noise that grows with the sub-band: a narrower sub-band has less noise. The
    server spreads its power over the whole band, so what a client receives per hertz is the same on any sub-band. Both
    rates grow with B; the uplink's never exceeds SNR_ul·B_eq/ln 2.

    Attributes:
        total_hz: B_total [Hz], > 0.
        num_shares: K, for how many clients the band is, >= 1.
        uplink_snr: SNR_ul on a sub-band of B_eq, one number or shape (I,), >= 0.
        downlink_snr: SNR_dl, the same on every sub-band, one number or shape (I,), >= 0.
        is_broadcast: whether the whole band carries one broadcast down; sub-bands then matter for the uplink alone.

    Raises:
        ValueError: one line for each rule that is broken.
    """

    total_hz: float
    num_shares: int
    uplink_snr: FloatArray
    downlink_snr: FloatArray
    is_broadcast: bool = False

    def __post_init__(self) -> None:
        snr = {"uplink_snr": self.uplink_snr, "downlink_snr": self.downlink_snr}
        arrays, problems = as_arrays(snr)
        linear = Range("give a ratio of powers, not decibels")
        for name, values in arrays.items():
            problems += broken(name, values, linear.allows(values), linear.rule, linear.hint)
        total_hz, num_shares = as_array(self.total_hz), as_array(self.num_shares)
        if total_hz is None or total_hz.ndim or not 0 < total_hz < np.inf:
            problems.append(f"total_hz must be one number of hertz, finite and > 0, got {self.total_hz!r}")
        if num_shares is None or num_shares.ndim or num_shares.dtype.kind != "i" or num_shares < 1:
            problems.append(f"num_shares must be a whole number >= 1, got {self.num_shares!r}")
        if problems:
            raise ValueError("\n".join(f"Band.{problem}" for problem in problems))
        for name, values in arrays.items():
            object.__setattr__(self, name, values.astype(np.float64, copy=False))

    @property
    def share_hz(self) -> float:
        """B_eq [Hz], an equal share."""
        return self.total_hz / self.num_shares

    @property
    def room_hz(self) -> float:
        """B_total, or K·B_eq [Hz] where rounding has made that larger: equal shares must fit."""
        return max(self.total_hz, self.num_shares * self.share_hz)

    def uplink_bps(self, bandwidth_hz: FloatArray) -> FloatArray:
        """Return s_ul [bit/s] on sub-bands [Hz] of shape (..., I); 0 on none."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            bps = bandwidth_hz * np.log1p(self.uplink_snr * (self.share_hz / bandwidth_hz)) / np.log(2.0)
        return bps if np.all(bandwidth_hz) else np.where(bandwidth_hz > 0, bps, 0.0)

    def downlink_bps(self, bandwidth_hz: FloatArray) -> FloatArray:
        """Return s_dl [bit/s] on sub-bands [Hz] of shape (..., I), or that of the whole band in a broadcast."""
        used_hz = self.total_hz if self.is_broadcast else bandwidth_hz
        bps: FloatArray = used_hz * np.log1p(self.downlink_snr) / np.log(2.0)
        return bps

    def widened(self, factor: float) -> Band:
        """Return a band of ``factor`` times the width for as many clients, with the same noise per hertz and powers."""
        with np.errstate(over="ignore"):
            return Band(
                self.total_hz * factor,
                self.num_shares,
                self.uplink_snr / factor,
                self.downlink_snr / factor,
                self.is_broadcast,
            )
