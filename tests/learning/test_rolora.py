"""Promises of RoLoRA: B in even turns, A in odd ones, and each aggregation exact."""

from __future__ import annotations

import pytest
import torch

from splitrank.learning.adapters.adapter import kind_of
from splitrank.learning.aggregation.rules import RULES
from tests.learning.oracle import distance, product
from tests.learning.rule_checks import SHAPES, combined, drifted, mean_product, one_rank, subject

KINDS = {"lora_A", "lora_B", "magnitude", "head"}


def test_even_turns_train_B_and_odd_ones_A():
    """B first: while it is 0, A has no gradient."""
    traits = RULES["rolora"].traits
    for turn in (0, 2, 10):
        assert traits.trained(KINDS, turn) == KINDS - {"lora_A"}
        assert traits.trained(KINDS, turn + 1) == KINDS - {"lora_B"}


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_every_turn_is_exact_and_leaves_the_other_factor_alone(method):
    """Also where a turn's factors are trained on from those of the turn before."""
    on = subject(RULES["rolora"], method)
    starts = one_rank(on)
    for turn in range(4):
        updates = {client: drifted(on, start, client, turn) for client, start in starts.of.items()}
        result = combined(on, starts, updates)
        assert result.factor_averaging_error == 0.0
        for path in SHAPES:
            assert distance(product(result.adapter, path), mean_product(updates, path)) < 1e-6
        for name, tensor in starts.whole.tensors.items():
            frozen = kind_of(name) == ("lora_A", "lora_B")[turn % 2]
            assert torch.equal(result.adapter.tensors[name], tensor) == frozen, (turn, name)
        starts = type(starts)(result.adapter, dict.fromkeys(starts.of, result.adapter))
