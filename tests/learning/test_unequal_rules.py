"""Promises of the rules that average factors of unequal ranks, raFLoRA and HetLoRA, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.distribute import distribute
from splitrank.learning.aggregation.hetlora import SelfPruning, TailPenalty, product_norm
from splitrank.learning.aggregation.rule import Starts, weights_of
from splitrank.learning.aggregation.rules import RULES, make_rule
from tests.learning import rule_checks
from tests.learning.oracle import distance, product
from tests.learning.rule_checks import (
    LARGER,
    SAMPLES,
    SHAPES,
    UNEQUAL,
    adapter_of,
    combined,
    drift_round,
    drifted,
    products,
    subject,
    unlike,
)

EQUAL_SAMPLES = dict.fromkeys(UNEQUAL, 7)


def raflora():
    return subject(RULES["raflora"], "lora")


def hetlora():
    return subject(RULES["hetlora"], "lora")


def unequal_round(on, clients=tuple(UNEQUAL), ranks=UNEQUAL):
    whole = adapter_of(on, 8, LARGER)
    starts = distribute(whole, ranks, on.method, on.rule, keeps_largest=True, seed=0, round=1)
    return starts, {client: drifted(on, starts.of[client], client) for client in clients}


def padded(updates, weights, path, rank=8):
    """Return Σ w_i·s_i·B_i·A_i's factors, padded with zeros, each a mean by itself; float64, the scaling in B."""
    a, b = torch.zeros(rank, LARGER[path][1]).double(), torch.zeros(LARGER[path][0], rank).double()
    for client, update in updates.items():
        a[: update.rank] += weights[client] * update.tensors[f"lora_A/{path}"].double()
        b[:, : update.rank] += weights[client] * update.scaling * update.tensors[f"lora_B/{path}"].double()
    return b, a


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 1, 2), (1, 3)])
def test_raflora_averages_each_direction_over_its_owners(present):
    on = raflora()
    starts, updates = unequal_round(on, present)
    result = combined(on, starts, updates)
    lost = total = 0.0
    for path in LARGER:
        dense = torch.zeros(LARGER[path]).double()
        for j in range(8):
            owners = [client for client in present if UNEQUAL[client] > j]
            samples = sum(SAMPLES[client] for client in owners)
            a, b = result.adapter.tensors[f"lora_A/{path}"][j], result.adapter.tensors[f"lora_B/{path}"][:, j]
            if not owners:
                assert torch.equal(a, starts.whole.tensors[f"lora_A/{path}"][j])
                assert torch.equal(b, starts.whole.tensors[f"lora_B/{path}"][:, j])
                continue
            share = {client: SAMPLES[client] / samples for client in owners}
            own_a = {c: updates[c].tensors[f"lora_A/{path}"][j].double() for c in owners}
            own_b = {c: updates[c].scaling * updates[c].tensors[f"lora_B/{path}"][:, j].double() for c in owners}
            mean_a, mean_b = (sum(share[c] * own[c] for c in owners) for own in (own_a, own_b))
            torch.testing.assert_close(a.double(), mean_a, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(2.0 * b.double(), mean_b, rtol=1e-6, atol=1e-7)
            dense += sum(share[c] * own_b[c].outer(own_a[c]) for c in owners)
        trained = max(UNEQUAL[client] for client in present)
        b, a = (result.adapter.tensors[f"{kind}/{path}"].double() for kind in ("lora_B", "lora_A"))
        lost += (2.0 * b[:, :trained] @ a[:trained] - dense).square().sum()
        total += dense.square().sum()
    assert result.factor_averaging_error == pytest.approx(float((lost / total).sqrt()), rel=1e-5)


def test_raflora_at_equal_ranks_is_fedavg_to_the_bit_but_for_the_weights_sum():
    on = raflora()
    starts, updates = drift_round(on)
    ours, theirs = combined(on, starts, updates), combined(subject(RULES["fedavg"], "lora"), starts, updates)
    for name, tensor in theirs.adapter.tensors.items():
        torch.testing.assert_close(ours.adapter.tensors[name], tensor, rtol=2e-7, atol=0)
    assert ours.factor_averaging_error == pytest.approx(theirs.factor_averaging_error, rel=1e-9)


def test_raflora_does_not_collapse_where_flexlora_and_hetlora_do():
    """Ranks 2, 2, 4, 8 at equal weights and no training: after five rounds flexlora has left (1/4)⁵."""
    left = {}
    for name in ("raflora", "flexlora", "hetlora"):
        on, adapter = subject(RULES[name], "lora"), in_falling_order()
        for round in range(1, 6):
            starts = distribute(adapter, UNEQUAL, on.method, on.rule, keeps_largest=True, seed=0, round=round)
            adapter = combined(on, starts, {c: unlike(on, starts.of[c], c) for c in UNEQUAL}, EQUAL_SAMPLES).adapter
        left[name] = float(product(adapter, "wide").norm() / product(in_falling_order(), "wide").norm())
    assert left["raflora"] == pytest.approx(1.0, abs=1e-6)
    assert left["hetlora"] < 0.9
    assert left["flexlora"] < 0.9


def in_falling_order() -> Adapter:
    from tests.learning.test_rules import in_falling_order

    return in_falling_order((1.0,) * 8)


# HetLoRA.


def test_hetlora_weighs_by_the_size_of_the_product_and_pads_with_zeros():
    on = hetlora()
    starts, updates = unequal_round(on)
    result = combined(on, starts, updates)
    sizes = {
        c: math.sqrt(sum(float(dense.square().sum()) for dense in products(u).values())) for c, u in updates.items()
    }
    for client, update in updates.items():
        assert product_norm(update) == pytest.approx(sizes[client], rel=1e-6)
    weights = {client: size / sum(sizes.values()) for client, size in sizes.items()}
    assert max(weights.values()) > 2 * min(weights.values())
    lost = total = 0.0
    for path in LARGER:
        b, a = padded(updates, weights, path)
        assert distance(product(result.adapter, path), b @ a) < 1e-6
        dense = sum(weights[client] * product(update, path) for client, update in updates.items())
        lost, total = lost + (b @ a - dense).square().sum(), total + dense.square().sum()
    assert result.factor_averaging_error == pytest.approx(float((lost / total).sqrt()), rel=1e-5)
    # The head goes by samples, not by size.
    head = sum(SAMPLES[c] * u.tensors["head/classifier.weight"].double() for c, u in updates.items()) / 105
    torch.testing.assert_close(result.adapter.tensors["head/classifier.weight"].double(), head, rtol=1e-6, atol=1e-7)


def test_hetlora_shrinks_a_direction_by_the_square_of_its_owners_weight():
    """Ranks 2, 2, 4, 8 at weights pinned equal: 1, 1, ¼, ¼, 1/16 …; the largest client alone owns its tail.

    One direction outweighs all others, so that the sizes, and with them the weights, are equal to 4e-6.
    """
    from tests.learning.test_rules import in_falling_order

    on, whole = hetlora(), in_falling_order((1.0, *7 * (1e-3,)))
    starts = distribute(whole, UNEQUAL, on.method, on.rule, keeps_largest=True, seed=0, round=1)
    updates = {client: unlike(on, start, client) for client, start in starts.of.items()}
    result = combined(on, starts, updates).adapter
    squares = torch.tensor([1, 1, *2 * (1 / 4,), *4 * (1 / 16,)], dtype=torch.float64)
    for path in LARGER:
        a, b = (whole.tensors[f"{kind}/{path}"].double() for kind in ("lora_A", "lora_B"))
        own_a, own_b = (result.tensors[f"{kind}/{path}"].double() for kind in ("lora_A", "lora_B"))
        for j in range(8):
            assert distance(own_b[:, j].outer(own_a[j]), squares[j] * b[:, j].outer(a[j])) < 2e-5, (path, j)


def test_hetlora_at_equal_ranks_and_sizes_is_fedavg():
    on = hetlora()
    starts, updates = drift_round(on)
    alike = {c: Adapter(u.rank, u.scaling / product_norm(u), u.tensors) for c, u in updates.items()}
    ours = combined(on, starts, alike, EQUAL_SAMPLES).adapter
    theirs = combined(subject(RULES["fedavg"], "lora"), starts, alike, EQUAL_SAMPLES).adapter
    for path in SHAPES:
        assert distance(product(ours, path), product(theirs, path)) < 1e-6


def test_hetlora_counts_the_scaling_and_falls_back_to_samples():
    on = hetlora()
    starts, updates = drift_round(on)
    louder = {**updates, 1: Adapter(updates[1].rank, 100.0 * updates[1].scaling, updates[1].tensors)}
    result = combined(on, starts, louder).adapter
    alone = combined(on, Starts(starts.whole, {1: starts.whole}), {1: louder[1]}).adapter
    for path in SHAPES:  # weight and factor are both nearly those of client 1
        assert distance(product(result, path), product(alone, path)) < 0.3
    zero = {c: u.with_tensors({n: 0 * b for n, b in u.only("lora_B").items()}) for c, u in updates.items()}
    nothing = combined(on, starts, zero).adapter
    by_samples = combined(subject(RULES["fedavg"], "lora"), starts, zero).adapter
    for name, tensor in by_samples.tensors.items():
        assert torch.equal(nothing.tensors[name], tensor), name


def test_hetlora_keeps_what_nobody_trained_and_lets_go_of_what_all_have_pruned():
    on = hetlora()
    starts, updates = unequal_round(on, (0, 1, 2))  # the client of rank 8 is away
    kept = combined(on, starts, updates).adapter
    cut = {c: rule_cut(update, min(update.rank, 3)) for c, update in updates.items()}  # client 2 gives up its last one
    pruned = combined(on, starts, cut).adapter
    for path in LARGER:
        name_a, name_b = f"lora_A/{path}", f"lora_B/{path}"
        for result in (kept, pruned):
            assert torch.equal(result.tensors[name_a][4:], starts.whole.tensors[name_a][4:])
            assert torch.equal(result.tensors[name_b][:, 4:], starts.whole.tensors[name_b][:, 4:])
        assert kept.tensors[name_b][:, 3].any()
        assert not pruned.tensors[name_b][:, 3].any()
        assert torch.equal(pruned.tensors[name_a][3], starts.whole.tensors[name_a][3])  # it may still learn


def rule_cut(update: Adapter, rank: int) -> Adapter:
    from splitrank.federation.pruning import first_directions

    return first_directions(update, rank)


@pytest.mark.parametrize(
    ("rank", "gamma", "first"), [(4, 0.99, 3), (100, 0.99, 99), (10, 0.7, 7), (4, 0.5, 2), (1, 0.99, 0)]
)
def test_hetlora_presses_the_tail_by_a_product_of_norms(rank, gamma, first):
    on = hetlora()
    shapes = {"wide": (101, 120), "tall": (120, 101)}
    adapter = adapter_of(on, rank, shapes)
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in adapter.tensors.items()}
    penalty = TailPenalty(gamma, 0.25)(parameters, adapter)
    found = penalty.item()
    a, b = adapter.of_kind("lora_A"), adapter.of_kind("lora_B")
    wanted = 0.25 * sum(b[path][:, first:].double().norm() * a[path][first:].double().norm() for path in shapes)
    assert found == pytest.approx(float(wanted), rel=1e-5)
    penalty.backward()
    for path in shapes:
        gradient = parameters[f"lora_B/{path}"].grad
        direction = b[path][:, first:] / b[path][:, first:].norm() * a[path][first:].norm()
        torch.testing.assert_close(gradient[:, first:], 0.25 * direction, rtol=1e-4, atol=1e-6)
        assert not gradient[:, :first].any()


def test_hetlora_has_a_gradient_where_b_is_zero_and_none_without_a_tail():
    on = hetlora()
    adapter = adapter_of(on)
    adapter = adapter.with_tensors({name: 0 * b for name, b in adapter.only("lora_B").items()})
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in adapter.tensors.items()}
    TailPenalty(0.5, 1.0)(parameters, adapter).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters.values())
    assert float(TailPenalty(1.0, 1.0)(parameters, adapter)) == 0.0


def test_hetlora_prunes_where_the_tail_became_smaller_and_never_below_one():
    on = hetlora()
    start = adapter_of(on)

    def moved(factor: float) -> Adapter:
        return start.with_tensors(
            {n: torch.cat([b[:, :3], factor * b[:, 3:]], 1) for n, b in start.only("lora_B").items()}
        )

    prune = SelfPruning(0.99)
    assert prune(start, moved(0.9)) == 3
    assert prune(start, moved(1.1)) == 4
    assert prune(start, start) == 4
    assert SelfPruning(1.0)(start, moved(0.1)) == 4
    zero = start.with_tensors({name: 0 * b for name, b in start.only("lora_B").items()})
    assert prune(zero, moved(1.0)) == 4  # round 1 starts from B = 0, so nobody prunes
    one = rule_cut(start, 1)
    assert prune(one, one.with_tensors({name: 0.5 * b for name, b in one.only("lora_B").items()})) == 1
    # The tail is compared, not single entries: large ones before it do not matter.
    louder = {n: torch.cat([9 * b[:, :3], 0.9 * b[:, 3:]], 1) for n, b in start.only("lora_B").items()}
    assert prune(start, start.with_tensors(louder)) == 3


def test_hetloras_settings_are_part_of_the_rule():
    values = {"gamma": 0.5, "lambda": 0.1}
    rule = make_rule("hetlora", values)
    assert rule == make_rule("hetlora", values) != make_rule("hetlora", {**values, "lambda": 0.2})
    assert rule.terms.penalty == TailPenalty(0.5, 0.1)
    assert rule.kept_rank == SelfPruning(0.5)
    assert RULES["hetlora"].terms.penalty is None


# Mistakes that other systems have made.


def without_scaling(starts, updates, weights, memory):
    """Sizes are of B·A instead of s·B·A."""
    same = {c: Adapter(u.rank, starts.whole.scaling, u.tensors) for c, u in updates.items()}
    return RULES["hetlora"].combine(starts, same, weights, memory)


def never_federates(starts, updates, weights, memory):
    """A server whose keys fit nothing in the model: every client goes on from where it was."""
    return RULES["hetlora"].combine(starts, {c: starts.of[c] for c in updates}, weights, memory)


@pytest.mark.parametrize(
    ("combine", "found_by"),
    [(without_scaling, {"scalings_count"}), (never_federates, {"one_client_is_the_identity", "scalings_count"})],
)
def test_the_table_finds_mutants(combine, found_by):
    from splitrank.learning.aggregation.rule import Rule

    assert found_by <= rule_checks.failures(subject(Rule("hetlora", RULES["hetlora"].traits, combine), "lora"))


def test_weights_are_of_those_who_answered():
    on = hetlora()
    starts, updates = unequal_round(on, (0, 2))
    sizes = {client: product_norm(update) for client, update in updates.items()}
    weights = {client: size / sum(sizes.values()) for client, size in sizes.items()}
    found = on.rule.combine(starts, updates, weights_of({0: 1, 2: 1}), {}).adapter
    for path in LARGER:
        b, a = padded(updates, weights, path, 4)
        assert distance(found.scaling * found.tensors[f"lora_B/{path}"][:, :4].double()
                        @ found.tensors[f"lora_A/{path}"][:4].double(), b @ a) < 1e-6  # fmt: skip
