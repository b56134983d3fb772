"""Claim: all that is not training or evaluating takes under 2 % of a round of three clients, and under 3 ms per
client of a round of a thousand.

Both are rounds of ``splitrank.run`` from one yielded record to the next: planning, resizing, averaging, the error of
averaging factors, the record, its line in rounds.jsonl, the checkpoint. AG News, MiniLM, LoRA of rank 8 on query and
value of the last three layers, the whole head trained.

Three clients really train and evaluate; framework time is what is left of the round without them. A thousand clients
return adapters that were made beforehand, all different, and nothing is evaluated; what is left of the round is divided
by the clients. Added to that is what a client's training does beside its steps (loading the adapter into the model,
making the optimiser, seeding, checking the weights, reading the adapter): a hundred of the clients, who have a text
each, really train, and the time in reading the batch, forward and backward pass, clipping and AdamW's step is taken
off.

    SPLITRANK_SHARED=... .venv/bin/python -m benchmarks.framework_time_is_small
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional

from benchmarks.materials import FREE_BUDGETS, agnews_rows
from benchmarks.measure import conclude, seconds
from splitrank import State, load_config, load_data, make_clients, run
from splitrank.federation.in_process import InProcessClients
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.method import AdaptedEncoder
from splitrank.learning.client import Evaluation, Update
from splitrank.learning.trunk import TrunkOutputs

MAX_SHARE = 0.02
MAX_MS_PER_CLIENT = 3.0
STEP = (
    (TrunkOutputs, "read"),
    (AdaptedEncoder, "logits"),
    (functional, "cross_entropy"),
    (torch.optim.AdamW, "zero_grad"),
    (torch.Tensor, "backward"),
    (torch.nn.utils, "clip_grad_norm_"),
    (torch.optim.AdamW, "step"),
)
"""What a training step consists of."""
RANK = 8
SETTINGS = [f"adapter.rank={RANK}", "adapter.target_modules=query-value", *FREE_BUDGETS]


class Stopwatch:
    """Adds up the seconds spent in the calls that it wraps."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def around(self, call: Any) -> Any:
        @functools.wraps(call)
        def timed(*arguments: Any, **options: Any) -> Any:
            started_s = time.perf_counter()
            result = call(*arguments, **options)
            self.spent_s += time.perf_counter() - started_s
            return result

        return timed


def rounds(settings: list[str], train: Any, evaluate: Any) -> Iterator[tuple[float, float]]:
    """Seconds of each round of a real run, and of its framework, with these two methods in the clients' place."""
    watch = Stopwatch()
    with (
        tempfile.TemporaryDirectory() as temporary,
        patch.object(InProcessClients, "train_client", watch.around(train)),
        patch.object(InProcessClients, "evaluate", watch.around(evaluate)),
    ):
        records = run(load_config("offline", settings), Path(temporary) / "run")
        next(records)
        while True:
            watch.spent_s = 0.0
            started_s = time.perf_counter()
            if next(records, None) is None:
                return
            round_s = time.perf_counter() - started_s
            yield round_s, round_s - watch.spent_s


def share_of_three(rows: Path, num_rounds: int) -> list[tuple[float, float]]:
    """Seconds of rounds in which three clients really train, and of their framework."""
    settings = [*SETTINGS, f'data.path="{rows}"', f"federation.rounds={num_rounds}"]
    return list(rounds(settings, InProcessClients.train_client, InProcessClients.evaluate))


class ReadyUpdates:
    """Stands in for clients that have trained: each returns an adapter that was made in the first round."""

    def __init__(self) -> None:
        self.adapters: dict[int, Adapter] = {}

    def train(self, clients: InProcessClients, client: int, start: Adapter, state: State) -> Update:
        if client not in self.adapters:
            noise = torch.Generator().manual_seed(client)
            moved = {
                name: tensor + 1e-3 * torch.randn(tensor.shape, generator=noise)
                for name, tensor in start.tensors.items()
            }
            self.adapters[client] = start.with_tensors(moved)
        return Update(self.adapters[client], 0.5, clients.num_samples[client], {})

    def evaluate(self, clients: InProcessClients, state: State) -> Evaluation:
        return Evaluation(0.5, 1.0, 0.5, 0.5)


def beside_the_steps(settings: list[str], count: int) -> list[float]:
    """Seconds that each of the first clients, of one text each, spends in training but not in its training step."""
    config = load_config("offline", settings)
    clients = make_clients(config, load_data(config))
    state = clients.initial_state()
    start = clients.model.method.resize(state.adapter, RANK, distribution="svd", seed=0, round=1)
    watch = Stopwatch()
    left_s = []
    with ExitStack() as held:
        held.callback(clients.close)
        for owner, name in STEP:
            held.enter_context(patch.object(owner, name, watch.around(getattr(owner, name))))
        for client in range(count):
            watch.spent_s = 0.0
            train_s = seconds(lambda client=client: clients.train_client(client, start, state))
            left_s.append(train_s - watch.spent_s)
    return left_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-rows", type=int, default=600, help="training texts of the three clients together")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        few = agnews_rows(Path(temporary) / "few", arguments.train_rows, 200)
        three = share_of_three(few, arguments.rounds)
        one_each = agnews_rows(Path(temporary) / "one-each", arguments.clients, 200)
        ready = ReadyUpdates()
        settings = [
            *SETTINGS,
            f'data.path="{one_each}"',
            f"federation.num_clients={arguments.clients}",
            f"federation.rounds={arguments.rounds + 1}",
        ]
        many = list(rounds(settings, ready.train, ready.evaluate))[1:]
        beside_s = beside_the_steps(settings, min(100, arguments.clients))
    shares = [framework_s / round_s for round_s, framework_s in three]
    share = statistics.median(shares)
    round_ms = 1e3 * statistics.median(framework_s for _, framework_s in many) / arguments.clients
    beside_ms = 1e3 * statistics.median(beside_s)
    conclude(
        "framework_time_is_small",
        f"Framework time: {100 * share:.2f} % of a round in which three clients train on {arguments.train_rows} texts; "
        f"with {arguments.clients:,} clients {round_ms + beside_ms:.2f} ms per client and round ({round_ms:.2f} ms "
        f"planning, averaging and recording, {beside_ms:.2f} ms beside each client's training steps)",
        share < MAX_SHARE and round_ms + beside_ms < MAX_MS_PER_CLIENT,
        most_share=MAX_SHARE,
        most_ms_per_client=MAX_MS_PER_CLIENT,
        three_clients=[{"round_s": round_s, "framework_s": framework_s} for round_s, framework_s in three],
        num_clients=arguments.clients,
        many_clients_framework_s=[framework_s for _, framework_s in many],
        beside_the_steps_s=beside_s,
    )


if __name__ == "__main__":
    main()
