"""The server: FedAvg over all clients, after every round a test, at the end a file with what each round took."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from peft_app.task import accuracy, get_arrays, load_model, load_texts, set_arrays

app = ServerApp()


def _longest(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
    seconds = [float(reply["metrics"]["train-s"]) for reply in replies]
    return MetricRecord({"train-s": max(seconds), "clients": len(seconds)})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for the clients and train with them; a round lasts from the end of a test to the end of the next."""
    config = dict(context.run_config)
    tokenizer, model = load_model(config)
    texts, labels = load_texts(config["test"])

    def test(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        started_s = time.perf_counter()
        set_arrays(model, arrays)
        share = accuracy(tokenizer, model, texts, labels, config)
        ended_s = time.perf_counter()
        return MetricRecord({"accuracy": share, "test-s": ended_s - started_s, "ended-s": ended_s})

    while len(list(grid.get_node_ids())) < config["clients"]:
        time.sleep(0.5)
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=config["clients"],
        min_available_nodes=config["clients"],
        train_metrics_aggr_fn=_longest,
    )
    result = strategy.start(grid, get_arrays(model), num_rounds=config["rounds"], evaluate_fn=test)
    trained, tested = result.train_metrics_clientapp, result.evaluate_metrics_serverapp
    rounds = [
        {
            "wall_s": tested[number]["ended-s"] - tested[number - 1]["ended-s"],
            "train_s": trained[number]["train-s"],
            "test_s": tested[number]["test-s"],
            "clients": trained[number]["clients"],
            "accuracy": tested[number]["accuracy"],
        }
        for number in sorted(trained)
    ]
    Path(config["out"]).write_text(json.dumps(rounds))
