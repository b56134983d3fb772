"""Promises of every aggregation rule, by dense products in float64; mutants show that the table finds mistakes."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.factors import best_factors, fixed_signs
from splitrank.learning.adapters.methods import METHODS
from splitrank.learning.aggregation.distribute import distribute
from splitrank.learning.aggregation.fedavg import factor_averaging_error, fedavg
from splitrank.learning.aggregation.rule import Combined, Rule, mean_of, weights_of
from splitrank.learning.aggregation.rules import RULES
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS
from tests.learning import rule_checks
from tests.learning.oracle import distance, noise, product
from tests.learning.rule_checks import (
    LARGER,
    SAMPLES,
    SHAPES,
    UNEQUAL,
    adapter_of,
    combined,
    drift_round,
    mean_product,
    products,
    subject,
    unlike,
)

PAIRS = [(rule, name) for rule in RULES for name in METHODS if RULES[rule].traits.takes(METHOD_TRAITS[name].kinds)]
WITH_FACTORS = [
    rule
    for rule in RULES
    if RULES[rule].traits.needs <= METHOD_TRAITS["lora"].kinds and not RULES[rule].traits.personal
]

every_pair = pytest.mark.parametrize(("rule", "name"), PAIRS)


@every_pair
@pytest.mark.parametrize("check", rule_checks.CHECKS, ids=lambda check: check.__name__)
def test_promises(check, rule, name):
    check(subject(RULES[rule], name))


def test_the_tables_have_the_same_rules_and_methods():
    assert RULES.keys() == RULE_TRAITS.keys()
    assert METHODS.keys() == METHOD_TRAITS.keys()
    for name, rule in RULES.items():
        assert rule.name == name
        assert rule.traits is RULE_TRAITS[name]


# RoLoRA and LoRA-A² differ in what their clients train.
SAME_AT_EQUAL_RANKS = [set(pair) for pair in combinations(("fedavg", "raflora", "rolora", "lora-a2"), 2)]


def test_changing_the_rule_changes_the_result():
    """A rule that is ignored gives the same next starts, and so byte-identical uploads."""
    starts, updates = drift_round(subject(RULES["fedavg"], "lora"))
    weights = weights_of({client: SAMPLES[client] for client in updates})
    found = {name: RULES[name].combine(starts, updates, weights, {}).adapter for name in WITH_FACTORS}
    for first, second in combinations(found, 2):
        ours, theirs = found[first].tensors, found[second].tensors
        is_other = ours.keys() != theirs.keys() or any(
            ours[name].shape != theirs[name].shape or distance(ours[name], theirs[name]) > 1e-3 for name in ours
        )
        assert is_other == ({first, second} not in SAME_AT_EQUAL_RANKS), (first, second)


# What is said of single rules.


def flexlora():
    return subject(RULES["flexlora"], "lora")


def cut(dense: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


APART = tuple(0.7**j for j in range(8))
TIED = {
    "apart": APART,
    "close": (1.0, 0.9, 0.9 - 1e-4, *APART[3:]),
    "nearly-tied": (1.0, 0.9, 0.9 - 1e-7, *APART[3:]),
    "tied": (1.0,) * 8,
}


def in_falling_order(values=APART) -> Adapter:
    """Return an adapter as FlexLoRA leaves one: singular directions in falling order."""
    tensors = {"head/classifier.weight": noise("head", (4, 5))}
    root = torch.tensor(values, dtype=torch.float64).sqrt()
    for path, (d, k) in LARGER.items():
        u = torch.linalg.qr(noise(f"{path}/u", (d, len(root))).double())[0]
        v = torch.linalg.qr(noise(f"{path}/v", (k, len(root))).double())[0]
        tensors[f"lora_A/{path}"] = (root[:, None] * v.T).float()
        tensors[f"lora_B/{path}"] = (u * root).float()
    return Adapter(len(root), 2.0, tensors)


@pytest.mark.parametrize("ranks", [dict.fromkeys(range(4), 3), UNEQUAL], ids=["equal", "unequal"])
def test_flexlora_is_the_best_approximation_of_the_dense_mean(ranks):
    on, whole = flexlora(), adapter_of(flexlora(), max(ranks.values()), LARGER)
    starts = distribute(whole, ranks, on.method, on.rule, keeps_largest=True, seed=0, round=1)
    updates = {client: rule_checks.drifted(on, start, client) for client, start in starts.of.items()}
    result = combined(on, starts, updates)
    lost = total = 0.0
    for path in LARGER:
        dense = mean_product(updates, path)
        assert distance(product(result.adapter, path), cut(dense, whole.rank)) < 1e-6
        lost += (dense - cut(dense, whole.rank)).square().sum()
        total += dense.square().sum()
    assert result.diagnostics["truncation_error"] == pytest.approx(float((lost / total).sqrt()), rel=1e-6, abs=1e-7)
    assert result.factor_averaging_error is None


def test_flexlora_balances_and_signs_its_factors():
    """B = U·√Σ/√s and A = √Σ·Vᵀ/√s, the largest entry of each column of B positive, whatever signs came in."""
    on = flexlora()
    starts, updates = drift_round(on)
    result = combined(on, starts, updates).adapter
    for path in SHAPES:
        a, b = (result.tensors[f"{kind}/{path}"].double() for kind in ("lora_A", "lora_B"))
        values = torch.linalg.svdvals(mean_product(updates, path))[:4] / result.scaling
        torch.testing.assert_close(b.T @ b, values.diag(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a @ a.T, values.diag(), rtol=1e-5, atol=1e-6)
        assert (b.gather(0, b.abs().argmax(dim=0, keepdim=True)) > 0).all()

    def turned(adapter):
        signs = torch.tensor([1.0, -1.0, -1.0, 1.0])
        return adapter.with_tensors(
            {
                **{name: signs[:, None] * a for name, a in adapter.only("lora_A").items()},
                **{name: b * signs for name, b in adapter.only("lora_B").items()},
            }
        )

    other = combined(on, starts, {client: turned(update) for client, update in updates.items()}).adapter
    for name, tensor in result.tensors.items():
        torch.testing.assert_close(other.tensors[name], tensor, rtol=1e-5, atol=1e-6)


def test_flexlora_shrinks_a_direction_to_the_share_that_holds_it():
    """Ranks 2, 2, 4, 8 at equal weights: w = 1, 1, ½, ½, ¼, ¼, ¼, ¼ a round (factor averaging would square them)."""
    on, whole = flexlora(), in_falling_order()
    starts = distribute(whole, UNEQUAL, on.method, on.rule, keeps_largest=True, seed=0, round=1)
    result = combined(on, starts, {c: unlike(on, starts.of[c], c) for c in UNEQUAL}, dict.fromkeys(UNEQUAL, 7)).adapter
    shares = torch.tensor([1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
    for path in LARGER:
        before = torch.linalg.svdvals(product(whole, path))[:8]
        after = torch.linalg.svdvals(product(result, path))[:8]
        torch.testing.assert_close(after, (shares * before).sort(descending=True).values, rtol=1e-5, atol=1e-7)
        a, b = whole.tensors[f"lora_A/{path}"].double(), whole.tensors[f"lora_B/{path}"].double()
        assert distance(product(result, path), whole.scaling * (b * shares) @ a) < 1e-6


def test_flexlora_keeps_what_nobody_could_train():
    """Rounds without training, the largest client absent in some, against dense matrices."""
    on, adapter = flexlora(), in_falling_order()
    dense = products(adapter)
    for round, present in enumerate([(0, 1, 2), (0, 1, 2, 3), (0, 1), (1, 2), (0, 3), (3,)], 1):
        ranks = {client: UNEQUAL[client] for client in present}
        planned = UNEQUAL if round % 2 else ranks  # absent from the plan, or planned and lost
        starts = distribute(adapter, planned, on.method, on.rule, keeps_largest=True, seed=0, round=round)
        assert starts.whole.rank == 8
        adapter = combined(on, starts, {c: unlike(on, starts.of[c], c) for c in present}).adapter
        weights, largest = weights_of({c: SAMPLES[c] for c in present}), max(ranks.values())
        for path, before in dense.items():
            kept = before - cut(before, largest) if largest < 8 else torch.zeros_like(before)
            dense[path] = cut(sum(weights[c] * cut(before, ranks[c]) for c in present) + kept, 8)
            assert distance(product(adapter, path), dense[path]) < 3e-6, (round, path)


@pytest.mark.parametrize("start", [*TIED, "any order"])
def test_flexlora_without_training_keeps_all_that_is_beyond_the_participants(start):
    """All who answer hold the same directions, so none shrinks; which of two tied ones they hold must not matter."""
    on = flexlora()
    first = adapter = adapter_of(on, 8, LARGER) if start == "any order" else in_falling_order(TIED[start])
    for round in (1, 2, 3):
        starts = distribute(adapter, {0: 2, 1: 2}, on.method, on.rule, keeps_largest=True, seed=0, round=round)
        adapter = combined(on, starts, {c: unlike(on, starts.of[c], c) for c in starts.of}).adapter
        for path in LARGER:
            assert distance(product(adapter, path), product(first, path)) < 1e-6, (round, path)


def test_one_start_for_all_who_train_at_one_rank():
    on, whole = flexlora(), adapter_of(flexlora(), 8, LARGER)
    starts = distribute(whole, UNEQUAL, on.method, on.rule, keeps_largest=True, seed=0, round=1)
    assert starts.of[0] is starts.of[1]
    assert starts.of[3] is starts.whole
    assert starts.whole.rank == 8
    assert list(starts.of) == list(UNEQUAL)
    for client, rank in UNEQUAL.items():
        assert starts.of[client].rank == rank
        for path in LARGER:
            assert distance(product(starts.of[client], path), cut(product(whole, path), rank)) < 1e-6
    common = distribute(whole, {0: 3, 5: 3}, on.method, on.rule, keeps_largest=False, seed=0, round=1)
    assert common.whole is common.of[0] is common.of[5]
    assert common.whole.rank == 3


@pytest.mark.parametrize("rule", WITH_FACTORS)
def test_clients_start_from_prefixes_where_the_rule_says_so(rule):
    on = subject(RULES[rule], "lora")
    whole = adapter_of(on, 8, LARGER)
    starts = distribute(whole, UNEQUAL, on.method, on.rule, keeps_largest=True, seed=0, round=1)
    for client, rank in {0: 2, 2: 4}.items():
        for path in LARGER:
            a, b = (starts.of[client].tensors[f"{kind}/{path}"] for kind in ("lora_A", "lora_B"))
            is_first = torch.equal(a, whole.tensors[f"lora_A/{path}"][:rank])
            is_first &= torch.equal(b, whole.tensors[f"lora_B/{path}"][:, :rank])
            assert is_first == (RULES[rule].traits.distribution == "prefix")


def test_the_averaging_error_is_a_covariance():
    """mean(BA) − mean(B)·mean(A) = Σ p_i (B_i − B̄)(A_i − Ā), of rank at most (K − 1)·r; the error is its share."""
    on = subject(RULES["fedavg"], "lora")
    for count, rank in ((4, 4), (2, 2), (3, 1)):
        starts, updates = drift_round(on, count, rank)
        result = combined(on, starts, updates)
        weights = weights_of({client: SAMPLES[client] for client in updates})
        lost = total = 0.0
        for path in SHAPES:
            dense = mean_product(updates, path)
            a = {c: u.tensors[f"lora_A/{path}"].double() for c, u in updates.items()}
            b = {c: u.scaling * u.tensors[f"lora_B/{path}"].double() for c, u in updates.items()}
            mean_a, mean_b = (sum(weights[c] * part[c] for c in updates) for part in (a, b))
            covariance = sum(weights[c] * (b[c] - mean_b) @ (a[c] - mean_a) for c in updates)
            assert distance(dense - mean_b @ mean_a, covariance) < 1e-12
            assert torch.linalg.matrix_rank(covariance, rtol=1e-10) <= (count - 1) * rank
            assert distance(product(result.adapter, path), mean_b @ mean_a) < 1e-6
            lost += covariance.square().sum()
            total += dense.square().sum()
        assert result.factor_averaging_error == pytest.approx(float((lost / total).sqrt()), rel=1e-5)


def test_no_averaging_error_where_a_factor_is_common():
    on = subject(RULES["fedavg"], "lora")
    starts, updates = drift_round(on)
    for kind in ("lora_A", "lora_B"):
        shared = {c: unlike(on, starts.whole.with_tensors(u.only(kind)), c) for c, u in updates.items()}
        if kind == "lora_B":
            shared = {c: starts.whole.with_tensors(u.only("lora_A")) for c, u in updates.items()}
        assert combined(on, starts, shared).factor_averaging_error < 1e-6
    alone = drift_round(on, 1)
    assert combined(on, *alone).factor_averaging_error == 0.0
    ffa_on = subject(RULES["ffa"], "lora")
    assert combined(ffa_on, *drift_round(ffa_on)).factor_averaging_error == 0.0
    full = subject(RULES["fedavg"], "full")
    assert combined(full, *drift_round(full)).factor_averaging_error is None


def test_the_averaging_error_of_given_adapters():
    _, updates = drift_round(subject(RULES["fedavg"], "lora"))
    updates = {client: rule_checks.rescaled(update, 2.0) for client, update in updates.items()}
    weights = weights_of({client: SAMPLES[client] for client in updates})
    averaged = updates[0].with_tensors(mean_of(updates[0].tensors, updates, weights))
    lost = total = 0.0
    for path in SHAPES:
        dense = mean_product(updates, path)
        lost += (product(averaged, path) - dense).square().sum()
        total += dense.square().sum()
    found = factor_averaging_error(updates, weights, averaged)
    assert found == pytest.approx(float((lost / total).sqrt()), rel=1e-9)


class Largest(TorchDispatchMode):
    """Notes the most numbers of any tensor that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor):
                self.numbers = max(self.numbers, part.numel())
        return result


@pytest.mark.parametrize("rule", ["ffa", "flexlora"])
def test_no_tensor_of_the_size_of_a_weight_is_formed(rule):
    """At d = k = 20,000 it would take 3.2 GB."""
    on, wide = subject(RULES[rule], "lora"), {"large": (20_000, 20_000)}
    with Largest() as seen:
        whole = adapter_of(on, 8, wide)
        starts = distribute(whole, UNEQUAL, on.method, on.rule, keeps_largest=True, seed=0, round=1)
        combined(on, starts, dict(starts.of))
    assert seen.numbers <= 20_000 * sum(UNEQUAL.values()) * 2


# Mistakes that other systems have made, each kept here to show that the table finds it.


def without_magnitudes(starts, updates, weights, memory):
    """DoRA's magnitudes stay what they were."""
    result = fedavg(starts, updates, weights, memory)
    return Combined(result.adapter.with_tensors(starts.whole.only("magnitude")), {}, result.factor_averaging_error)


def without_scaling(starts, updates, weights, memory):
    """Factors are averaged as if all clients had one scaling."""
    return Combined(starts.whole.with_tensors(mean_of(starts.whole.tensors, updates, weights)), {}, 0.0)


def products_without_scaling(starts, updates, weights, memory):
    same = {client: Adapter(u.rank, starts.whole.scaling, u.tensors) for client, u in updates.items()}
    return RULES["flexlora"].combine(starts, same, weights, memory)


def transposed(starts, updates, weights, memory):
    """Products of square linears are added the wrong way round; where shapes differ it would be noticed at once."""
    whole = starts.whole
    result = dict(RULES["flexlora"].combine(starts, updates, weights, memory).adapter.tensors)
    dense = sum(weights[client] * product(update, "square") for client, update in updates.items())
    b, a, _ = best_factors(dense.T, torch.eye(len(dense), dtype=torch.float64), whole.rank)
    b, a = fixed_signs(b, a)
    missing = whole.rank - a.shape[0]
    root = whole.scaling**0.5
    result["lora_B/square"] = torch.cat([b / root, b.new_zeros(b.shape[0], missing)], dim=1).float()
    result["lora_A/square"] = torch.cat(
        [a / root, whole.tensors["lora_A/square"][whole.rank - missing :].double()]
    ).float()
    return Combined(whole.with_tensors(result), {})


def by_shape(starts, updates, weights, memory):
    """A is told from B by its first dimension being the rank."""
    whole = starts.whole
    frozen = {name: tensor for name, tensor in whole.tensors.items() if tensor.shape[0] == whole.rank}
    return Combined(fedavg(starts, updates, weights, memory).adapter.with_tensors(frozen), {}, 0.0)


def unweighted(starts, updates, weights, memory):
    return fedavg(starts, updates, dict.fromkeys(updates, 1 / len(updates)), memory)


@pytest.mark.parametrize(
    ("combine", "like", "name", "found_by"),
    [
        (without_magnitudes, "fedavg", "dora", {"all_but_factors_is_averaged_by_samples"}),
        (without_scaling, "fedavg", "lora", {"scalings_count", "one_client_is_the_identity"}),
        (products_without_scaling, "flexlora", "lora", {"scalings_count", "rounds_without_training_are_a_fixed_point"}),
        (transposed, "flexlora", "lora", {"one_client_is_the_identity", "rounds_without_training_are_a_fixed_point"}),
        (by_shape, "ffa", "lora", {"all_but_factors_is_averaged_by_samples"}),
        (unweighted, "fedavg", "lora", {"all_but_factors_is_averaged_by_samples"}),
    ],
)
def test_the_table_finds_mutants(combine, like, name, found_by):
    assert found_by <= rule_checks.failures(subject(Rule(like, RULES[like].traits, combine), name))


def test_a_false_claim_is_found():
    """A rule that says that it is exact, or that it keeps the basis, and does not."""
    assert "exact_means_the_mean_of_products" in rule_checks.failures(
        subject(Rule("fedavg", RULE_TRAITS["ffa"].__class__(frozenset({"exact"})), fedavg), "lora")
    )
    keeps = RULE_TRAITS["ffa"].__class__(frozenset({"keeps_basis"}))
    assert "rounds_without_training_are_a_fixed_point" in rule_checks.failures(
        subject(Rule("flexlora", keeps, RULES["flexlora"].combine), "lora")
    )
