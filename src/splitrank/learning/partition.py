"""Partition the training rows: the split of the training rows over the clients of a federation.

IID here means stratified: every client gets the same share of every class, so that what a study compares is not the
luck of the draw (the paper gives every client the same number of samples of one data set). The others skew classes or
amounts. A partition is one function and one line in ``PARTITIONS``; what is refused is refused before any row is dealt,
and no draw is repeated until it suits: a client that was left with too few rows is given some of the largest client's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitrank import streams
from splitrank.errors import InputError

Rows = NDArray[np.int64]
"""Indices of training rows, ascending."""


@dataclass(frozen=True)
class Deal:
    """How rows are dealt; each partition reads what it needs.

    Attributes:
        num_clients: K, at least 1.
        seed: the run's.
        alpha: concentration of a Dirichlet distribution, greater than 0: the smaller, the more skewed.
        classes_per_client, shards_per_client: of ``"pathological"`` and ``"shards"``.
        min_samples: rows that every client must have.
    """

    num_clients: int
    seed: int
    alpha: float = 0.5
    classes_per_client: int = 2
    shards_per_client: int = 2
    min_samples: int = 1


@dataclass(frozen=True)
class Move:
    """Rows that the largest client gave to one that had too few."""

    from_client: int
    to_client: int
    rows: int


@dataclass(frozen=True, eq=False)
class Partition:
    """Who holds which rows.

    Attributes:
        rows: of each client; together they hold every row once.
        counts: rows of each client in each class, shape (num_clients, num_classes).
        names: of the clients, where a column of the data names them.
        moves: what was given to clients that had too few rows.
        is_stratified: whether every client has the same share of every class.
    """

    rows: Sequence[Rows]
    counts: NDArray[np.int64]
    names: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    is_stratified: bool = False


def partition(name: str, labels: NDArray[np.int64], num_classes: int, deal: Deal) -> Partition:
    """Deal the rows by one of ``PARTITIONS``.

    Args:
        name: a key of ``PARTITIONS``.
        labels: class of every training row, shape (num_rows,).
        num_classes: C; some may have no row.
        deal: how.

    Raises:
        InputError: fewer rows than ``num_clients`` · ``min_samples``, or what the partition itself refuses.
    """
    _check_enough(len(labels), deal)
    rows, moves = _with_enough(PARTITIONS[name](labels, deal), deal)
    return Partition(rows, _counts(rows, labels, num_classes), (), moves, is_stratified=name == "iid")


def partition_by_column(
    column: str, values: Sequence[str], labels: NDArray[np.int64], num_classes: int, deal: Deal
) -> Partition:
    """Give every client the rows that have its value in a column; clients are numbered in the order of the values.

    Values that all are whole numbers are ordered as numbers. No row is moved: who has too few rows has them.

    Args:
        column: its name, for messages.
        values: of every training row.
        labels, num_classes, deal: as for :func:`partition`.

    Raises:
        InputError: as many different values as there are clients must be found; or one has too few rows.
    """
    names, of_row, sizes = np.unique(np.array(values, dtype=object), return_inverse=True, return_counts=True)
    smallest = ", ".join(f"{names[group]!r} {sizes[group]:,}" for group in np.argsort(sizes, kind="stable")[:3])
    if len(names) != deal.num_clients:
        raise InputError(
            f"federation.num_clients must be {len(names)}, the number of different values in the column {column!r}, "
            f"got {deal.num_clients}; the smallest groups of rows are {smallest}"
        )
    if sizes.min() < deal.min_samples:
        raise InputError(
            f"federation.partition_min_samples must be at most the rows of the smallest group in the column "
            f"{column!r}, got {deal.min_samples}; the smallest groups of rows are {smallest}"
        )
    order = list(range(len(names)))
    if all(name.isdecimal() for name in names):
        order.sort(key=lambda group: int(names[group]))
    rows = [np.flatnonzero(of_row == group) for group in order]
    return Partition(rows, _counts(rows, labels, num_classes), tuple(str(names[group]) for group in order))


def partition_alike(labels: NDArray[np.int64], counts: NDArray[np.int64], seed: int) -> list[Rows]:
    """Deal the rows of another split in proportion to what the clients hold of each class.

    Client i gets n_ic/n_c of the rows of class c, rounded so that every row is dealt once; a client may get none.

    Args:
        labels: class of every row, shape (num_rows,).
        counts: n_ic, training rows of each client in each class, shape (num_clients, num_classes).
        seed: the run's.
    """
    by_class = []
    for label in np.unique(labels):
        weights = counts[:, label] if counts[:, label].any() else counts.sum(axis=1)
        shuffled = streams.generator(seed, "partition-test", client=int(label)).permutation(_rows_of(labels, label))
        by_class.append(_cut(shuffled, weights / weights.sum()))
    return _joined(by_class, len(counts))


# ---- the partitions


def partition_iid(labels: NDArray[np.int64], num_clients: int, seed: int) -> list[Rows]:
    """Deal the rows to the clients, class by class, like a pack of shuffled cards.

    The rows of each class are shuffled by the stream (seed, "partition", client = class); the shuffled classes are
    laid one after the other and card j goes to client j mod ``num_clients``. So no two clients differ by more than
    one row, neither in total nor in any class.

    Args:
        labels: class of every training row, shape (num_rows,).
        num_clients: number of clients, at least 1.
        seed: the run's seed.

    Returns:
        one array of row indices for each client, ascending; together they hold every row once.

    Raises:
        InputError: fewer rows than clients, so that a client would be left without data.
    """
    _check_enough(len(labels), Deal(num_clients, seed))
    dealt = np.concatenate(_shuffled_classes(labels, seed)).astype(np.int64)
    return [np.sort(dealt[client::num_clients]) for client in range(num_clients)]


def _iid(labels: NDArray[np.int64], deal: Deal) -> list[Rows]:
    return partition_iid(labels, deal.num_clients, deal.seed)


def _dirichlet(labels: NDArray[np.int64], deal: Deal) -> list[Rows]:
    """Deal every class by its own draw of the clients' shares, p_c ~ Dir(α·1_K).

    Yurochkin et al., "Bayesian nonparametric federated learning of neural networks", ICML 2019; Li et al., "Federated
    learning on non-IID data silos", ICDE 2022. Both draw again until every client has ten rows; here none is repeated.
    """
    by_class = []
    for label, rows in zip(np.unique(labels), _shuffled_classes(labels, deal.seed), strict=True):
        generator = streams.generator(deal.seed, "partition-dirichlet", client=int(label))
        by_class.append(_cut(rows, _dirichlet_draw(generator, deal.alpha, deal.num_clients)))
    return _joined(by_class, deal.num_clients)


def _dirichlet_clients(labels: NDArray[np.int64], deal: Deal) -> list[Rows]:
    """Deal to clients of equal size, each with its own draw of class shares, q_i ~ Dir(α·1_C).

    Hsu et al., "Measuring the effects of non-identical data distribution for federated visual classification", 2019,
    whose α is C times this one where classes are balanced. There clients draw row after row until classes run out; here
    all clients fill up at once: each asks for its shares of what it still lacks, a class that is asked for more than it
    has is given out in proportion, and those it turned away ask for the other classes. Each pass fills all clients or
    empties a class, so there are at most C + 1. Sizes are equal up to rounding, one row for each class.
    """
    num_rows, num_clients = len(labels), deal.num_clients
    classes, left = np.unique(labels, return_counts=True)
    shares = np.array(
        [
            _dirichlet_draw(
                streams.generator(deal.seed, "partition-dirichlet-clients", client=client), deal.alpha, len(classes)
            )
            for client in range(num_clients)
        ]
    )
    given, left = np.zeros((num_clients, len(classes))), left.astype(np.float64)
    for _ in range(len(classes) + 1):
        wanted = shares * (left > 0)
        # Whose classes are all used up takes of the others what there is.
        wanted = np.where(wanted.sum(axis=1, keepdims=True) > 0, wanted, np.broadcast_to(left, wanted.shape))
        wanted /= np.maximum(wanted.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        wanted *= num_rows / num_clients - given.sum(axis=1, keepdims=True)
        asked = wanted.sum(axis=0)
        part = np.minimum(1.0, np.divide(left, asked, out=np.ones_like(left), where=asked > 0))
        given += wanted * part
        left = np.where(part < 1.0, 0.0, np.maximum(left - asked, 0.0))
    by_class = [
        _cut(rows, column / column.sum())
        for rows, column in zip(_shuffled_classes(labels, deal.seed), given.T, strict=True)
    ]
    return _joined(by_class, num_clients)


def _shards(labels: NDArray[np.int64], deal: Deal) -> list[Rows]:
    """Sort the rows by class, cut them into K·s shards of equal size, and deal s shards to each client.

    McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017, s = 2.
    """
    num_shards = deal.num_clients * deal.shards_per_client
    if num_shards > len(labels):
        raise InputError(
            f"federation.shards_per_client must be at most {len(labels) // deal.num_clients}, so that each of the "
            f"shards of {deal.num_clients} clients has one of the {len(labels)} training rows, got "
            f"{deal.shards_per_client}; lower it or give more rows"
        )
    shards = np.array_split(np.concatenate(_shuffled_classes(labels, deal.seed)), num_shards)
    dealt = streams.generator(deal.seed, "partition-shards").permutation(num_shards).reshape(deal.num_clients, -1)
    return [np.sort(np.concatenate([shards[shard] for shard in own])) for own in dealt]


def _pathological(labels: NDArray[np.int64], deal: Deal) -> list[Rows]:
    """Give every client rows of c classes; neighbours share some, and who shares a class has equal parts of it.

    The classes stand in a circle, in an order drawn by the stream (seed, "partition-pathological"); client i has c in a
    row from ⌊i·C/K⌋ on. With K = C = 20 and c = 2 that is LoRA-A²'s split of 20 Newsgroups (arXiv 2410.22815).
    """
    classes = np.unique(labels)
    num_classes, wanted = len(classes), deal.classes_per_client
    least = -(-num_classes // deal.num_clients)
    if not least <= wanted <= num_classes:
        raise InputError(
            f"federation.classes_per_client must be {least} to {num_classes}, so that {deal.num_clients} clients hold "
            f"all of the {num_classes} classes, got {wanted}"
        )
    circle = streams.generator(deal.seed, "partition-pathological").permutation(num_classes)
    holders: list[list[int]] = [[] for _ in classes]
    for client in range(deal.num_clients):
        first = client * num_classes // deal.num_clients
        for place in range(first, first + wanted):
            holders[circle[place % num_classes]].append(client)
    parts: list[list[Rows]] = [[] for _ in range(deal.num_clients)]
    for rows, clients in zip(_shuffled_classes(labels, deal.seed), holders, strict=True):
        for client, part in zip(clients, np.array_split(rows, len(clients)), strict=True):
            parts[client].append(part)
    return [np.sort(np.concatenate(part)) for part in parts]


def _quantity(labels: NDArray[np.int64], deal: Deal) -> list[Rows]:
    """Give every client its own share of all classes alike, p ~ Dir(α·1_K).

    Li et al., "Federated learning on non-IID data silos", ICDE 2022, quantity skew. Class shares are equal up to
    rounding.
    """
    shares = _dirichlet_draw(streams.generator(deal.seed, "partition-quantity"), deal.alpha, deal.num_clients)
    return _joined([_cut(rows, shares) for rows in _shuffled_classes(labels, deal.seed)], deal.num_clients)


PARTITIONS: Mapping[str, Callable[[NDArray[np.int64], Deal], list[Rows]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "dirichlet-clients": _dirichlet_clients,
    "shards": _shards,
    "pathological": _pathological,
    "quantity": _quantity,
}


# ---- what they share


def _check_enough(num_rows: int, deal: Deal) -> None:
    """Raise an InputError where there are too few rows for so many clients, however they are dealt."""
    if deal.num_clients < 1:
        raise InputError(f"federation.num_clients must be at least 1, got {deal.num_clients}")
    if deal.min_samples == 1 and num_rows < deal.num_clients:
        raise InputError(
            f"federation.num_clients must be at most the number of training rows ({num_rows}), so that every "
            f"client has data, got {deal.num_clients}; lower it or give more rows (data.train_rows)"
        )
    if num_rows < deal.num_clients * deal.min_samples:
        raise InputError(
            f"federation.partition_min_samples must be at most {num_rows // deal.num_clients}, since "
            f"{deal.num_clients} clients share {num_rows} training rows, got {deal.min_samples}; lower it or give more "
            "rows (data.train_rows)"
        )


def _with_enough(rows: list[Rows], deal: Deal) -> tuple[list[Rows], tuple[Move, ...]]:
    """Give clients with too few rows some of the client that has most, row by row, the first such client in a tie.

    Which rows go is drawn by the stream (seed, "partition-repair", client = giver). There are enough rows, so whoever
    has most has more than it must.
    """
    sizes = np.array([len(own) for own in rows])
    given: dict[tuple[int, int], int] = {}
    for client in map(int, np.flatnonzero(sizes < deal.min_samples)):
        while sizes[client] < deal.min_samples:
            giver = int(sizes.argmax())
            sizes[giver] -= 1
            sizes[client] += 1
            given[giver, client] = given.get((giver, client), 0) + 1
    kept = {
        giver: streams.generator(deal.seed, "partition-repair", client=giver).permutation(rows[giver])
        for giver in dict.fromkeys(giver for giver, _ in given)
    }
    changed = dict(enumerate(rows))
    for (giver, client), number in given.items():
        kept[giver], part = kept[giver][:-number], kept[giver][-number:]
        changed[client] = np.concatenate([changed[client], part])
    changed |= kept
    return [np.sort(own) for own in changed.values()], tuple(Move(*ends, number) for ends, number in given.items())


def _counts(rows: Sequence[Rows], labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    return np.array([np.bincount(labels[own], minlength=num_classes) for own in rows])


def _rows_of(labels: NDArray[np.int64], label: np.int64) -> Rows:
    return np.flatnonzero(labels == label)


def _shuffled_classes(labels: NDArray[np.int64], seed: int) -> list[Rows]:
    """Return the rows of each class that has any, shuffled by the stream (seed, "partition", client = class)."""
    return [
        streams.generator(seed, "partition", client=int(label)).permutation(_rows_of(labels, label))
        for label in np.unique(labels)
    ]


def _dirichlet_draw(generator: np.random.Generator, alpha: float, size: int) -> NDArray[np.float64]:
    """Draw shares that sum to 1 from Dir(α·1); where α is too small for a float, the limit: one has all."""
    drawn: NDArray[np.float64] = generator.dirichlet(np.full(size, min(alpha, _ALL_ALIKE)))
    if np.isfinite(drawn).all() and drawn.sum() > 0.5:
        return drawn
    shares = np.zeros(size)
    shares[generator.integers(size)] = 1.0
    return shares


_ALL_ALIKE = 1e12
"""From such an α on shares are equal to six digits."""


def _cut(rows: Rows, shares: NDArray[np.float64]) -> list[Rows]:
    """Cut rows into consecutive parts, one for each client, whose edges are those of the shares, rounded."""
    edges = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
    return np.split(rows, np.minimum(edges, len(rows)))


def _joined(by_class: list[list[Rows]], num_clients: int) -> list[Rows]:
    return [np.sort(np.concatenate([parts[client] for parts in by_class])) for client in range(num_clients)]
