"""Links that the kernel makes slow: a network namespace for each client, joined to this machine by a veth pair.

Each end of a pair shapes what it sends: netem gives rate and delay; where the kernel has no netem, tbf gives the rate
alone. Needs root, ``ip`` and ``tc``.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

_PACKET_BYTES = 1514
# What waits in front of a slow link at most [s]; the rest is dropped, which tells TCP the rate.
_QUEUE_S = 0.5
# What tbf lets through at once: this long at the link's rate, since timers are late on a busy machine [s].
_BURST_S = 0.01
# Of every packet: Ethernet 14, IPv4 20, TCP with time stamps 32.
_HEADER_BYTES = 66


@dataclass(frozen=True)
class Shape:
    """A link's rates to and from the server [bit/s], and its delay each way [s]."""

    up_bps: float
    down_bps: float
    delay_s: float


@dataclass(frozen=True)
class Namespace:
    """A client's namespace.

    Attributes:
        name: its name, and that of its link's end on the server's side.
        server: the address by which it reaches this machine.
        delayed: whether its link has the delay, too, not the rates alone.
    """

    name: str
    server: str
    delayed: bool

    @property
    def inside(self) -> tuple[str, ...]:
        """What comes before a command that is to run in it."""
        return ("ip", "netns", "exec", self.name)

    def carried_bytes(self) -> tuple[int, int]:
        """What TCP has carried up and down: the interface's own counts without the headers of their packets."""
        counts = Path("/sys/class/net", self.name, "statistics")

        def carried(way: str) -> int:
            sent, packets = (int((counts / f"{way}_{what}").read_text()) for what in ("bytes", "packets"))
            return sent - _HEADER_BYTES * packets

        return carried("rx"), carried("tx")


@contextmanager
def namespaces(shapes: Sequence[Shape]) -> Iterator[list[Namespace]]:
    """Make a namespace for each shape; nothing is left of them afterwards.

    Names and addresses differ from run to run: what a killed run has left is in nobody's way.

    Raises:
        OSError: this machine does not allow it.
    """
    run = secrets.randbelow(2**16)
    network = f"10.{run >> 8}.{run & 255}"
    names = [f"slow-{run:04x}-{client}" for client in range(len(shapes))]
    try:
        yield [
            _joined(name, f"{network}.1", f"{network}.{client + 2}", shape)
            for client, (name, shape) in enumerate(zip(names, shapes, strict=True))
        ]
    finally:
        for name in names:
            for kind in ("link", "netns"):
                subprocess.run(["ip", kind, "delete", name], capture_output=True)


def _joined(name: str, server: str, client: str, shape: Shape) -> Namespace:
    _do(f"ip netns add {name}")
    _do(f"ip link add {name} type veth peer name server netns {name}")
    _do(f"ip -n {name} link set lo up")
    delayed = True
    for way, device, own, other, bps in (
        ("", name, server, client, shape.down_bps),
        (f"-n {name}", "server", client, server, shape.up_bps),
    ):
        _do(f"ip {way} address add {own} peer {other} dev {device}")
        # Without the kernel's bundling, so that a packet counts as one.
        _do(f"ip {way} link set {device} up gso_max_segs 1")
        qdisc = f"tc {way} qdisc add dev {device} root"
        try:
            packets = ceil(bps * (shape.delay_s + _QUEUE_S) / 8 / _PACKET_BYTES)
            _do(f"{qdisc} netem rate {bps:.0f}bit delay {1e3 * shape.delay_s:.0f}ms limit {packets}")
        except OSError:
            burst = max(4 * _PACKET_BYTES, ceil(bps * _BURST_S / 8))
            _do(f"{qdisc} tbf rate {bps:.0f}bit burst {burst} latency {1e3 * _QUEUE_S:.0f}ms")
            delayed = False
    return Namespace(name, server, delayed)


def _do(command: str) -> None:
    ended = subprocess.run(command.split(), capture_output=True, text=True)
    if ended.returncode:
        raise OSError(f"{command}: {ended.stderr.strip()}")
