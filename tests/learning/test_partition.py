"""Promises of the IID partition: exact balance, every row once, the same deal for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitrank.errors import InputError
from splitrank.learning.partition import partition_iid


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    num_clients=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_every_row_is_dealt_once_and_shares_differ_by_at_most_one_row(labels, num_clients, seed):
    labels = np.array(labels, dtype=np.int64)
    num_clients = min(num_clients, len(labels))
    parts = partition_iid(labels, num_clients, seed)
    assert len(parts) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    counts = np.array([np.bincount(labels[part], minlength=6) for part in parts])
    assert np.ptp(counts, axis=0).max() <= 1
    for part in parts:
        assert part.dtype == np.int64
        assert np.array_equal(part, np.sort(part))


def test_the_papers_sizes_come_out_exactly():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 30_000))
    for part in partition_iid(labels, 3, seed=0):
        assert np.bincount(labels[part]).tolist() == [10_000] * 4


def test_the_deal_depends_on_the_seed_alone():
    labels = np.arange(60, dtype=np.int64) % 4
    again = [part.tolist() for part in partition_iid(labels, 3, seed=7)]
    assert [part.tolist() for part in partition_iid(labels, 3, seed=7)] == again
    assert [part.tolist() for part in partition_iid(labels, 3, seed=8)] != again


def test_rows_are_shuffled_not_cut_in_order():
    labels = np.zeros(100, dtype=np.int64)
    assert partition_iid(labels, 2, seed=0)[0].tolist() != list(range(0, 100, 2))


@pytest.mark.parametrize(("rows", "clients"), [(2, 3), (0, 1), (5, 0), (5, -1)])
def test_a_client_without_data_is_refused(rows, clients):
    with pytest.raises(InputError, match=rf"federation\.num_clients must be .* got {clients}"):
        partition_iid(np.zeros(rows, dtype=np.int64), clients, seed=0)
