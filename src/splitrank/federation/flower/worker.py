"""A client as a process of its own: its texts and its model, loaded once and kept from round to round.

    python -m splitrank.federation.flower.worker CLIENT.toml

Flower starts a fresh process for every message, which would load PyTorch and the encoder anew each round. So the
ClientApp only passes messages on to this worker over a UNIX socket that nobody but its owner can open. In Flower's
simulation, where a process serves many clients, the ClientApp asks a worker in its own process instead.

Every request brings the run's settings with it, so a worker that was restarted in mid-run needs nothing else.
"""

from __future__ import annotations

import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splitrank.config import config_from, flatten, plain_values
from splitrank.errors import ConfigError, InputError, RunError
from splitrank.federation.flower import line
from splitrank.federation.flower.own_settings import OwnSettings, read_own_settings
from splitrank.federation.flower.payload import NO_FLOATS, Floats, Header
from splitrank.federation.loop import load_data
from splitrank.federation.model import Model, amounts_of_text, load_model
from splitrank.federation.rounds import State
from splitrank.learning.adapters import lora
from splitrank.learning.client import Pace
from splitrank.learning.data import load_split
from splitrank.learning.partition import partition_iid
from splitrank.learning.trunk import TrunkOutputs
from splitrank.progress import say

MOST_PROBE_FLOATS = 4_000_000
"""Length of the longest array that a server may ask for to measure the link."""


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What a run needs of a client, for one set of settings.

    ``rows[client]`` are the texts of each client that this worker may stand for: all texts where they are its own.
    """

    settings: Header
    labels: list[str]
    model: Model
    outputs: TrunkOutputs
    text_labels: NDArray[np.int64]
    rows: Mapping[int, NDArray[np.int64]]


class Worker:
    """Answers a server's requests for the client, or in a simulation the clients, of this process."""

    def __init__(self, own: OwnSettings | None) -> None:
        self._own = own
        self._prepared: _Prepared | None = None

    def answer(self, header: Header, floats: Floats) -> tuple[Header, Floats]:
        """Do what a request asks for; what goes wrong becomes an answer, too, and never carries any text."""
        try:
            match header.get("kind"):
                case "echo":
                    return self._echo(header)
                case "join":
                    return self._join(header), NO_FLOATS
                case "train":
                    return self._train(header, floats)
                case kind:
                    raise InputError(f"a request must be echo, join or train, got {kind!r}")
        except (ConfigError, InputError, RunError) as error:
            reason = str(error)
        except Exception as error:
            traceback.print_exc()
            reason = f"unexpected {type(error).__name__}; the worker's log tells more"
        say(f"Failed: {reason}")
        return {"kind": "failure", "reason": reason[:1000]}, NO_FLOATS

    def _echo(self, header: Header) -> tuple[Header, Floats]:
        length = header.get("length")
        if not isinstance(length, int) or not 0 <= length <= MOST_PROBE_FLOATS:
            raise InputError(f"an echo must have a length from 0 to {MOST_PROBE_FLOATS}, got {length!r}")
        return {"kind": "echo"}, np.zeros(length, dtype=np.float32)

    def _join(self, header: Header) -> Header:
        prepared, client = self._prepare(header)
        lengths = prepared.outputs.lengths[prepared.rows[client]]
        amounts = amounts_of_text([lengths])
        return {
            "kind": "joined",
            "client": client,
            "samples": int(amounts.samples[0]),
            "token_sum": int(amounts.token_sum[0]),
            "token_square_sum": int(amounts.token_square_sum[0]),
        }

    def _train(self, header: Header, floats: Floats) -> tuple[Header, Floats]:
        started_s = time.monotonic()
        prepared, client = self._prepare(header)
        round, rank = int(header["round"]), int(header["rank"])
        like = prepared.model.initial_state().adapter
        if len(floats) != lora.num_numbers(like, rank):
            raise InputError(
                f"an adapter of rank {rank} must have {lora.num_numbers(like, rank)} numbers, got {len(floats)}"
            )
        pace = Pace(duty_cycle=float(header["duty_cycle"]), stop_at_s=started_s + float(header["stop_after_s"]))
        say(f"Round {round}: training at rank {rank}.")
        start = State(round - 1, lora.from_flat(torch.from_numpy(floats.copy()), like, rank), {})
        update = prepared.model.train(
            prepared.outputs,
            prepared.rows[client],
            prepared.text_labels,
            start,
            round=round,
            client=client,
            pace=pace,
        )
        answer = {
            "kind": "update",
            "client": client,
            "round": round,
            "train_loss": update.train_loss,
            "samples": update.num_samples,
            "compute_s": time.monotonic() - started_s,
        }
        return answer, lora.to_flat(update.adapter).numpy()

    def _prepare(self, header: Header) -> tuple[_Prepared, int]:
        """The model and texts for a request's settings, and the client's number."""
        settings, labels = header["settings"], header["labels"]
        if self._prepared is None or (self._prepared.settings, self._prepared.labels) != (settings, labels):
            if self._prepared is not None:
                self._prepared.outputs.close()
                self._prepared = None
            self._prepared = self._load(settings, labels)
        found = self._prepared.model.encoder.trunk_digest
        if header["trunk_sha256"] != found:
            raise InputError(
                f"the frozen weights must be those of the server ({header['trunk_sha256'][:12]}), got {found[:12]} for "
                f"{self._prepared.model.config.model.name}; give every machine the same model"
            )
        client = self._own.client if self._own else int(header["client"])
        if client not in self._prepared.rows:
            raise InputError(f"a client's number must be one of 0 to {len(self._prepared.rows) - 1}, got {client}")
        return self._prepared, client

    def _load(self, settings: Header, labels: list[str]) -> _Prepared:
        if self._own is None:
            config = config_from(flatten(settings))
            data = load_data(config)
            if data.label_names != labels:
                raise InputError(f"the classes must be those of the server ({labels}), got {data.label_names}")
            texts, text_labels = data.train_texts, data.train_labels
            shares = partition_iid(text_labels, config.federation.num_clients, config.run.seed)
            rows = dict(enumerate(shares))
        else:
            config = config_from(flatten(settings), self._own.layer)
            table = config.data
            assert table.path is not None
            split, _ = load_split(
                table.path,
                "train",
                text=list(table.text) if table.text else None,
                label=table.label,
                classes=labels,
            )
            texts, text_labels = split.texts, split.labels
            if self._own.client >= config.federation.num_clients:
                raise InputError(
                    f"client must be below the server's federation.num_clients = {config.federation.num_clients}, "
                    f"got {self._own.client}"
                )
            rows = {self._own.client: np.arange(len(texts))}
        model = load_model(config, labels)
        outputs = model.prepare(model.tokenize(texts), "training texts")
        return _Prepared(settings, labels, model, outputs, text_labels, rows)


def settings_for_clients(model: Model) -> Header:
    """What of the settings goes to the clients: all but what concerns the server alone, without its paths."""
    return plain_values(model.config)


def main() -> None:
    """Serve one client until stopped."""
    own = read_own_settings(Path(sys.argv[1]))
    worker = Worker(own)
    with line.listening(own.socket) as listener:
        say(f"Client {own.client} is ready; its worker listens on {own.socket}.")
        while True:
            connection, _ = listener.accept()
            with connection:
                _serve(worker, connection)


def _serve(worker: Worker, connection: socket.socket) -> None:
    """Answer one request; whoever asked may have gone meanwhile."""
    kind = "unread"
    try:
        header, floats = line.receive(connection)
        kind = str(header.get("kind"))
        line.send(connection, *worker.answer(header, floats))
    except (OSError, EOFError, ValueError) as error:
        say(f"A request ({kind}) broke off: {error}")


if __name__ == "__main__":
    main()
