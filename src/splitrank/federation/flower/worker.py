"""A client as a process of its own: its texts and its model, loaded once and kept from round to round.

    python -m splitrank.federation.flower.worker CLIENT.toml

Flower starts a fresh process for every message, which would load PyTorch and the encoder anew each round. So the
ClientApp only passes messages on to this worker over a UNIX socket that nobody but its owner can open. In Flower's
simulation, where a process serves many clients, the ClientApp asks a worker in its own process instead.

Every request brings the run's settings with it, so a worker that was restarted in mid-run needs nothing else.
"""

from __future__ import annotations

import logging
import math
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splitrank.errors import ConfigError, InputError, RunError
from splitrank.federation import wire
from splitrank.federation.backlog import placed
from splitrank.federation.costs import round_workload
from splitrank.federation.flower import worker_socket
from splitrank.federation.flower.client_config import ClientConfig, read_client_config
from splitrank.federation.flower.device_profile import at_frequency, read_energy_j
from splitrank.federation.flower.links import noise
from splitrank.federation.flower.payload import NO_FLOATS, Floats, Header, is_count
from splitrank.federation.flower.personal import PersonalStore
from splitrank.federation.flower.prepared import Prepared, prepare
from splitrank.federation.problems import Measured, measured_problem, round_problem
from splitrank.federation.sizes import MergedParts, rank_cap
from splitrank.federation.state import State
from splitrank.federation.texts import TextStats
from splitrank.learning.adapters.adapter import Adapter, to_vector
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.client import Throttle
from splitrank.learning.device import resolve_device
from splitrank.logs import show_log
from splitrank.planning.plan import make_plan
from splitrank.planning.problem import Problem, subproblem
from splitrank.planning.solvers.exact import exact
from splitrank.traits import MERGED_KINDS

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
        prepared, client = self._prepare(header)
        amounts = prepared.amounts(client)
        joined: Header = {
            "kind": "joined",
            "client": client,
            "samples": int(amounts.samples[0]),
            "token_sum": int(amounts.token_sum[0]),
            "token_square_sum": int(amounts.token_square_sum[0]),
            "test_samples": len(prepared.test.rows[client]) if prepared.test else 0,
        }
        if header.get("measure"):
            prepared.machines.pop(client, None)
            machine = prepared.estimate(client).machine
            if prepared.model.config.planner.where == "server":
                joined["machine"] = machine.to_json()
        return joined

    def _max_rank(self, header: Header) -> Header:
        """Solve this client's own problem, and tell nothing of it but the largest rank."""
        prepared, client = self._prepare(header)
        problem = own_problem(prepared, client, header)
        return {"kind": "max-rank", "client": client, "max_rank": int(exact(problem)[0])}

    def _train(self, header: Header, floats: Floats) -> tuple[Header, Floats]:
        started_s = time.monotonic()
        prepared, client = self._prepare(header)
        start = _received(prepared, client, header, floats)
        acknowledged = _keep_merged(start, client, header)
        round, rank = int(header["round"]), start.rank
        estimate = prepared.estimate(client) if header["measure"] else None
        frequency_hz, planned_s = header["frequency_hz"], header["planned_s"]
        if estimate and frequency_hz is None:
            policy = prepared.model.config.planner.frequency_policy
            problem = own_problem(prepared, client, header)
            problem = replace(problem, rank_floor=np.array([rank]), rank_ceiling=np.array([rank]))
            plan = make_plan(problem, method="exact", frequency_policy=policy)
            frequency_hz, planned_s = float(plan.frequency_hz[0]), float(plan.compute_s[0])
        _LOG.info(f"Round {round}: training at rank {rank}.")
        personal, is_lost = _personal_part(prepared, client, header)
        turn = int(header["turn"])
        task = prepared.model.task(start, State(round - 1, turn, start, {client: personal}), prepared.rule, client)
        throttle = Throttle(stop_at_s=started_s + float(header["stop_after_s"]))
        before_j, before_cpu_s, before_s = read_energy_j(), time.process_time(), time.monotonic()
        with at_frequency(frequency_hz) if estimate else nullcontext(False) as is_set:
            slowdown = estimate.measured.reference_frequency_hz / frequency_hz if estimate else 1.0
            if estimate and not is_set:
                throttle.slowdown, throttle.planned_s = slowdown, planned_s
            share = prepared.training
            update = prepared.model.train(task, share.outputs, share.rows[client], share.labels, throttle=throttle)
        busy_s, after_j = time.monotonic() - before_s - throttle.rested_s, read_energy_j()
        if estimate:
            num_samples = update.num_samples * prepared.model.config.federation.local_epochs
            estimate.observe(busy_s / slowdown if is_set else busy_s, rank, num_samples)
        sent = wire.uplink(update.adapter, prepared.rule, client, turn)
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
            **acknowledged,
            **wire.header(sent, turn),
        }
        if update.personal:
            store, started_from = PersonalStore.of(header.get("run"), client), int(header["personal_round"])
            answer["personal_sha256"] = store.write(round, update.personal, started_from=started_from)
            answer["personal_lost"] = is_lost
        return answer, to_vector(sent).numpy()

    def _evaluate(self, header: Header, floats: Floats) -> Header:
        """Evaluate the shared adapter with this client's personal part on its own test texts; tell three numbers."""
        prepared, client = self._prepare(header)
        share = prepared.test
        if share is None:
            raise InputError("a client evaluates only where something is personal, by the settings nothing is")
        rows = share.rows[client]
        answer: Header = {"kind": "evaluated", "client": client, "hits": 0, "loss_sum": 0.0, "count": len(rows)}
        if len(rows):
            adapter = _received(prepared, client, header, floats)
            personal, _ = _personal_part(prepared, client, header)
            hits, loss_sum = prepared.model.count_hits(share.outputs, share.labels, rows, adapter, personal)
            answer.update(hits=hits, loss_sum=loss_sum)
        return answer

    def _prepare(self, header: Header) -> tuple[Prepared, int]:
        """Return the model and texts for a request's settings, and the client's number."""
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
        return ready, client


def _received(prepared: Prepared, client: int, header: Header, floats: Floats) -> Adapter:
    """Return the adapter that a request carries, its merged parts joined to those that the client has.

    Raises:
        InputError: a rank beyond what this model can have, or other tensors than the rank has.
        LostMergedError: the client does not have the merged parts that the server takes it to have.
    """
    model, rule = prepared.model, prepared.rule
    cap, rank, turn = rank_cap(model.config, model.shape), header.get("rank"), header.get("turn")
    if not is_count(rank) or rank > cap:
        raise InputError(f"rank must be 0 to {cap}, got {rank!r}")
    if not is_count(turn) or not is_count(header.get("round")):
        raise InputError(f"round and turn must be whole numbers, got {header.get('round')!r} and {turn!r}")
    vector, like = torch.from_numpy(floats.copy()), prepared.initial.adapter
    kept = PersonalStore.of(header.get("run"), client).read_merged() if header.get("merged") else {}
    seed = model.config.run.seed
    start = wire.received_start(header, vector, like, rank, turn, model.method, rule, seed, header["round"], kept=kept)
    if wire.merged_digest(start) != header.get("merged_sha256"):
        raise wire.LostMergedError
    return start


def _keep_merged(start: Adapter, client: int, header: Header) -> Header:
    """Keep a start's merged parts, of which later requests bring what is new; return what the answer says of them."""
    digest = wire.merged_digest(start)
    if digest is None:
        return {}
    PersonalStore.of(header.get("run"), client).write_merged(start.only(*MERGED_KINDS))
    return {"merged_sha256": digest}


def _personal_part(prepared: Prepared, client: int, header: Header) -> tuple[Mapping[str, Tensor], bool]:
    """Return the personal part of the round that a request names, and whether it was lost."""
    initial = prepared.initial.local.get(client, {})
    round = header.get("personal_round")
    if not initial or not round:
        return initial, False
    if not is_count(round):
        raise InputError(f"personal_round must be a whole number, got {round!r}")
    kept = PersonalStore.of(header.get("run"), client).read(round, header.get("personal_sha256"))
    shapes = {name: tensor.shape for name, tensor in initial.items()}
    if kept is None or {name: tensor.shape for name, tensor in kept.items()} != shapes:
        _LOG.info(f"The personal part of round {round} is lost; starting it afresh.")
        return initial, True
    return kept, False


def own_problem(prepared: Prepared, client: int, header: Header) -> Problem:
    """Return P1 of this client alone: its machine and energy budget, the server's latency budget and link estimate."""
    config, shape, link = prepared.model.config, prepared.model.shape, header["link"]
    turn, everybody = int(header["turn"]), np.ones(prepared.model.config.federation.num_clients)
    rule, told = prepared.rule, wire.told_merged(header, prepared.initial.adapter, prepared.rule)
    numbers = sum(math.prod(shape) for path, part in told.items() for shape in part.shapes(path, part.first).values())
    ranks = {path: part.rank for path, part in told.items()}
    merged = MergedParts(placed(ranks, prepared.model.encoder.family), float(numbers))
    alike = TextStats(*(everybody * amount[0] for amount in vars(prepared.amounts(client)).values()))
    rates = {name: everybody * float(link[name]) for name in ("uplink_bps", "downlink_bps", "overhead_s")}
    if header["measure"]:
        machine = prepared.estimate(client).machine
        names = ("seconds_per_sample", "seconds_per_sample_per_rank", "reference_frequency_hz", "capacitance")
        own = {name: everybody * getattr(machine, name) for name in names}
        throttled = np.full(len(everybody), machine.is_throttled)
        measured = Measured(**own, **rates, throttled=throttled, latency_margin=float(link["latency_margin"]))
        problem = measured_problem(config, shape, alike, measured, turn, rule.traits, merged)
    else:
        workload = round_workload(config, shape, alike, turn, rule.traits, merged)
        problem = round_problem(config, shape, workload, int(header["round"]), require_all=False)
        up_bps, down_bps, overhead_s = rates.values()
        problem = replace(problem, uplink_bps=up_bps, downlink_bps=down_bps, overhead_s=overhead_s)
    return subproblem(problem, np.array([client]))


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
