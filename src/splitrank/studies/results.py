"""Make the table of a sweep: one line per trial, from its run folder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from splitrank.files import write_atomically
from splitrank.studies.run_reader import RecordedRun
from splitrank.studies.sweep import Trial
from splitrank.studies.totals import best_accuracy, finite_or_none, mean_of, mean_rank, slowest, total


def trial_line(trial: Trial, run: RecordedRun) -> dict[str, object]:
    """Return a trial's settings and results, by column; nothing that differs when it is run again.

    ``latency_s`` is the sum over rounds of the slowest client's, ``energy_j`` the sum over rounds and clients, both of
    the simulated devices; ``preparation_s`` and ``preparation_j`` are the slowest client's and all clients' one-off
    pass through the frozen layers. ``mean_rank`` is over the participants of a round and then over rounds, those
    without participants counting as rank 0; ``mean_max_rank`` is over clients and rounds. An adapter method without a
    rank has rank 1.

    The baseline full fine-tuning has no limits, so its clients run at their highest clocks, and its operations are
    counted as they are: its time and energy compare with those of trials with ``workload.model = "flops"`` at full
    speed (as in the experiment ``placement``), not with those of the paper's count.
    """
    first, last, rounds = run.rounds.iloc[0], run.rounds.iloc[-1], run.rounds.iloc[1:]
    return {
        "member": trial.name,
        "baseline": trial.baseline,
        **trial.varied,
        "rounds": len(rounds),
        "accuracy_before": finite_or_none(first["accuracy"]),
        "accuracy": finite_or_none(last["accuracy"]),
        "best_accuracy": best_accuracy(run),
        "loss": finite_or_none(last["loss"]),
        "macro_f1": finite_or_none(last["macro_f1"]),
        "worst_client_accuracy": finite_or_none(last["worst_client_accuracy"]),
        "mean_rank": mean_rank(run),
        "mean_max_rank": mean_of(run.clients["max_rank"]),
        "client_rounds_missed": int((run.clients["dropped"] & ~run.clients["passed_over"]).sum()),
        "latency_s": slowest("latency_s")(run),
        "energy_j": total("energy_j")(run),
        "preparation_s": slowest("preparation_s")(run),
        "preparation_j": total("preparation_j")(run),
        "uplink_bits": total("uplink_bits")(run),
        "downlink_bits": total("downlink_bits")(run),
        "factor_averaging_error": mean_of(rounds["factor_averaging_error"]),
    }


def table_of(trials: Sequence[Trial], runs: Sequence[RecordedRun]) -> pd.DataFrame:
    """Return a line for each trial and its run, in their order."""
    lines = [trial_line(trial, run) for trial, run in zip(trials, runs, strict=True)]
    return pd.DataFrame([{key: _cell(value) for key, value in line.items()} for line in lines])


def _cell(value: Any) -> Any:
    """Return lists and tables as text, so that a column of a file can hold them."""
    return str(value) if isinstance(value, list | tuple | dict) else value


def write_table(table: pd.DataFrame, stem: Path) -> None:
    """Write ``STEM.csv`` and ``STEM.parquet``."""
    parquet = io.BytesIO()
    # A column of texts beside numbers, such as a setting that takes both, has no type in Parquet.
    mixed = {name: str for name in table.columns if table[name].map(type).nunique() > 1 and table[name].dtype == object}
    table.astype(mixed).to_parquet(parquet, index=False)
    write_atomically(stem.with_name(f"{stem.name}.csv"), table.to_csv(index=False))
    write_atomically(stem.with_name(f"{stem.name}.parquet"), parquet.getvalue())
