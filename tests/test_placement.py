"""Which layers and linears a setting selects."""

from __future__ import annotations

import pytest

from splitrank.errors import ConfigError
from splitrank.placement import LINEARS, layer_indices, target_linears


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("last:3", (9, 10, 11)),
        ("first:3", (0, 1, 2)),
        ("middle:3", (4, 5, 6)),
        ("all", tuple(range(12))),
        ([7, 2], (2, 7)),
    ],
)
def test_layers(setting, expected):
    assert layer_indices(setting, 12) == expected


@pytest.mark.parametrize("setting", ["last:13", [12], [-1]])
def test_layers_that_are_not_there(setting):
    with pytest.raises(ConfigError, match="12 layers"):
        layer_indices(setting, 12)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("query-value", ("query", "value")),
        ("all-linear", LINEARS),
        (["value", "query"], ("query", "value")),
        (["q_lin", "v_lin"], ("query", "value")),
        (["dense"], ("attention_output", "intermediate", "output")),
        (["attention.self.key"], ("key",)),
    ],
)
def test_maps(setting, expected):
    assert target_linears(setting) == expected


def test_maps_that_match_nothing():
    with pytest.raises(ValueError, match="'keys' does not"):
        target_linears(["query", "keys"])
