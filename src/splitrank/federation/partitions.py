"""Who holds which texts, by the settings: rows to train on, rows to test on, and what of it the records tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitrank.config import ByColumn, Config
from splitrank.learning.data import TextData
from splitrank.learning.partition import Deal, Partition, partition, partition_alike, partition_by_column, partition_iid


def partition_of(config: Config, data: TextData) -> Partition | None:
    """Deal the training rows to the clients; None where the training rows are not here, but with the clients.

    Raises:
        InputError: rows that cannot be dealt as the settings say.
    """
    if not data.train_texts:
        return None
    federation = config.federation
    deal = Deal(
        num_clients=federation.num_clients,
        seed=config.run.seed,
        alpha=federation.partition_alpha,
        classes_per_client=federation.classes_per_client,
        shards_per_client=federation.shards_per_client,
        min_samples=federation.partition_min_samples,
    )
    labels, num_classes, by = data.train_labels, len(data.label_names), federation.partition
    if isinstance(by, ByColumn):
        assert data.train_holders is not None
        return partition_by_column(by.column, data.train_holders, labels, num_classes, deal)
    return partition(by, labels, num_classes, deal)


def shares_to_test_on(config: Config, data: TextData, dealt: Partition | None) -> list[NDArray[np.int64]]:
    """Return every client's share of the test rows, each row once.

    It has the client's own class shares; where all have the same, or nobody here knows them, it is stratified. With
    fewer rows than clients some clients have none.
    """
    if dealt is not None and not dealt.is_stratified:
        return partition_alike(data.test_labels, dealt.counts, config.run.seed)
    num_shares = min(config.federation.num_clients, len(data.test_labels))
    return partition_iid(data.test_labels, num_shares, config.run.seed)


def unequal_class_counts(dealt: Partition | None) -> NDArray[np.int64] | None:
    """Return each client's rows of each class where class shares differ; None elsewhere."""
    return None if dealt is None or dealt.is_stratified else dealt.counts
