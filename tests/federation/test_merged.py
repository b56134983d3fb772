"""Promise: products that a rule puts aside stay in the model, travel in the state, resume, and are exported."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from splitrank import load_config, load_data, make_clients, predict, run
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.merged import add_merged, merged_factors
from splitrank.learning.adapters.method import load, read
from splitrank.learning.aggregation.fedavg import fedavg
from splitrank.learning.aggregation.rule import Combined, Rule
from splitrank.traits import RuleTraits

SETTINGS = ["model.precision=fp32", "federation.rounds=3", "adapter.rank=3", "budget.latency_s=3", "budget.energy_j=10"]


def put_aside(starts, updates, weights, memory):
    """Average, then put the whole product aside and start from a zero product again."""
    averaged = fedavg(starts, updates, weights, memory).adapter
    lora_B = averaged.of_kind("lora_B")
    parts = {path: (a, averaged.scaling * lora_B[path]) for path, a in averaged.of_kind("lora_A").items()}
    empty = {name: torch.zeros_like(tensor) for name, tensor in averaged.only("lora_B").items()}
    return Combined(add_merged(averaged, parts).with_tensors(empty), {})


RULE = Rule("put-aside", RuleTraits(frozenset()), put_aside)


def connect(config):
    return make_clients(config, load_data(config), rule=RULE)


@pytest.mark.parametrize("targets", ["query-value", "all-linear"])
def test_a_run_with_merged_parts(targets, tiny_config, tmp_path):
    """Ranks 3, 6, 9 on one kind of linear; on all, the wide ones keep factors and square ones are dense by rank 18."""
    config = load_config(str(tiny_config), [*SETTINGS, f"adapter.target_modules={targets}", "federation.rounds=6"])
    records = list(run(config, tmp_path / "run", connect=connect))
    assert records[-1].accuracy > records[0].accuracy
    # What was put aside goes down every round; the first of it after round 1.
    down = [record.clients[0].downlink_bits for record in records[1:]]
    up = [record.clients[0].uplink_bits for record in records[1:]]
    assert down[0] == up[0] == up[1]
    assert down[1] == 2 * up[1]

    data = load_data(config)
    found = list(predict(tmp_path / "run", data.test_texts))
    hits = [data.label_names[label] == told.label for label, told in zip(data.test_labels, found, strict=True)]
    assert np.mean(hits) == pytest.approx(records[-1].accuracy)

    list(islice(run(config, tmp_path / "broken", connect=connect), 4))
    list(run(config, tmp_path / "broken", resume=True, connect=connect))
    file = "adapter/adapter_model.safetensors"
    assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "run" / file).read_bytes()


def test_putting_aside_changes_no_score(tiny_config):
    config = load_config(str(tiny_config), SETTINGS)
    clients = connect(config)
    state, noise = clients.initial_state(), torch.Generator().manual_seed(1)
    start = clients.model.method.resize(state.adapter, 3, distribution="svd", seed=0, round=1)
    moved = start.with_tensors({n: torch.randn(t.shape, generator=noise) for n, t in start.tensors.items()})
    aside = put_aside(_starts(moved), {0: moved}, {0: 1.0}, {}).adapter
    adapted, outputs = clients.model.adapted, clients.test_outputs
    hidden, lengths = outputs.read(np.arange(8))

    def scores(adapter: Adapter) -> torch.Tensor:
        load(adapted, adapter)
        return adapted.logits(hidden, lengths).detach()

    expected = scores(moved)
    torch.testing.assert_close(scores(aside), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, aside.tensors[name]) for name, tensor in read(adapted, aside).tensors.items())
    torch.testing.assert_close(scores(moved), expected, rtol=0, atol=0)  # and they are out again
    clients.close()


def _starts(adapter):
    from splitrank.learning.aggregation.rule import Starts

    return Starts(adapter, {0: adapter})


@pytest.mark.parametrize(("rank", "is_dense"), [(4, False), (5, True)])
def test_factors_larger_than_their_product_become_it(rank, is_dense):
    """d·k/(d + k) = 12·6/18 = 4."""
    a, b = torch.randn(rank, 6), torch.randn(12, rank)
    adapter = add_merged(Adapter(1, 2.0, {}), {"x": (a, b)})
    assert set(adapter.tensors) == ({"merged_W/x"} if is_dense else {"merged_A/x", "merged_B/x"})
    more = add_merged(adapter, {"x": (a, b)})
    (factors,) = merged_factors(more).values()
    torch.testing.assert_close(factors[1] @ factors[0], 2 * b @ a)


@pytest.mark.parametrize("method", ["dora", "full"])
def test_only_lora_has_merged_parts(method, tiny_config):
    config = load_config(str(tiny_config), [f'adapter.method="{method}"', 'workload.model="flops"'])
    clients = make_clients(config, load_data(config))
    path = "roberta.encoder.layer.3.attention.self.query"
    adapter = add_merged(clients.initial_state().adapter, {path: (torch.ones(1, 32), torch.ones(32, 1))})
    with pytest.raises(TypeError, match=f"merged parts must be LoRA, got {method}"):
        load(clients.model.adapted, adapter)
    clients.close()
