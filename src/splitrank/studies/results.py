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
    over clients and rounds.
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
        "latency_s": math.fsum(
            max((client.get("latency_s") or 0.0 for client in record["clients"]), default=0.0) for record in rounds
        ),
        "energy_j": math.fsum(client.get("energy_j") or 0.0 for client in taking_part),
        "preparation_s": max((client.get("preparation_s", 0.0) for client in before["clients"]), default=0.0),
        "preparation_j": math.fsum(client.get("preparation_j", 0.0) for client in before["clients"]),
        "uplink_bits": math.fsum(client["uplink_bits"] for client in clients),
        "downlink_bits": math.fsum(client["downlink_bits"] for client in clients),
        "factor_averaging_error": _mean(
            [record["factor_averaging_error"] for record in rounds if record["factor_averaging_error"] is not None]
        ),
    }


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
