"""A draw depends on its key and on nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrank import streams


@given(st.integers(0, 2**63), st.text(max_size=20), st.integers(0, 10**6), st.integers(1, 50), st.integers(0, 50))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_more_clients_leave_the_first_ones_draws_alone(
    seed: int, purpose: str, round: int, few: int, more: int
) -> None:
    many = streams.uniform_per_client(seed, purpose, round, few + more)
    np.testing.assert_array_equal(many[:few], streams.uniform_per_client(seed, purpose, round, few))
    assert np.all((many >= 0) & (many < 1))


def test_order_of_draws_does_not_matter() -> None:
    keys = [(0, "uplink-fading", round, client) for round in range(3) for client in range(3)]
    forwards = {key: streams.generator(*key).random() for key in keys}
    backwards = {key: streams.generator(*key).random() for key in reversed(keys)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(keys)


def test_every_part_of_the_key_counts() -> None:
    keys = [(0, "a", 1, 2), (1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 2, 2), (0, "a", 1, 3), (0, "a", 12, 0)]
    assert len({streams.integer(*key) for key in keys}) == len(keys)


def test_streams_of_two_purposes_are_uncorrelated() -> None:
    one, other = (streams.uniform_per_client(0, purpose, 1, 100_000) for purpose in ("uplink", "downlink"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    assert abs(one.mean() - 0.5) < 0.01


def test_streams_are_the_same_on_every_machine() -> None:
    """A change of these numbers would silently change every published run."""
    draws = streams.uniform_per_client(0, "uplink-fading", 1, 3)
    np.testing.assert_array_equal(draws, [0.029506450167088083, 0.6409845677453304, 0.1942535235250442])
