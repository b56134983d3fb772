"""Claim: computing in bf16 costs no accuracy, and gives the same rounds every time.

AG News, MiniLM, 3 clients, LoRA of rank 8 on query and value of the last 3 of 6 layers: over the seeds, the mean
accuracy with ``model.precision = "bf16"`` lies within 0.3 points of that with ``"fp32"``, whose outputs and gradients
the tests hold equal to Hugging Face's own. A second bf16 run of the first seed, from an empty cache too, gives records
that differ in nothing but ``wall_s``.

    SPLITRANK_SHARED=... .venv/bin/python -m benchmarks.bf16_is_as_accurate_as_fp32

The rows are the same for all seeds, which draw the head, the adapters and the batches; so the trunk's output is
computed once for each precision.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.materials import FREE_BUDGETS, agnews_rows, empty_cache
from benchmarks.measure import conclude
from splitrank import load_config, run

MAX_POINTS = 0.3


def records(rows: Path, out: Path, precision: str, seed: int, rounds: int) -> list[dict[str, Any]]:
    """The rounds of one run, without the time they took."""
    settings = [
        f"model.precision={precision}",
        "adapter.rank=8",
        "adapter.target_modules=query-value",
        f'data.path="{rows}"',
        f"federation.rounds={rounds}",
        f"run.seed={seed}",
        *FREE_BUDGETS,
    ]
    return [{**asdict(record), "wall_s": None} for record in run(load_config("offline", settings), out)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, default=450, help="training texts of all three clients together")
    parser.add_argument("--test-rows", type=int, default=450)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    accuracies: dict[str, list[float]] = {"bf16": [], "fp32": []}
    with tempfile.TemporaryDirectory() as temporary:
        rows = agnews_rows(Path(temporary) / "rows", arguments.train_rows, arguments.test_rows)
        with empty_cache() as cache:
            first = records(rows, cache / "first", "bf16", arguments.seeds[0], arguments.rounds)
        with empty_cache() as cache:
            for precision, reached in accuracies.items():
                for seed in arguments.seeds:
                    rounds = records(rows, cache / f"{precision}-{seed}", precision, seed, arguments.rounds)
                    if (precision, seed) == ("bf16", arguments.seeds[0]):
                        repeats = rounds == first
                    reached.append(rounds[-1]["accuracy"])
                    print(f"{precision}, seed {seed}: {reached[-1]:.4f}", flush=True)
    means = {precision: statistics.mean(reached) for precision, reached in accuracies.items()}
    points = 100 * (means["bf16"] - means["fp32"])
    conclude(
        "bf16_is_as_accurate_as_fp32",
        f"AG News, MiniLM, {arguments.train_rows} training and {arguments.test_rows} test texts, {arguments.rounds} "
        f"rounds, mean of {len(arguments.seeds)} seeds: bf16 {means['bf16']:.4f}, fp32 {means['fp32']:.4f}, "
        f"difference {points:+.2f} points; a repeated bf16 run is {'identical' if repeats else 'NOT identical'}",
        abs(points) <= MAX_POINTS and repeats,
        most_points=MAX_POINTS,
        seeds=arguments.seeds,
        train_rows=arguments.train_rows,
        test_rows=arguments.test_rows,
        rounds=arguments.rounds,
        accuracies=accuracies,
        repeats_identically=repeats,
    )


if __name__ == "__main__":
    main()
