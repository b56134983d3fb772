"""The client: one local epoch from the arrays that the server sends."""

from __future__ import annotations

from functools import cache

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.rivals.flower_peft.loaded import loaded_trainee, read_task

CPUS_PER_CLIENT = 1
"""Cores of a Ray actor and threads of its PyTorch.

One each lets as many clients train at a time as there are cores, and none waits for another's threads;
one client with all cores would leave them idle in whatever a step does on one thread.
"""

app = ClientApp()


@cache
def _client(file: str, client: int) -> tuple[list[list[int]], np.ndarray]:
    task, trainee = read_task(file), loaded_trainee(file, CPUS_PER_CLIENT)
    return trainee.tokenize(task.client_texts[client]), np.array(task.client_labels[client])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client for one round."""
    config = message.content["config"]
    file, client = str(config["task"]), int(context.node_config["partition-id"])
    task, trainee = read_task(file), loaded_trainee(file, CPUS_PER_CLIENT)
    ids, labels = _client(file, client)
    trainee.load(message.content["arrays"].to_torch_state_dict())
    trainee.train_epoch(
        ids,
        labels,
        learning_rate=task.learning_rate,
        batch_size=task.batch_size,
        draws=np.random.default_rng([task.seed, int(config["server-round"]), client]),
    )
    content = {"arrays": ArrayRecord(trainee.state()), "metrics": MetricRecord({"num-examples": len(labels)})}
    return Message(RecordDict(content), reply_to=message)
