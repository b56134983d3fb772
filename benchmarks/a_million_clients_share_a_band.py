"""Claim: a million clients share one band by need, at the largest common rank, in under ten seconds.

What is timed is all that ``splitrank plan`` does between reading the settings and printing, as in
`a_million_clients_planned_in_a_second`, with ``planner.bandwidth = "joint"``: for every client the least sub-band at
each rank tried, the largest rank at which all fit, what is left over, and the plan. Whoever cannot take part is left
out, as in a run, so that there is a rank to find. Equal shares are timed beside it.

    .venv/bin/python -m benchmarks.a_million_clients_share_a_band
"""

from __future__ import annotations

import argparse
from functools import partial

from benchmarks.measure import conclude, seconds
from splitrank import load_config
from splitrank.config import Config
from splitrank.federation.costs import round_workload
from splitrank.federation.problems import plan_round, round_problem
from splitrank.federation.sizes import encoder_shape
from splitrank.federation.texts import nominal_text_stats
from splitrank.planning.plan import Plan

MAX_S = 10.0
SIZES = (10_000, 100_000, 1_000_000)
HZ_PER_CLIENT = 360e3
# Budgets with which the common rank of a million fading clients is far from both its ends.
LOOSE = ("budget.latency_s=10000.0", "budget.energy_j=1000.0")


def planned(config: Config, round: int) -> Plan:
    """What ``splitrank plan`` computes, but for its report, for those who can take part."""
    shape = encoder_shape(config)
    workload = round_workload(config, shape, nominal_text_stats(config))
    problem = round_problem(config, shape, workload, round, require_all=False)
    return plan_round(config, problem, round, require_all=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    plan_s: dict[str, dict[int, float]] = {"equal": {}, "joint": {}}
    ranks: dict[str, int] = {}
    for how, by_size in plan_s.items():
        for size in SIZES:
            settings = [f"federation.num_clients={size}", f"radio.total_bandwidth_hz={size * HZ_PER_CLIENT}"]
            config = load_config("edge", [*settings, f"planner.bandwidth={how}", *LOOSE])
            taken = [seconds(partial(planned, config, 1)) for _ in range(arguments.repeats)]
            by_size[size], ranks[how] = min(taken), planned(config, 1).largest_rank
            print(f"{how}, {size:,} clients: {by_size[size]:.2f} s, rank {ranks[how]}", flush=True)
    million_s = {how: by_size[SIZES[-1]] for how, by_size in plan_s.items()}
    conclude(
        "a_million_clients_share_a_band",
        f"A plan for {SIZES[-1]:,} clients on one band: {million_s['joint']:.1f} s by need (rank {ranks['joint']}), "
        f"{million_s['equal']:.1f} s in equal shares (rank {ranks['equal']})",
        million_s["joint"] < MAX_S,
        most_s=MAX_S,
        plan_s=plan_s,
        ranks=ranks,
    )


if __name__ == "__main__":
    main()
