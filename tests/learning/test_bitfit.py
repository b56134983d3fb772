"""Promises of BitFit beside those of every method: which biases it trains, and that those of keys have no effect."""

from __future__ import annotations

import pytest
import torch

from splitrank.learning.adapters.method import load
from splitrank.learning.forward import packed_logits, reference_logits
from tests.conftest import TINY_FAMILIES
from tests.learning import oracle
from tests.learning.oracle import LENGTHS, adapt, begin, moved, random_ids

IDS = random_ids(64, LENGTHS)
COUNTS = torch.tensor(LENGTHS)


@pytest.mark.parametrize("place", ["last:3", [1, 4]])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_it_trains_every_bias_of_the_trained_layers(family, place, tiny_model):
    """Six linears, four of h numbers, one of m and one of h, and the β of two layer norms in each of the layers."""
    adapted = adapt(oracle.fresh(tiny_model(family), place), "bitfit")
    parameters = load(adapted, begin(adapted, 1))
    found = [p for name, p in parameters.items() if name.startswith("bias/")]
    num_layers, h, m = len(adapted.encoder.trained_layers), 32, 48
    assert len(found) == 8 * num_layers
    assert sum(p.numel() for p in found) == num_layers * (4 * h + m + h + 2 * h)
    assert {p.ndim for p in found} == {1}


def test_the_reference_pass_is_chosen_since_the_packed_one_would_ignore_biases(tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), "bitfit")
    load(adapted, begin(adapted, 1))
    assert adapted.forward is reference_logits
    with pytest.raises(TypeError):
        packed_logits(adapted.encoder, adapted.encoder.trunk(IDS), COUNTS)


@pytest.mark.parametrize(("family", "key", "value"), [("roberta", "key", "value"), ("distilbert", "k_lin", "v_lin")])
def test_no_loss_depends_on_a_keys_bias(family, key, value, tiny_model):
    """The softmax does not see what is added to all scores of a query: no gradient, and no score moves with it."""
    adapted = adapt(oracle.fresh(tiny_model(family)), "bitfit")
    adapter = moved(begin(adapted, 1))
    hidden, logits = adapted.encoder.trunk(IDS), []
    for factor in (1.0, -3.0):
        keys = {name: factor * t for name, t in adapter.tensors.items() if name.endswith(f".{key}.bias")}
        assert len(keys) == 3
        parameters = load(adapted, adapter.with_tensors(keys))
        logits.append(adapted.logits(hidden, COUNTS))
        found = oracle.gradients(logits[-1], parameters)
        for name in keys:
            of_value = found[name.replace(f".{key}.", f".{value}.")].norm()
            assert found[name].norm() < 1e-5 * of_value
    oracle.assert_logits(*logits)
