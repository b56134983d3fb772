"""Promises of sizes: what an adapter of these settings has of numbers, how large it may be, and what is sent of it."""

from __future__ import annotations

import pytest

from splitrank.config import load_config
from splitrank.errors import ConfigError
from splitrank.federation.sizes import (
    adapter_numbers,
    check_if_known,
    encoder_shape,
    head_numbers_sent,
    payload,
    rank_cap,
)
from splitrank.planning.costs.cost import Count

HEAD = 593_668


def test_accounting_of_roberta_base():
    for targets, per_rank in (("query-value", 9_216), ("all-linear", 41_472)):
        config = load_config("paper", [f"adapter.target_modules={targets}"])
        shape = encoder_shape(config)
        assert (adapter_numbers(config, shape), head_numbers_sent(config, shape)) == (Count(0, per_rank), HEAD)


# Query and value of three layers: 4,608 numbers a rank in all lora_A and as many in all lora_B, 4,608 magnitudes; three
# whole layers have 21,263,616 numbers, of which 25,344 are biases; IA3 has 2·768 + 3,072 numbers a
# layer; six bottlenecks have 2·768 + 1 numbers a unit, and 768 for all; three prefixes 2·768 a token.
@pytest.mark.parametrize(
    ("overrides", "up", "down"),
    [
        ([], Count(HEAD, 9_216), Count(HEAD, 9_216)),
        (["model.head=local"], Count(0, 9_216), Count(0, 9_216)),
        (["federation.aggregation=ffa"], Count(HEAD, 4_608), Count(HEAD, 4_608)),
        (["federation.aggregation=rolora"], Count(HEAD, 4_608), Count(HEAD, 9_216)),
        (["federation.aggregation=fedsa", "adapter.rank=8"], Count(0, 4_608), Count(0, 4_608)),
        (["federation.aggregation=lora-a2", "federation.lora-a2.rank=4"], Count(HEAD, 4_608), Count(HEAD + 4 * 9_216)),
        (["federation.aggregation=flexlora"], Count(HEAD, 9_216), Count(HEAD, 9_216)),
        (["adapter.method=dora"], Count(HEAD + 4_608, 9_216), Count(HEAD + 4_608, 9_216)),
        (
            ["adapter.method=dora", "federation.aggregation=ffa"],
            Count(HEAD + 4_608, 4_608),
            Count(HEAD + 4_608, 4_608),
        ),
        (["adapter.method=rslora"], Count(HEAD, 9_216), Count(HEAD, 9_216)),
        (["adapter.method=full"], Count(HEAD + 21_263_616), Count(HEAD + 21_263_616)),
        (["adapter.method=bitfit"], Count(HEAD + 25_344), Count(HEAD + 25_344)),
        (["adapter.method=ia3"], Count(HEAD + 13_824), Count(HEAD + 13_824)),
        (["adapter.method=bottleneck"], Count(HEAD + 4_608, 9_222), Count(HEAD + 4_608, 9_222)),
        (["adapter.method=prefix"], Count(HEAD, 4_608), Count(HEAD, 4_608)),
        (["adapter.method=prefix", "adapter.prefix.gate=true"], Count(HEAD, 4_611), Count(HEAD, 4_611)),
    ],
)
def test_what_is_sent_up_and_down(overrides, up, down):
    config = load_config("paper", ["workload.model=flops", *overrides])
    sent = payload(config, encoder_shape(config))
    assert (sent.uplink, sent.downlink, sent.bits_per_number) == (up, down, 32.0)


def test_the_papers_payload_is_equation_5_of_what_is_trained():
    for rule, per_rank in (("fedavg", 9_216), ("ffa", 4_608)):
        for head, constant in (("false", 0), ("true", HEAD)):
            config = load_config("paper", [f"federation.aggregation={rule}", f"workload.count_head={head}"])
            sent = payload(config, encoder_shape(config))
            assert (sent.uplink, sent.downlink, sent.bits_per_number) == (*2 * [Count(constant, per_rank)], 256.0)


@pytest.mark.parametrize(
    ("overrides", "cap"),
    [
        ([], 128),
        (["planner.max_rank=9"], 9),
        (["planner.max_rank=4000"], 768),
        (["adapter.rank=3"], 768),
        (["adapter.method=dora"], 128),
        (["adapter.method=full"], 1),
        (["adapter.method=bitfit"], 1),
        (["adapter.method=ia3"], 1),
        (["adapter.method=bottleneck", "planner.max_rank=4000"], 768),
        (["adapter.method=prefix", "planner.max_rank=20"], 20),
    ],
)
def test_the_largest_rank(overrides, cap):
    config = load_config("edge", overrides)
    assert rank_cap(config, encoder_shape(config)) == cap


def test_a_rank_that_no_linear_has_is_refused():
    with pytest.raises(ConfigError, match=r"adapter\.rank must be at most 768"):
        check_if_known(load_config("paper", ["adapter.rank=769"]))


def test_a_bottleneck_wider_than_the_encoder_is_refused():
    with pytest.raises(ConfigError, match=r"must be at most 768, the hidden size of the encoder, got 769"):
        check_if_known(load_config("edge", ["adapter.method=bottleneck", "adapter.rank=769"]))


def test_a_model_folder_tells_its_sizes(tiny_model):
    for family in ("roberta", "distilbert"):
        shape = encoder_shape(load_config("paper", [f"model.name={tiny_model(family)}"]))
        assert (shape.num_layers, shape.hidden_size, shape.intermediate_size) == (6, 32, 48)
