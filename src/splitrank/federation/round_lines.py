"""A run as lines for people: a round each, with what it reached and what it cost against its budgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from splitrank.config import Config
from splitrank.federation.plan_report import shortfall_text
from splitrank.records import RoundRecord
from splitrank.traits import METHOD_TRAITS

_HEADER = (
    f"{'round':>5} {'rank':>5} {'accuracy':>9} {'loss':>7} {'worst latency':>21} {'worst energy':>20} {'clients':>8}"
)


def round_lines(rounds: Iterable[RoundRecord], config: Config) -> Iterator[str]:
    """Yield each round's line as it finishes, with the header above the first and who sits out, and why, below."""
    header = f"{_HEADER}\n"
    for record in rounds:
        lines = [_line(record, config)]
        lines += [
            f"      client {client['client']} sits out: {shortfall_text(client['shortfall'])}"
            for client in record.clients
            if "shortfall" in client
        ]
        yield header + "\n".join(lines)
        header = ""


def _line(record: RoundRecord, config: Config) -> str:
    trained = [client for client in record.clients if client.get("dropped") is False]
    latency = energy = "-"
    if trained and all(_is_finite(client["latency_s"]) for client in trained):  # else the clients keep them private
        slowest_s = max(client["latency_s"] for client in trained)
        latency = f"{slowest_s:,.1f} s{_of_budget(config.budget.latency_s, 's')}"
    if trained and all(_is_finite(client["energy_j"]) for client in trained):
        worst = max(trained, key=_energy_share)
        energy = f"{worst['energy_j']:,.1f} J{_of_budget(worst['energy_budget_j'], 'J')}"
    ranks = [client["rank"] for client in trained] if METHOD_TRAITS[config.adapter.method].has_rank else []
    rank = "-" if not ranks else str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)}-{max(ranks)}"
    took_part = f"{len(trained)} of {len(record.clients)}" if record.round else "-"
    return (
        f"{record.round:>5} {rank:>5} {record.accuracy * 100:>7.1f} % {record.loss:>7.3f} {latency:>21} {energy:>20} "
        f"{took_part:>8}"
    )


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _energy_share(client: dict[str, Any]) -> tuple[float, float]:
    """Return how much of its energy a client spends, and how much that is, where nobody has a limit."""
    budget_j = client["energy_budget_j"]
    return (0.0 if budget_j is None else client["energy_j"] / budget_j), client["energy_j"]


def _of_budget(budget: float | None, unit: str) -> str:
    return ", no limit" if budget is None or math.isinf(budget) else f" / {budget:,.6g} {unit}"
