"""Promises to those who only want the plan: NumPy alone, problems made from numbers, one clear sentence a mistake."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

import splitrank
from splitrank import Affine, Plan, Problem, Workload, make_plan
from splitrank.planning.plan import FrequencyPolicy, Method, RankPolicy
from tests.planning.problems import random_problem, roomy

ONE = Affine(np.ones(1), np.ones(1))
BITS = Affine(0, 1e6)
NUMBERS: dict[str, Any] = {
    "workload": Workload(Affine(0, 1e9), BITS, BITS),
    "uplink_bps": 2e6,
    "downlink_bps": 2e6,
    "uplink_power_w": 0.2,
    "capacitance": 1e-27,
    "max_frequency_hz": 1e9,
    "energy_budget_j": 1e6,
    "latency_budget_s": 1000,
}


def test_a_plan_needs_numpy_alone() -> None:
    code = """
import sys
from splitrank import Affine, Plan, Problem, Workload, make_plan
bits = Affine(0, 1e6)
problem = Problem(workload=Workload(Affine(0, 1e9), bits, bits), uplink_bps=2e6, downlink_bps=2e6, uplink_power_w=0.2,
                  capacitance=1e-27, max_frequency_hz=1e9, energy_budget_j=20.0, latency_budget_s=60.0)
assert isinstance(make_plan(problem), Plan)
print(*sorted({name.partition(".")[0] for name in sys.modules if name[0] != "_"} - sys.stdlib_module_names))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(run.stdout.split())
    assert {"numpy", "splitrank"} <= found
    assert not found & {"torch", "transformers", "peft", "scipy", "pandas", "pydantic", "typer", "matplotlib"}, found


# ---- problems made from numbers


def fields_of(problem: Problem) -> dict[str, np.ndarray]:
    costs = {f"{name}.{part}": v for name, cost in vars(problem.workload).items() for part, v in vars(cost).items()}
    return {name: value for name, value in (vars(problem) | costs).items() if isinstance(value, np.ndarray)}


def test_numbers_are_shared_by_all_clients() -> None:
    problem = Problem(**NUMBERS | {"energy_budget_j": [7, 8, 9], "rank_cap": 4.0})
    assert problem.num_clients == 3
    assert problem.energy_budget_j.tolist() == [7.0, 8.0, 9.0]
    assert problem.rank_cap.tolist() == problem.rank_ceiling.tolist() == [4, 4, 4]
    assert problem.rank_floor.tolist() == [1, 1, 1]
    assert problem.workload.cycles.per_rank.tolist() == [1e9, 1e9, 1e9]
    for name, values in fields_of(problem).items():
        assert values.shape == (3,), name
        assert values.dtype == (np.int64 if name.startswith("rank_") else np.float64), name


def test_one_client_where_all_are_numbers() -> None:
    problem = Problem(**NUMBERS)
    by_hand = roomy(1, circuit_energy_j=0.0, rank_cap=128)
    assert fields_of(problem).keys() == fields_of(by_hand).keys()
    for name, values in fields_of(problem).items():
        np.testing.assert_array_equal(values, fields_of(by_hand)[name], err_msg=name)
    assert make_plan(problem).rank.tolist() == [128]


def test_what_is_left_out_has_the_settings_defaults() -> None:
    planner = splitrank.load_config("paper").planner
    problem = Problem(**NUMBERS)
    assert problem.rank_cap.tolist() == [planner.max_rank]
    assert problem.latency_margin == planner.latency_margin
    plan, told = make_plan(problem), {"method": planner.method, "frequency_policy": planner.frequency_policy}
    same = make_plan(problem, rank_policy=planner.rank_policy, **told)
    assert plan.method == same.method
    np.testing.assert_array_equal(plan.frequency_hz, same.frequency_hz)


def test_arrays_stay_what_they_are() -> None:
    problem = random_problem(1, 50)
    again = replace(problem)
    for name, values in fields_of(problem).items():
        assert np.shares_memory(values, fields_of(again)[name]), name


# ---- one sentence a mistake


def sentences(**changes: Any) -> list[str]:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        Problem(**NUMBERS | changes)
    return str(refused.value).splitlines()


MISTAKES = [
    ({"uplink_bps": -1}, r"uplink_bps must be finite and >= 0, got -1; give bit/s"),
    ({"uplink_bps": np.nan}, r"uplink_bps must be finite and >= 0, got nan"),
    ({"uplink_bps": "fast"}, r"uplink_bps must be a number, or one number for each client, got 'fast'"),
    ({"downlink_bps": None}, r"downlink_bps must be a number, .* got None"),
    ({"downlink_bps": [[1, 2], [3]]}, r"downlink_bps must be a number, .* got \[\[1, 2\], \[3\]\]"),
    ({"downlink_bps": []}, r"downlink_bps must be a number, .* got \[\]"),
    ({"uplink_power_w": 0}, r"uplink_power_w must be finite and > 0, got 0; give watts, not dBm"),
    ({"capacitance": [1e-27, -1e-28]}, r"capacitance must be finite and >= 0, got -1e-28 for client 1; give Ω"),
    ({"max_frequency_hz": [np.inf, 1, 0]}, r"max_frequency_hz must be finite and > 0, got inf for client 0 and 1 more"),
    ({"energy_budget_j": [1, np.inf, 0]}, r"energy_budget_j must be > 0, inf for no limit, got 0 for client 2; "),
    ({"energy_budget_j": np.nan}, r"energy_budget_j must be > 0, inf for no limit, got nan; "),
    ({"uplink_bps": [1, 1, 1], "energy_budget_j": [1, 1]}, r"energy_budget_j must .* 3 clients, as uplink_bps, got 2"),
    ({"rank_cap": 0}, r"rank_cap must be a whole number >= 1, got 0"),
    ({"rank_cap": 2.5}, r"rank_cap must be a whole number >= 1, got 2.5"),
    ({"rank_cap": 1e300}, r"rank_cap must be a whole number >= 1, got 1e\+300"),
    ({"rank_cap": True}, r"rank_cap must be a number, .* got True"),
    ({"rank_floor": 0}, r"rank_floor must be a whole number >= 1, got 0; leave it out for 1"),
    ({"rank_floor": 3, "rank_ceiling": [4, 2]}, r"rank_ceiling must be at least rank_floor, got 2 for client 1; leave"),
    ({"latency_budget_s": 0}, r"latency_budget_s must be one number of seconds > 0 .* inf for no limit, got 0"),
    ({"latency_budget_s": np.nan}, r"latency_budget_s must be one number of seconds > 0 .*, got nan"),
    ({"latency_budget_s": [60, 60]}, r"latency_budget_s must be one number .* for all clients, .* got \[60, 60\]"),
    ({"latency_margin": 1}, r"latency_margin must be one share .*, at least 0 and below 1, got 1; 0 keeps no slack"),
    ({"workload": 1e9}, r"workload must be a Workload, got 1000000000\.0"),
    ({"workload": Workload(Affine(-2, 1), ONE, ONE)}, r"workload\.cycles\.constant \+ per_rank must be >= 0.* got -1"),
    ({"workload": Workload(ONE, ONE, Affine(9, -1))}, r"workload\.downlink_bits\.per_rank must be >= 0, got -1"),
    ({"workload": Workload(ONE, ONE, Affine(9, np.nan))}, r"workload\.downlink_bits\.per_rank must be >= 0, got nan"),
    ({"workload": Workload(ONE, Affine([1, 1], 1), ONE)}, r"workload\.uplink_bits\.constant must have .* 1 clients"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES, ids=[sentence[:40] for _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    (said,) = sentences(**changes)
    assert re.match(rf"Problem\.{sentence}", said)


def test_all_mistakes_are_said_at_once() -> None:
    said = sentences(uplink_bps=-1, energy_budget_j=0, rank_cap=0.5, latency_budget_s=-1, latency_margin=2)
    assert [sentence.partition(" ")[0] for sentence in said] == [
        f"Problem.{name}"
        for name in ("uplink_bps", "energy_budget_j", "rank_cap", "latency_budget_s", "latency_margin")
    ]


def test_a_cost_is_affine() -> None:
    with pytest.raises(
        ValueError, match=r"^Workload\.cycles must be an Affine.*, got '1e9'.*\nWorkload\.downlink_bits"
    ):
        Workload("1e9", ONE, 3)  # type: ignore[arg-type]


CHOICES = {"method": Method, "frequency_policy": FrequencyPolicy, "rank_policy": RankPolicy}


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        make_plan(roomy(), **{name: "fastest"})  # type: ignore[arg-type]
    known = ", ".join(map(repr, get_args(CHOICES[name])))
    assert str(refused.value) == f"{name} must be one of {known}, got 'fastest'"


def test_arguments_that_do_not_go_together_are_said_at_once() -> None:
    unlimited = roomy(2, latency_budget_s=np.inf)
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        make_plan(unlimited, method="quick", rank_policy="own", told_max_rank=np.ones(3, np.int64))  # type: ignore[arg-type]
    assert [line.partition(" ")[0] for line in str(refused.value).splitlines()] == [
        *("method", "rank_policy", "told_max_rank"),
    ]
    with pytest.raises(ValueError, match=r"^frequency_policy must be 'least-latency' where latency_budget_s is inf"):
        make_plan(unlimited)
    with pytest.raises(ValueError, match=r"^frequency_hz must be given for method 'random-frequency' .* got 'exact'"):
        make_plan(roomy(), frequency_hz=np.ones(1))
    with pytest.raises(ValueError, match=r"^frequency_hz must have shape \(1,\), .* got shape \(2,\)$"):
        make_plan(roomy(), method="random-frequency", frequency_hz=np.ones(2))
    with pytest.raises(ValueError, match=r"^problem must be a Problem, got \{\}$"):
        make_plan({})  # type: ignore[arg-type]


# ---- the examples in docstrings


WITH_EXAMPLES = {
    "splitrank.planning.plan": {"make_plan"},
    "splitrank.planning.problem": {"Problem"},
    "splitrank.planning.workload": {"Affine", "Workload"},
}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    module = importlib.import_module(name)
    examples = [one for one in doctest.DocTestFinder().find(module) if one.examples]
    assert {one.name.removeprefix(f"{name}.") for one in examples} == WITH_EXAMPLES[name]
    for one in examples:
        results = doctest.DocTestRunner().run(one)
        assert results.failed == 0, one.name
        assert results.attempted == len(one.examples) >= 2, one.name


def test_an_example_that_is_wrong_would_be_found() -> None:
    source = (make_plan.__doc__ or "").replace("('optimal', 5)", "('optimal', 6)")
    wrong = doctest.DocTestParser().get_doctest(source, {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda _: None).failed == 1


@pytest.mark.parametrize("public", [Affine, Plan, Problem, Workload, make_plan], ids=lambda public: public.__name__)
def test_docstrings_tell_of_every_field_argument_and_error(public: Any) -> None:
    text = public.__doc__ or ""
    names = public.__annotations__.keys() - {"return"}
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()
    if public is not Affine and public is not Plan:
        assert "Raises:" in text
