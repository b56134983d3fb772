"""A plan for people and programs: the JSON of `splitrank plan --json` and its lines. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from splitrank.config import Config
from splitrank.federation.budgets import (
    DEFAULT_NUM_LABELS,
    encoder_shape,
    plan_round,
    planned_problem,
    planned_texts,
    preparation,
    trained_parameters,
)
from splitrank.planning.plan import plan_json
from splitrank.records import finite


def plan_report(config: Config, round: int) -> dict[str, Any]:
    """Plan a round for ``client.samples`` texts per client.

    Beside the plan it tells how many parameters are trained: ``adapter_parameters_per_rank`` and
    ``head_parameters``; and where the frozen trunk is prepared outside the rounds, each client's ``preparation_s``
    and ``preparation_j``.
    """
    shape = encoder_shape(config)
    texts = planned_texts(config)
    problem = planned_problem(config, round, sit_out=False)
    plan = plan_round(config, problem, round, sit_out=False)
    report = plan_json(plan, problem)
    parameters = trained_parameters(config, shape)
    clients = report.pop("clients")
    prepared = preparation(config, shape, texts)
    for index, client in enumerate(clients):
        client["samples"] = int(texts.samples[index])
        client["latency_budget_s"] = config.budget.latency_s
        client["energy_budget_j"] = float(problem.energy_j[index])
        if prepared is not None:
            client["preparation_s"] = float(prepared.seconds[index])
            client["preparation_j"] = float(prepared.joules[index])
    plain: dict[str, Any] = finite(
        {
            **report,
            "round": round,
            "adapter_parameters_per_rank": parameters.adapter_per_rank,
            "head_parameters": parameters.head,
            "num_labels": config.model.num_labels or DEFAULT_NUM_LABELS,
            "rank_is_fixed": config.adapter.rank is not None,
            "clients": clients,
        }
    )
    return plain


_COLUMNS = ("client", "max rank", "GHz", "compute s", "up s", "down s", "latency s", "energy J")


def plan_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the plan as a table that fits a terminal of 80 columns, a line at a time."""
    clients = report["clients"]
    if report["status"] == "infeasible":
        yield "infeasible: not every client can take part within its budgets"
    else:
        rank, per_rank = report["rank"], report["adapter_parameters_per_rank"]
        how = "fixed by adapter.rank" if report["rank_is_fixed"] else f"{report['status']}, {report['method']}"
        yield f"rank {rank} for all ({how})"
        yield (
            f"trained and sent: {rank * per_rank:,} adapter parameters ({per_rank:,} per rank), "
            f"{report['head_parameters']:,} in the head"
        )
    samples = sorted({client["samples"] for client in clients})
    counted = f"{samples[0]:,}" if len(samples) == 1 else f"{samples[0]:,} to {samples[-1]:,}"
    yield f"counted for {counted} texts per client (client.samples) and {report['num_labels']} classes"
    energy_budgets = {client["energy_budget_j"] for client in clients}
    columns = (*_COLUMNS, *(("budget J",) if len(energy_budgets) > 1 else ()))
    shown = f"{min(energy_budgets):,.6g} J" if len(energy_budgets) == 1 else "an energy budget of its own"
    yield f"budgets of a round: {clients[0]['latency_budget_s']:,.6g} s and {shown} per client"
    yield ""
    yield "".join(f"{name:>10}" for name in columns) + "  limited by"
    for client in clients:
        values = [
            f"{client['client']}",
            f"{client['max_rank']}",
            _cell(client["frequency_hz"], 1e9, 3),
            *(_cell(client[key]) for key in ("compute_s", "uplink_s", "downlink_s", "latency_s", "energy_j")),
            *((_cell(client["energy_budget_j"]),) if len(energy_budgets) > 1 else ()),
        ]
        yield "".join(f"{value:>10}" for value in values) + f"  {client['binding']}"
    for client in clients:
        if "shortfall" in client:
            yield f"client {client['client']} cannot take part: {shortfall_text(client['shortfall'])}"
    if "preparation_s" in clients[0]:
        seconds = max(client["preparation_s"] for client in clients)
        joules = max(client["preparation_j"] for client in clients)
        cost = f"up to {seconds:,.0f} s and {joules:,.0f} J"
        yield f"once, before the rounds and outside their budgets: the frozen layers, {cost}"


def _cell(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
    return "-" if value is None else f"{value / scale:,.{digits}f}"


def shortfall_text(shortfall: dict[str, Any]) -> str:
    """What a client lacks, in words, from the ``"shortfall"`` of its plan; at rate 0 no time is enough."""
    unit, available = shortfall["unit"], f"{shortfall['available']:,.6g}"
    if shortfall["needed"] is None:
        return f"{shortfall['constraint']}, has no link"
    needed = f"{shortfall['needed']:,.6g} {unit}"
    return f"{shortfall['constraint']}, needs {needed} and has {available} {unit}"
