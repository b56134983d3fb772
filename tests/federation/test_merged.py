"""Promise: products that a rule puts aside stay in the model, travel in the state, resume, and are exported."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from splitrank import load_config, load_data, make_clients, predict, run
from splitrank.errors import ConfigError
from splitrank.federation import wire
from splitrank.federation.backlog import held_rows
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.merged import add_merged, merged_factors
from splitrank.learning.adapters.method import load, read
from splitrank.learning.aggregation.distribute import merge_rest
from splitrank.learning.aggregation.rule import Rule, Starts
from splitrank.traits import FACTORS, METHOD_TRAITS, RuleTraits
from tests.federation.merging_rules import PUT_ASIDE, RESIDUAL, of_rule, put_aside

SETTINGS = ["model.precision=fp32", "federation.rounds=3", "adapter.rank=3", "budget.latency_s=3", "budget.energy_j=10"]


connect = of_rule(PUT_ASIDE)


@pytest.mark.parametrize(
    ("method", "targets"),
    [
        pytest.param("lora", "query-value", marks=pytest.mark.slow),
        pytest.param("lora", "all-linear", marks=pytest.mark.slow),
        ("rslora", "query-value"),
    ],
)
def test_a_run_with_merged_parts(method, targets, tiny_config, tmp_path):
    """Three rows a round: square linears are dense from 17 on, at the start of round 7, wide ones from 20, of 8."""
    own = [f"adapter.method={method}", f"adapter.target_modules={targets}", "federation.rounds=8"]
    config = load_config(str(tiny_config), [*SETTINGS, *own])
    records = list(run(config, tmp_path / "run", connect=connect))
    assert records[-1].accuracy > records[0].accuracy
    # What was put aside after a round goes down in the next, as much as goes up; what is dense goes down every round.
    down = [record.clients[0].downlink_bits for record in records[1:]]
    up = records[1].clients[0].uplink_bits
    num_square, num_wide = (6, 0) if targets == "query-value" else (12, 6)
    square, wide, new = 32 * 32 * num_square * 256, 32 * 48 * num_wide * 256, 3 * (32 + 48) * num_wide * 256
    assert down == [up, *5 * [2 * up], up + square + new, up + square + wide]

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
    aside = put_aside(Starts(moved, {0: moved}), {0: moved}, {0: 1.0}, {}).adapter
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


@pytest.mark.parametrize(("rank", "is_dense"), [(4, False), (5, True)])
def test_factors_larger_than_their_product_become_it(rank, is_dense):
    """d·k/(d + k) = 12·6/18 = 4."""
    a, b = torch.randn(rank, 6), torch.randn(12, rank)
    adapter = add_merged(Adapter(1, 2.0, {}), {"x": (a, b)})
    assert set(adapter.tensors) == ({"merged_W/x"} if is_dense else {"merged_A/x", "merged_B/x"})
    more = add_merged(adapter, {"x": (a, b)})
    (factors,) = merged_factors(more).values()
    torch.testing.assert_close(factors[1] @ factors[0], 2 * b @ a)


@pytest.mark.parametrize("method", [name for name, traits in METHOD_TRAITS.items() if traits.kinds != FACTORS])
def test_only_lora_has_merged_parts(method, tiny_config):
    config = load_config(str(tiny_config), [f'adapter.method="{method}"', 'workload.model="flops"'])
    with pytest.raises(ConfigError, match=r"adapter\.method must (be plain LoRA|have lora_A) for the rule put-aside"):
        connect(config)
    clients = make_clients(config, load_data(config))
    path = "roberta.encoder.layer.3.attention.self.query"
    adapter = add_merged(clients.initial_state().adapter, {path: (torch.ones(1, 32), torch.ones(32, 1))})
    with pytest.raises(TypeError, match=f"merged parts must be LoRA, got {method}"):
        load(clients.model.adapted, adapter)
    clients.close()


def dense_products(adapter: Adapter) -> dict[str, torch.Tensor]:
    """s·B·A and what is merged, together, in float64."""
    products = {
        path: adapter.scaling * adapter.tensors[f"lora_B/{path}"].double() @ a.double()
        for path, a in adapter.of_kind("lora_A").items()
    }
    for path, (a, b) in merged_factors(adapter).items():
        products[path] = products[path] + b.double() @ a.double()
    return products


@pytest.mark.parametrize("distribution", ["svd", "prefix"])
@pytest.mark.parametrize("rank", [1, 3])
def test_what_a_smaller_rank_cuts_off_is_merged(rank, distribution, tiny_config):
    """The product and what is merged stay together what they were, whatever was merged before; B = 0 leaves nothing."""
    config = load_config(str(tiny_config), SETTINGS)
    clients = connect(config)
    rule = Rule("own", RuleTraits(frozenset({"merges"}), distribution), put_aside)
    method, noise = clients.model.method, torch.Generator().manual_seed(1)
    start = method.resize(clients.initial_state().adapter, 5, distribution=distribution, seed=0, round=1)
    nothing = merge_rest(start, rank, method, rule)
    assert (nothing.rank, nothing.kinds) == (rank, start.kinds)

    adapter = start.with_tensors({n: torch.randn(t.shape, generator=noise) for n, t in start.tensors.items()})
    for _ in range(2):  # the second time beside merged parts
        kept = merge_rest(adapter, rank, method, rule)
        assert kept.rank == rank
        assert all(kept.tensors[f"lora_A/{path}"].shape[0] == rank for path in kept.of_kind("lora_A"))
        expected = dense_products(adapter)
        for path, product in dense_products(kept).items():
            torch.testing.assert_close(product, expected[path], rtol=0, atol=3e-6 * float(expected[path].norm()))
        assert {len(a) for a, _ in merged_factors(kept).values()} == {5 - rank + len_before(adapter)}
        adapter = kept.with_tensors(adapter.only("lora_A", "lora_B"))
        adapter = Adapter(5, start.scaling, adapter.tensors)
    clients.close()


def len_before(adapter: Adapter) -> int:
    return max((len(a) for a, _ in merged_factors(adapter).values()), default=0)


def test_a_plan_of_a_smaller_rank_merges_and_counts_what_it_cuts_off(tiny_config, tmp_path):
    """Ranks fall in this run; the model is the same function before and after, and the bits are sent."""
    from splitrank.federation.rounds import keep_what_is_cut, run_round, starts_of

    config = load_config(
        str(tiny_config), ["model.precision=fp32", 'workload.model="flops"', "client.flops_per_cycle=4.0"]
    )
    clients = of_rule(RESIDUAL)(config)
    state, num_falls = clients.initial_state(), 0
    for _ in range(4):
        problem = clients.problem(state)
        plan = clients.plan(problem, state)
        kept, counted, planned = keep_what_is_cut(state, problem, plan, clients)
        if plan.largest_rank >= state.adapter.rank:
            assert (kept, counted, planned) == (state, problem, plan)
        else:
            num_falls += 1
            assert planned.largest_rank == kept.adapter.rank <= plan.largest_rank
            expected = dense_products(state.adapter)
            for path, product in dense_products(kept.adapter).items():
                torch.testing.assert_close(product, expected[path], rtol=0, atol=3e-6 * float(expected[path].norm()))
            before, after = clients.evaluate(state), clients.evaluate(kept)
            assert after.accuracy == before.accuracy
            assert after.loss == pytest.approx(before.loss, rel=1e-5)
            start = starts_of(kept, planned, clients).of[0]
            assert start.rank == planned.largest_rank
            sent = wire.downlink(start, clients.rule, held_rows(kept, 0))
            numbers = sum(tensor.numel() for tensor in sent.values())
            assert 32.0 * numbers == counted.workload.downlink_bits(planned.rank)[0]
            assert np.all(counted.workload.cycles(start.rank) >= problem.workload.cycles(start.rank))
        state, _ = run_round(state, clients)
    assert num_falls
    clients.close()
