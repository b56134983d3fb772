"""The server: FedAvg over all clients, and after every round the accuracy on the test texts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.rivals.flower_peft.loaded import loaded_trainee, read_task


class EveryClient(FedAvg):
    """FedAvg that stops where a client failed, which Flower's own only logs: a round without it would be too quick."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what all clients sent."""
        replies = list(replies)
        failures = [reply.error.reason for reply in replies if reply.has_error()]
        if failures or len(replies) < self.min_train_nodes:
            raise RuntimeError(f"{len(replies)} of {self.min_train_nodes} clients replied; failures: {failures}")
        return super().aggregate_train(server_round, replies)


def server_app(file: str, threads: int, accuracies: list[float]) -> ServerApp:
    """A server for the task in a file, evaluating on that many threads; it appends each round's accuracy."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        task = read_task(file)
        trainee = loaded_trainee(file, threads)
        ids, labels = trainee.tokenize(task.test_texts), np.array(task.test_labels)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if server_round == 0:  # the untrained model is not asked for
                return None
            trainee.load(arrays.to_torch_state_dict())
            accuracies.append(trainee.accuracy(ids, labels))
            return MetricRecord({"accuracy": accuracies[-1]})

        num_clients = len(task.client_texts)
        strategy = EveryClient(fraction_evaluate=0.0, min_train_nodes=num_clients, min_available_nodes=num_clients)
        strategy.start(
            grid,
            ArrayRecord(trainee.state()),
            num_rounds=task.rounds,
            timeout=24 * 3600,
            train_config=ConfigRecord({"task": file}),
            evaluate_fn=evaluate,
        )

    return app
