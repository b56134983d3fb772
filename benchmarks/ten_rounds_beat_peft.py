"""Claim: ten federated rounds end at least 4 times sooner than with PEFT by hand, 12 times sooner than usually written.

RoBERTa-base's shape, AG News, 3 clients, LoRA of rank 8 on query and value of the last 3 of 12 layers, batches of 32,
2 threads, evaluation after every round. splitrank's time is all of ``run``: texts read, encoder loaded, the trunk's
output computed into an empty cache, rounds, checkpoints, exported adapter. The rivals of ``rivals/federated_peft.py``
read the same texts and load the same encoder in the same process; the evaluation before training, which splitrank
makes, is spared them. No network is needed: the encoder has random weights, on which no time depends.

    SPLITRANK_SHARED=... .venv/bin/python -m benchmarks.ten_rounds_beat_peft

``common`` takes about five times as long as ``expert`` and gets half of its texts and pairs. ``--rivals tuned`` is a
faster variant of ``expert``, which few would write.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.materials import agnews_rows, announced, empty_cache, roberta_base_shape, settings_of_all
from benchmarks.measure import alternate, conclude
from benchmarks.rivals.federated_peft import STYLES, train_federated
from benchmarks.rivals.task import task_of
from splitrank import Config, load_config, run

LEAST = {"expert": 4.0, "common": 12.0, "tuned": 3.0}
ROUNDS = 10
CLIENTS = 3
LAYERS = (9, 10, 11)
THREADS = 2


def config_of(encoder: Path, rows: Path, rounds: int = ROUNDS) -> Config:
    return load_config("offline", settings_of_all(encoder, rows, clients=CLIENTS, rounds=rounds, threads=THREADS))


def splitrank_run(config: Config) -> list[float]:
    """A whole run from an empty cache; the accuracy after each round."""
    with empty_cache() as temporary:
        return [record.accuracy for record in run(config, temporary / "run")][1:]


def rival_run(config: Config, style: str) -> list[float]:
    """The same by hand; the accuracy after each round."""
    return train_federated(task_of(config, LAYERS), style)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-rows", type=int, default=24, help="training texts of each client")
    parser.add_argument("--test-rows", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2, help="pairs of runs; against `common` half of it")
    parser.add_argument("--rivals", nargs="+", choices=STYLES, default=["expert", "common"])
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    measured, sizes = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        encoder = roberta_base_shape(Path(temporary) / "encoder")
        few = config_of(encoder, agnews_rows(Path(temporary) / "few", 12, 4), rounds=1)
        splitrank_run(few)
        for style in arguments.rivals:
            rival_run(few, style)
            part = 2 if style == "common" else 1
            train_rows, repeats = arguments.train_rows // part, -(-arguments.repeats // part)
            rows = agnews_rows(Path(temporary) / style, CLIENTS * train_rows, arguments.test_rows)
            config = config_of(encoder, rows)
            sizes[style] = train_rows
            measured[style] = alternate(
                announced("splitrank", lambda config=config: splitrank_run(config)),
                announced(style, lambda config=config, style=style: rival_run(config, style)),
                repeats=repeats,
                warm_up=0,
            )
    holds = True
    for style, pairs in measured.items():
        try:
            conclude(
                f"ten_rounds_beat_{style}_peft",
                f"RoBERTa-base shape, {CLIENTS} clients with {sizes[style]} AG News texts each, "
                f"{arguments.test_rows} test texts, {ROUNDS} rounds: {pairs} as fast as federated PEFT written as "
                f"`{style}`",
                pairs.ratio >= LEAST[style],
                least=LEAST[style],
                train_rows_per_client=sizes[style],
                test_rows=arguments.test_rows,
                **asdict(pairs),
            )
        except SystemExit:
            holds = False
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
