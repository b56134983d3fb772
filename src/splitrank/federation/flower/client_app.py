"""The ClientApp: passes every message on to the client's worker, and its answer back. Loads no torch itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from splitrank.federation.flower import worker_socket
from splitrank.federation.flower.payload import NO_FLOATS, Floats, Header, PayloadError, pack, unpack

# Longer than any server waits; the worker keeps the round's deadline itself.
_PATIENCE_S = 24 * 3600.0

app = ClientApp()


def train(message: Message, context: Context) -> Message:
    """Answer a request for an update."""
    return _answered(message, context)


def query(message: Message, context: Context) -> Message:
    """Answer any other request."""
    return _answered(message, context)


app.train()(train)
app.query()(query)


def _answered(message: Message, context: Context) -> Message:
    try:
        header, floats = unpack(message.content)
        answer = _ask_worker(header, floats, context)
    except (PayloadError, OSError, EOFError) as error:
        answer = {"kind": "failure", "reason": f"{type(error).__name__}: {error}"[:1000]}, NO_FLOATS
    return Message(pack(*answer), reply_to=message)


def _ask_worker(header: Header, floats: Floats, context: Context) -> tuple[Header, Floats]:
    """Ask the worker that the node names, or in Flower's simulation one in this process."""
    path = context.node_config.get("worker")
    if path is not None:
        return worker_socket.ask(Path(str(path)), header, floats, _PATIENCE_S)
    header = {**header, "client": int(context.node_config["partition-id"])}
    answer: tuple[Header, Floats] = _worker_in_process().answer(header, floats)
    return answer


@cache
def _worker_in_process() -> Any:
    from splitrank.federation.flower.worker import Worker

    return Worker(None)
