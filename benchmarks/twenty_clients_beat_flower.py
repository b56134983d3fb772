"""Claim: ten rounds with 20 clients end at least 8 times sooner than with Flower's simulation of PEFT clients.

RoBERTa-base's shape, AG News, LoRA of rank 8 on query and value of the last 3 of 12 layers, batches of 32, 2 cores,
evaluation after every round. Both sides are a fresh process from its start to its end, splitrank with an empty cache;
the same without what that process needs to import its libraries is printed beside it. The rival is
``rivals/flower_peft``: Flower 1.41 on Ray, clients that train as ``expert`` in ``rivals/federated_peft.py`` do. No
network is needed: the encoder has random weights, on which no time depends.

    SPLITRANK_SHARED=... .venv/bin/python -m benchmarks.twenty_clients_beat_flower

Needs the extra ``flower``.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.materials import agnews_rows, announced, empty_cache, roberta_base_shape, settings_of_all
from benchmarks.measure import Paired, alternate, conclude
from benchmarks.one_run import in_own_process
from benchmarks.rivals.flower_peft.process import simulate
from benchmarks.rivals.task import task_of
from splitrank import load_config

LEAST = 8.0
ROUNDS = 10
THREADS = 2
LAYERS = (9, 10, 11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--train-rows", type=int, default=32, help="training texts of each client")
    parser.add_argument("--test-rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--repeats", type=int, default=1, help="pairs of runs")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that Ray is stopped whoever stops this
    imports: dict[str, list[float]] = {"ours": [], "theirs": []}

    with tempfile.TemporaryDirectory() as temporary:
        encoder = roberta_base_shape(Path(temporary) / "encoder")
        rows = agnews_rows(Path(temporary) / "rows", arguments.clients * arguments.train_rows, arguments.test_rows)
        settings = settings_of_all(encoder, rows, clients=arguments.clients, rounds=arguments.rounds, threads=THREADS)

        def splitrank_run() -> None:
            with empty_cache() as cache:
                ended = in_own_process(cache / "run", settings)
            assert len(ended["accuracies"]) == arguments.rounds
            imports["ours"].append(ended["import_s"])

        def flower_run() -> None:
            ended = simulate(task_of(load_config("offline", settings), LAYERS), THREADS)
            assert len(ended.accuracies) == arguments.rounds
            imports["theirs"].append(ended.import_s)

        pairs = alternate(
            announced("splitrank", splitrank_run),
            announced("Flower", flower_run),
            repeats=arguments.repeats,
            warm_up=0,
        )
    beyond_imports = Paired(
        [whole - importing for whole, importing in zip(pairs.ours_s, imports["ours"], strict=True)],
        [whole - importing for whole, importing in zip(pairs.theirs_s, imports["theirs"], strict=True)],
    )
    conclude(
        "twenty_clients_beat_flower",
        f"RoBERTa-base shape, {arguments.clients} clients with {arguments.train_rows} AG News texts each, "
        f"{arguments.test_rows} test texts, {arguments.rounds} rounds: {pairs} as fast as Flower's simulation, whole "
        f"processes; {beyond_imports} without their imports",
        pairs.ratio >= LEAST,
        least=LEAST,
        clients=arguments.clients,
        train_rows_per_client=arguments.train_rows,
        test_rows=arguments.test_rows,
        rounds=arguments.rounds,
        whole_processes=asdict(pairs),
        beyond_imports=asdict(beyond_imports),
    )


if __name__ == "__main__":
    main()
