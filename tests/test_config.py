"""Promise: every broken rule of a configuration is named at once, with key, rule, value and what to try."""

from __future__ import annotations

import math
import re
from typing import get_args

import pytest

from splitrank.config import (
    PRESETS,
    AdapterTable,
    FederationTable,
    Uniform,
    load_config,
    to_toml,
    with_values,
)
from splitrank.errors import ConfigError, InputError
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS

FULL = ["adapter.method='full'", "workload.model='flops'"]


def problems(*overrides: str, source: str = "paper") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return caught.value.problems


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_in_order_and_survive_being_written(preset, tmp_path):
    config = load_config(preset)
    (tmp_path / "config.toml").write_text(to_toml(config))
    again = load_config(str(tmp_path / "config.toml"))
    assert to_toml(again) == to_toml(config)


def test_the_paper_preset_is_what_the_defaults_are(tmp_path):
    (tmp_path / "empty.toml").write_text("")
    assert load_config("paper") == load_config(str(tmp_path / "empty.toml"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("federation.roundss=3", "federation.roundss must be a known key.*did you mean federation.rounds"),
        ("rounds=3", "rounds must be a known key.*federation.rounds"),
        ("client.nothing_like_it=3", "client.nothing_like_it must be a known key.*config show"),
        ("federation.rounds=2.5", "federation.rounds must be a whole number, 1 or greater, got 2.5"),
        ("federation.rounds=true", "federation.rounds must be a whole number"),
        ("model.name=3", "model.name must be a text, got 3"),
        ("model=3", "model must be a table of keys, got 3"),
        ("model.name=''", 'model.name must be .*got ""'),
        ("workload.count_head=1", "workload.count_head must be true or false, got 1"),
        ("train.learning_rate=nan", "train.learning_rate must be a finite number greater than 0, got nan"),
        ("train.learning_rate=inf", "got inf"),
        ("train.learning_rate=0", "greater than 0, got 0"),
        ("train.learning_rate='fast'", "train.learning_rate must be a finite number.*got 'fast'"),
        ("client.circuit_energy_j=-1", "client.circuit_energy_j must be a finite number, 0 or greater"),
        ("budget.latency_s=-5", "budget.latency_s must be a finite number greater than 0, or inf for no limit, got -5"),
        ("budget.energy_j=[1, 2]", "budget.energy_j must be a list of federation.num_clients = 3 numbers, got 2"),
        ("budget.latency_s=-inf", "or inf for no limit, got -inf"),
        ("budget.latency_s=nan", "or inf for no limit, got nan"),
        ("budget.energy_j=[1, nan, 2]", "budget.energy_j must be a finite number greater than 0, or inf for no limit"),
        ("budget.energy_j={uniform=[1, inf]}", "budget.energy_j must be a finite number"),
        ("client.samples=[10, 20]", "client.samples must be a list of federation.num_clients = 3"),
        ("client.samples=0", "client.samples must be a whole number, 1 or greater"),
        ("radio.uplink_gain=[1e-3, 1e-3]", "radio.uplink_gain must be a list of federation.num_clients = 3"),
        ("radio.uplink_gain=1e-3", "radio.uplink_gain must be a list of finite numbers"),
        ("client.capacitance={uniform=[2, 1]}", "low at most high"),
        ("client.capacitance={normal=[2, 1]}", "client.capacitance must be .*uniform"),
        ("radio.noise_figure_db={uplink=5}", "radio.noise_figure_db must be a finite number of dB"),
        ("planner.latency_margin=1", "from 0 up to, but not including, 1"),
        ("federation.target_accuracy=90", "a share greater than 0 and at most 1"),
        ("run.seed=-1", "run.seed must be a whole number, 0 or greater"),
        ("model.trained_layers='last:0'", 'model.trained_layers must be "last:N"'),
        ("model.trained_layers=[1, 1]", "without duplicates"),
        ("model.trained_layers=[]", "at least one"),
        ("adapter.target_modules=['quer']", "'quer' does not"),
        ("adapter.target_modules='everything'", "adapter.target_modules must be one of query-value"),
        ("model.head='big'", "model.head must be one of 'full', 'out_proj', 'frozen' or 'local', got 'big'"),
        ("data.text=[]", "data.text must be a column name or a list"),
        ("adapter.method='bitfit'", "adapter.method = \"bitfit\" is not available yet; try 'lora'"),
        ("federation.aggregation='flora'", "not available yet"),
        ("split.mode='splitfed'", "split is not available yet"),
        (
            "planner.rank_policy='per-client'",
            'planner.rank_policy must be "common" for federation.aggregation = "fedavg", which averages factors of one '
            'rank, got "per-client"; try federation.aggregation = "flexlora"',
        ),
        (
            "adapter.method='full'",
            'workload.model must be "flops" or "measured" for adapter.method = "full", got "paper"; '
            'try workload.model = "flops"',
        ),
        ("planner.rank_policy='own'", "planner.rank_policy must be one of 'common' or 'per-client'"),
    ],
)
def test_broken_rules(override, expected):
    assert any(re.search(expected, problem) for problem in problems(override)), problems(override)


def test_all_problems_come_at_once():
    assert len(problems("federation.rounds=0", "train.batch_size=0", "model.head='x'", "nonsense=1")) == 4


@pytest.mark.parametrize(
    "allowed", ["client.circuit_energy_j=0", "train.dropout=0", "run.seed=0", "radio.fading='none'"]
)
def test_zero_where_it_means_something(allowed):
    load_config("paper", [allowed])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("radio.bandwidth_hz=1e6", "radio.total_bandwidth_hz=3e6"),
        ("radio.noise_power_w=1e-9", "radio.noise_psd_dbm_hz=-174"),
        ("radio.large_scale_gain=1e-3", "radio.distance_m=100"),
        ("data.name='x'", "data.path='y'"),
    ],
)
def test_either_or(first, second):
    (problem,) = problems(first, second)
    assert "must not both be given" in problem
    for side in (first, second):
        config = load_config("paper", [side])
        key = side.split("=")[0].split(".")
        other = (second if side == first else first).split("=")[0].split(".")
        assert getattr(getattr(config, key[0]), key[1]) is not None
        assert getattr(getattr(config, other[0]), other[1]) is None


def test_an_override_drops_the_other_side_of_the_preset():
    config = load_config("edge", ["radio.large_scale_gain=1e-3", "radio.noise_power_w=1e-9"])
    assert config.radio.distance_m is None
    assert config.radio.noise_figure_db is None


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["client.flops_per_cycle=4"], "client.flops_per_cycle"),
        (["workload.model='flops'", "workload.bits_per_parameter=8"], "workload.bits_per_parameter"),
        (["client.seconds_per_sample=1"], "client.seconds_per_sample"),
        (["radio.uplink_gain=[1,1,1]", "radio.downlink_gain=[1,1,1]", "radio.fading='none'"], "radio.fading"),
        (["planner.random_range='full'"], "planner.random_range"),
        (["adapter.rank=8", "planner.max_rank=4"], "planner.max_rank"),
        (["adapter.rank=8", "planner.rank_policy='common'"], "planner.rank_policy"),
        *(
            ([*FULL, f"{key}={value}"], key)
            for key, value in {
                "adapter.rank": "1",
                "planner.max_rank": "4",
                "planner.rank_policy": "'common'",
                "adapter.target_modules": "'attention'",
                "adapter.scaling": "1.0",
                "adapter.dropout": "0.1",
            }.items()
        ),
        (["model.head='frozen'", "workload.count_head=true"], "workload.count_head"),
        (["data.name='docstrings'", "data.label='x'"], "data.label"),
    ],
)
def test_settings_without_effect(overrides, key):
    assert any(problem.startswith(f"{key} must have an effect") for problem in problems(*overrides))


def test_settings_without_effect_are_left_out_of_resolved_files():
    assert "flops_per_cycle" not in to_toml(load_config("paper"))
    assert "bits_per_parameter" not in to_toml(load_config("edge"))


def test_a_rule_needs_the_kinds_of_its_method():
    for rule in ("ffa", "flexlora"):
        (problem,) = problems(*FULL, f"federation.aggregation={rule}")
        assert problem == (
            'federation.aggregation must be "fedavg" for adapter.method = "full", which has no lora_A and no lora_B, '
            f'got "{rule}"; try federation.aggregation = "fedavg"'
        )
        for method in ("lora", "dora"):
            load_config("edge", [f"adapter.method={method}", f"federation.aggregation={rule}"])


def test_methods_and_rules_are_those_with_traits():
    assert get_args(AdapterTable.model_fields["method"].annotation) == tuple(METHOD_TRAITS)
    assert get_args(FederationTable.model_fields["aggregation"].annotation) == tuple(RULE_TRAITS)


@pytest.mark.parametrize("rule", ["ffa", "flexlora"])
@pytest.mark.parametrize("where", ["server", "client"])
def test_ranks_per_client_where_the_rule_takes_them(rule, where):
    settings = [f"federation.aggregation={rule}", "planner.rank_policy=per-client", f"planner.where={where}"]
    assert load_config("edge", settings).planner.rank_policy == "per-client"
    (problem,) = problems(*settings, "radio.downlink=broadcast", source="edge")
    assert problem.startswith('planner.rank_policy must be "common" for radio.downlink = "broadcast"')


def test_without_a_time_limit_the_frequencies_are_the_highest(tmp_path):
    unlimited = load_config("edge", ["budget.latency_s=inf", "budget.energy_j=[1, inf, 2]"])
    assert unlimited.planner.frequency_policy == "least-latency"
    assert unlimited.budget.energy_j == (1.0, math.inf, 2.0)
    (tmp_path / "config.toml").write_text(to_toml(unlimited))
    assert load_config(str(tmp_path / "config.toml")) == unlimited
    (problem,) = problems("budget.latency_s=inf", "planner.frequency_policy='least-energy'")
    assert problem == (
        'planner.frequency_policy must be "least-latency" where budget.latency_s = inf, got "least-energy", which '
        "would stop the clock; leave it out"
    )


def test_the_frequency_policy_follows_the_time_limit_of_the_last_layer():
    unlimited = with_values(load_config("edge"), {"budget.latency_s": math.inf})
    assert unlimited.planner.frequency_policy == "least-latency"
    assert with_values(unlimited, {"budget.latency_s": 10.0}).planner.frequency_policy == "least-energy"
    fastest = load_config("edge", ["planner.frequency_policy='least-latency'"])
    assert with_values(fastest, {"budget.latency_s": 10.0}).planner.frequency_policy == "least-latency"
    load_config("edge", ["budget.latency_s=inf", "planner.method='random-frequency'"])


def test_measured_numbers_come_all_three_or_none():
    assert load_config("paper", ["workload.model='measured'"]).client.seconds_per_sample is None
    found = problems("workload.model='measured'", "client.seconds_per_sample=0.1")
    assert [problem.split()[0] for problem in found] == ["client.reference_frequency_hz"]


def test_a_whole_table_may_be_set():
    config = load_config("paper", ["radio={fading='none', bandwidth_hz=2e6}"])
    assert (config.radio.fading, config.radio.bandwidth_hz, config.radio.noise_power_w) == ("none", 2e6, 1e-9)


def test_values_of_overrides():
    config = load_config(
        "paper", ["model.name=my folder/x", "client.capacitance={uniform=[1e-26,2e-26]}", "budget.energy_j=[1,2,3]"]
    )
    assert config.model.name == "my folder/x"
    assert config.client.capacitance == Uniform(low=1e-26, high=2e-26)
    assert config.budget.energy_j == (1.0, 2.0, 3.0)
    with pytest.raises(InputError, match="key=value"):
        load_config("paper", ["federation.rounds"])


def test_with_values_checks_again():
    config = load_config("paper")
    assert with_values(config, {"run.threads": 2}).run.threads == 2
    with pytest.raises(ConfigError, match=r"run\.threads"):
        with_values(config, {"run.threads": -2})


def test_sources_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"preset.*did you mean paper"):
        load_config("papr")
    (tmp_path / "broken.toml").write_text("model = [")
    with pytest.raises(InputError, match=r"broken\.toml must be a TOML file"):
        load_config(str(tmp_path / "broken.toml"))
    (tmp_path / "latin.toml").write_bytes(b"[model]\nname = '\xe9'\n")
    with pytest.raises(InputError, match="UTF-8"):
        load_config(str(tmp_path / "latin.toml"))
