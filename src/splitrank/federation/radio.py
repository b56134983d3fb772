"""The links of the settings: sub-bands, noise and the round's channel gains."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitrank import units
from splitrank.config import Config, NoiseFigure
from splitrank.federation.per_client import per_client
from splitrank.federation.selection import num_chosen
from splitrank.planning import channel

FloatArray = NDArray[np.float64]


def sub_bands_hz(config: Config) -> FloatArray:
    """Return B_i [Hz]: given per client, or an equal share of the total band for as many as a round takes."""
    radio = config.radio
    if radio.bandwidth_hz is not None:
        return per_client(radio.bandwidth_hz, "radio.bandwidth_hz", config)
    assert radio.total_bandwidth_hz is not None
    return np.full(config.federation.num_clients, radio.total_bandwidth_hz / num_chosen(config))


def noise_w(config: Config, bandwidth_hz: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return N0 [W] at the server (uplink) and at the clients (downlink)."""
    radio = config.radio
    if radio.noise_power_w is not None:
        given_w = per_client(radio.noise_power_w, "radio.noise_power_w", config)
        return given_w, given_w
    assert radio.noise_psd_dbm_hz is not None
    assert radio.noise_figure_db is not None
    figure = radio.noise_figure_db
    if not isinstance(figure, NoiseFigure):
        figure = NoiseFigure(uplink=figure, downlink=figure)
    uplink_w = units.noise_power_w(radio.noise_psd_dbm_hz, bandwidth_hz, figure.uplink)
    return uplink_w, units.noise_power_w(radio.noise_psd_dbm_hz, bandwidth_hz, figure.downlink)


def gains(config: Config, round: int) -> tuple[FloatArray, FloatArray]:
    """Return h [dimensionless] up and down in a round."""
    radio, seed = config.radio, config.run.seed
    if radio.uplink_gain is not None and radio.downlink_gain is not None:
        return np.array(radio.uplink_gain), np.array(radio.downlink_gain)
    if radio.distance_m is not None:
        large_scale = channel.path_loss_gain(per_client(radio.distance_m, "radio.distance_m", config))
    else:
        assert radio.large_scale_gain is not None
        large_scale = per_client(radio.large_scale_gain, "radio.large_scale_gain", config)
    fades = radio.fading == "rayleigh"
    uplink = channel.rayleigh_gain(large_scale, seed, "uplink", round) if fades else large_scale
    downlink = channel.rayleigh_gain(large_scale, seed, "downlink", round) if fades else large_scale
    return (
        np.array(radio.uplink_gain) if radio.uplink_gain is not None else uplink,
        np.array(radio.downlink_gain) if radio.downlink_gain is not None else downlink,
    )
