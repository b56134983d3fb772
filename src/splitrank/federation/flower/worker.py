"""A client as a process of its own: takes requests and sends answers; its texts and model stay from round to round.

    python -m splitrank.federation.flower.worker CLIENT.toml

Flower starts a fresh process for every message, which would load PyTorch and the encoder anew each round. So the
ClientApp only passes messages on to this worker over a UNIX socket that nobody but its owner can open. In Flower's
simulation, where a process serves many clients, the ClientApp asks a worker in its own process instead.

Every request brings the run's settings with it, so a worker that was restarted in mid-run needs nothing else. The work
itself, training among it, is :mod:`local_client`'s.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
import traceback
from pathlib import Path

from splitrank.errors import ConfigError, InputError, RunError
from splitrank.federation import wire
from splitrank.federation.flower import worker_socket
from splitrank.federation.flower.client_config import ClientConfig, read_client_config
from splitrank.federation.flower.links import noise
from splitrank.federation.flower.local_client import LocalClient
from splitrank.federation.flower.payload import NO_FLOATS, Floats, Header, is_count
from splitrank.federation.flower.personal import PersonalStore
from splitrank.federation.flower.prepared import Prepared, prepare
from splitrank.federation.flower.requests import (
    keep_merged,
    read_personal,
    read_plan_request,
    read_start,
    read_train_request,
)
from splitrank.federation.slices import slices_header
from splitrank.learning.adapters.adapter import to_vector
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.device import resolve_device
from splitrank.logs import show_log

_LOG = logging.getLogger("splitrank")

MAX_PROBE_FLOATS = 4_000_000
"""Length of the longest array that a server may ask for to measure the link."""

_MAX_SILENCE_S = 60.0


class Worker:
    """Answers a server's requests for the client, or in a simulation the clients, of this process."""

    def __init__(self, own: ClientConfig | None, rule: Rule | None = None) -> None:
        self._own, self._rule = own, rule
        self._prepared: Prepared | None = None

    def close(self) -> None:
        """Let go of model and cache."""
        if self._prepared is not None:
            self._prepared.close()
            self._prepared = None

    def answer(self, header: Header, floats: Floats) -> tuple[Header, Floats]:
        """Do what a request asks for; what goes wrong becomes an answer, too, and never carries any text."""
        try:
            match header.get("kind"):
                case "echo":
                    return self._echo(header)
                case "join":
                    return self._join(header), NO_FLOATS
                case "max-rank":
                    return self._max_rank(header), NO_FLOATS
                case "train":
                    return self._train(header, floats)
                case "evaluate":
                    return self._evaluate(header, floats), NO_FLOATS
                case kind:
                    raise InputError(f"a request must be echo, join, max-rank, train or evaluate, got {kind!r}")
        except (ConfigError, InputError, RunError) as error:
            reason, is_lost = str(error), isinstance(error, wire.LostMergedError)
        except Exception as error:
            traceback.print_exc()
            reason, is_lost = f"unexpected {type(error).__name__}; the worker's log tells more", False
        _LOG.warning(f"Failed: {reason}")
        return {"kind": "failure", "reason": reason[:1000], **({"merged_lost": True} if is_lost else {})}, NO_FLOATS

    def _echo(self, header: Header) -> tuple[Header, Floats]:
        length = header.get("length")
        if not is_count(length) or length > MAX_PROBE_FLOATS:
            raise InputError(f"an echo must have a length from 0 to {MAX_PROBE_FLOATS}, got {length!r}")
        return {"kind": "echo"}, noise(length)

    def _join(self, header: Header) -> Header:
        """Register the client: its amounts of text, and where budgets are real and not its own, its machine."""
        client = self._client(header)
        amounts = client.amounts
        joined: Header = {
            "kind": "joined",
            "client": client.client,
            "samples": int(amounts.samples[0]),
            "token_sum": int(amounts.token_sum[0]),
            "token_square_sum": int(amounts.token_square_sum[0]),
            "test_samples": client.num_test_samples,
        }
        if header.get("measure"):
            machine = client.measure_machine()
            if not client.is_private:
                joined["machine"] = machine.to_json()
        return joined

    def _max_rank(self, header: Header) -> Header:
        """Tell of the client's own problem nothing but the largest rank."""
        client = self._client(header)
        max_rank = client.max_rank(read_plan_request(client.prepared, header))
        return {"kind": "max-rank", "client": client.client, "max_rank": max_rank}

    def _train(self, header: Header, floats: Floats) -> tuple[Header, Floats]:
        """Train, and answer with the update: the selected numbers, and what they took."""
        started_s = time.monotonic()
        client = self._client(header)
        request = read_train_request(client.prepared, client.client, header, floats)
        acknowledged = keep_merged(request.start, client.client, header)
        result = client.train(request, stop_at_s=started_s + request.stop_after_s)
        update, machine = result.update, result.machine
        sent = wire.uplink(update.adapter, result.rule, client.client, request.turn)
        answer = {
            "kind": "update",
            "client": client.client,
            "round": request.round,
            "train_loss": update.train_loss,
            "samples": update.num_samples,
            "compute_s": time.monotonic() - started_s,
            "busy_s": None if client.is_private else result.busy_s,
            "energy_j": None if client.is_private else result.energy_j,
            "machine": None if client.is_private or machine is None else machine.to_json(),
            **acknowledged,
            **wire.header(sent, request.turn),
            **slices_header(result.rule),
        }
        if update.personal:
            store = PersonalStore.of(header.get("run"), client.client)
            sha256 = store.write(request.round, update.personal, started_from=request.personal_round)
            answer.update(personal_sha256=sha256, personal_lost=request.personal_lost)
        return answer, to_vector(sent).numpy()

    def _evaluate(self, header: Header, floats: Floats) -> Header:
        """Evaluate the shared adapter with the client's personal part on its own test texts; tell three numbers."""
        client = self._client(header)
        count = client.num_test_samples
        answer: Header = {"kind": "evaluated", "client": client.client, "hits": 0, "loss_sum": 0.0, "count": count}
        if count or client.prepared.test is None:
            adapter = read_start(client.prepared, client.client, header, floats)
            personal, _ = read_personal(client.prepared, client.client, header)
            answer["hits"], answer["loss_sum"] = client.evaluate(adapter, personal)
        return answer

    def _client(self, header: Header) -> LocalClient:
        """Return the client that a request is for, with the model and texts for its settings."""
        settings, labels, trunk_sha256 = header["settings"], header["labels"], header["trunk_sha256"]
        ready = self._prepared
        if (
            ready is None
            or (ready.settings, ready.labels) != (settings, labels)
            or ready.model.encoder.trunk_digest != trunk_sha256
        ):
            self.close()
            ready = self._prepared = prepare(self._own, settings, labels, trunk_sha256, self._rule)
        client = self._own.client if self._own else int(header["client"])
        rows = ready.training.rows
        if client not in rows:
            raise InputError(f"a client's number must be one of 0 to {len(rows) - 1}, got {client}")
        return LocalClient(ready, client)


def main() -> None:
    """Serve one client until stopped; ends with 2 where starting it again would not help."""
    show_log(with_time=True)
    try:
        own = read_client_config(Path(sys.argv[1]))
        show_log(client=own.client, with_time=True)
        resolve_device(own.layer.get("run.device", "auto"))
        worker = Worker(own)
        with worker_socket.listening(own.socket) as listener:
            _LOG.info(f"Client {own.client} is ready; its worker listens on {own.socket}.")
            while True:
                connection, _ = listener.accept()
                with connection:
                    _serve(worker, connection)
    except InputError as error:
        _LOG.error(str(error))
        sys.exit(2)


def _serve(worker: Worker, connection: socket.socket) -> None:
    """Answer one request; whoever asked may have gone meanwhile."""
    kind = "unread"
    connection.settimeout(_MAX_SILENCE_S)
    try:
        header, floats = worker_socket.receive(connection)
        kind = str(header.get("kind"))
        worker_socket.send(connection, *worker.answer(header, floats))
    except (OSError, EOFError, ValueError, RecursionError) as error:
        _LOG.info(f"A request ({kind}) broke off: {error}")


if __name__ == "__main__":
    main()
