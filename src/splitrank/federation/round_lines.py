"""A run as lines for people: a round each, with what it reached and what it cost against its budgets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from splitrank.config import Config
from splitrank.federation.plan_report import shortfall_text
from splitrank.records import RoundRecord

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
    if trained and all(client["latency_s"] is not None for client in trained):  # else the clients keep them private
        latency = f"{max(client['latency_s'] for client in trained):,.1f} s / {config.budget.latency_s:,.6g} s"
        worst = max(trained, key=lambda client: client["energy_j"] / client["energy_budget_j"])
        energy = f"{worst['energy_j']:,.1f} J / {worst['energy_budget_j']:,.6g} J"
    rank = str(record.rank) if trained else "-"
    took_part = f"{len(trained)} of {len(record.clients)}" if record.round else "-"
    return (
        f"{record.round:>5} {rank:>5} {record.accuracy * 100:>7.1f} % {record.loss:>7.3f} {latency:>21} {energy:>20} "
        f"{took_part:>8}"
    )
