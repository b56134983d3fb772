"""Decibels and noise against values that every link budget uses."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank import units


def test_decibels() -> None:
    np.testing.assert_allclose(units.db_to_linear([0.0, 10.0, 3.0, -30.0]), [1.0, 10.0, 1.99526231, 1e-3])


def test_dbm() -> None:
    np.testing.assert_allclose(units.dbm_to_watts([0.0, 30.0, 23.0, -90.0]), [1e-3, 1.0, 0.199526231, 1e-12])


def test_thermal_noise() -> None:
    assert units.noise_power_w(-174, 1e6, 0) == pytest.approx(3.98e-15, rel=1e-3)
    assert units.noise_power_w(-174, 2e6, 10) == pytest.approx(7.96e-14, rel=1e-3)
    np.testing.assert_allclose(units.noise_power_w(-174, np.array([1e6, 2e6]), 3), [7.943e-15, 1.5887e-14], rtol=1e-3)


def test_decibels_undo_the_logarithm() -> None:
    ratio = np.logspace(-20, 20, 41)
    np.testing.assert_allclose(units.db_to_linear(10.0 * np.log10(ratio)), ratio, rtol=1e-12)
