"""What every rival is given to learn, so that none gets more than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitrank import Config, load_data
from splitrank.learning.encoder import model_location
from splitrank.learning.partition import partition_iid


@dataclass(frozen=True, eq=False)
class Task:
    """Texts and sizes of one training; LoRA goes on query and value.

    Attributes:
        location: folder of the encoder.
        client_texts, client_labels: of each client; labels are class numbers.
        test_texts, test_labels: what the result is judged on.
        layers: which layers get LoRA.
        rank: of all of them.
        learning_rate, batch_size, max_length, seed: of the training.
        rounds: of one local epoch each; for a rival without clients, epochs.
    """

    location: str
    client_texts: Sequence[Sequence[str]]
    client_labels: Sequence[Sequence[int]]
    test_texts: Sequence[str]
    test_labels: Sequence[int]
    layers: Sequence[int]
    rank: int
    learning_rate: float
    batch_size: int
    max_length: int
    seed: int
    rounds: int

    @property
    def num_labels(self) -> int:
        return max(max(labels) for labels in self.client_labels) + 1


def task_of(config: Config, layers: Sequence[int]) -> Task:
    """The same texts, split over the clients in the same way, and the same sizes as in a run with that config."""
    data = load_data(config)
    shares = partition_iid(data.train_labels, config.federation.num_clients, config.run.seed)
    assert isinstance(config.adapter.rank, int)
    return Task(
        location=model_location(config.model.name),
        client_texts=[[data.train_texts[row] for row in share] for share in shares],
        client_labels=[data.train_labels[share].tolist() for share in shares],
        test_texts=list(data.test_texts),
        test_labels=data.test_labels.tolist(),
        layers=layers,
        rank=config.adapter.rank,
        learning_rate=config.train.learning_rate,
        batch_size=config.train.batch_size,
        max_length=config.model.max_length,
        seed=config.run.seed,
        rounds=config.federation.rounds,
    )
