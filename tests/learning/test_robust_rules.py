"""Promises of median and trimmed mean, against NumPy number by number, and of a client that lies."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from splitrank import load_config
from splitrank.errors import ConfigError
from splitrank.federation.in_process import check_rule
from splitrank.federation.model import method_of, rule_of
from splitrank.learning.aggregation.rules import RULES, make_rule
from tests.learning import rule_checks
from tests.learning.oracle import distance, product
from tests.learning.rule_checks import SHAPES, combined, drift_round, one_rank, rescaled, subject

ROBUST = ("median", "trimmed-mean")


def of_settings(name, fraction=0.34, method="lora"):
    return subject(make_rule(name, {"fraction": fraction}), method)


def stacked(updates, name) -> np.ndarray:
    return np.stack([rescaled(update, 2.0).tensors[name].numpy().astype(np.float64) for update in updates.values()])


def trimmed_mean(values: np.ndarray, left_out: int) -> np.ndarray:
    """Drop the extremes of each number one by one, which knows no sorting."""
    result = np.zeros(values.shape[1:])
    for index in np.ndindex(*values.shape[1:]):
        left = list(values[(slice(None), *index)])
        for _ in range(left_out):
            left.remove(min(left))
            left.remove(max(left))
        result[index] = sum(left) / len(left)
    return result


def several(on, count):
    """Return a round with more clients than the table of scalings has."""
    starts, four = drift_round(on)
    drifts = {client: starts.whole.with_tensors(four[client % 4].tensors) for client in range(count)}
    moved = {
        client: update.with_tensors({name: tensor * (1 + 0.1 * client) for name, tensor in update.tensors.items()})
        for client, update in drifts.items()
    }
    return starts, moved, dict.fromkeys(moved, 1)


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_the_median_of_an_even_number_is_between_the_middle_two(count):
    on = of_settings("median")
    starts, updates, samples = several(on, count)
    result = combined(on, starts, updates, samples)
    for name, tensor in result.adapter.tensors.items():
        wanted = np.median(stacked(updates, name), axis=0)
        np.testing.assert_allclose(tensor.numpy(), wanted, rtol=2e-7, atol=1e-12)
    assert result.diagnostics["trimmed_at_each_end"] == (count - 1) // 2
    assert result.factor_averaging_error is None


@pytest.mark.parametrize(
    ("count", "fraction", "left_out"), [(3, 0.34, 1), (5, 0.2, 1), (10, 0.3, 3), (4, 0.2, 0), (5, 0.499, 2), (6, 0, 0)]
)
def test_the_trimmed_mean_leaves_out_as_many_as_the_fraction_says(count, fraction, left_out):
    on = of_settings("trimmed-mean", fraction)
    starts, updates, samples = several(on, count)
    result = combined(on, starts, updates, samples)
    for name, tensor in result.adapter.tensors.items():
        np.testing.assert_allclose(tensor.numpy(), trimmed_mean(stacked(updates, name), left_out), rtol=3e-7, atol=1e-7)
    assert result.diagnostics["trimmed_at_each_end"] == left_out


@pytest.mark.parametrize("name", ROBUST)
def test_no_single_client_moves_the_result_beyond_the_others(name):
    on = of_settings(name)
    starts, updates = drift_round(on, count=3)
    others = {client: update for client, update in updates.items() if client != 1}
    for lie in (1e6, -1e6):
        liar = updates[1].with_tensors({key: lie * tensor for key, tensor in updates[1].tensors.items()})
        result = combined(on, starts, {**updates, 1: liar}).adapter
        for key, tensor in result.tensors.items():
            honest = stacked(others, key)
            assert (tensor.numpy() >= honest.min(axis=0) - 1e-6).all(), key
            assert (tensor.numpy() <= honest.max(axis=0) + 1e-6).all(), key
    mean = combined(subject(RULES["fedavg"], "lora"), starts, {**updates, 1: liar}).adapter
    assert max(distance(product(mean, path), product(result, path)) for path in SHAPES) > 10


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_updates_are_averaged_and_it_is_said(name, count, caplog):
    on = of_settings(name)
    starts, updates = drift_round(on, count)
    with caplog.at_level(logging.WARNING, "splitrank"):
        result = combined(on, starts, updates)
    assert result.diagnostics == {"unweighted_mean_of": count}
    assert caplog.messages == [f"The unweighted mean was taken: the rule needs 3 updates, got {count}."]
    plain = combined(subject(RULES["fedavg"], "lora"), starts, updates, dict.fromkeys(updates, 1))
    assert rule_checks.same_bits(result.adapter.tensors, plain.adapter.tensors)
    assert result.factor_averaging_error == plain.factor_averaging_error


def test_how_much_of_the_mean_step_is_left_is_told():
    """Of values 0, 0 and 3 the median is 0 and the mean 1; without a step nothing is lost."""
    on = of_settings("median")
    starts = one_rank(on, 3)
    moved = starts.whole.with_tensors({name: tensor + 3.0 for name, tensor in starts.whole.tensors.items()})
    alone = combined(on, starts, {0: starts.whole, 1: starts.whole, 2: moved})
    assert alone.diagnostics["robust_step_ratio"] == 0.0
    for client in (0, 1):
        assert torch.equal(alone.adapter.tensors["lora_B/wide"], starts.of[client].tensors["lora_B/wide"])
    two = combined(on, starts, {0: starts.whole, 1: moved, 2: moved})
    assert two.diagnostics["robust_step_ratio"] == pytest.approx(1.5, rel=1e-6)
    still = combined(on, starts, dict(starts.of))
    assert still.diagnostics["robust_step_ratio"] == 1.0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["federation.num_clients=2"], 'federation.num_clients must be at least 3 for federation.aggregation = "'),
        (["federation.clients_per_round=2"], "federation.clients_per_round must be at least 3 for"),
        (["federation.trimmed-mean.fraction=0.5"], "federation.trimmed-mean.fraction must be a number from 0 up to"),
        (["federation.trimmed-mean.fraction=0.3"], "must leave out at least one of a round's 3 updates at each end"),
        (["planner.rank_policy='per-client'"], 'planner.rank_policy must be "common"'),
    ],
)
def test_what_makes_no_sense_is_refused(more, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config("offline", ["federation.aggregation='trimmed-mean'", *more])
    assert sentence in str(caught.value)
    if "trimmed-mean" not in more[0]:
        with pytest.raises(ConfigError) as caught:
            load_config("offline", ["federation.aggregation='median'", *more])
        assert sentence in str(caught.value)


def test_its_settings_are_written_and_read_again(tmp_path):
    from splitrank.config import to_toml

    config = load_config("offline", ["federation.aggregation='trimmed-mean'", "federation.trimmed-mean.fraction=0.4"])
    (tmp_path / "own.toml").write_text(text := to_toml(config))
    assert "[federation.trimmed-mean]\nfraction = 0.4\n" in text
    assert load_config(str(tmp_path / "own.toml")) == config
    assert rule_of(config).combine.fraction == 0.4
    assert rule_of(config) != rule_of(load_config(str(tmp_path / "own.toml"), ["federation.trimmed-mean.fraction=0"]))
    assert "trimmed" not in to_toml(load_config("offline"))
    with pytest.raises(ConfigError, match="got a setting that is never read"):
        load_config("offline", ["federation.trimmed-mean.fraction=0.4"])


def test_a_rule_of_ones_own_is_held_to_its_fewest_updates():
    config = load_config("offline", ["federation.num_clients=2"])
    with pytest.raises(ConfigError, match="a round must take at least 3 clients for the rule median, got 2"):
        check_rule(RULES["median"], method_of(config), config)


@pytest.mark.extras
@pytest.mark.parametrize(("name", "strategy"), [("median", "FedMedian"), ("trimmed-mean", "FedTrimmedAvg")])
def test_flowers_own_strategies_find_the_same(name, strategy):
    """Both in float32 there, so to its precision."""
    import flwr.serverapp.strategy as strategies

    from tests.learning.flower_strategies import replies_of

    on = of_settings(name, 0.25)
    starts, updates, samples = several(on, 5)
    result = combined(on, starts, updates, samples).adapter
    theirs = getattr(strategies, strategy)(**({"beta": 0.25} if name == "trimmed-mean" else {}))
    arrays, _ = theirs.aggregate_train(1, replies_of(updates, samples))
    for key, tensor in result.tensors.items():
        np.testing.assert_allclose(arrays[key].numpy(), tensor.numpy(), rtol=1e-5, atol=1e-6)
