"""The picture of a plan: what it shows is what the planner computes, and it can be drawn for every plan."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from typer.testing import CliRunner

from splitrank.cli import app
from splitrank.config import load_config
from splitrank.errors import InputError
from splitrank.federation.costs import round_workload
from splitrank.federation.problems import plan_round, round_problem
from splitrank.federation.sizes import encoder_shape
from splitrank.federation.texts import nominal_text_stats
from splitrank.planning.plan import make_plan
from splitrank.planning.problem import energy_j, feasible, frequency_range_hz, latency_s
from splitrank.planning.solvers.random_frequency import draw_frequency_hz
from splitrank.studies.plan_curves import BUDGET_FACTORS, MAX_LINES, MAX_REGIONS, PlanCurves, plan_curves
from splitrank.studies.plan_plot import plot_plan

SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "svg": b"<?xml"}
MANY = ("federation.num_clients=50",)
CASES = {
    "paper": ("paper",),
    "edge": ("edge",),
    "offline": ("offline",),
    "one client": ("edge", "federation.num_clients=1"),
    "four clients": ("edge", "federation.num_clients=4"),
    "50 clients": ("edge", *MANY),
    "broadcast": ("edge", "radio.downlink=broadcast"),
    "random frequency": ("paper", "planner.method=random-frequency"),
    "random frequency, full range": ("edge", "planner.method=random-frequency", "planner.random_range=full"),
    "fixed rank": ("edge", "adapter.rank=16"),
    "fixed rank that does not fit": ("edge", "adapter.rank=300"),
    "rank cap": ("paper", "planner.max_rank=4"),
    "bisection": ("edge", "planner.method=bisection"),
    "fastest": ("edge", "planner.frequency_policy=least-latency", "planner.latency_margin=0.1"),
    "own energy budgets": ("edge", "budget.energy_j=[100, 200, 400]"),
    "no time": ("edge", "budget.latency_s=10"),
    "no energy": ("edge", "budget.energy_j=4"),
    "one without a link": ("edge", "radio.uplink_gain=[1e-10, 0, 1e-10]", "radio.downlink_gain=[1e-10, 0, 1e-10]"),
    "too slow": ("edge", "client.max_frequency_hz=1e6"),
    "no time, frequencies drawn": ("edge", "planner.method=random-frequency", "budget.latency_s=10"),
    "high limits": ("edge", "budget.latency_s=1e300", "budget.energy_j=1e300"),
    "no limits": ("edge", "budget.latency_s=inf", "budget.energy_j=inf"),
    "no limit of time": ("edge", "budget.latency_s=inf"),
    "no limit of energy for one": ("edge", "budget.energy_j=[100, inf, 100]"),
    "a rank for each client": ("edge", "federation.aggregation=flexlora", "planner.rank_policy=per-client"),
    "no rank": ("edge", "adapter.method=full", "budget.latency_s=3000", "budget.energy_j=3000"),
    "hardly any budget": ("paper", "budget.latency_s=1e-300", "budget.energy_j=1e-300"),
    "unequal clients": ("edge", "client.max_frequency_hz=[2e8, 2e9, 2e10]", "budget.energy_j=[50, 200, 4000]"),
}


def config_of(case: str):
    return load_config(CASES[case][0], CASES[case][1:])


def problem_of(config, round: int = 1):
    shape = encoder_shape(config)
    return round_problem(
        config, shape, round_workload(config, shape, nominal_text_stats(config)), round, require_all=True
    )


@cache
def curves_of(case: str) -> PlanCurves:
    return plan_curves(config_of(case), 1)


@pytest.mark.parametrize("case", CASES)
def test_every_plan_can_be_drawn(case, tmp_path):
    plot_plan(config_of(case), 1, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(SIGNATURES["png"])
    assert [path.name for path in tmp_path.glob("*plan*")] == ["plan.png"]


def test_equal_settings_give_equal_bytes(tmp_path):
    """Drawn in two processes, more than a second apart: a date within would differ."""
    code = (
        "import sys; from pathlib import Path; from splitrank.config import load_config\n"
        "from splitrank.studies.plan_plot import plot_plan\n"
        "for path in sys.argv[1:]: plot_plan(load_config('offline'), 1, Path(path))"
    )
    first = [tmp_path / f"first.{ending}" for ending in SIGNATURES]
    subprocess.run([sys.executable, "-c", code, *map(str, first)], check=True, capture_output=True)
    time.sleep(1.1)
    for path, signature in zip(first, SIGNATURES.values(), strict=True):
        again = path.with_stem("second")
        plot_plan(load_config("offline"), 1, again)
        assert path.read_bytes() == again.read_bytes()
        assert path.read_bytes().startswith(signature)


def test_png_is_1600_pixels_wide(tmp_path):
    plot_plan(load_config("offline"), 1, tmp_path / "plan.png")
    assert int.from_bytes((tmp_path / "plan.png").read_bytes()[16:20], "big") == 1600


@pytest.mark.parametrize("case", CASES)
def test_regions_are_those_of_the_planner(case):
    config = config_of(case)
    problem = problem_of(config)
    curves = curves_of(case)
    for region in curves.regions:
        integers = np.isin(region.rank, np.arange(1, region.rank[-1] + 1))
        assert integers.sum() == region.rank[-1], "a curve passes through every integer rank"
        for index in np.flatnonzero(integers):
            rank, i = int(region.rank[index]), region.client
            low_hz, high_hz = (ends[i] for ends in frequency_range_hz(problem, rank))
            fits = bool(feasible(problem, rank)[i]) and rank <= problem.rank_cap[i]
            assert region.allowed[index] == fits
            assert region.highest_hz[index] == high_hz
            # Where the range is nearly a point, the kernel turns its ends round; else the curves are its ends.
            assert region.latency_hz[index] == pytest.approx(low_hz, rel=1e-12)
        # The region ends with the largest rank that fits, found here by trying every one.
        alone = [r for r in range(1, int(region.rank[-1]) + 1) if feasible(problem, r)[region.client]]
        if config.planner.method != "random-frequency":
            top = max((r for r in alone if r <= problem.rank_cap[region.client]), default=0)
            assert curves.plan.max_rank[region.client] == top


def test_edges_of_a_region_use_up_a_budget():
    config = load_config("edge")
    problem, curves = problem_of(config), plan_curves(config, 1)
    for region in curves.regions:
        for index in np.flatnonzero(region.allowed)[:: len(region.rank) // 7]:
            rank = region.rank[index]
            late = latency_s(problem, rank, np.full(3, region.latency_hz[index]))[region.client]
            spent = energy_j(problem, rank, np.full(3, region.energy_hz[index]))[region.client]
            assert late == pytest.approx(config.budget.latency_s)
            assert spent == pytest.approx(config.budget.energy_j)


@pytest.mark.parametrize("case", CASES)
def test_curves_over_the_budgets_are_plans_at_those_budgets(case):
    config = config_of(case)
    problem, curves = problem_of(config), curves_of(case)
    assert curves.over_latency.given == config.budget.latency_s
    middle = len(BUDGET_FACTORS) // 2
    for curve in (curves.over_latency, curves.over_energy):
        assert curve.budget[middle] == curve.middle
        if np.isfinite(curve.given):
            assert curve.middle == curve.given
            assert np.array_equal(curve.max_rank[middle], curves.plan.max_rank[curve.clients])
            assert curve.common_rank[middle] == curves.plan.max_rank.min()
        if config.planner.method != "random-frequency":
            assert np.all(np.diff(curve.max_rank, axis=0) >= 0), "a looser budget never lowers a rank"
    for index in range(0, len(BUDGET_FACTORS), 17):
        for curve, changed in (
            (curves.over_latency, {"latency_budget_s": float(problem.latency_budget_s * BUDGET_FACTORS[index])}),
            (curves.over_energy, {"energy_budget_j": problem.energy_budget_j * BUDGET_FACTORS[index]}),
        ):
            if not np.isfinite(curve.given):
                continue
            other = replace(problem, **changed)
            drawn_hz = None
            if config.planner.method == "random-frequency":
                drawn_hz = draw_frequency_hz(other, config.run.seed, 1, config.planner.random_range)
            policy = config.planner.frequency_policy
            plan = make_plan(other, method=config.planner.method, frequency_policy=policy, frequency_hz=drawn_hz)
            assert np.array_equal(curve.max_rank[index], plan.max_rank[curve.clients])
            assert curve.common_rank[index] == plan.max_rank.min()
            if config.adapter.rank is None:
                assert curve.common_rank[index] == plan.largest_rank
            assert curve.budget[index] == pytest.approx(np.mean(next(iter(changed.values()))))


@pytest.mark.parametrize("case", CASES)
def test_the_chosen_point_lies_in_every_region(case):
    curves = curves_of(case)
    plan = curves.plan
    again = plan_round(config_of(case), problem_of(config_of(case)), 1, require_all=True)
    np.testing.assert_array_equal(plan.rank, again.rank)
    for region in curves.regions if plan.largest_rank else ():
        index = int(np.flatnonzero(region.rank == plan.rank[region.client])[0])
        chosen_hz = plan.frequency_hz[region.client]
        assert region.allowed[index]
        assert region.latency_hz[index] * (1 - 1e-12) <= chosen_hz <= region.highest_hz[index] * (1 + 1e-12)
        if region.drawn_hz is not None:
            assert chosen_hz == region.drawn_hz


def test_where_some_are_chosen_the_common_rank_is_theirs(tmp_path):
    chosen = ["federation.num_clients=6", "federation.clients_per_round=2", "federation.selection=largest-rank"]
    config = load_config("edge", chosen)
    curves = plan_curves(config, 1)
    middle = len(BUDGET_FACTORS) // 2
    assert curves.over_latency.common_rank[middle] == curves.plan.largest_rank
    assert curves.plan.largest_rank == curves.plan.max_rank[curves.plan.chosen].min() > curves.plan.max_rank.min()
    plot_plan(config, 1, tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").stat().st_size > 0


def test_of_many_clients_the_weakest_are_shown():
    config = load_config("edge", MANY)
    curves = plan_curves(config, 1)
    ranks = [curves.plan.max_rank[region.client] for region in curves.regions]
    assert len(ranks) == MAX_REGIONS
    assert ranks == sorted(curves.plan.max_rank)[:MAX_REGIONS]
    assert len(curves.over_latency.clients) == 50

    curves = plan_curves(load_config("edge", [f"federation.num_clients={MAX_LINES + 1}"]), 1)
    assert sorted(curves.plan.max_rank)[:MAX_LINES] == list(curves.plan.max_rank[curves.over_energy.clients])


def test_drawn_frequencies_are_those_of_the_plan():
    config = config_of("random frequency")
    for round in (1, 2):
        curves = plan_curves(config, round)
        assert [region.drawn_hz for region in curves.regions] == list(curves.plan.frequency_hz)


@pytest.mark.parametrize(
    ("name", "words"),
    [("plan.jpg", "ends in .png, .pdf or .svg"), ("plan", "ends in .png, .pdf or .svg"), ("no/plan.png", "make")],
)
def test_a_file_that_cannot_be_written_is_refused_in_one_sentence(name, words, tmp_path):
    with pytest.raises(InputError, match=words) as refused:
        plot_plan(load_config("edge"), 1, tmp_path / name)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.rglob("plan*")) == []


def test_the_command_draws_beside_what_it_prints(tmp_path):
    plain = CliRunner().invoke(app, ["plan", "edge", "--round", "2"])
    drawn = CliRunner().invoke(app, ["plan", "edge", "--round", "2", "--plot", str(tmp_path / "a.png")])
    assert (drawn.exit_code, drawn.stdout) == (0, plain.stdout)
    assert (tmp_path / "a.png").stat().st_size > 10_000

    refused = CliRunner().invoke(app, ["plan", "edge", "--plot", str(tmp_path / "a.gif")])
    assert (refused.exit_code, refused.stdout) == (2, "")

    arguments = ["plan", "edge", "--set", "budget.latency_s=10", "--plot", str(tmp_path / "b.SVG")]
    infeasible = CliRunner().invoke(app, arguments)
    assert infeasible.exit_code == 3
    assert (tmp_path / "b.SVG").read_bytes().startswith(SIGNATURES["svg"])


@pytest.mark.parametrize(("arguments", "loaded"), [((), "False"), (("--plot", "plan.png"), "True")])
def test_only_plot_loads_matplotlib_and_never_pyplot(arguments, loaded, tmp_path):
    code = f"""
import sys
sys.argv = ["splitrank", "plan", "paper", *{arguments!r}]
from splitrank.cli import app
try:
    app()
except SystemExit as end:
    assert not end.code
print("LOADED:", "matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules, "torch" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert output.stdout.splitlines()[-1].split() == ["LOADED:", loaded, "False", "False"]


def test_settings_of_matplotlib_are_left_alone_and_without_effect(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_plan(load_config("paper"), 1, tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):
        plot_plan(load_config("paper"), 1, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
