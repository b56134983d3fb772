"""Channels and links: distributions, known values, independence."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank.planning.channel import path_loss_gain, rayleigh_gain
from splitrank.planning.link import full_band_bps, shannon_bps


def test_rayleigh_power_is_exponential() -> None:
    gain = rayleigh_gain(np.full(200_000, 1e-3), 0, "uplink", 1)
    assert gain.mean() == pytest.approx(1e-3, rel=0.01)
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(gain, share) == pytest.approx(-1e-3 * np.log(1 - share), rel=0.02)
    assert gain.min() >= 0


def test_fading_is_redrawn_by_round_direction_and_seed_and_by_nothing_else() -> None:
    mean = np.full(5, 2.0)
    first = rayleigh_gain(mean, 0, "uplink", 1)
    np.testing.assert_array_equal(first, rayleigh_gain(mean, 0, "uplink", 1))
    np.testing.assert_array_equal(first[:3], rayleigh_gain(mean[:3], 0, "uplink", 1))
    np.testing.assert_array_equal(3 * first, rayleigh_gain(3 * mean, 0, "uplink", 1))
    for other in ((1, "uplink", 1), (0, "downlink", 1), (0, "uplink", 2)):
        assert not np.any(rayleigh_gain(mean, *other) == first)  # type: ignore[arg-type]


def test_path_loss_at_known_distances() -> None:
    np.testing.assert_allclose(
        -10 * np.log10(path_loss_gain(np.array([1000.0, 100.0, 10_000.0]))), [128.1, 90.5, 165.7]
    )


def test_shannon_rate() -> None:
    ones = np.ones(3)
    rate = shannon_bps(1e6 * ones, np.array([3e-9, 0.0, 1e-30]), ones, 1e-9 * ones)
    np.testing.assert_allclose(rate, [2e6, 0.0, 1e6 * 1e-21 / np.log(2)])


def test_each_client_hears_the_whole_band_at_its_own_rate() -> None:
    ones = np.ones(2)
    bandwidth_hz, gain = np.array([1e6, 3e6]), np.array([3e-9, 7e-9])
    np.testing.assert_allclose(full_band_bps(bandwidth_hz, gain, ones, 1e-9 * ones), [8e6, 12e6])
    assert full_band_bps(bandwidth_hz, np.array([1.0, 0.0]), ones, 1e-9 * ones)[1] == 0
