"""A plan for people and programs: the JSON of `splitrank plan --json` and its lines. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from splitrank.config import Config
from splitrank.errors import InputError, check_types
from splitrank.federation.costs import preparation
from splitrank.federation.problems import plan_round, planned_problem
from splitrank.federation.selection import selects
from splitrank.federation.sizes import (
    DEFAULT_NUM_LABELS,
    adapter_numbers,
    encoder_shape,
    fixed_rank,
    head_numbers_sent,
)
from splitrank.federation.texts import nominal_text_stats
from splitrank.planning.plan import OPTIMAL_SOLVERS, Plan, plan_json
from splitrank.planning.prices import prices
from splitrank.planning.problem import Problem
from splitrank.records import Shortfall, finite, listed
from splitrank.traits import METHOD_TRAITS

Report = dict[str, Any]
"""A plan, or a part of one, in plain Python types, as `splitrank plan --json` prints it."""


def plan_report(config: Config, round: int) -> Report:
    """Plan a round for ``client.samples`` texts per client.

    Beside the plan it tells how many parameters are trained and sent: ``adapter_parameters_per_rank`` and
    ``head_parameters``, and ``adapter_parameters_constant`` where some do not depend on the rank; and where the frozen
    trunk is prepared outside the rounds, each client's ``preparation_s`` and ``preparation_j``. An infinite budget is
    None. Where a round takes fewer clients than there are, they are chosen as if nobody had been chosen before, which
    is what a run's first round does; ``selection`` says how.

    Args:
        config: the settings.
        round: round number, >= 1.

    Raises:
        InputError: settings that do not fit the encoder; an argument of another type.
    """
    check_types(config=(config, Config, 'load_config("paper") returns one'), round=(round, int, "rounds count from 1"))
    if round < 1:
        raise InputError(f"round must be at least 1, got {round}; rounds count from 1")
    shape = encoder_shape(config)
    texts = nominal_text_stats(config)
    chooses = selects(config)  # the plan is then that of the chosen, among those who can take part
    everybody_must = not chooses and config.planner.participation == "all"
    problem = planned_problem(config, round, require_all=everybody_must)
    plan = plan_round(config, problem, round, require_all=True)
    report = plan_json(plan, problem)
    numbers = adapter_numbers(config, shape)
    clients, gap = report.pop("clients"), report.pop("gap", None)
    prepared = preparation(config, shape, texts)
    for index, client in enumerate(clients):
        client["samples"] = int(texts.samples[index])
        client["latency_budget_s"] = config.budget.latency_s
        client["energy_budget_j"] = float(problem.energy_budget_j[index])
        if prepared is not None:
            client["preparation_s"] = float(prepared.seconds[index])
            client["preparation_j"] = float(prepared.joules[index])
        if "bandwidth_hz" in client:
            client["bandwidth_hz"] = client.pop("bandwidth_hz")  # the youngest comes last
    plain: Report = finite(
        {
            **report,
            "round": round,
            "adapter_parameters_per_rank": numbers.per_rank,
            "head_parameters": head_numbers_sent(config, shape),
            "num_labels": config.model.num_labels or DEFAULT_NUM_LABELS,
            "rank_is_fixed": fixed_rank(config) is not None,
            "clients": clients,
            **({"adapter_parameters_constant": numbers.constant} if numbers.constant else {}),
            **(_able(config, round) if plan.status == "infeasible" and everybody_must else {}),
            **({"selection": config.federation.selection} if chooses else {}),
            **({"participation": "worth"} if config.planner.participation == "worth" else {}),
            **({} if gap is None else {"gap": gap}),
            **_prices(config, problem, plan),
        }
    )
    return plain


def _prices(config: Config, problem: Problem, plan: Plan) -> Report:
    """Return what each budget is worth for a planned common rank; nothing where there is none."""
    has_rank = METHOD_TRAITS[config.adapter.method].has_rank and fixed_rank(config) is None
    goes_for_rank = config.planner.objective == "largest-rank" and config.planner.method in OPTIMAL_SOLVERS
    if not has_rank or not goes_for_rank or config.planner.rank_policy != "common" or not plan.common_rank:
        return {}
    found = prices(problem, plan)
    return {
        "budgets": [
            {
                "budget": price.budget,
                "given": price.given,
                "ranks_per_unit": price.ranks_per_unit,
                "next_rank": price.next_rank,
                "needed": price.needed,
                "factor": price.factor,
            }
            for price in found
        ]
    }


def _able(config: Config, round: int) -> Report:
    """Return the plan of those who can take part, as a run would go on with them; nothing where nobody can."""
    problem = planned_problem(config, round, require_all=False)
    plan = plan_round(config, problem, round, require_all=False)
    if plan.status == "infeasible":
        return {}
    report = plan_json(plan, problem)
    parts: dict[bool, list[Report]] = {True: [], False: []}
    for client, takes_part in zip(report["clients"], plan.participants, strict=True):
        parts[bool(takes_part)].append(client)
    sits_out = [{"client": client["client"], "shortfall": client["shortfall"]} for client in parts[False]]
    return {"able": {**report, "clients": parts[True], "sits_out": sits_out}}


_REMEMBERS = ("round-robin", "fair")
"""Selections that go by earlier rounds."""

_COLUMNS = ("client", "max rank", "GHz", "compute s", "up s", "down s", "latency s", "energy J")


def plan_lines(report: Report) -> Iterator[str]:
    """Yield the plan as a table that fits a terminal of 80 columns, a line at a time.

    Where ranks differ from client to client they have a column of their own, and so have unequal energy budgets.
    """
    clients = report["clients"]
    ranks = sorted({client["rank"] for client in clients if client.get("chosen", True)}) or [0]
    ranks_differ = report["rank"] is None
    yield from _headlines(report, ranks)
    samples = sorted({client["samples"] for client in clients})
    counted = f"{samples[0]:,}" if len(samples) == 1 else f"{samples[0]:,} to {samples[-1]:,}"
    yield f"counted for {counted} texts per client (client.samples) and {report['num_labels']} classes"
    energy_budgets = {client["energy_budget_j"] for client in clients}
    budgets_differ = len(energy_budgets) > 1
    is_shared = any("bandwidth_hz" in client for client in clients)
    columns = [*_COLUMNS[:1], *(["rank"] if ranks_differ else []), *_COLUMNS[1:], *(["budget J"] * budgets_differ)]
    columns += ["kHz"] * is_shared
    latency_budget_s = clients[0]["latency_budget_s"]
    energy = "an energy budget of its own" if budgets_differ else _budget(energy_budgets.pop(), "J", "energy")
    limits = f"{_budget(latency_budget_s, 's', 'time')} and {energy} per client"
    is_unlimited = latency_budget_s is None and all(client["energy_budget_j"] is None for client in clients)
    yield f"budgets of a round: {'no limit' if is_unlimited else limits}"
    yield ""
    widths = [7, 6] if ranks_differ else [10]
    widths += [10] * (len(columns) - len(widths))
    yield "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)) + "  limited by"
    for client in clients:
        values = [
            f"{client['client']}",
            *([f"{client['rank']}"] if ranks_differ else []),
            f"{client['max_rank']}",
            _cell(client["frequency_hz"], 1e9, 3),
            *(_cell(client[key]) for key in ("compute_s", "uplink_s", "downlink_s", "latency_s", "energy_j")),
            *([_cell(client["energy_budget_j"], none="no limit")] if budgets_differ else []),
            *([_cell(client.get("bandwidth_hz"), 1e3)] if is_shared else []),
        ]
        cells = "".join(f"{value:>{width}}" for value, width in zip(values, widths, strict=True))
        yield f"{cells}  {client['binding']}"
    if "selection" in report:
        names = [client["client"] for client in clients if client["chosen"]]
        taken = f"{len(names):,} of {len(clients):,} clients are chosen ({report['selection']})"
        assumed = ", as in a run's first round" * (report["round"] > 1 and report["selection"] in _REMEMBERS)
        yield f"{taken}{assumed}: {listed(names)}"
    elif (names := [client["client"] for client in clients if client.get("chosen")]) and len(names) < len(clients):
        yield f"{len(names):,} of {len(clients):,} clients are worth it (planner.participation): {listed(names)}"
    for client in clients:
        if "shortfall" in client:
            yield f"client {client['client']} cannot take part: {Shortfall(**client['shortfall'])}"
    if "able" in report:
        yield from _able_lines(report["able"])
    if "preparation_s" in clients[0]:
        seconds = max(client["preparation_s"] for client in clients)
        joules = max(client["preparation_j"] for client in clients)
        cost = f"up to {seconds:,.0f} s and {joules:,.0f} J"
        yield f"once, before the rounds and outside their budgets: the frozen layers, {cost}"
    if report.get("budgets"):
        yield from _price_lines(report["budgets"], "E0, mean" if budgets_differ else "E0")


def _price_lines(budgets: list[Report], energy: str) -> Iterator[str]:
    """Yield a small table of what each budget is worth."""
    units = {"latency_s": ("T0", "s"), "energy_j": (energy, "J"), "bandwidth_hz": ("band", "Hz")}
    units["memory_bytes"] = ("memory", "bytes")
    yield ""
    yield f"{'budget':>10}{'given':>16}{'ranks per unit':>16}{'next rank':>11}{'takes':>16}"
    for price in budgets:
        name, unit = units[price["budget"]]
        takes = "above max rank" if price["next_rank"] is None else "no amount"
        if price["next_rank"] is not None and price["needed"] is not None:
            takes = f"{price['needed']:,.6g} {unit}"
        rank = "-" if price["next_rank"] is None else str(price["next_rank"])
        given = f"{price['given']:,.6g} {unit}"
        yield f"{name:>10}{given:>16}{price['ranks_per_unit']:>16.3g}{rank:>11}{takes:>16}"


def _able_lines(able: Report) -> Iterator[str]:
    ranks = sorted({client["rank"] for client in able["clients"]})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    names = [client["client"] for client in able["clients"]]
    clients = f"{'client' if len(names) == 1 else 'clients'} {listed(names)}"
    yield f"a run goes on without: {rank} for {clients} ({able['status']})"


def _headlines(report: Report, ranks: list[int]) -> Iterator[str]:
    """Yield what was planned, and how much of it is trained and sent."""
    if report["status"] == "infeasible":
        who = "no client" if "selection" in report or "participation" in report else "not every client"
        yield f"infeasible: {who} can take part within its budgets"
        return
    per_rank, constant = report["adapter_parameters_per_rank"], report.get("adapter_parameters_constant", 0)
    how = f"{report['status']}, {report['method']}"
    if not per_rank:
        yield f"no rank to choose ({how})"
    elif report["rank"] is None:
        yield f"a rank for each client: {ranks[0]} to {ranks[-1]} ({how})"
    else:
        whom = "the chosen" if any("chosen" in client for client in report["clients"]) else "all"
        yield f"rank {report['rank']} for {whom} ({'fixed by adapter.rank' if report['rank_is_fixed'] else how})"
    counts = [f"{constant + rank * per_rank:,}" for rank in dict.fromkeys((ranks[0], ranks[-1]))]
    each = f" ({per_rank:,} per rank)" if per_rank else ""
    if "gap" in report:
        yield f"in its worth, which grows with log(1 + rank), at most {100 * report['gap']:.2g} % below the best"
    yield (
        f"trained and sent: {' to '.join(counts)} adapter parameters{each}, {report['head_parameters']:,} in the head"
    )


def _cell(value: float | None, scale: float = 1.0, digits: int = 1, *, none: str = "-") -> str:
    return none if value is None else f"{value / scale:,.{digits}f}"


def _budget(value: float | None, unit: str, what: str) -> str:
    return f"no limit of {what}" if value is None else f"{value:,.6g} {unit}"
