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
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splitrank.config import Config, config_from, flatten
from splitrank.errors import ConfigError, InputError, RunError
from splitrank.federation.budgets import ClientTexts, Measured, measured_problem, round_problem, round_workload
from splitrank.federation.flower import line
from splitrank.federation.flower.links import noise
from splitrank.federation.flower.machine import MachineEstimate, at_frequency, measured_machine, read_energy_j
from splitrank.federation.flower.own_settings import OwnSettings, read_own_settings
from splitrank.federation.flower.payload import NO_FLOATS, Floats, Header, is_count
from splitrank.federation.loop import load_data
from splitrank.federation.model import Model, amounts_of_text, load_model
from splitrank.federation.rounds import State
from splitrank.learning.adapters import lora
from splitrank.learning.client import Pace
from splitrank.learning.data import load_split
from splitrank.learning.partition import partition_iid
from splitrank.learning.text_rules import Split
from splitrank.learning.trunk import TrunkOutputs
from splitrank.planning.plan import make_plan
from splitrank.planning.problem import Problem, of_client
from splitrank.planning.solvers.exact import exact
from splitrank.progress import say

MOST_PROBE_FLOATS = 4_000_000
"""Length of the longest array that a server may ask for to measure the link."""

_LONGEST_SILENCE_S = 60.0


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
    machines: dict[int, MachineEstimate] = field(default_factory=dict)


class Worker:
    """Answers a server's requests for the client, or in a simulation the clients, of this process."""

    def __init__(self, own: OwnSettings | None) -> None:
        self._own = own
        self._prepared: _Prepared | None = None

    def close(self) -> None:
        """Let go of model and cache."""
        if self._prepared is not None:
            self._prepared.outputs.close()
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
                case kind:
                    raise InputError(f"a request must be echo, join, max-rank or train, got {kind!r}")
        except (ConfigError, InputError, RunError) as error:
            reason = str(error)
        except Exception as error:
            traceback.print_exc()
            reason = f"unexpected {type(error).__name__}; the worker's log tells more"
        say(f"Failed: {reason}")
        return {"kind": "failure", "reason": reason[:1000]}, NO_FLOATS

    def _echo(self, header: Header) -> tuple[Header, Floats]:
        length = header.get("length")
        if not is_count(length) or length > MOST_PROBE_FLOATS:
            raise InputError(f"an echo must have a length from 0 to {MOST_PROBE_FLOATS}, got {length!r}")
        return {"kind": "echo"}, noise(length)

    def _join(self, header: Header) -> Header:
        prepared, client = self._prepare(header)
        lengths = prepared.outputs.lengths[prepared.rows[client]]
        amounts = amounts_of_text([lengths])
        joined: Header = {
            "kind": "joined",
            "client": client,
            "samples": int(amounts.samples[0]),
            "token_sum": int(amounts.token_sum[0]),
            "token_square_sum": int(amounts.token_square_sum[0]),
        }
        if header.get("measure"):
            prepared.machines.pop(client, None)
            machine = self._estimate(prepared, client).machine
            if prepared.model.config.planner.where == "server":
                joined["machine"] = machine.to_json()
        return joined

    def _max_rank(self, header: Header) -> Header:
        """Solve this client's own problem, and tell nothing of it but the largest rank."""
        prepared, client = self._prepare(header)
        problem = self._own_problem(prepared, client, header)
        return {"kind": "max-rank", "client": client, "max_rank": int(exact(problem)[0])}

    def _own_problem(self, prepared: _Prepared, client: int, header: Header) -> Problem:
        """P1 of this client alone: its machine and energy budget, the server's latency budget and link estimate."""
        config, link = prepared.model.config, header["link"]
        amounts = amounts_of_text([prepared.outputs.lengths[prepared.rows[client]]])
        everybody = np.ones(config.federation.num_clients)
        alike = ClientTexts(*(everybody * amount[0] for amount in vars(amounts).values()))
        rates = {name: everybody * float(link[name]) for name in ("uplink_bps", "downlink_bps", "overhead_s")}
        if header["measure"]:
            machine = self._estimate(prepared, client).machine
            names = ("seconds_per_sample", "seconds_per_sample_per_rank", "reference_frequency_hz", "capacitance")
            own = {name: everybody * getattr(machine, name) for name in names}
            paced = np.full(len(everybody), machine.is_paced)
            measured = Measured(**own, **rates, paced=paced, latency_margin=float(link["latency_margin"]))
            problem = measured_problem(config, prepared.model.shape, alike, measured)
        else:
            workload = round_workload(config, prepared.model.shape, alike)
            problem = round_problem(config, prepared.model.shape, workload, int(header["round"]), sit_out=True)
            problem = replace(
                problem,
                uplink_bps=rates["uplink_bps"],
                downlink_bps=rates["downlink_bps"],
                overhead_s=rates["overhead_s"],
            )
        return of_client(problem, client)

    def _estimate(self, prepared: _Prepared, client: int) -> MachineEstimate:
        """What this machine is, measured when it joins and kept running by the rounds."""
        if client not in prepared.machines:
            say("Measuring this machine.")
            rows, labels = prepared.rows[client], prepared.text_labels
            measured = measured_machine(prepared.model, prepared.outputs, rows, labels, client)
            prepared.machines[client] = MachineEstimate(measured)
            say(f"{measured}")
        return prepared.machines[client]

    def _train(self, header: Header, floats: Floats) -> tuple[Header, Floats]:
        started_s = time.monotonic()
        prepared, client = self._prepare(header)
        round, rank = int(header["round"]), int(header["rank"])
        like = prepared.model.initial_state().adapter
        if len(floats) != lora.num_numbers(like, rank):
            raise InputError(
                f"an adapter of rank {rank} must have {lora.num_numbers(like, rank)} numbers, got {len(floats)}"
            )
        estimate = self._estimate(prepared, client) if header["measure"] else None
        frequency_hz, planned_s = header["frequency_hz"], header["planned_s"]
        if estimate and frequency_hz is None:
            policy = prepared.model.config.planner.frequency_policy
            plan = make_plan(
                self._own_problem(prepared, client, header), method="exact", frequency_policy=policy, rank=rank
            )
            frequency_hz, planned_s = float(plan.frequency_hz[0]), float(plan.compute_s[0])
        say(f"Round {round}: training at rank {rank}.")
        start = State(round - 1, lora.from_flat(torch.from_numpy(floats.copy()), like, rank), {})
        pace = Pace(stop_at_s=started_s + float(header["stop_after_s"]))
        before_j, before_cpu_s, before_s = read_energy_j(), time.process_time(), time.monotonic()
        with at_frequency(frequency_hz) if estimate else nullcontext(False) as is_set:
            slowdown = estimate.measured.reference_frequency_hz / frequency_hz if estimate else 1.0
            if estimate and not is_set:
                pace.slowdown, pace.planned_s = slowdown, planned_s
            update = prepared.model.train(
                prepared.outputs,
                prepared.rows[client],
                prepared.text_labels,
                start,
                round=round,
                client=client,
                pace=pace,
            )
        busy_s, after_j = time.monotonic() - before_s - pace.rested_s, read_energy_j()
        if estimate:
            num_samples = len(prepared.rows[client]) * prepared.model.config.federation.local_epochs
            estimate.took(busy_s / slowdown if is_set else busy_s, rank, num_samples)
        is_private = prepared.model.config.planner.where == "client"
        answer = {
            "kind": "update",
            "client": client,
            "round": round,
            "train_loss": update.train_loss,
            "samples": update.num_samples,
            "compute_s": time.monotonic() - started_s,
            "busy_s": None if is_private else (time.process_time() - before_cpu_s) / torch.get_num_threads(),
            "energy_j": None if is_private or before_j is None or after_j is None else max(0.0, after_j - before_j),
            "machine": None if is_private or estimate is None else estimate.machine.to_json(),
        }
        return answer, lora.to_flat(update.adapter).numpy()

    def _prepare(self, header: Header) -> tuple[_Prepared, int]:
        """The model and texts for a request's settings, and the client's number."""
        settings, labels = header["settings"], header["labels"]
        ready = self._prepared
        if (
            ready is None
            or (ready.settings, ready.labels) != (settings, labels)
            or ready.model.encoder.trunk_digest != header["trunk_sha256"]
        ):
            self.close()
            ready = self._prepared = self._load(settings, labels, header["trunk_sha256"])
        client = self._own.client if self._own else int(header["client"])
        if client not in ready.rows:
            raise InputError(f"a client's number must be one of 0 to {len(ready.rows) - 1}, got {client}")
        return ready, client

    def _load(self, settings: Header, labels: list[str], trunk_sha256: str) -> _Prepared:
        """Load the model, and only if it is the server's the texts."""
        if self._own is None:
            config = config_from(flatten(settings))
            model = _same_model(config, labels, trunk_sha256)
            data = load_data(config)
            if data.label_names != labels:
                raise InputError(f"the classes must be those of the server ({labels}), got {data.label_names}")
            texts, text_labels = data.train_texts, data.train_labels
            shares = partition_iid(text_labels, config.federation.num_clients, config.run.seed)
            rows = dict(enumerate(shares))
            outputs = model.prepare(model.tokenize(texts), "training texts")
        else:
            # Which file and which columns is the client's to say alone: a server that could name them could read them.
            asked = {key: value for key, value in flatten(settings).items() if not key.startswith("data.")}
            config = config_from(asked, self._own.layer)
            if self._own.client >= config.federation.num_clients:
                raise InputError(
                    f"client must be below the server's federation.num_clients = {config.federation.num_clients}, "
                    f"got {self._own.client}"
                )
            model = _same_model(config, labels, trunk_sha256)
            try:
                split = _own_texts(config, labels)
                outputs = model.prepare(model.tokenize(split.texts), "training texts")
            except InputError as error:
                say(f"{error}")  # here alone: such a sentence may quote a text
                raise InputError("its texts cannot be used; the client's own log tells why") from None
            text_labels, rows = split.labels, {self._own.client: np.arange(len(split.texts))}
        return _Prepared(settings, labels, model, outputs, text_labels, rows)


def _same_model(config: Config, labels: list[str], trunk_sha256: str) -> Model:
    """The model of a request's settings, if its frozen weights are the server's."""
    model = load_model(config, labels)
    found = model.encoder.trunk_digest
    if trunk_sha256 != found:
        raise InputError(
            f"the frozen weights must be those of the server ({trunk_sha256[:12]}), got {found[:12]} for "
            f"{config.model.name}; give every machine the same model"
        )
    return model


def _own_texts(config: Config, labels: list[str]) -> Split:
    table = config.data
    assert table.path is not None
    text = list(table.text) if table.text else None
    split, _ = load_split(table.path, "train", text=text, label=table.label, classes=labels)
    return split


def main() -> None:
    """Serve one client until stopped; ends with 2 where starting it again would not help."""
    try:
        own = read_own_settings(Path(sys.argv[1]))
        worker = Worker(own)
        with line.listening(own.socket) as listener:
            say(f"Client {own.client} is ready; its worker listens on {own.socket}.")
            while True:
                connection, _ = listener.accept()
                with connection:
                    _serve(worker, connection)
    except InputError as error:
        say(f"Error: {error}")
        sys.exit(2)


def _serve(worker: Worker, connection: socket.socket) -> None:
    """Answer one request; whoever asked may have gone meanwhile."""
    kind = "unread"
    connection.settimeout(_LONGEST_SILENCE_S)
    try:
        header, floats = line.receive(connection)
        kind = str(header.get("kind"))
        line.send(connection, *worker.answer(header, floats))
    except (OSError, EOFError, ValueError, RecursionError) as error:
        say(f"A request ({kind}) broke off: {error}")


if __name__ == "__main__":
    main()
