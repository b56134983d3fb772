"""The table of a sweep: one line per member, from its run folder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from splitrank.files import write_atomically
from splitrank.studies.recorded import RecordedRun
from splitrank.studies.sweep import Member
from splitrank.studies.totals import best_accuracy, mean_rank, numbers, of_clients, slowest, total


def member_line(member: Member, run: RecordedRun) -> dict[str, Any]:
    """What a member is and what came out; nothing that differs when it is run again.

    ``latency_s`` is the sum over rounds of the slowest client's, ``energy_j`` the sum over rounds and clients, both of
    the simulated devices; ``preparation_s`` and ``preparation_j`` are the slowest client's and all clients' one-off
    pass through the frozen layers. ``mean_rank`` is over the participants of a round and then over rounds, those
    without participants counting as rank 0; ``mean_max_rank`` is over clients and rounds. An adapter method without a
    rank has rank 1.

    The baseline full fine-tuning has no limits, so its clients run at their highest clocks, and its operations are
    counted as they are: its time and energy compare with those of members with ``workload.model = "flops"`` at full
    speed (as in the experiment ``placement``), not with those of the paper's count.
    """
    last, rounds = run.records[-1], run.records[1:]
    return {
        "member": member.name,
        "baseline": member.baseline,
        **member.varied,
        "rounds": len(rounds),
        "accuracy_before": run.records[0]["accuracy"],
        "accuracy": last["accuracy"],
        "best_accuracy": best_accuracy(run),
        "loss": last["loss"],
        "macro_f1": last["macro_f1"],
        "worst_client_accuracy": last["worst_client_accuracy"],
        "mean_rank": mean_rank(run),
        "mean_max_rank": _mean([rank for ranks in of_clients("max_rank")(run).values() for rank in ranks]),
        "client_rounds_missed": sum(client["dropped"] for record in rounds for client in record["clients"]),
        "latency_s": slowest("latency_s")(run),
        "energy_j": total("energy_j")(run),
        "preparation_s": slowest("preparation_s")(run),
        "preparation_j": total("preparation_j")(run),
        "uplink_bits": total("uplink_bits")(run),
        "downlink_bits": total("downlink_bits")(run),
        "factor_averaging_error": _mean(numbers(record["factor_averaging_error"] for record in rounds)),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def table_of(members: Sequence[Member], runs: Sequence[RecordedRun]) -> pd.DataFrame:
    """One line for each member and what it left behind, in their order."""
    lines = [member_line(member, run) for member, run in zip(members, runs, strict=True)]
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
