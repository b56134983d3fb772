"""The table of a sweep: one line per member, from its run folder."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from splitrank.files import write_atomically
from splitrank.studies.recorded import RecordedRun, read_run
from splitrank.studies.sweep import Member


def member_line(member: Member, run: RecordedRun) -> dict[str, Any]:
    """What a member is and what came out; nothing that differs when it is run again.

    ``latency_s`` is the sum over rounds of the slowest client's, ``energy_j`` the sum over rounds and clients, both of
    the simulated devices; ``preparation_s`` and ``preparation_j`` are the slowest client's and all clients' one-off
    pass through the frozen layers. ``mean_rank`` counts rounds without participants as rank 0. ``mean_max_rank`` is
    over clients and rounds. What is not simulated, as a baseline's time, is left empty.
    """
    before, *rounds = run.records
    clients = [client for record in rounds for client in record["clients"]]
    taking_part = [client for client in clients if not client.get("dropped")]
    line: dict[str, Any] = {"member": member.name, "method": member.method, **member.varied}
    return line | {
        "rounds": len(rounds),
        "accuracy_before": before["accuracy"],
        "accuracy": run.records[-1]["accuracy"],
        "best_accuracy": max(record["accuracy"] for record in run.records),
        "loss": run.records[-1]["loss"],
        "macro_f1": run.records[-1]["macro_f1"],
        "worst_client_accuracy": run.records[-1]["worst_client_accuracy"],
        "mean_rank": _mean([record["rank"] for record in rounds]),
        "mean_max_rank": _mean([client["max_rank"] for client in clients if "max_rank" in client]),
        "client_rounds_missed": len(clients) - len(taking_part),
        "latency_s": _sum([max(_known("latency_s", record["clients"]), default=0.0) for record in rounds], clients),
        "energy_j": _sum(_known("energy_j", taking_part), clients),
        "preparation_s": max(_known("preparation_s", before["clients"]), default=None),
        "preparation_j": math.fsum(_known("preparation_j", before["clients"])) or None,
        "uplink_bits": math.fsum(client["uplink_bits"] for client in clients),
        "downlink_bits": math.fsum(client["downlink_bits"] for client in clients),
        "factor_averaging_error": _mean(
            [record["factor_averaging_error"] for record in rounds if record["factor_averaging_error"] is not None]
        ),
    }


def _known(key: str, clients: Sequence[dict[str, Any]]) -> list[float]:
    return [client[key] for client in clients if client.get(key) is not None]


def _sum(values: Sequence[float], clients: Sequence[dict[str, Any]]) -> float | None:
    """The sum, or None where no client was planned at all."""
    return math.fsum(values) if any("latency_s" in client for client in clients) else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def table_of(members: Sequence[Member], folder: Path) -> pd.DataFrame:
    """One line for each member, in their order.

    Raises:
        InputError: a member's run folder cannot be read.
    """
    lines = [member_line(member, read_run(folder / member.name)) for member in members]
    return pd.DataFrame([{key: _cell(value) for key, value in line.items()} for line in lines])


def _cell(value: Any) -> Any:
    """Lists and tables as text, so that a column of a file can hold them."""
    return str(value) if isinstance(value, list | tuple | dict) else value


def write_table(table: pd.DataFrame, stem: Path) -> None:
    """Write ``STEM.csv`` and ``STEM.parquet``."""
    parquet = io.BytesIO()
    # A column of texts beside numbers, such as a setting that takes both, has no type in Parquet.
    mixed = {name: str for name in table.columns if table[name].map(type).nunique() > 1 and table[name].dtype == object}
    table.astype(mixed).to_parquet(parquet, index=False)
    write_atomically(stem.with_name(f"{stem.name}.csv"), table.to_csv(index=False))
    write_atomically(stem.with_name(f"{stem.name}.parquet"), parquet.getvalue())
