"""The client: one local epoch from the arrays that the server sends."""

from __future__ import annotations

import time

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from peft_app.task import get_arrays, load_model, load_texts, set_arrays, train_epoch

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the node's own texts, and tell how long the training alone took."""
    config = dict(context.run_config)
    tokenizer, model = load_model(config)
    texts, labels = load_texts(str(context.node_config["texts"]))
    set_arrays(model, message.content["arrays"])
    started_s = time.perf_counter()
    train_epoch(tokenizer, model, texts, labels, config)
    metrics = MetricRecord({"num-examples": len(texts), "train-s": time.perf_counter() - started_s})
    return Message(RecordDict({"arrays": get_arrays(model), "metrics": metrics}), reply_to=message)
