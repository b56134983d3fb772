"""Promises of a round's costs: per client and draw, the trunk once or every round, methods as they really run."""

from __future__ import annotations

import numpy as np

from splitrank.config import load_config
from splitrank.federation.costs import preparation, round_workload
from splitrank.federation.per_client import per_client
from splitrank.federation.sizes import encoder_shape
from splitrank.federation.texts import nominal_text_stats, text_stats


def workload_of(*overrides: str):
    config = load_config("edge", overrides)
    return round_workload(config, encoder_shape(config), nominal_text_stats(config))


def test_a_client_keeps_its_draws_when_others_join():
    three, five = (load_config("paper", [f"federation.num_clients={n}"]) for n in (3, 5))
    key = "client.capacitance"
    values = [per_client(config.client.capacitance, key, config) for config in (three, five)]
    np.testing.assert_array_equal(values[0], values[1][:3])
    assert len(set(values[1])) == 5


def test_the_trunk_is_prepared_or_charged_every_round():
    prepared, charged = (load_config("edge", [f"workload.trunk={mode}"]) for mode in ("prepared", "every-round"))
    shape, texts = encoder_shape(prepared), nominal_text_stats(prepared)
    once = preparation(prepared, shape, texts)
    assert preparation(charged, shape, texts) is None
    more = round_workload(charged, shape, texts).cycles(8) - round_workload(prepared, shape, texts).cycles(8)
    frequency_hz = per_client(prepared.client.max_frequency_hz, "client.max_frequency_hz", prepared)
    np.testing.assert_allclose(once.seconds, more / frequency_hz)


def test_the_batch_size_counts_only_where_a_step_costs_something_beside_its_samples():
    """DoRA forms B·A once a step: 18 linears of three layers, 2·k·k·r + 2·k·r·d each, at 32 FLOP a cycle."""
    for method in ("lora", "full"):
        small, large = (workload_of(f"adapter.method={method}", f"train.batch_size={size}") for size in (8, 2000))
        np.testing.assert_array_equal(small.cycles(8), large.cycles(8))
    small, large = (workload_of("adapter.method=dora", f"train.batch_size={size}") for size in (999, 2000))
    sizes = 3 * (4 * [(768, 768)] + [(3072, 768), (768, 3072)])
    a_step = sum(2 * k * k * 8 + 2 * k * 8 * d for d, k in sizes) / 32
    np.testing.assert_allclose(small.cycles(8) - large.cycles(8), 2 * a_step)  # 3 steps instead of 1


def test_an_untrained_factor_is_neither_computed_nor_sent():
    whole, some = workload_of(), workload_of("federation.aggregation=ffa")
    for cost in ("cycles", "uplink_bits", "downlink_bits"):
        assert np.all(getattr(some, cost)(8) < getattr(whole, cost)(8))
    np.testing.assert_array_equal(some.cycles.constant, whole.cycles.constant)


def test_text_stats_are_sums_over_lengths():
    texts = text_stats([np.array([3, 4]), np.array([5])])
    np.testing.assert_array_equal(texts.samples, [2.0, 1.0])
    np.testing.assert_array_equal(texts.token_sum, [7.0, 5.0])
    np.testing.assert_array_equal(texts.token_square_sum, [25.0, 25.0])
