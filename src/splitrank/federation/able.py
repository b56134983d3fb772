"""Find out, before any work, which clients can ever take part: no channel helps one that lacks time or energy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from splitrank.config import Config
from splitrank.errors import InfeasibleError
from splitrank.planning.plan import client_plans, make_plan
from splitrank.planning.problem import Problem, compute_s
from splitrank.records import ClientPlan

_ENDLESS_BPS = 1e300
"""A rate at which any number of bits takes no time."""

_LOG = logging.getLogger("splitrank")


def check_able(config: Config, problem: Problem) -> None:
    """Check that enough clients could take part in some round; say who of the others never can.

    A client can never take part if it cannot do rank 1, or the fixed rank, at an infinite rate; where the channel
    gains are fixed, at its own rate.

    Raises:
        InfeasibleError: fewer than ``federation.min_clients`` ever can; one line for each client that cannot.
    """
    radio = config.radio
    is_drawn = radio.uplink_gain is None or radio.downlink_gain is None
    if is_drawn:
        endless_bps = np.full(problem.num_clients, _ENDLESS_BPS)
        problem = replace(problem, uplink_bps=endless_bps, downlink_bps=endless_bps)
    plan = make_plan(problem, frequency_policy="least-latency", require_all=False)
    able = int(plan.participants.sum())
    if able == problem.num_clients:
        return
    lines = list(_shortfalls(problem, client_plans(plan, problem)))
    if able >= config.federation.min_clients:
        for line in lines:
            _LOG.warning(f"{line}; it will sit out every round.")
        return
    raise InfeasibleError(
        "\n".join(
            [
                f"federation.min_clients = {config.federation.min_clients} clients must be able to take part, "
                f"{able} of {problem.num_clients} ever can{', whatever the channel' if is_drawn else ''}; loosen the "
                "budgets, or set budget.latency_s=inf and budget.energy_j=inf for none:",
                *lines,
            ]
        )
    )


def _shortfalls(problem: Problem, clients: list[ClientPlan]) -> Iterator[str]:
    """Yield what each client lacks at rank 1, or the fixed rank, and the time that it would need."""
    at_full_speed_s = compute_s(problem, problem.rank_floor, problem.max_frequency_hz)
    for index, client in enumerate(clients):
        if client.shortfall is None:
            continue
        needs = f"client {index} cannot do rank {problem.rank_floor[index]}: {client.shortfall}"
        if client.shortfall.constraint == "frequency":
            needed_s = (at_full_speed_s[index] + problem.overhead_s[index]) / (1 - problem.latency_margin)
            needs += f"; at full speed a round takes {needed_s:,.6g} s of budget.latency_s = "
            needs += f"{problem.latency_budget_s:,.6g}"
        yield needs
