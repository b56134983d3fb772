"""Promises of every partition: each row once, enough for each client, the same deal for the same seed, its own skew."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrank.config.values import PartitionName
from splitrank.errors import InputError
from splitrank.learning.partition import (
    PARTITIONS,
    Deal,
    partition,
    partition_alike,
    partition_by_column,
    partition_iid,
)


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


# ---- the table of partitions

CLASSES = 5
OF_PARTITION = {"pathological": {"classes_per_client": 3}, "shards": {"shards_per_client": 2}}


def deal_of(name: str, num_clients: int = 4, seed: int = 0, **more: object) -> Deal:
    return Deal(num_clients, seed, **{**OF_PARTITION.get(name, {}), **more})  # type: ignore[arg-type]


def labels_of(num_rows: int = 400, num_classes: int = CLASSES) -> np.ndarray:
    return np.random.default_rng(3).integers(0, num_classes, num_rows)


every_partition = pytest.mark.parametrize("name", PARTITIONS)


def test_the_tables_keys_are_the_settings_values():
    assert list(PARTITIONS) == list(get_args(PartitionName))


@every_partition
@given(
    labels=st.lists(st.integers(0, CLASSES - 1), min_size=30, max_size=150),
    num_clients=st.integers(2, 8),
    alpha=st.sampled_from([1e-300, 1e-9, 1e-3, 0.1, 1.0, 100.0, 1e300]),
    min_samples=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_every_row_is_held_once_and_every_client_has_enough(name, labels, num_clients, alpha, min_samples, seed):
    labels = np.array(labels, dtype=np.int64)
    num_classes = len(np.unique(labels))
    deal = Deal(num_clients, seed, alpha, classes_per_client=num_classes, min_samples=min_samples)
    dealt = partition(name, labels, CLASSES, deal)
    assert len(dealt.rows) == num_clients
    assert np.array_equal(np.sort(np.concatenate(dealt.rows)), np.arange(len(labels)))
    assert min(map(len, dealt.rows)) >= min_samples
    for rows, counts in zip(dealt.rows, dealt.counts, strict=True):
        assert rows.dtype == np.int64
        assert np.array_equal(rows, np.sort(rows))
        assert counts.tolist() == np.bincount(labels[rows], minlength=CLASSES).tolist()
    for move in dealt.moves:
        assert move.rows > 0
        assert len(dealt.rows[move.to_client]) == min_samples
        assert len(dealt.rows[move.from_client]) >= min_samples


@every_partition
def test_the_deal_depends_on_its_key_and_on_no_draw_before(name):
    labels = labels_of()

    def rows(**changed: object) -> list[list[int]]:
        return [own.tolist() for own in partition(name, labels, CLASSES, deal_of(name, **changed)).rows]

    first = rows()
    for other in reversed(PARTITIONS):
        partition(other, labels, CLASSES, deal_of(other))
    np.random.default_rng(0).random()
    assert rows() == first
    assert rows(seed=1) != first


@every_partition
def test_too_few_rows_are_refused_and_just_enough_are_dealt(name):
    labels = np.arange(12) % 3
    deal = deal_of(name, 4, alpha=0.01, min_samples=3)
    assert [len(rows) for rows in partition(name, labels, 3, deal).rows] == [3] * 4
    with pytest.raises(
        InputError, match=r"partition_min_samples must be at most 3, since 4 clients share 12 .* got 4;"
    ):
        partition(name, labels, 3, deal_of(name, 4, min_samples=4))
    with pytest.raises(InputError, match=r"federation\.num_clients must be at most the number of .* \(12\).* got 13;"):
        partition(name, labels, 3, deal_of(name, 13))


def test_the_default_is_the_deal_of_before():
    """Recorded runs hold these rows; the numbers are those of version 0.1.0."""
    labels = np.arange(24) % 4
    dealt = partition("iid", labels, 4, Deal(3, seed=7))
    assert [rows.tolist() for rows in dealt.rows] == [rows.tolist() for rows in partition_iid(labels, 3, 7)]
    assert dealt.rows[0].tolist() == DEALT_BY_0_1_0
    assert dealt.is_stratified
    assert dealt.moves == ()


DEALT_BY_0_1_0 = [1, 2, 4, 10, 11, 15, 16, 17]


def mean_square(counts: np.ndarray, axis: int) -> float:
    """Σ of squared shares along an axis, the mean over the other."""
    shares = counts / counts.sum(axis=axis, keepdims=True)
    return float((shares**2).sum(axis=axis).mean())


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", ["dirichlet", "quantity"])
def test_dirichlet_shares_have_the_second_moment(name, alpha):
    """E Σ p² = (α + 1)/(Kα + 1) for p ~ Dir(α·1_K)."""
    labels = np.arange(4000) % CLASSES
    found = [
        mean_square(partition(name, labels, CLASSES, deal_of(name, 8, seed, alpha=alpha)).counts.astype(float), 0)
        for seed in range(60)
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - (alpha + 1) / (8 * alpha + 1)) < 4 * error + 0.004


@pytest.mark.extras
@pytest.mark.parametrize("alpha", [0.2, 1.0])
@pytest.mark.parametrize(("name", "axis"), [("dirichlet", 0), ("dirichlet-clients", 1)])
def test_as_skewed_as_flower_datasets(name, axis, alpha):
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, InnerDirichletPartitioner

    labels, num_clients = np.arange(600) % CLASSES, 5

    def theirs(seed: int) -> np.ndarray:
        if name == "dirichlet":
            dealer = DirichletPartitioner(num_clients, "label", alpha, min_partition_size=0, seed=seed)
        else:
            dealer = InnerDirichletPartitioner([120] * num_clients, "label", alpha, seed=seed)
        dealer.dataset = Dataset.from_dict({"label": labels})
        parts = [np.array(dealer.load_partition(client)["label"], dtype=np.int64) for client in range(num_clients)]
        return np.array([np.bincount(part, minlength=CLASSES) for part in parts])

    def ours(seed: int) -> np.ndarray:
        return partition(name, labels, CLASSES, deal_of(name, num_clients, seed, alpha=alpha)).counts

    found = {deal: [mean_square(deal(seed).astype(float), axis) for seed in range(25)] for deal in (theirs, ours)}
    error = np.sqrt(sum(np.var(values) / len(values) for values in found.values()))
    assert abs(np.mean(found[theirs]) - np.mean(found[ours])) < 4 * error


def test_clients_of_one_size_each_with_its_own_classes():
    labels = labels_of(2000)
    counts = partition("dirichlet-clients", labels, CLASSES, deal_of("dirichlet-clients", 10, alpha=0.1)).counts
    sizes = counts.sum(axis=1)
    assert np.ptp(sizes) <= CLASSES
    assert mean_square(counts.astype(float), 1) > 0.5


def test_a_huge_alpha_is_nearly_iid():
    labels = np.arange(1000) % CLASSES
    for name in ("dirichlet", "dirichlet-clients", "quantity"):
        assert np.abs(partition(name, labels, CLASSES, deal_of(name, 5, alpha=1e9)).counts - 40).max() <= 1


def test_shards_hold_few_classes():
    """Each shard of rows sorted by class touches one class, or two where it lies across their border."""
    labels = np.repeat(np.arange(10), 60)
    dealt = partition("shards", labels, 10, Deal(10, 0, shards_per_client=2))
    assert {len(rows) for rows in dealt.rows} == {60}
    assert all((counts > 0).sum() <= 2 for counts in dealt.counts)
    with pytest.raises(InputError, match=r"shards_per_client must be at most 60, .* of 10 clients .* got 61;"):
        partition("shards", labels, 10, Deal(10, 0, shards_per_client=61))


@pytest.mark.parametrize(("num_clients", "num_classes", "wanted"), [(20, 20, 2), (3, 10, 4), (7, 3, 2), (30, 4, 1)])
def test_pathological_clients_hold_so_many_classes(num_clients, num_classes, wanted):
    labels = np.arange(num_classes * 120) % num_classes
    counts = partition("pathological", labels, num_classes, Deal(num_clients, 0, classes_per_client=wanted)).counts
    assert ((counts > 0).sum(axis=1) == wanted).all()
    for of_class in counts.T:  # who shares a class has equal parts of it
        assert np.ptp(of_class[of_class > 0]) <= 1
    if num_clients == num_classes and wanted == 2:  # neighbours share one class, each class has two clients
        shared = (counts > 0).astype(int) @ (counts > 0).T
        assert all(shared[client, (client + 1) % num_clients] == 1 for client in range(num_clients))
        assert ((counts > 0).sum(axis=0) == 2).all()


@pytest.mark.parametrize(
    ("num_clients", "wanted", "range_"), [(3, 3, "4 to 10"), (3, 11, "4 to 10"), (9, 1, "2 to 10")]
)
def test_classes_that_nobody_would_hold_are_refused(num_clients, wanted, range_):
    with pytest.raises(InputError, match=rf"classes_per_client must be {range_}, .* got {wanted}"):
        partition("pathological", np.arange(100) % 10, 10, Deal(num_clients, 0, classes_per_client=wanted))


def test_amounts_differ_and_class_shares_do_not():
    labels = np.arange(4000) % 4
    counts = partition("quantity", labels, 4, Deal(5, 1, alpha=0.5)).counts
    assert np.ptp(counts.sum(axis=1)) > 500
    assert np.ptp(counts, axis=1).max() <= 1


def test_a_class_without_rows_and_a_client_with_one_class():
    labels = np.array([0, 0, 2, 2, 2, 2], dtype=np.int64)
    for name in PARTITIONS:
        dealt = partition(name, labels, 4, Deal(2, 0, alpha=0.01, classes_per_client=1, shards_per_client=1))
        assert dealt.counts[:, [1, 3]].sum() == 0


def test_what_was_moved_is_told():
    labels = np.zeros(20, dtype=np.int64)
    dealt = partition("dirichlet", labels, 1, Deal(4, 2, alpha=1e-6, min_samples=2))
    assert sorted(len(rows) for rows in dealt.rows) == [2, 2, 2, 14]
    giver = int(np.argmax([len(rows) for rows in dealt.rows]))
    assert {(move.from_client, move.rows) for move in dealt.moves} == {(giver, 2)}
    assert {move.to_client for move in dealt.moves} == set(range(4)) - {giver}


def test_a_column_names_the_clients():
    values = ["b", "a", "10", "b", "a", "b"]
    dealt = partition_by_column("hospital", values, np.array([0, 1, 1, 0, 0, 1]), 2, Deal(3, 0))
    assert dealt.names == ("10", "a", "b")
    assert [rows.tolist() for rows in dealt.rows] == [[2], [1, 4], [0, 3, 5]]
    assert dealt.counts.tolist() == [[0, 1], [1, 1], [2, 1]]
    numbered = partition_by_column("ward", ["10", "9", "9", "2"], np.zeros(4, dtype=np.int64), 1, Deal(3, 0))
    assert numbered.names == ("2", "9", "10")
    with pytest.raises(
        InputError,
        match=r"num_clients must be 3, the number of different values in the column 'hospital', got 4; "
        r"the smallest groups of rows are '10' 1, 'a' 2, 'b' 3",
    ):
        partition_by_column("hospital", values, np.zeros(6, dtype=np.int64), 1, Deal(4, 0))
    with pytest.raises(
        InputError, match=r"min_samples must be at most the rows of the smallest group .* got 2; .* '10' 1"
    ):
        partition_by_column("hospital", values, np.zeros(6, dtype=np.int64), 1, Deal(3, 0, min_samples=2))


@given(
    counts=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=6).filter(
        lambda counts: sum(map(sum, counts)) > 0
    ),
    num_test=st.integers(1, 60),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_test_rows_follow_the_training_rows(counts, num_test):
    counts = np.array(counts)
    labels = np.arange(num_test) % 3
    shares = partition_alike(labels, counts, seed=0)
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(num_test))
    for client, rows in enumerate(shares):
        for label in range(3):
            total = counts[:, label].sum()
            if total:
                wanted = counts[client, label] / total * (labels == label).sum()
                assert abs((labels[rows] == label).sum() - wanted) <= 1.0 + 1e-9
