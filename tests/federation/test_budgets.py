"""Promises of what settings become: the presets' calibration, and draws that follow their keys."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank.config import load_config
from splitrank.federation.budgets import (
    encoder_shape,
    per_client,
    plan_round,
    planned_texts,
    preparation,
    round_problem,
    round_workload,
    trained_parameters,
)


def mean_rank(preset: str, *overrides: str) -> float:
    ranks = []
    for seed in range(200):
        config = load_config(preset, [*overrides, f"run.seed={seed}"])
        shape = encoder_shape(config)
        workload = round_workload(config, shape, planned_texts(config))
        problem = round_problem(config, shape, workload, 1, sit_out=False)
        ranks.append(plan_round(config, problem, 1, sit_out=False).rank)
    return float(np.mean(ranks))


@pytest.mark.parametrize(
    ("preset", "overrides", "expected"),
    [
        ("paper", [], 16.6),
        ("paper", ["budget.latency_s=2400"], 4.3),
        ("paper", ["budget.energy_j=1e3"], 5.5),
        ("paper", ["planner.method=random-frequency"], 2.9),
        # With FLOPs counted as PyTorch counts them where the last layer needs no other token's key or value.
        ("edge", [], 55.2),
    ],
)
def test_mean_ranks_of_the_presets(preset, overrides, expected):
    assert mean_rank(preset, *overrides) == pytest.approx(expected, rel=0.03)


def test_accounting_of_roberta_base():
    for targets, per_rank in (("query-value", 9_216), ("all-linear", 41_472)):
        config = load_config("paper", [f"adapter.target_modules={targets}"])
        parameters = trained_parameters(config, encoder_shape(config))
        assert (parameters.adapter_per_rank, parameters.head) == (per_rank, 593_668)


def test_a_client_keeps_its_draws_when_others_join():
    three, five = (load_config("paper", [f"federation.num_clients={n}"]) for n in (3, 5))
    key = "client.capacitance"
    values = [per_client(config.client.capacitance, key, config) for config in (three, five)]
    np.testing.assert_array_equal(values[0], values[1][:3])
    assert len(set(values[1])) == 5


def test_the_trunk_is_prepared_or_charged_every_round():
    prepared, charged = (load_config("edge", [f"workload.trunk={mode}"]) for mode in ("prepared", "every-round"))
    shape, texts = encoder_shape(prepared), planned_texts(prepared)
    once = preparation(prepared, shape, texts)
    assert preparation(charged, shape, texts) is None
    more = round_workload(charged, shape, texts).cycles(8) - round_workload(prepared, shape, texts).cycles(8)
    frequency_hz = per_client(prepared.client.max_frequency_hz, "client.max_frequency_hz", prepared)
    np.testing.assert_allclose(once.seconds, more / frequency_hz)


def test_a_model_folder_tells_its_sizes(tiny_model):
    for family in ("roberta", "distilbert"):
        shape = encoder_shape(load_config("paper", [f"model.name={tiny_model(family)}"]))
        assert (shape.num_layers, shape.hidden_size, shape.intermediate_size) == (6, 32, 48)
