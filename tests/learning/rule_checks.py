"""What every aggregation rule promises, each a function that raises AssertionError where it is broken.

METHODS speak of products s·B·A per linear, so all comparisons are of dense float64 products. Every check starts from
B ≠ 0, scalings differ between clients by powers of two (so that moving them into B rounds nothing), and shapes differ:
wide, tall, square, and of as many rows as the rank. So a rule that tells factors apart by their shape, forgets a
scaling or transposes a product is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter, kind_of, shape_at_rank
from splitrank.learning.adapters.factors import new_directions
from splitrank.learning.adapters.method import Method
from splitrank.learning.adapters.methods import make_method
from splitrank.learning.adapters.selection import selected
from splitrank.learning.aggregation.distribute import distribute
from splitrank.learning.aggregation.rule import Combined, Rule, Starts, weights_of
from splitrank.traits import FACTORS, MERGED_KINDS
from tests.learning.oracle import distance, noise, product, same_bits

SHAPES = {"wide": (5, 7), "tall": (7, 5), "square": (6, 6), "labels": (4, 9)}
LARGER = {"wide": (9, 12), "tall": (12, 9), "square": (10, 10)}
RANK = 4  # as many as the labels, and the rows of one linear
SAMPLES = {0: 30, 1: 10, 2: 40, 3: 25}
CLIENT_SCALINGS = {0: 4.0, 1: 0.5, 2: 1.0, 3: 2.0}
UNEQUAL = {0: 2, 1: 2, 2: 4, 3: 8}


@dataclass(frozen=True)
class Subject:
    """A rule and the method under which it is looked at."""

    rule: Rule
    method: Method

    @property
    def has_factors(self) -> bool:
        """Whether the rule sees both factors of the products."""
        return self.method.traits.kinds >= FACTORS and not self.rule.traits.personal

    @property
    def scales_with_rank(self) -> bool:
        """Whether a change of rank moves a scaling into B, which rounds."""
        return self.method.scaling_at(2) != self.method.scaling_at(1)

    @property
    def drawn(self) -> frozenset[str]:
        """Kinds that are the same for all through the whole run."""
        return self.rule.traits.from_seed & self.method.traits.kinds

    def names(self, path: str) -> list[str]:
        """Return names of tensors, one of each kind."""
        return [f"{kind}/{path}.weight" for kind in sorted(self.method.traits.kinds)]


def subject(rule: Rule, name: str) -> Subject:
    return Subject(rule, make_method(name, {"linears": ("query",), "scaling": 2.0, "dropout": 0.0, "gate": False}))


def adapter_of(on: Subject, rank: int = RANK, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> Adapter:
    """Return an adapter with B ≠ 0; what the rule draws from the seed is drawn."""
    tensors: dict[str, Tensor] = {}
    if not on.method.traits.kinds >= FACTORS:
        rank = rank if on.method.traits.has_rank else 1
        for path, shape in shapes.items():
            tensors |= {name: noise(name, shape_at_rank(name, shape, rank)) for name in on.names(path)}
        tensors["head/classifier.weight"] = noise("head", (4, 5))
        return Adapter(rank, 1.0, tensors)
    for path, (d, k) in shapes.items():
        a = noise(f"A/{path}", (rank, k))
        tensors[f"lora_A/{path}"] = new_directions(path, rank, k, 0).float() if "lora_A" in on.drawn else a
        tensors[f"lora_B/{path}"] = noise(f"B/{path}", (d, rank))
        if "magnitude" in on.method.traits.kinds:
            tensors[f"magnitude/{path}"] = noise(f"m/{path}", (d,)).abs() + 1.0
    tensors["head/classifier.weight"] = noise("head", (4, 5))
    shared = {name: tensor for name, tensor in tensors.items() if kind_of(name) not in on.rule.traits.personal}
    return Adapter(rank, 2.0, shared)


def rescaled(adapter: Adapter, scaling: float) -> Adapter:
    """Return the same products under another scaling."""
    factor = adapter.scaling / scaling
    return replace(
        adapter.with_tensors({name: factor * b for name, b in adapter.only("lora_B").items()}), scaling=scaling
    )


def drifted(on: Subject, start: Adapter, client: int, turn: int = 0) -> Adapter:
    """Return what a client might make of its start: all that it trains has moved, in a scaling of its own."""
    chosen = selected(start.tensors, on.rule.select, client, turn)
    moved = {name: start.tensors[name] + 0.5 * noise(name, start.tensors[name].shape, 10 + client) for name in chosen}
    return unlike(on, start.with_tensors(moved), client)


def unlike(on: Subject, adapter: Adapter, client: int) -> Adapter:
    return rescaled(adapter, CLIENT_SCALINGS[client]) if on.has_factors else adapter


def one_rank(on: Subject, count: int = 4, rank: int = RANK) -> Starts:
    whole = adapter_of(on, rank)
    return Starts(whole, dict.fromkeys(range(count), whole))


def combined(on: Subject, starts: Starts, updates: Mapping[int, Adapter], samples=SAMPLES) -> Combined:
    result = on.rule.combine(starts, updates, weights_of({client: samples[client] for client in updates}), {})
    whole = starts.whole
    rank = 0 if on.rule.traits.redrawn else whole.rank
    shapes = whole.shapes(rank)
    assert list(without_merged(result.adapter)) == list(without_merged(whole))
    assert (result.adapter.rank, result.adapter.scaling) == (rank, whole.scaling)
    assert "merges" in on.rule.traits.tags or not has_merged(result.adapter)
    for name, tensor in result.adapter.tensors.items():
        assert kind_of(name) in MERGED_KINDS or tensor.shape == shapes[name], name
        assert tensor.dtype == torch.float32, name
        assert tensor.isfinite().all(), name
    return result


def without_merged(adapter: Adapter) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in adapter.tensors.items() if kind_of(name) not in MERGED_KINDS}


def has_merged(adapter: Adapter) -> bool:
    return len(without_merged(adapter)) < len(adapter.tensors)


def drift_round(on: Subject, count: int = 4, rank: int = RANK) -> tuple[Starts, dict[int, Adapter]]:
    starts = one_rank(on, count, rank)
    return starts, {client: drifted(on, starts.of[client], client) for client in starts.of}


def products(adapter: Adapter) -> dict[str, Tensor]:
    return {path: product(adapter, path) for path in adapter.of_kind("lora_B")}


def mean_product(updates: Mapping[int, Adapter], path: str, samples=SAMPLES) -> Tensor:
    total = sum(samples[client] for client in updates)
    return sum(samples[client] / total * product(update, path) for client, update in updates.items())


def is_factor(name: str) -> bool:
    return kind_of(name) in ("lora_A", "lora_B")


def assert_same(
    on: Subject, found: Adapter, wanted: Adapter, *, tolerance: float = 1e-6, to_the_bit: bool = True
) -> None:
    """Compare products, and every other tensor; to the bit, if not told otherwise, for a rule that keeps the basis."""
    if "keeps_basis" in on.rule.traits.tags:
        ours, theirs = without_merged(found), without_merged(wanted)
        assert list(ours) == list(theirs)
        assert all(distance(tensor, theirs[name]) < tolerance for name, tensor in ours.items())
        assert not to_the_bit or same_bits(ours, theirs)
    for path, dense in products(wanted).items():
        assert distance(product(found, path), dense) < tolerance, path
    for name, tensor in wanted.tensors.items():
        if not is_factor(name) and kind_of(name) not in MERGED_KINDS:
            assert torch.equal(found.tensors[name], tensor), name


def rounds_without_training_are_a_fixed_point(on: Subject) -> None:
    first = adapter = adapter_of(on)
    ranks = dict.fromkeys(range(4), adapter.rank)
    for round, present in enumerate([(0, 1, 2, 3), (0, 1), (2,), (1, 2, 3)], 1):
        starts = distribute(adapter, ranks, on.method, on.rule, keeps_largest=False, seed=0, round=round)
        adapter = combined(on, starts, {c: unlike(on, starts.of[c], c) for c in present}).adapter
        assert_same(on, adapter, first)


def one_client_is_the_identity(on: Subject) -> None:
    starts, updates = drift_round(on, count=1)
    assert_same(on, combined(on, starts, updates).adapter, rescaled(updates[0], 2.0) if on.has_factors else updates[0])


def identical_clients_give_that_client(on: Subject) -> None:
    starts = one_rank(on)
    update = drifted(on, starts.whole, 2)
    wanted = rescaled(update, starts.whole.scaling) if on.has_factors else update
    assert_same(on, combined(on, starts, {c: unlike(on, update, c) for c in starts.of}).adapter, wanted)


def the_order_of_clients_changes_nothing(on: Subject) -> None:
    starts, updates = drift_round(on)
    order = [2, 0, 3, 1]
    other = combined(
        on,
        starts,
        {client: updates[order[client]] for client in range(4)},
        {client: SAMPLES[order[client]] for client in range(4)},
    )
    result = combined(on, starts, updates).adapter
    for path, dense in products(result).items():
        assert distance(product(other.adapter, path), dense) < 1e-7, path
    for name, tensor in without_merged(result).items():
        if not is_factor(name):
            torch.testing.assert_close(other.adapter.tensors[name], tensor, rtol=1e-6, atol=1e-7)


def the_order_of_slices_changes_nothing(on: Subject) -> None:
    if not on.has_factors:
        return

    def permuted(adapter: Adapter) -> Adapter:
        order = torch.tensor([2, 0, 3, 1])
        a = {name: tensor[order] for name, tensor in adapter.only("lora_A").items()}
        b = {name: tensor[:, order] for name, tensor in adapter.only("lora_B").items()}
        return adapter.with_tensors({**a, **b})

    starts, updates = drift_round(on)
    shuffled = Starts(permuted(starts.whole), {client: permuted(start) for client, start in starts.of.items()})
    result = combined(on, starts, updates).adapter
    other = combined(on, shuffled, {client: permuted(update) for client, update in updates.items()}).adapter
    for path, dense in products(result).items():
        assert distance(product(other, path), dense) < 1e-6, path
    if "keeps_basis" in on.rule.traits.tags:
        assert same_bits(without_merged(other), without_merged(permuted(result)))


def is_weighted(on: Subject) -> bool:
    return "unweighted" not in on.rule.traits.tags


def unweighted_means_that_samples_do_not_count(on: Subject) -> None:
    starts, updates = drift_round(on)
    result, other = (combined(on, starts, updates, samples).adapter for samples in (SAMPLES, {**SAMPLES, 1: 1000}))
    assert same_bits(without_merged(result), without_merged(other)) != is_weighted(on)


def all_but_factors_is_averaged_by_samples(on: Subject) -> None:
    if not is_weighted(on):
        return
    starts, updates = drift_round(on)
    result = combined(on, starts, updates).adapter
    others = [name for name in without_merged(result) if not (on.has_factors and is_factor(name))]
    seen = on.method.traits.kinds - ({"lora_A", "lora_B"} if on.has_factors else set()) | {"head"}
    assert {kind_of(name) for name in others} == seen - on.rule.traits.personal
    for name in others:
        total = sum(SAMPLES[client] * update.tensors[name].double() for client, update in updates.items())
        torch.testing.assert_close(result.tensors[name].double(), total / 105, rtol=1e-6, atol=1e-7)
        assert not torch.equal(result.tensors[name], starts.whole.tensors[name])


def exact_means_the_mean_of_products(on: Subject) -> None:
    """Declared exact: to 1e-6. Not declared: it is far off where factors have drifted."""
    if not on.has_factors:
        return
    starts, updates = drift_round(on, rank=2)
    result = combined(on, starts, updates).adapter
    apart = {path: distance(product(result, path), mean_product(updates, path)) for path in SHAPES}
    if "exact" in on.rule.traits.tags:
        assert max(apart.values()) < 1e-6
    else:
        assert min(apart.values()) > 1e-2


def scalings_count(on: Subject) -> None:
    """The same factors under another scaling are another update; the same product under another is the same."""
    if not on.has_factors:
        return
    starts, updates = drift_round(on)
    result = products(combined(on, starts, updates).adapter)
    same_products = {client: rescaled(update, 3.0 + client) for client, update in updates.items()}
    other = products(combined(on, starts, same_products).adapter)
    louder = products(combined(on, starts, {**updates, 1: replace(updates[1], scaling=8.0)}).adapter)
    for path, dense in result.items():
        assert distance(other[path], dense) < 1e-6, path
        assert distance(louder[path], dense) > 1e-2, path


def additive_means_that_sums_suffice(on: Subject) -> None:
    """In two stages, group by group, the result is that of one; and only the weighted sum of updates matters."""
    if "additive" not in on.rule.traits.tags:
        return
    starts, updates = drift_round(on)
    once = combined(on, starts, updates).adapter
    groups = {0: (0, 1), 1: (2, 3)}
    halves = {g: combined(on, starts, {c: updates[c] for c in members}).adapter for g, members in groups.items()}
    twice = combined(on, starts, halves, {g: sum(SAMPLES[c] for c in members) for g, members in groups.items()}).adapter
    for path, dense in products(once).items():
        assert distance(product(twice, path), dense) < 1e-6, path
    for name, tensor in once.tensors.items():
        torch.testing.assert_close(twice.tensors[name], tensor, rtol=1e-5, atol=1e-6)


def sums_are_float64_in_the_order_of_clients(on: Subject) -> None:
    """What is averaged tensor by tensor ends where float64 does; thousands of float32 additions would not."""
    whole = adapter_of(on)
    names = (
        list(whole.tensors) if "keeps_basis" in on.rule.traits.tags else [n for n in whole.tensors if not is_factor(n)]
    )
    names = [name for name in names if kind_of(name) not in on.drawn and is_weighted(on)]
    updates = {
        client: whole.with_tensors(
            {name: whole.tensors[name] + noise(name, whole.tensors[name].shape, client) for name in names}
        )
        for client in range(60)
    }
    samples = {client: 1 + client * client for client in updates}
    result = combined(on, Starts(whole, dict.fromkeys(updates, whole)), updates, samples).adapter
    weights = weights_of(samples)
    for name in names:
        total = torch.zeros(whole.tensors[name].shape, dtype=torch.float64)
        for client, update in updates.items():
            total += weights[client] * update.tensors[name].double()
        torch.testing.assert_close(result.tensors[name], total.float(), rtol=1.2e-7, atol=0)
    many = dict.fromkeys(range(2000), whole)
    assert_same(on, combined(on, Starts(whole, many), many, dict.fromkeys(many, 1)).adapter, whole)


def inputs_stay_as_they_were(on: Subject) -> None:
    starts, updates = drift_round(on)
    before = {id(tensor): tensor.clone() for a in (starts.whole, *updates.values()) for tensor in a.tensors.values()}
    first = combined(on, starts, updates).adapter
    assert same_bits(combined(on, starts, updates).adapter.tensors, first.tensors)
    for adapter in (starts.whole, *updates.values()):
        for name, tensor in adapter.tensors.items():
            assert torch.equal(tensor, before[id(tensor)]), name


def nothing_learnt_is_no_error(on: Subject) -> None:
    """B = 0 everywhere: no division by zero, a product of zero, and rows of A to learn from."""
    if not on.has_factors:
        return
    starts = one_rank(on)
    zero = starts.whole.with_tensors({name: 0.0 * b for name, b in starts.whole.only("lora_B").items()})
    starts = Starts(zero, dict.fromkeys(range(4), zero))
    result = combined(on, starts, {client: unlike(on, zero, client) for client in starts.of})
    assert not any(dense.any() for dense in products(result.adapter).values())
    assert all((a.abs().amax(dim=1) > 0).all() for a in result.adapter.of_kind("lora_A").values())
    assert result.factor_averaging_error in (0.0, None)


def unequal_ranks_without_training(on: Subject) -> None:
    """With the largest client absent in some rounds; for a rule that shrinks see its own test."""
    if "unequal_ranks" not in on.rule.traits.tags or "keeps_basis" not in on.rule.traits.tags:
        return
    first = adapter = adapter_of(on, 8, LARGER)
    for round, (ranks, present) in enumerate(
        [(UNEQUAL, (0, 1, 2, 3)), (UNEQUAL, (0, 1, 2)), ({0: 2, 1: 2}, (0, 1)), ({2: 4}, (2,)), (UNEQUAL, (1, 3))], 1
    ):
        starts = distribute(adapter, ranks, on.method, on.rule, keeps_largest=True, seed=0, round=round)
        adapter = combined(on, starts, {c: unlike(on, starts.of[c], c) for c in present}).adapter
        assert_same(on, adapter, first, to_the_bit=not on.scales_with_rank)


def unequal_ranks_average_a_slice_over_its_owners(on: Subject) -> None:
    """For rules that keep the basis and are exact: slice j is the mean of its owners' products.

    Where clients choose slices, who has not chosen one counts as no change of it.
    """
    tags = on.rule.traits.tags
    if not {"unequal_ranks", "keeps_basis", "exact"} <= tags or "slices" in tags:
        return
    whole = adapter_of(on, 8, LARGER)
    starts = distribute(whole, UNEQUAL, on.method, on.rule, keeps_largest=True, seed=0, round=1)
    updates = {client: drifted(on, starts.of[client], client) for client in (0, 1, 2)}
    result = combined(on, starts, updates).adapter
    for path in LARGER:
        a, b = (result.tensors[f"{kind}/{path}"].double() for kind in ("lora_A", "lora_B"))
        for j in range(8):
            owners = [client for client in updates if UNEQUAL[client] > j]
            wanted = whole.scaling * whole.tensors[f"lora_B/{path}"][:, j].double().outer(a[j])
            if owners:
                total = sum(SAMPLES[client] for client in owners)
                slices = {
                    c: (updates[c].tensors[f"lora_B/{path}"], updates[c].tensors[f"lora_A/{path}"]) for c in owners
                }
                wanted = sum(
                    SAMPLES[c] / total * updates[c].scaling * own_b[:, j].double().outer(own_a[j].double())
                    for c, (own_b, own_a) in slices.items()
                )
            assert distance(result.scaling * b[:, j].outer(a[j]), wanted) < 1e-6, (path, j)


def drawn_kinds_are_drawn_from_the_seed(on: Subject) -> None:
    """Every client can draw them by itself: the first rows of one draw, whatever its rank and the round."""
    if not on.drawn:
        return
    shapes = {
        f"{kind}/{path}": (0, k) if kind == "lora_A" else (d, 0)
        for path, (d, k) in LARGER.items()
        for kind in ("lora_A", "lora_B")
    }
    adapter = Adapter(0, 2.0, {name: torch.zeros(shape) for name, shape in shapes.items()})
    for round, ranks in enumerate([{0: 2, 1: 3}, UNEQUAL, {1: 5}, {0: 8, 1: 1}], 3):
        starts = distribute(adapter, ranks, on.method, on.rule, keeps_largest=True, seed=7, round=round)
        for client, rank in ranks.items():
            for path, (_, k) in LARGER.items():
                own = new_directions(path, rank, k, 7).float()
                assert torch.equal(starts.of[client].tensors[f"lora_A/{path}"], own), path
        updates = {client: drifted(on, start, client) for client, start in starts.of.items()}
        adapter = combined(on, starts, updates).adapter
        for path, (_, k) in LARGER.items():
            assert torch.equal(adapter.tensors[f"lora_A/{path}"], new_directions(path, adapter.rank, k, 7).float())


CHECKS = [
    rounds_without_training_are_a_fixed_point,
    one_client_is_the_identity,
    identical_clients_give_that_client,
    the_order_of_clients_changes_nothing,
    the_order_of_slices_changes_nothing,
    unweighted_means_that_samples_do_not_count,
    all_but_factors_is_averaged_by_samples,
    exact_means_the_mean_of_products,
    scalings_count,
    additive_means_that_sums_suffice,
    sums_are_float64_in_the_order_of_clients,
    inputs_stay_as_they_were,
    nothing_learnt_is_no_error,
    unequal_ranks_without_training,
    unequal_ranks_average_a_slice_over_its_owners,
    drawn_kinds_are_drawn_from_the_seed,
]


def failures(on: Subject) -> set[str]:
    """Return the names of the promises that a rule breaks, by a wrong result or by an error."""
    broken = set()
    for check in CHECKS:
        try:
            check(on)
        except (AssertionError, RuntimeError, KeyError, IndexError, ValueError):
            broken.add(check.__name__)
    return broken
