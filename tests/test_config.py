"""Promise: every broken rule of a configuration is named at once, with key, rule, value and what to try."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, get_args

import pytest
from pydantic import Field, ValidationError

from splitrank.config import (
    PRESETS,
    AdapterTable,
    FederationTable,
    Uniform,
    load_config,
    to_toml,
    with_values,
)
from splitrank.config.conditions import one_of
from splitrank.config.explain import explain, settings_page
from splitrank.config.fields import settings_of, without_effect
from splitrank.config.layers import flatten, unflatten
from splitrank.config.problems import sentences
from splitrank.config.values import Count
from splitrank.config.variants import Table
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
        ("data.encoding='klingon'", "data.encoding must be an encoding that Python knows"),
        ("data.encoding='hex'", "data.encoding must be an encoding that Python knows"),
        ("data.separator=';;'", "data.separator must be one character between fields"),
        ("data.separator='\"'", "data.separator must be one character between fields"),
        ("data.columns=['a', 'a']", "data.columns must be a list of column names that differ"),
        ("data.config=' '", "data.config must not be empty"),
        ("adapter.method='adalora'", "adapter.method = \"adalora\" is not available yet; try 'lora'"),
        ("radio.fading='rician'", "not available yet"),
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
        (["data.encoding='gb18030'"], "data.encoding"),
        (["data.name='glue'", "data.separator=';'"], "data.separator"),
        (["data.name='glue'", "data.columns=['text', 'label']"], "data.columns"),
        (["data.path='texts'", "data.config='sst2'"], "data.config"),
        (["data.name='docstrings'", "data.config='sst2'"], "data.config"),
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
            'federation.aggregation must be "fedavg" or "median" or "trimmed-mean" for adapter.method = "full", which '
            f'has no lora_A and no lora_B, got "{rule}"; try federation.aggregation = "fedavg"'
        )
        for method in ("lora", "dora"):
            load_config("edge", [f"adapter.method={method}", f"federation.aggregation={rule}"])


def test_a_method_that_no_rule_averages_at_unequal_ranks_says_so():
    for rule in ("fedavg", "median"):
        (problem,) = problems(
            "adapter.method='bottleneck'",
            "workload.model='flops'",
            "planner.rank_policy='per-client'",
            f"federation.aggregation={rule}",
        )
        assert problem == (
            'planner.rank_policy must be "common" for adapter.method = "bottleneck", which no rule averages at unequal '
            'ranks, got "per-client"; leave it out'
        )
    (problem,) = problems("adapter.method='bottleneck'", "workload.model='flops'", "federation.aggregation=ffa")
    assert "which has no lora_A and no lora_B" in problem


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


def test_the_documentation_is_what_the_fields_say():
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_page(), (
        "docs/settings.md is not what the settings say: python -m splitrank.config.explain > docs/settings.md"
    )
    for key, setting in settings_of().items():
        assert setting.description, key
        assert f"| `{key}` |" in settings_page()


def test_a_setting_or_a_table_is_explained():
    text = explain("planner.latency_margin")
    assert "share of T0 kept free" in text
    assert "must be a number from 0 up to, but not including, 1" in text
    assert "default: 0" in text
    assert "read where budget.latency_s is a limit" in text
    assert "budget.latency_s" in explain("budget")
    assert "naming it drops data.name" in explain("data.path")
    with pytest.raises(InputError, match="did you mean budget"):
        explain("budge")
    with pytest.raises(InputError, match=r"did you mean federation\.rounds"):
        explain("federation.round")


def test_conditions_name_settings_and_values_there_are():
    settings = settings_of()
    for setting in settings.values():
        for condition in setting.conditions:
            assert set(condition.keys) <= set(settings), setting.key
            if " = " in condition.words:
                values = re.findall(r'"([^"]+)"', condition.words)
                assert all(repr(value) in settings[condition.keys[0]].rule for value in values), setting.key


class _Inner(Table):
    """A table of a method's own."""

    experts: Count = Field(2, description="as many")


class _Outer(Table):
    """A table with a table in it."""

    method: str = Field("plain", description="which")
    mola: Annotated[_Inner, one_of("method", ("mola",))] = Field(default_factory=_Inner)


def test_a_table_within_a_table_has_one_condition_for_all_its_keys():
    assert list(settings_of(_Outer)) == ["method", "mola.experts"]
    flat = flatten({"method": "mola", "mola": {"experts": 3}}, _Outer)
    assert flat == {"method": "mola", "mola.experts": 3}
    assert unflatten(flat, _Outer) == {"method": "mola", "mola": {"experts": 3}}
    assert without_effect(_Outer.model_validate(unflatten(flat, _Outer))) == {}
    unread = without_effect(_Outer(method="plain"))
    assert unread == {"mola.experts": 'it is read where method = "mola", and method is "plain"'}
    tables = {"mola": {"experts": 0, "expertss": 2}}
    with pytest.raises(ValidationError) as caught:
        _Outer.model_validate(tables)
    found = list(sentences(caught.value, tables, _Outer))
    assert found[0] == "mola.experts must be a whole number, 1 or greater, got 0"
    assert found[1] == "mola.expertss must be a known key, got an unknown one; did you mean mola.experts?"


def test_a_file_goes_over_its_base(tmp_path):
    (tmp_path / "lab.toml").write_text('base = "edge"\n[federation]\nrounds = 3\n[data]\npath = "texts"\n')
    (tmp_path / "mine.toml").write_text('base = "lab.toml"\n[train]\nbatch_size = 8\n')
    mine = load_config(str(tmp_path / "mine.toml"))
    assert (mine.federation.rounds, mine.train.batch_size, mine.data.path, mine.data.name) == (3, 8, "texts", None)
    assert mine.radio == load_config("edge").radio
    (tmp_path / "lab.toml").write_text('base = "mine.toml"\n')
    with pytest.raises(InputError, match=r"must not lead back .* circle"):
        load_config(str(tmp_path / "mine.toml"))
    (tmp_path / "lab.toml").write_text('base = "pape"\n')
    with pytest.raises(InputError, match=r"base in .*lab\.toml must be a preset .*did you mean paper"):
        load_config(str(tmp_path / "lab.toml"))
    (tmp_path / "lab.toml").write_text("base = 3\n")
    with pytest.raises(InputError, match="got 3"):
        load_config(str(tmp_path / "lab.toml"))


def test_an_override_may_rob_a_key_of_the_file_of_its_effect(tmp_path, caplog):
    resolved = tmp_path / "config.toml"
    resolved.write_text(to_toml(load_config("offline")))
    full = load_config(str(resolved), ["adapter.method=full"])
    assert full.adapter.method == "full"
    assert "adapter.target_modules of" in caplog.text
    assert "target_modules" not in to_toml(full)
    own = tmp_path / "own.toml"
    own.write_text("[client]\nflops_per_cycle = 3\n")
    with pytest.raises(ConfigError, match=r"client\.flops_per_cycle must have an effect"):
        load_config(str(own), ["federation.rounds=2"])
    with pytest.raises(ConfigError, match=r"adapter\.scaling must have an effect"):
        load_config(str(resolved), ["adapter.method=full", "adapter.scaling=2.0"])


def test_how_files_are_written_survives_being_written(tmp_path):
    overrides = ["data.path=texts", "data.encoding=gb18030", "data.separator=\\t", 'data.columns=["label", "text"]']
    config = load_config("paper", overrides)
    assert (config.data.separator, config.data.columns) == ("\t", ("label", "text"))
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(str(tmp_path / "config.toml")) == config
