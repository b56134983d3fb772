"""The roster of a run: nodes join, have their links measured, stand for a client, and leave."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import MessageType

from splitrank.config import Config
from splitrank.errors import RunError
from splitrank.federation.flower.device_profile import DeviceProfile, profile_from
from splitrank.federation.flower.links import PROBE_FLOATS, Link, ProbeResult, estimate_link, probes
from splitrank.federation.flower.messenger import Messenger, Reply
from splitrank.federation.flower.payload import NO_FLOATS, Header, is_count
from splitrank.federation.texts import TextStats

_LOG = logging.getLogger("splitrank")

_LOOK_EVERY_S = 0.5
_MAX_PROBE_S = 300.0
_AMOUNTS = ("samples", "token_sum", "token_square_sum")

Request = Callable[..., Header]
"""(kind, client, **values) → the header of a request."""


@dataclass(frozen=True, eq=False)
class Node:
    """A node that stands for a client.

    Attributes:
        node: Flower's number of it.
        amounts: what it registered, samples, sum of tokens and sum of their squares.
        machine, link: what was measured, None where budgets are simulated; a client that plans for itself tells no
            machine.
        test_samples: texts that it says it can evaluate on, where something is personal.
    """

    node: int
    amounts: tuple[int, int, int]
    machine: DeviceProfile | None = None
    link: Link | None = None
    test_samples: int = 0


@dataclass(frozen=True, eq=False)
class Roster:
    """The nodes of a run.

    Attributes:
        messenger: the way to them.
        config: the settings.
        request: makes a request's header.
        present: client → the node that stands for it now.
        known: client → the node that stood for it last.
    """

    messenger: Messenger
    config: Config
    request: Request
    present: dict[int, Node] = field(default_factory=dict)
    known: dict[int, Node] = field(default_factory=dict)

    @property
    def measures(self) -> bool:
        """Return whether budgets are real: machines and links are measured, and a round has a deadline."""
        return self.config.workload.model == "measured" and self.config.client.seconds_per_sample is None

    @property
    def asks_for_ranks(self) -> bool:
        """Return whether clients plan for themselves and tell their largest rank."""
        return self.config.planner.where == "client"

    @property
    def texts(self) -> TextStats:
        """Amounts of text of each client, 0 for one that has never joined."""
        clients = range(self.config.federation.num_clients)
        rows = [self.known[client].amounts if client in self.known else (0, 0, 0) for client in clients]
        samples, token_sum, token_square_sum = np.array(rows, dtype=np.float64).T
        return TextStats(samples, token_sum, token_square_sum)

    def forget(self, client: int) -> None:
        """Let a client whose node gave no answer join, and be measured, again."""
        self.messenger.ask_again(self.present.pop(client).node)

    def update(self, client: int, machine: DeviceProfile) -> None:
        """Keep what a client tells of its machine after a round."""
        self.present[client] = self.known[client] = replace(self.present[client], machine=machine)

    def gather_all(self) -> None:
        """Wait for all clients, and after federation.join_s for enough of them only; the others may join later.

        Raises:
            RunError: as in :meth:`gather`.
        """
        federation = self.config.federation
        if not self._gathered(federation.num_clients, federation.join_s):
            self.gather()

    def gather(self) -> None:
        """Register nodes that have come, drop those that have left, and wait for federation.min_clients of them.

        Raises:
            RunError: too few have come within federation.timeout_s.
        """
        federation = self.config.federation
        if not self._gathered(federation.min_clients, federation.timeout_s):
            raise RunError(
                f"At least {federation.min_clients} clients must join within federation.timeout_s = "
                f"{federation.timeout_s:.4g} s, got {len(self.present)}; start them, or raise it"
            )

    def _gathered(self, least: int, wait_s: float) -> bool:
        started_s = time.monotonic()
        said = False
        while True:
            self._drop_offline(set(self.messenger.nodes()))
            for node, reply in self.messenger.answers():
                if not self._register(node, reply):
                    self.messenger.ask_again(node)
            if len(self.present) >= least:
                return True
            if not said:
                _LOG.info(f"{len(self.present)} of {least} clients have joined; waiting for the others.")
                said = True
            if time.monotonic() - started_s > wait_s:
                return False
            time.sleep(_LOOK_EVERY_S)

    def _drop_offline(self, online: set[int]) -> None:
        """Drop nodes that have gone, and ask new ones to join."""
        for client, node in list(self.present.items()):
            if node.node not in online:
                _LOG.info(f"Client {client} has gone.")
                del self.present[client]
        self.messenger.asked.intersection_update(online)
        new = online - {node.node for node in self.present.values()} - self.messenger.asked
        joins = {node: (self.request("join", measure=self.measures), NO_FLOATS) for node in new}
        self.messenger.ask(joins, MessageType.QUERY, group="join")

    def _register(self, node: int, reply: Reply) -> bool:
        """Register a node as the client that it names, unless something is wrong; return whether it was registered."""
        num_clients = self.config.federation.num_clients
        if reply.failure is not None:
            _LOG.info(f"A node could not join: {reply.failure}")
            return False
        numbers = [reply.header.get(name) for name in ("client", *_AMOUNTS)]
        client, *amounts = (number if is_count(number) else -1 for number in numbers)
        if not 0 <= client < num_clients or min(amounts) < 1:
            _LOG.info(
                f"A node was refused: a client's number must be below {num_clients} and its amounts of text positive."
            )
            return False
        if client in self.present and self.present[client].node == node:
            return True  # it was asked again while its first answer was on the way
        if client in self.present:
            _LOG.info(f"A node was refused: another one already stands for client {client}.")
            return False
        machine = link = None
        if self.measures:
            machine = None if self.asks_for_ranks else profile_from(reply.header.get("machine"))
            _LOG.info(f"Client {client}: measuring its link.")
            link = self._measure_link(node) if machine or self.asks_for_ranks else None
            if link is None:
                _LOG.info(f"A node was refused: client {client} or its link could not be measured.")
                return False
            _LOG.info(f"Client {client}: {_describe(machine, link)}")
        told = reply.header.get("test_samples")
        test_samples = told if is_count(told) else 0
        joined = Node(node, (amounts[0], amounts[1], amounts[2]), machine, link, test_samples)
        self.present[client] = self.known[client] = joined
        _LOG.info(f"Client {client} joined with {amounts[0]} texts.")
        return True

    def _measure_link(self, node: int) -> Link | None:
        """Measure a node's link by probes, each longer than the last, until one was long enough and agrees with it.

        The longest counts, since what else happens on the machines weighs least in it.
        """
        before: ProbeResult | None = None
        for length in PROBE_FLOATS:
            requests = [(node, request) for request in probes(length)]
            replies = self.messenger.exchange(requests, MessageType.QUERY, group="probe", wait_s=_MAX_PROBE_S)
            failures = [reply.failure for reply in replies if reply.failure is not None]
            if failures:
                _LOG.info(f"A probe failed: {failures[0]}")
                return None
            found, is_enough = estimate_link(replies, length, before.short_s if before else math.inf)
            if is_enough and before is not None and found.agrees_with(before):
                return Link(found)
            before = found
        return Link(before) if before else None


def request_maker(settings: Header, label_names: list[str], trunk_sha256: str, run_id: str) -> Request:
    """Return a function that makes a request's header: what every request needs, and the values of this one."""

    def request(kind: str, client: int | None = None, **values: Any) -> Header:
        return {
            "kind": kind,
            "settings": settings,
            "labels": label_names,
            "trunk_sha256": trunk_sha256,
            "run": run_id,
            "client": client,
            **values,
        }

    return request


def _describe(machine: DeviceProfile | None, link: Link) -> str:
    rates = f"{_mbps(link.uplink_bps)} Mbit/s up, {_mbps(link.downlink_bps)} down"
    link_text = f"link {rates}, {link.overhead_s:.2g} s beside"
    if machine is None:
        return f"keeps its machine to itself; {link_text}"
    return (
        f"{machine.cores} cores at {machine.reference_frequency_hz / 1e9:.2f} GHz ({machine.clock}), "
        f"{machine.seconds_per_sample * 1e3:.3g} ms and {machine.seconds_per_sample_per_rank * 1e6:.3g} µs per rank "
        f"and text, {machine.power_w:.3g} W ({machine.power_from}); {link_text}"
    )


def _mbps(rate_bps: float) -> str:
    return f"{rate_bps / 1e6:.3g}" if rate_bps < 1e9 else "over 1000"
