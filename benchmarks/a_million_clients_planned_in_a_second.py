"""Claim: a million clients are planned in under a second, and a small problem costs a thousandth of a SCIP solve.

What is timed first is all that ``splitrank plan`` does between reading the settings and printing: counting the
workload, drawing what describes the clients and both directions' fading, rates, the exact solver, and the plan with
every client's frequency, time, energy and reason. Not the settings (milliseconds), nor the JSON of a million clients.
Three settings: the paper's, `edge` (path loss, true FLOPs, every limit matters), and `edge` with too little energy for
most clients, whose shortfalls must all be worked out.

Then the same small problems for the exact solver and for SCIP, in turn, from the problem's arrays to the common rank.
Clients are independent of each other but for the smallest rank, so many rounds are one problem whose clients stand
side by side; that is how a sweep over rounds would ask, and what the claim is about. One problem a call is reported
beside it. SCIP's models are built outside the clock.

    .venv/bin/python -m benchmarks.a_million_clients_planned_in_a_second
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from benchmarks.measure import Paired, alternate, conclude, seconds
from benchmarks.rivals.scip_planner import rank_model, solved_rank
from splitrank import load_config
from splitrank.config import Config
from splitrank.federation.costs import round_workload
from splitrank.federation.problems import plan_round, round_problem
from splitrank.federation.sizes import encoder_shape
from splitrank.federation.texts import nominal_text_stats
from splitrank.planning.plan import Plan
from splitrank.planning.problem import Problem
from splitrank.planning.solvers.exact import exact
from splitrank.planning.workload import Affine, Workload

MAX_S = 1.0
LEAST_RATIO = 1000.0
MAX_EXPONENT = 1.2
SIZES = (10_000, 100_000, 1_000_000)
SETTINGS = {
    "paper": ("paper", []),
    "edge": ("edge", []),
    "edge, most unable": ("edge", ["budget.energy_j=50.0"]),
}


def planned(config: Config, round: int) -> Plan:
    """What ``splitrank plan`` computes, but for its report."""
    shape = encoder_shape(config)
    problem = round_problem(
        config, shape, round_workload(config, shape, nominal_text_stats(config)), round, require_all=True
    )
    return plan_round(config, problem, round, require_all=True)


def timed_plans(config: Config, repeats: int) -> list[float]:
    """Seconds of planning one round after another [s]; the first, unmeasured, warms up."""
    return [seconds(lambda round=round: planned(config, round)) for round in range(1, repeats + 2)][1:]


def exponent(medians: Sequence[float]) -> float:
    """p of the least-squares fit seconds ~ clients^p."""
    return float(np.polyfit(np.log(SIZES), np.log(medians), 1)[0])


def problems_of_rounds(num_clients: int, count: int) -> list[Problem]:
    """The `edge` preset's problem in many rounds, each with its own fading."""
    config = load_config("edge", [f"federation.num_clients={num_clients}"])
    shape = encoder_shape(config)
    workload = round_workload(config, shape, nominal_text_stats(config))
    return [round_problem(config, shape, workload, round, require_all=True) for round in range(1, count + 1)]


def side_by_side(problems: Sequence[Problem]) -> Problem:
    """One problem of all the problems' clients; they share the latency budget."""

    def joined(parts: Sequence[object], names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}

    def cost(name: str) -> Affine:
        return Affine(**joined([getattr(problem.workload, name) for problem in problems], ("constant", "per_rank")))

    workload = Workload(cost("cycles"), cost("uplink_bits"), cost("downlink_bits"))
    per_client = [name for name, value in vars(problems[0]).items() if isinstance(value, np.ndarray)]
    return replace(problems[0], workload=workload, **joined(problems, per_client))


def against_scip(num_clients: int, count: int, repeats: int) -> dict[str, Paired]:
    """Seconds per problem of the exact solver and of SCIP, many problems a call and one problem a call."""
    problems = problems_of_rounds(num_clients, count)
    together = side_by_side(problems)
    ranks: list[int] = []
    theirs: list[int] = []

    def all_at_once() -> None:
        ranks[:] = exact(together).reshape(count, num_clients).min(axis=1).tolist()

    def one_at_a_time() -> None:
        ranks[:] = [int(exact(problem).min()) for problem in problems]

    def per_problem(ours: Callable[[], None]) -> Paired:
        ours_s, theirs_s = [], []
        for _ in range(repeats):
            models = [rank_model(problem) for problem in problems]

            def scip(models: list = models) -> None:
                for model in models:
                    model.optimize()

            pair = alternate(ours, scip, repeats=1, warm_up=0)
            theirs[:] = [solved_rank(model) for model in models]
            assert ranks == theirs, "SCIP finds other ranks"
            ours_s += pair.ours_s
            theirs_s += pair.theirs_s
        return Paired([took / count for took in ours_s], [took / count for took in theirs_s])

    all_at_once()
    return {"at once": per_problem(all_at_once), "one by one": per_problem(one_at_a_time)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--problems", type=int, default=100, help="small problems that both solve, of each size")
    arguments = parser.parse_args()
    plan_s: dict[str, dict[int, list[float]]] = {}
    for name, (preset, changes) in SETTINGS.items():
        plan_s[name] = {}
        for size in SIZES:
            config = load_config(preset, [f"federation.num_clients={size}", *changes])
            plan_s[name][size] = timed_plans(config, arguments.repeats)
            median_s = statistics.median(plan_s[name][size])
            print(f"{name}, {size:,} clients: {median_s:.4f} s, {1e9 * median_s / size:.0f} ns a client", flush=True)
    million_s = {name: statistics.median(by_size[SIZES[-1]]) for name, by_size in plan_s.items()}
    exponents = {
        name: exponent([statistics.median(by_size[size]) for size in SIZES]) for name, by_size in plan_s.items()
    }
    scip = {size: against_scip(size, arguments.problems, repeats=2) for size in (3, 20)}
    for size, pairs in scip.items():
        for how, pair in pairs.items():
            print(
                f"{size} clients, {how}: {1e6 * statistics.median(pair.ours_s):.3g} µs a problem, SCIP "
                f"{1e6 * statistics.median(pair.theirs_s):.4g} µs: {pair}",
                flush=True,
            )
    plans = ", ".join(f"{name} {million_s[name]:.2f} s (clients^{exponents[name]:.2f})" for name in SETTINGS)
    ratios = " and ".join(
        f"{pairs['at once'].ratio:,.0f} times longer for {size} clients ({pairs['one by one'].ratio:.0f} times if each "
        "is a call of its own)"
        for size, pairs in scip.items()
    )
    conclude(
        "a_million_clients_planned_in_a_second",
        f"A plan for {SIZES[-1]:,} clients, median of {arguments.repeats}: {plans}; per small problem, "
        f"{arguments.problems} asked at once, SCIP takes {ratios}",
        all(taken < MAX_S for taken in million_s.values())
        and all(power < MAX_EXPONENT for power in exponents.values())
        and all(pairs["at once"].ratio >= LEAST_RATIO for pairs in scip.values()),
        most_s=MAX_S,
        most_exponent=MAX_EXPONENT,
        least_ratio=LEAST_RATIO,
        plan_s=plan_s,
        exponents=exponents,
        scip={size: {how: asdict(pair) for how, pair in pairs.items()} for size, pairs in scip.items()},
    )


if __name__ == "__main__":
    main()
