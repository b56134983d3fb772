"""How the server measures each client's link: its speed and overhead, and how far a round strays from the plan.

Neither app sees the transfer between SuperNode and SuperLink, so the bandwidth of a link is measured by messages of
two sizes: the extra time of the longer one gives the rate, the time of the shorter one the overhead. All probes of a
node are sent at once, since a SuperNode that has nothing to do looks for messages only every three seconds; the first
one absorbs that wait.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import nnls

from splitrank.federation.flower.messenger import Reply, Request
from splitrank.federation.flower.payload import Floats
from splitrank.federation.sizes import BITS_PER_FLOAT32

PROBE_FLOATS = (16_384, 131_072, 1_048_576)
"""Lengths of the longer probes, the next one where the last took too little to tell: 64 KiB, 512 KiB, 4 MiB."""

ENOUGH_S = 3.0
"""Seconds by which a longer probe must outlast the short one; Flower's own steps stray by up to a second."""

KEPT_ROUNDS = 10
"""How many of the last rounds an estimate rests on, that of a machine, too."""

_FASTEST_BPS = 1e10
# A SuperNode that waits for work looks every three seconds; a round's message wants some more of it than a probe.
_MEAN_WAIT_S, _MAX_WAIT_S = 2.5, 4.0


@dataclass(frozen=True)
class ProbeResult:
    """A link as measured by probes.

    Attributes:
        uplink_bps, downlink_bps: rates [bit/s].
        short_s: what a short message takes once its turn has come [s].
    """

    uplink_bps: float = _FASTEST_BPS
    downlink_bps: float = _FASTEST_BPS
    short_s: float = 0.0

    def agrees_with(self, other: ProbeResult) -> bool:
        """Return whether both rates are alike within a factor of two."""
        rates = ((self.uplink_bps, other.uplink_bps), (self.downlink_bps, other.downlink_bps))
        return all(0.5 <= ours / theirs <= 2.0 for ours, theirs in rates)


@dataclass
class Link:
    """One client's link as it is known now: as probes measured it, corrected by the rounds since.

    A round takes overhead_s + slowness·bits_s beside its training, bits_s being its bits over the probes' rates. Both
    are fitted by least squares to the last rounds and to the probes, which count as one round each: one without bits,
    and one whose bits take as long as the probes must at least. So a link that has become slower, or whose rate was
    taken too low, has other rates soon; one on which bits hardly count keeps its rates and has another overhead.

    Attributes:
        probe: what probes told.
        rounds: of the last rounds, bits_s and what the exchange took beside the training [s].
    """

    probe: ProbeResult = field(default_factory=ProbeResult)
    rounds: list[tuple[float, float]] = field(default_factory=list)

    @property
    def _fit(self) -> tuple[float, float]:
        """overhead_s and slowness, neither negative."""
        points = [(1.0, 0.0, self.probe.short_s + _MEAN_WAIT_S), (0.0, ENOUGH_S, ENOUGH_S)]
        points += [(1.0, bits_s, beside_s) for bits_s, beside_s in self.rounds]
        *columns, right = np.array(points).T
        (overhead_s, slowness), _ = nnls(np.column_stack(columns), right)
        return float(overhead_s), float(slowness)

    @property
    def overhead_s(self) -> float:
        """Return how long a round's exchange is likely to take beside bits and training [s]."""
        return self._fit[0]

    @property
    def uplink_bps(self) -> float:
        """The rate up [bit/s]."""
        return self.probe.uplink_bps / max(self._fit[1], self.probe.uplink_bps / _FASTEST_BPS)

    @property
    def downlink_bps(self) -> float:
        """The rate down [bit/s]."""
        return self.probe.downlink_bps / max(self._fit[1], self.probe.downlink_bps / _FASTEST_BPS)

    @property
    def slack_s(self) -> float:
        """How much longer than that nine in ten exchanges take at most [s]; before there are enough, the worst wait."""
        if len(self.rounds) < 3:
            return _MAX_WAIT_S
        overhead_s, slowness = self._fit
        strays_s = [beside_s - overhead_s - slowness * bits_s for bits_s, beside_s in self.rounds]
        return max(float(np.quantile(strays_s, 0.9)), _MAX_WAIT_S - _MEAN_WAIT_S)

    def observe(self, latency_s: float, uplink_bits: float, downlink_bits: float, compute_s: float) -> None:
        """Learn from a round that took ``latency_s`` from sending to reply."""
        bits_s = uplink_bits / self.probe.uplink_bps + downlink_bits / self.probe.downlink_bps
        self.rounds = [*self.rounds, (bits_s, max(0.0, latency_s - compute_s))][-KEPT_ROUNDS:]


def noise(length: int) -> Floats:
    """Return an array like no other: Flower sends one that it has seen before, from anybody, only once."""
    return np.frombuffer(os.urandom(length), dtype=np.uint8).astype(np.float32)


def probes(length: int) -> list[Request]:
    """Requests in the order to send them: two short ones, a long one down, a long one up."""
    nothing, long = np.zeros(0, dtype=np.float32), noise(length)
    short = {"kind": "echo", "length": 0}
    return [
        (short, nothing),
        ({**short, "probe": 1}, nothing),
        (short, long),
        ({"kind": "echo", "length": length}, nothing),
    ]


def estimate_link(replies: Sequence[Reply], length: int, shortest_s: float) -> tuple[ProbeResult, bool]:
    """Return a link's rates from the answers to :func:`probes`, and whether the probes were long enough to tell.

    Args:
        replies: the answers.
        length: of the long ones, in numbers.
        shortest_s: what the quickest short message took in earlier probes, infinite if there were none; the quickest
            of all is taken, since a short one that something else held up would make the long ones look quick.
    """
    ends_s = [reply.after_s for reply in replies]
    taken_s = [float(seconds) for seconds in np.diff(ends_s)]
    short_s = min(shortest_s, max(0.0, taken_s[0]))
    extra_s = [max(0.0, seconds - short_s) for seconds in taken_s[1:]]
    down_bps, up_bps = (min(_FASTEST_BPS, BITS_PER_FLOAT32 * length / max(extra, 1e-3)) for extra in extra_s)
    return ProbeResult(up_bps, down_bps, short_s), min(extra_s) >= ENOUGH_S
