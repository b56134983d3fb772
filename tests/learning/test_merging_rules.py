"""Promises of rules that put products aside, by dense products in float64, and mistakes of public code."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.factors import new_directions
from splitrank.learning.adapters.merged import add_merged, largest_rank, merged_ranks, truncate_merged
from splitrank.learning.aggregation.distribute import distribute
from splitrank.learning.aggregation.fedavg import fedavg
from splitrank.learning.aggregation.rule import Combined, Rule, Starts, weights_of
from splitrank.learning.aggregation.rules import RULES, make_rule
from tests.learning import rule_checks
from tests.learning.oracle import distance, noise, product
from tests.learning.rule_checks import (
    LARGER,
    SAMPLES,
    SHAPES,
    adapter_of,
    combined,
    drift_round,
    drifted,
    mean_product,
    products,
    subject,
)

WIDE = {"wide": (60, 80), "tall": (80, 60), "square": (64, 64)}


def fedex():
    return subject(RULES["fedex"], "lora")


def flora():
    return subject(RULES["flora"], "lora")


def drifted_clients(on, count, rank, shapes=WIDE):
    starts = Starts(whole := adapter_of(on, rank, shapes), dict.fromkeys(range(count), whole))
    return starts, {client: drifted(on, whole, client) for client in starts.of}


@pytest.mark.parametrize(("count", "rank"), [(2, 3), (3, 2), (4, 4)])
def test_fedex_sends_a_residual_of_rank_k_minus_one_times_r(count, rank):
    """Not K·r, as the paper does; and it is Σ w_i (B_i − B̄)(A_i − Ā), with the factors left as fedavg has them."""
    on = fedex()
    starts, updates = drifted_clients(on, count, rank)
    result, averaged = combined(on, starts, updates), combined(subject(RULES["fedavg"], "lora"), starts, updates)
    assert set(merged_ranks(result.adapter).values()) == {(count - 1) * rank}
    for name, tensor in averaged.adapter.tensors.items():
        assert torch.equal(result.adapter.tensors[name], tensor), name
    assert result.factor_averaging_error == averaged.factor_averaging_error > 0.02
    weights = weights_of({client: SAMPLES[client] for client in updates})
    for path in WIDE:
        a = {c: u.tensors[f"lora_A/{path}"].double() for c, u in updates.items()}
        b = {c: u.scaling * u.tensors[f"lora_B/{path}"].double() for c, u in updates.items()}
        mean_a, mean_b = (sum(weights[c] * part[c] for c in updates) for part in (a, b))
        covariance = sum(weights[c] * (b[c] - mean_b) @ (a[c] - mean_a) for c in updates)
        found = product(result.adapter, path) - product(averaged.adapter, path)
        assert distance(found, covariance) < 1e-6, path


def test_fedex_sends_nothing_where_averaging_loses_nothing():
    on = fedex()
    starts, updates = drift_round(on)
    alone = combined(on, Starts(starts.whole, {0: starts.whole}), {0: updates[0]})
    alike = combined(on, starts, dict.fromkeys(starts.of, updates[1]))
    one_basis = {c: starts.whole.with_tensors(update.only("lora_B")) for c, update in updates.items()}
    common_a = combined(on, starts, one_basis)
    for result in (alone, alike, common_a):
        assert merged_ranks(result.adapter) == {}
    assert common_a.factor_averaging_error < 1e-6


def test_fedex_stays_exact_over_rounds_and_dense_where_the_residuals_grow_larger():
    """Three clients of rank 4 add eight directions a round; from the fifth on 40 > 60·80/140 = 34."""
    on = fedex()
    starts, _ = drifted_clients(on, 3, 4)
    adapter, forms = starts.whole, []
    for round in range(1, 7):
        starts = distribute(adapter, dict.fromkeys(range(3), 4), on.method, on.rule, keeps_largest=False, seed=0,
                            round=round)  # fmt: skip
        updates = {c: drifted(on, start, c) for c, start in starts.of.items()}
        adapter = combined(on, starts, updates).adapter
        for path in WIDE:
            assert distance(product(adapter, path), mean_product(updates, path)) < 1e-6, (round, path)
        forms.append(merged_ranks(adapter)["wide"])
    assert forms == [8, 16, 24, 32, None, None]
    assert adapter.tensors["merged_W/wide"].shape == (60, 80)


@pytest.mark.parametrize("ranks", [{0: 2, 1: 3, 2: 5}, {1: 7}, {0: 1, 1: 1, 2: 1, 3: 1}, {2: 4, 3: 3}])
def test_flora_is_exact_at_any_ranks_and_with_any_clients(ranks):
    """Public code stacks right only where the ranks sum to those of all, and breaks where clients are drawn."""
    on = flora()
    zero = Adapter(0, 2.0, {name: tensor.narrow(int(name[5] == "B"), 0, 0) if name.startswith("lora") else tensor
                            for name, tensor in adapter_of(on, 1, WIDE).tensors.items()})  # fmt: skip
    zero = add_merged(zero, {"wide": (noise("a", (3, 80)), noise("b", (60, 3)))})
    starts = distribute(zero, ranks, on.method, on.rule, keeps_largest=True, seed=5, round=2)
    updates = {client: drifted(on, start, client) for client, start in starts.of.items()}
    result = on.rule.combine(starts, updates, weights_of({c: SAMPLES[c] for c in updates}), {})
    assert result.adapter.rank == 0
    for path in WIDE:
        assert distance(product(result.adapter, path), mean_product(updates, path)) < 1e-6, path
        before = 3 if path == "wide" else 0
        assert merged_ranks(result.adapter)[path] == before + sum(ranks.values())
    assert result.factor_averaging_error is None

    # Then everybody starts anew, from what it can draw by itself, and not from what was drawn before.
    again = distribute(result.adapter, ranks, on.method, on.rule, keeps_largest=True, seed=5, round=3)
    for client, rank in ranks.items():
        for path, (_, k) in WIDE.items():
            a, b = (again.of[client].tensors[f"{kind}/{path}"] for kind in ("lora_A", "lora_B"))
            assert torch.equal(a, new_directions(path, rank, k, 5, 3).float())
            assert b.shape[1] == rank
            assert not b.any()
            assert not torch.equal(a, starts.of[client].tensors[f"lora_A/{path}"])


def test_flora_without_training_adds_nothing():
    on = flora()
    starts = distribute(adapter_of(on, 2, WIDE), {0: 2, 1: 2}, on.method, on.rule, keeps_largest=True, seed=0, round=1)
    first = combined(on, starts, dict(starts.of)).adapter
    again = distribute(first, {0: 3, 1: 5}, on.method, on.rule, keeps_largest=True, seed=0, round=2)
    second = on.rule.combine(again, again.of, {0: 0.5, 1: 0.5}, {}).adapter
    assert merged_ranks(second) == merged_ranks(first)
    for path in WIDE:
        assert torch.equal(product(second, path), product(first, path))


@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_nothing_is_larger_than_one_weight_however_many_clients_there_are(name):
    """Sixty clients of rank 4 at 200 × 200: all factors together have 60·4·200 numbers, a d × k for each 60·200·200."""
    from tests.learning.test_rules import Largest

    on = subject(RULES[name], "lora")
    with Largest() as seen:
        whole = adapter_of(on, 4, {"large": (200, 200)})
        updates = {client: drifted(on, whole, client % 4) for client in range(60)}
        starts = Starts(whole, dict.fromkeys(updates, whole))
        result = on.rule.combine(starts, updates, weights_of(dict.fromkeys(updates, 1)), {})
    assert seen.numbers <= 60 * 4 * 200
    assert result.adapter.tensors["merged_W/large"].shape == (200, 200)


@pytest.mark.parametrize("name", ["fedex", "flora"])
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_merged_rank_cuts_merged_parts_to_their_best_approximation(name, rank):
    whole_rule, rule = RULES[name], make_rule(name, {"merged_rank": rank})
    on = subject(rule, "lora")
    starts, updates = drifted_clients(on, 3, 3)  # merged parts of rank 6 and 9
    result, uncut = combined(on, starts, updates), combined(subject(whole_rule, "lora"), starts, updates)
    lost = total = 0.0
    for path in WIDE:
        b, a = (uncut.adapter.tensors[f"{kind}/{path}"].double() for kind in ("merged_B", "merged_A"))
        u, s, v = torch.linalg.svd(b @ a, full_matrices=False)
        lost, total = lost + s[rank:].square().sum(), total + s.square().sum()
        kept = product(result.adapter, path) - product(uncut.adapter, path) + b @ a
        assert distance(kept, (u[:, :rank] * s[:rank]) @ v[:rank]) < 1e-5, path
    assert max(merged_ranks(result.adapter).values()) <= rank
    found = result.diagnostics["merged_truncation_error"]
    is_cut = rank < max(merged_ranks(uncut.adapter).values())
    assert found == pytest.approx(float((lost / total).sqrt()) if is_cut else 0.0, rel=1e-5)
    assert rule.traits.tags == whole_rule.traits.tags - {"exact"}
    assert rule == make_rule(name, {"merged_rank": rank}) != make_rule(name, {"merged_rank": rank + 1})
    assert make_rule(name, {"merged_rank": None}) is whole_rule


def test_a_dense_part_can_be_cut_and_a_small_one_stays_to_the_bit():
    full = add_merged(Adapter(1, 2.0, {}), {"x": (noise("a", (8, 10)), noise("b", (12, 8)))})
    assert set(full.tensors) == {"merged_W/x"}
    cut, _ = truncate_merged(full, 2)
    assert merged_ranks(cut) == {"x": 2}
    assert largest_rank(12, 10) >= 2
    same, error = truncate_merged(cut, 2)
    assert same is cut
    assert error == 0.0


# Mistakes that other systems have made.


def transposed_residual(starts, updates, weights, memory):
    """fedex-lora adds the residual transposed: silently wrong where a linear is square, as most are."""
    combined, averaged = RULES["fedex"].combine(starts, updates, weights, memory), fedavg(starts, updates, weights, {})
    lost = product(combined.adapter, "square") - product(averaged.adapter, "square")
    others = {n: t for n, t in combined.adapter.tensors.items() if n not in ("merged_A/square", "merged_B/square")}
    return Combined(replace(combined.adapter, tensors={**others, "merged_W/square": lost.T.float()}), {})


def unscaled_residual(starts, updates, weights, memory):
    """The residual is of B·A instead of s·B·A."""
    result = RULES["fedex"].combine(starts, updates, weights, memory)
    halves = {name: t / result.adapter.scaling for name, t in result.adapter.only("merged_B", "merged_W").items()}
    return replace(result, adapter=result.adapter.with_tensors(halves))


def unweighted(name, starts, updates, weights, memory):
    return RULES[name].combine(starts, updates, dict.fromkeys(updates, 1 / len(updates)), memory)


def weighted_twice(starts, updates, weights, memory):
    """Both A and B are multiplied by the client's weight."""
    a = {c: {n: weights[c] * t for n, t in update.only("lora_A").items()} for c, update in updates.items()}
    return RULES["flora"].combine(starts, {c: u.with_tensors(a[c]) for c, u in updates.items()}, weights, memory)


def first_client_alone(starts, updates, weights, memory):
    """FLoRA's own baseline sums into a misspelt variable, so that the mean is the first client's share."""
    first = min(updates)
    result = fedavg(starts, {first: updates[first]}, {first: weights[first]}, memory)
    return Combined(starts.whole.with_tensors(result.adapter.tensors), {}, 0.0)


@pytest.mark.parametrize(
    ("combine", "like", "found_by"),
    [
        (transposed_residual, "fedex", {"exact_means_the_mean_of_products"}),
        (unscaled_residual, "fedex", {"exact_means_the_mean_of_products"}),
        (partial(unweighted, "fedex"), "fedex", {"exact_means_the_mean_of_products"}),
        (partial(unweighted, "flora"), "flora", {"exact_means_the_mean_of_products"}),
        (weighted_twice, "flora", {"exact_means_the_mean_of_products", "rounds_without_training_are_a_fixed_point"}),
        (
            first_client_alone,
            "fedavg",
            {"identical_clients_give_that_client", "all_but_factors_is_averaged_by_samples"},
        ),
    ],
)
def test_the_table_finds_mutants(combine, like, found_by):
    assert found_by <= rule_checks.failures(subject(Rule(like, RULES[like].traits, combine), "lora"))


def test_products_include_what_is_merged():
    """The checks' own measure: an adapter and its merged part are one product."""
    on = fedex()
    adapter = adapter_of(on, 2, LARGER)
    merged = add_merged(adapter, {"wide": (noise("a", (1, 12)), noise("b", (9, 1)))})
    found, before = products(merged), products(adapter)
    torch.testing.assert_close(found["wide"] - before["wide"], (noise("b", (9, 1)) @ noise("a", (1, 12))).double())
    assert torch.equal(found["tall"], before["tall"])
    assert set(SHAPES) > set(LARGER)
