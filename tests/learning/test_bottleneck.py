"""Promises of bottleneck adapters beside those of every method: where they stand, and how their width changes."""

from __future__ import annotations

import pytest
import torch

from splitrank.learning.adapters.method import initial, load, trained_head
from splitrank.learning.forward import packed_logits, reference_logits
from tests.conftest import TINY_FAMILIES
from tests.learning import oracle
from tests.learning.oracle import LENGTHS, adapt, begin, moved, random_ids, same_bits

IDS = random_ids(64, LENGTHS)
COUNTS = torch.tensor(LENGTHS)
KEY = {"distribution": "svd", "seed": 0, "round": 4}


@pytest.fixture
def adapted(tiny_model):
    return adapt(oracle.fresh(tiny_model()), "bottleneck")


@pytest.mark.parametrize("place", ["last:3", [1, 4]])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_two_networks_stand_in_each_of_the_trained_layers(family, place, tiny_model):
    """After the last linear of attention and that of the feed-forward part, with 2·h·m + m + h numbers each."""
    adapted = adapt(oracle.fresh(tiny_model(family), place), "bottleneck")
    parameters = load(adapted, begin(adapted, 5))
    names, family = [name for name in parameters if not name.startswith("head/")], adapted.encoder.family
    ends = {name.partition("/")[2].partition(".layer.")[2] for name in names if name.startswith("bottleneck_bias/")}
    linears = [family.linears[name] for name in ("attention_output", "output")]
    assert ends == {f"{index}.{path}.bias" for index in adapted.encoder.trained_layers for path in linears}
    assert sum(parameters[name].numel() for name in names) == len(ends) * (2 * 32 * 5 + 5 + 32)


@pytest.mark.parametrize("held", [False, True])
def test_the_packed_pass_refuses_them(held, adapted):
    load(adapted, begin(adapted, 2))
    hidden = adapted.encoder.trunk(IDS)
    assert adapted.forward is reference_logits
    if held:
        adapted.encoder.cast_and_fuse_qkv(range(adapted.encoder.cut_layer, adapted.encoder.num_layers))
    with pytest.raises((TypeError, AttributeError)):
        packed_logits(adapted.encoder, hidden, COUNTS)


@pytest.mark.parametrize("distribution", ["svd", "prefix"])
def test_more_units_change_nothing_yet_and_fewer_are_the_first(distribution, adapted):
    hidden, first = adapted.encoder.trunk(IDS), moved(begin(adapted, 3))
    load(adapted, first)
    wanted, adapter = adapted.logits(hidden, COUNTS), first
    for round, units in enumerate((4, 9, 32), 2):
        adapter = adapted.method.resize(adapter, units, distribution=distribution, seed=0, round=round)
        assert adapter.rank == units
        load(adapted, adapter)
        oracle.assert_logits(adapted.logits(hidden, COUNTS), wanted)
    for name, weight in adapter.only("bottleneck_down").items():
        if name.endswith(".weight"):
            assert (weight[3:].abs().amax(dim=1) > 0).all()  # so that the new units can learn
            assert weight[3:].abs().max() <= 32**-0.5
    again = adapted.method.resize(adapter, 3, distribution=distribution, seed=0, round=9)
    assert same_bits(again.tensors, first.tensors)
    fewer = adapted.method.resize(first, 2, distribution=distribution, seed=0, round=9)
    for name, tensor in fewer.tensors.items():
        before = first.tensors[name]
        assert torch.equal(tensor, before[tuple(slice(size) for size in tensor.shape)])


def test_units_are_rows_of_one_draw_for_the_run(adapted):
    """Whatever widths came before; each network and each seed has its own."""
    start = initial(adapted, trained_head(adapted, "full"))
    direct = adapted.method.resize(start, 6, **KEY)
    stepwise = adapted.method.resize(adapted.method.resize(start, 2, **KEY), 6, **KEY | {"round": 7})
    assert same_bits(direct.tensors, stepwise.tensors)
    other = adapted.method.resize(start, 6, **KEY | {"seed": 1})
    weights = [w for name, w in direct.only("bottleneck_down").items() if name.endswith(".weight")]
    weights += [w for name, w in other.only("bottleneck_down").items() if name.endswith(".weight")]
    for index, weight in enumerate(weights):
        assert not any(torch.equal(weight, earlier) for earlier in weights[:index])


def test_the_order_of_units_changes_nothing(adapted):
    adapter, order = moved(begin(adapted, 4)), torch.tensor([2, 0, 3, 1])
    down = {name: tensor[order] for name, tensor in adapter.only("bottleneck_down").items()}
    up = {name: tensor[:, order] for name, tensor in adapter.only("bottleneck_up").items()}
    hidden, logits = adapted.encoder.trunk(IDS), []
    for one in (adapter, adapter.with_tensors({**down, **up}), adapter.with_tensors(down)):
        load(adapted, one)
        logits.append(adapted.logits(hidden, COUNTS))
    oracle.assert_logits(logits[1], logits[0])
    assert (logits[2] - logits[0]).abs().max() > 1e-3
