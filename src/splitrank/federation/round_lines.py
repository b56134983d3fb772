"""A run as lines for people: a round each, with what it reached and what it cost against its budgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from splitrank.config import Config
from splitrank.federation.manifest import largest_class_share
from splitrank.records import RoundRecord, listed
from splitrank.traits import METHOD_TRAITS

_MACRO_F1 = f" {'macro F1':>9}"


def round_lines(rounds: Iterable[RoundRecord], config: Config, run: Path | None = None) -> Iterator[str]:
    """Yield each round's line as it finishes, with the header above the first and who sits out, and why, below.

    Args:
        rounds: the records.
        config: the run's settings.
        run: its folder, which tells, once there is a round, how large the largest class is. Where over half of the
            test texts are its, macro F1 stands beside accuracy.
    """
    header, shows_f1 = "", False
    for number, record in enumerate(rounds):
        if number == 0:
            shows_f1 = run is not None and (largest_class_share(run) or 0.0) > 0.5
            header = f"{_header(shows_f1)}\n"
        lines = [_line(record, config, shows_f1)]
        lines += [
            f"      client {client.client} sits out: {client.shortfall}"
            for client in record.planned
            if client.shortfall is not None
        ]
        if chosen := [client.client for client in record.planned if client.chosen]:
            late = [client.client for client in record.planned if client.late]
            came_late = f"; of these {listed(late)} came too late" if late else ""
            how = "worth it" if config.planner.participation == "worth" else config.federation.selection
            lines.append(f"      chosen ({how}): {listed(chosen)}{came_late}")
        yield header + "\n".join(lines)
        header = ""


def _header(shows_f1: bool) -> str:
    names = f"{'round':>5} {'rank':>5} {'accuracy':>9}{_MACRO_F1 if shows_f1 else ''} {'loss':>7}"
    return f"{names} {'worst latency':>21} {'worst energy':>20} {'clients':>8}"


def _line(record: RoundRecord, config: Config, shows_f1: bool) -> str:
    trained = record.trained
    latency = energy = "-"
    latencies_s = [client.latency_s for client in trained if client.latency_s is not None]
    energies = [(client.energy_j, client.energy_budget_j) for client in trained if client.energy_j is not None]
    if trained and len(latencies_s) == len(trained):  # else the clients keep them private
        latency = f"{max(latencies_s):,.1f} s{_of_budget(config.budget.latency_s, 's')}"
    if trained and len(energies) == len(trained):
        energy_j, budget_j = max(energies, key=lambda energy: _energy_share(*energy))
        energy = f"{energy_j:,.1f} J{_of_budget(budget_j, 'J')}"
    ranks = [client.rank for client in trained] if METHOD_TRAITS[config.adapter.method].has_rank else []
    rank = "-" if not ranks else str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)}-{max(ranks)}"
    took_part = f"{len(trained)} of {len(record.clients)}" if record.round else "-"
    f1 = f" {record.macro_f1:>9.3f}" if shows_f1 else ""
    return (
        f"{record.round:>5} {rank:>5} {record.accuracy * 100:>7.1f} %{f1} {record.loss:>7.3f} {latency:>21} "
        f"{energy:>20} {took_part:>8}"
    )


def _energy_share(energy_j: float, budget_j: float | None) -> tuple[float, float]:
    """Return how much of its energy a client spends, and how much that is, where nobody has a limit."""
    return (0.0 if budget_j is None else energy_j / budget_j), energy_j


def _of_budget(budget: float | None, unit: str) -> str:
    return ", no limit" if budget is None or math.isinf(budget) else f" / {budget:,.6g} {unit}"
