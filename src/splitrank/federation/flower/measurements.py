"""Measured machines and links: into the planner's problem, and corrected by every round."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np

from splitrank.federation.clients import NoUpdate
from splitrank.federation.flower.device_profile import UNKNOWN_DEVICE, DeviceProfile, profile_from
from splitrank.federation.flower.links import Link
from splitrank.federation.flower.messenger import Reply
from splitrank.federation.flower.payload import is_finite
from splitrank.federation.flower.roster import Roster
from splitrank.federation.problems import Measured
from splitrank.federation.sizes import BITS_PER_FLOAT32
from splitrank.learning.client import Update


def measured(roster: Roster) -> Measured:
    """Return measured machines and links as arrays; a client that has never joined gets harmless numbers."""
    nodes = [roster.known.get(client) for client in range(roster.config.federation.num_clients)]
    machines = [node.machine if node and node.machine else UNKNOWN_DEVICE for node in nodes]
    links = [node.link if node and node.link else Link() for node in nodes]
    return Measured(
        seconds_per_sample=np.array([machine.seconds_per_sample for machine in machines]),
        seconds_per_sample_per_rank=np.array([machine.seconds_per_sample_per_rank for machine in machines]),
        reference_frequency_hz=np.array([machine.reference_frequency_hz for machine in machines]),
        capacitance=np.array([machine.capacitance for machine in machines]),
        throttled=np.array([machine.is_throttled for machine in machines]),
        uplink_bps=np.array([link.uplink_bps for link in links]),
        downlink_bps=np.array([link.downlink_bps for link in links]),
        overhead_s=np.array([link.overhead_s for link in links]),
        latency_margin=latency_margin(roster),
    )


def latency_margin(roster: Roster) -> float:
    """Return the share of T0 that the setting, or else the straying of the links so far, keeps free."""
    config = roster.config
    slack_s = max(node.link.slack_s for node in roster.present.values() if node.link)
    return config.planner.latency_margin or min(0.9, slack_s / config.budget.latency_s)


def wall_of(reply: Reply, machine: DeviceProfile | None) -> dict[str, float]:
    """Return what a round really took on a client, by its reply."""
    wall: dict[str, float] = {"wall_latency_s": reply.after_s}
    compute_s, busy_s, energy_j = (reply.header.get(name) for name in ("compute_s", "busy_s", "energy_j"))
    if is_amount(compute_s):
        wall["wall_compute_s"] = compute_s
    if machine is not None and is_amount(energy_j):
        wall["wall_energy_j"] = energy_j
    elif machine is not None and is_amount(busy_s):
        wall["wall_energy_j"] = machine.power_w * busy_s
    return wall


def observe(
    roster: Roster, client: int, reply: Reply, result: Update | NoUpdate, round: int, downlink_bits: float
) -> None:
    """Correct the estimates by a round; where no answer came the client must join, and be measured, again.

    The first round teaches nothing of the link: half of an adapter is zeros then, and Flower sends equal pieces only
    once.
    """
    node = roster.present[client]
    if node.link is None:
        return
    if reply.floats is None:
        roster.forget(client)
    elif isinstance(result, Update):
        if round > 1 and "wall_compute_s" in result.wall:
            uplink_bits = len(reply.floats) * BITS_PER_FLOAT32
            node.link.observe(reply.after_s, uplink_bits, downlink_bits, result.wall["wall_compute_s"])
        if node.machine is not None and (machine := profile_from(reply.header.get("machine"))) is not None:
            roster.update(client, machine)


def is_amount(value: Any) -> TypeGuard[float]:
    """Return whether a value of a header is a finite number, 0 or greater."""
    return is_finite(value) and value >= 0
