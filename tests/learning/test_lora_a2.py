"""Promises of LoRA-A²: which slices a client chooses, that it trains these alone, and that no slice collapses."""

from __future__ import annotations

import pytest
import torch

from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.adapters.selection import selected
from splitrank.learning.aggregation.lora_a2 import OfSlices, choose_slices, factor_of, rank_sent, slice_scores
from splitrank.learning.aggregation.rules import RULES, make_rule
from tests.learning.oracle import distance, noise, product
from tests.learning.rule_checks import LARGER, SAMPLES, adapter_of, combined, mean_product, one_rank, subject

RULE = RULES["lora-a2"]
BOTH = pytest.mark.parametrize(("turn", "kind"), [(0, "lora_B"), (1, "lora_A")])


def on(method="lora"):
    return subject(RULE, method)


def tried(start: Adapter, kind: str) -> Adapter:
    return start.with_tensors({name: t + 0.3 * noise(name, t.shape, 3) for name, t in start.only(kind).items()})


@BOTH
def test_a_score_is_the_norm_of_what_the_slice_of_the_product_moved(turn, kind):
    assert factor_of(RULE.traits, turn) == kind
    start = adapter_of(on(), 8, LARGER)
    after = tried(start, kind)
    scores = slice_scores(start, after, kind)
    for path in LARGER:
        a, b, new_a, new_b = (
            adapter.tensors[f"{factor}/{path}"].double()
            for adapter in (start, after)
            for factor in ("lora_A", "lora_B")
        )
        for j in range(8):
            moved = new_b[:, j].outer(new_a[j]) - b[:, j].outer(a[j])
            assert float(scores[path][j]) == pytest.approx(float(moved.norm()), rel=1e-9)


@BOTH
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_best_slices_that_fit_are_chosen(turn, kind, rank):
    """The best r_i of each linear on average; then the worst go until their numbers are no more than were planned."""
    start = adapter_of(on(), 8, LARGER)
    after = tried(start, kind)
    scores = slice_scores(start, after, kind)
    slices = choose_slices(start, after, kind, rank)
    assert all(list(chosen) == sorted(set(chosen)) for chosen in slices.values())
    ordered = sorted(((float(scores[path][j]), path, j) for path in LARGER for j in range(8)), reverse=True)
    chosen = {(path, j) for path, some in slices.items() for j in some}
    count = len(chosen)
    assert chosen == {(path, j) for _, path, j in ordered[:count]}
    size = {path: shape[0 if kind == "lora_B" else 1] for path, shape in LARGER.items()}
    numbers = sum(size[path] for path, _ in chosen)
    room = rank * sum(size.values())
    assert numbers <= room
    assert rank_sent(start, kind, slices) == pytest.approx(numbers / sum(size.values()))
    assert count == 3 * rank or numbers + size[ordered[count][1]] > room


def test_what_does_not_fit_is_dropped_from_the_worst():
    """The two best slices are of the large linear: one of each would fit, two of the large one do not."""
    shapes = {"large": (30, 5), "small": (10, 5)}
    start = adapter_of(on(), 2, shapes)
    start = start.with_tensors({f"lora_A/{path}": torch.eye(2, 5) for path in shapes})
    moved = {"lora_B/large": torch.tensor([5.0, 4.0]), "lora_B/small": torch.tensor([1.0, 2.0])}
    after = start.with_tensors(
        {name: torch.cat([start.tensors[name][:1] + by, start.tensors[name][1:]]) for name, by in moved.items()}
    )
    assert choose_slices(start, after, "lora_B", 1) == {"large": [0]}
    assert choose_slices(start, after, "lora_B", 2) == {"large": [0, 1], "small": [0, 1]}


def test_equal_scores_go_by_the_order_of_linears_and_directions():
    start = adapter_of(on(), 4)
    assert choose_slices(start, start, "lora_B", 1) == {"wide": [0, 1, 2, 3]}


@BOTH
def test_the_selection_is_the_slices_of_the_turn_s_factor_and_all_else_whole(turn, kind):
    start = adapter_of(on("dora"))
    select = OfSlices(RULE.select, {"wide": [1, 3], "square": [0]})
    parts = selected(start.tensors, select, 0, turn)
    others = [name for name in start.tensors if kind_of(name) in ("magnitude", "head")]
    assert set(parts) == {f"{kind}/wide", f"{kind}/square", *others}
    wide = start.tensors[f"{kind}/wide"]
    assert torch.equal(parts[f"{kind}/wide"], wide[:, [1, 3]] if kind == "lora_B" else wide[[1, 3]])


@BOTH
def test_who_has_not_chosen_a_slice_counts_as_no_change_of_it(turn, kind):
    """Neither as zero, which would let slices collapse that few have, nor not at all: B + Σ p_k·ΔB_k over all."""
    starts = one_rank(on())
    slices = {0: {"wide": [0, 1]}, 1: {"wide": [1]}, 2: {"tall": [0, 1, 2, 3]}, 3: {"wide": [3]}}
    updates = {}
    for client, chosen in slices.items():
        update = dict(starts.whole.tensors)
        for path, some in chosen.items():
            index = (slice(None), some) if kind == "lora_B" else some
            update[f"{kind}/{path}"] = update[f"{kind}/{path}"].clone()
            update[f"{kind}/{path}"][index] += noise(path, update[f"{kind}/{path}"][index].shape, client)
        updates[client] = starts.whole.with_tensors(update)
    result = combined(on(), starts, updates).adapter
    total = sum(SAMPLES.values())
    for name, start in starts.whole.tensors.items():
        changes = [SAMPLES[client] / total * (u.tensors[name].double() - start) for client, u in updates.items()]
        torch.testing.assert_close(result.tensors[name].double(), start + sum(changes), rtol=1e-6, atol=1e-7)
    untouched = result.tensors[f"{kind}/wide"][:, 2] if kind == "lora_B" else result.tensors[f"{kind}/wide"][2]
    before = starts.whole.tensors[f"{kind}/wide"]
    assert torch.equal(untouched, before[:, 2] if kind == "lora_B" else before[2])
    for path in ("wide", "tall", "square"):
        assert distance(product(result, path), mean_product(updates, path)) < 1e-6


def test_the_settings_make_the_rule():
    rule = make_rule("lora-a2", {"global_rank": 6, "learning_rate_ratio": 5.0})
    assert rule == make_rule("lora-a2", {"global_rank": 6, "learning_rate_ratio": 5.0})
    assert rule.global_rank == 6
    assert [rule.terms.rate(name) for name in ("lora_B/x", "lora_A/x", "head/x")] == [5.0, 1.0, 1.0]
