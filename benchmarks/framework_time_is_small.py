"""Claim: all that is not training or evaluating takes under 2 % of a round of three clients, and under 3 ms per
client of a round of a thousand.

Both are rounds of ``splitrank.run`` from one yielded record to the next: planning, resizing, averaging, the error of
averaging factors, the record, its line in rounds.jsonl, the checkpoint. AG News, MiniLM, LoRA of rank 8 on query and
value of the last three layers, the whole head trained.

Three clients really train and evaluate; framework time is what is left of the round without them. A thousand clients
return adapters that were made beforehand, all different, and nothing is evaluated; what is left of the round is divided
by the clients. Added to that is what every client's training does beside its steps, timed apart: loading the adapter
into the model, making the optimiser, seeding, switching dropout on and off, checking the weights, reading the adapter.

    SPLITRANK_SHARED=... .venv/bin/python -m benchmarks.framework_time_is_small
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.materials import FREE_BUDGETS, agnews_rows
from benchmarks.measure import conclude, seconds
from splitrank import State, load_config, run
from splitrank.federation.in_process import InProcessClients
from splitrank.learning.adapters import lora
from splitrank.learning.adapters.lora import Adapter
from splitrank.learning.client import Evaluation, Update

MOST_SHARE = 0.02
MOST_MS_PER_CLIENT = 3.0
SETTINGS = ["adapter.rank=8", "adapter.target_modules=query-value", *FREE_BUDGETS]


class Stopwatch:
    """Adds up the seconds spent in the calls that it wraps."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def around(self, call: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            started_s = time.perf_counter()
            result = call(*arguments)
            self.spent_s += time.perf_counter() - started_s
            return result

        return timed


def rounds(settings: list[str], train: Any, evaluate: Any) -> Iterator[tuple[float, float]]:
    """Seconds of each round of a real run, and of its framework, with these two methods in the clients' place."""
    watch = Stopwatch()
    with (
        tempfile.TemporaryDirectory() as temporary,
        patch.object(InProcessClients, "train", watch.around(train)),
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
    return list(rounds(settings, InProcessClients.train, InProcessClients.evaluate))


class ReadyUpdates:
    """Stands in for clients that have trained: each returns an adapter that was made in the first round."""

    def __init__(self) -> None:
        self.adapters: dict[int, Adapter] = {}
        self.clients: InProcessClients | None = None

    def train(self, clients: InProcessClients, client: int, state: State, round: int) -> Update:
        if client not in self.adapters:
            self.clients = clients
            noise = torch.Generator().manual_seed(client)
            moved = {
                name: tensor + 1e-3 * torch.randn(tensor.shape, generator=noise)
                for name, tensor in state.adapter.tensors().items()
            }
            self.adapters[client] = lora.from_tensors(moved, state.adapter.rank, state.adapter.scaling)
        return Update(self.adapters[client], 0.5, clients.num_samples[client], {})

    def evaluate(self, clients: InProcessClients, state: State) -> Evaluation:
        return Evaluation(0.5, 1.0, 0.5, 0.5)


def beside_the_steps(clients: InProcessClients, adapter: Adapter, repeats: int) -> dict[str, float]:
    """Median seconds of what `learning.client.train` does around its steps."""
    parameters: list[torch.nn.Parameter] = []

    def load() -> None:
        parameters[:] = lora.load(clients.peft_model, adapter)

    def seed() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)

    def switch() -> None:
        clients.encoder.model.train()
        clients.encoder.model.eval()

    parts = {
        "load": load,
        "optimiser": lambda: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True),
        "seed": seed,
        "switch": switch,
        "check": lambda: all(bool(parameter.isfinite().all()) for parameter in parameters),
        "read": lambda: lora.read(clients.peft_model, adapter),
    }
    taken_s: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            taken_s[name].append(seconds(part))
    return {name: statistics.median(taken) for name, taken in taken_s.items()}


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
        settings = [f'data.path="{one_each}"', f"federation.num_clients={arguments.clients}"]
        rounds_changed = f"federation.rounds={arguments.rounds + 1}"
        many = list(rounds([*SETTINGS, *settings, rounds_changed], ready.train, ready.evaluate))[1:]
        assert ready.clients is not None
        around_s = beside_the_steps(ready.clients, ready.adapters[0], repeats=100)
    shares = [framework_s / round_s for round_s, framework_s in three]
    share = statistics.median(shares)
    round_ms = 1e3 * statistics.median(framework_s for _, framework_s in many) / arguments.clients
    around_ms = 1e3 * sum(around_s.values())
    print("; ".join(f"{name} {1e3 * taken_s:.2f} ms" for name, taken_s in around_s.items()), flush=True)
    conclude(
        "framework_time_is_small",
        f"Framework time: {100 * share:.2f} % of a round in which three clients train on {arguments.train_rows} texts; "
        f"with {arguments.clients:,} clients {round_ms + around_ms:.2f} ms per client and round ({round_ms:.2f} ms "
        f"planning, averaging and recording, {around_ms:.2f} ms around each client's training steps)",
        share < MOST_SHARE and round_ms + around_ms < MOST_MS_PER_CLIENT,
        most_share=MOST_SHARE,
        most_ms_per_client=MOST_MS_PER_CLIENT,
        three_clients=[{"round_s": round_s, "framework_s": framework_s} for round_s, framework_s in three],
        num_clients=arguments.clients,
        many_clients_framework_s=[framework_s for _, framework_s in many],
        around_training_s=around_s,
    )


if __name__ == "__main__":
    main()
