"""The record of a round: one line of ``rounds.jsonl``, plain fields only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Shortfall:
    """Why a client cannot take part: it needs more of something than it has.

    Attributes:
        constraint: ``"rank-cap"``, ``"latency"``, ``"energy"``, ``"frequency"``, ``"bandwidth"`` or ``"memory"``.
        needed, available: in ``unit``; None where no number is enough.
        unit: ``"rank"``, ``"s"``, ``"J"``, ``"Hz"`` or ``"bytes"``.
    """

    constraint: str
    needed: float | None
    available: float | None
    unit: str

    def __str__(self) -> str:
        """Return what the client lacks, in words; at rate 0 no time is enough."""
        if self.needed is None:
            return f"{self.constraint}, has no link"
        return f"{self.constraint}, needs {self.needed:,.6g} {self.unit} and has {self.available:,.6g} {self.unit}"


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """A client's part of a plan, as ``splitrank plan --json`` prints it; numbers that it does not have are None.

    Attributes:
        client: index of the client, from 0.
        rank: at which it trains, 0 where it does not take part.
        max_rank: r_i*, the largest that it could do.
        frequency_hz: planned CPU frequency [Hz].
        frequency_range_hz: all frequencies that keep to its budgets at its rank, lowest and highest [Hz].
        uplink_bps, downlink_bps: rates of its link [bit/s].
        compute_s, uplink_s, downlink_s, latency_s: T_cmp, T_ul, T_dl and their sum, with the overhead [s].
        energy_j: E [J].
        binding: what blocks ``max_rank`` + 1.
        overhead_s: what an exchange takes that no rate explains [s]; left out where there is none.
        shortfall: left out where the client can take part.
        chosen: whether it was chosen to take part; left out where everybody is asked.
        chosen_by: what decided for or against it; left out where everybody is asked, or it cannot take part.
        bandwidth_hz: its sub-band, where the band is shared together with the rank; else left out.
    """

    client: int
    rank: int
    max_rank: int
    frequency_hz: float | None
    frequency_range_hz: Sequence[float | None]
    uplink_bps: float | None
    downlink_bps: float | None
    compute_s: float | None
    uplink_s: float | None
    downlink_s: float | None
    latency_s: float | None
    energy_j: float | None
    binding: str
    overhead_s: float | None = None
    shortfall: Shortfall | None = None
    chosen: bool | None = None
    chosen_by: str | None = None
    bandwidth_hz: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values by name; what is None by default is left out where it is None."""
        plain = {name: value for name, value in vars(self).items() if value is not None or name not in _LEFT_OUT}
        for name in _LAST.intersection(plain):
            plain[name] = plain.pop(name)
        if self.shortfall is not None:
            plain["shortfall"] = asdict(self.shortfall)
        return plain


@dataclass(frozen=True, kw_only=True)
class ClientRecord(ClientPlan):
    """A client in a round: its part of the plan, and what came of it.

    Attributes:
        uplink_bits, downlink_bits: what it sent and was sent; 0 where nothing went that way.
        train_loss: mean cross-entropy of its steps [nats]; None without an update.
        samples: its training texts.
        energy_budget_j: E0 [J], None or infinite without a limit.
        dropped: whether its work is not in the model.
        missed: why a participant gave no update.
        wall_latency_s, wall_compute_s, wall_energy_j: on real machines, what the round took, from sending to reply.
        personal_lost: whether it had lost what stays with it, and started that afresh.
        late: whether its update came after enough others, where more clients were chosen than needed.
    """

    uplink_bits: float
    downlink_bits: float
    train_loss: float | None
    samples: int
    energy_budget_j: float | None
    dropped: bool
    missed: str | None = None
    wall_latency_s: float | None = None
    wall_compute_s: float | None = None
    wall_energy_j: float | None = None
    personal_lost: bool | None = None
    late: bool | None = None


_LEFT_OUT = frozenset(one.name for one in fields(ClientRecord) if one.default is None)
"""Fields of clients, planned or recorded, that are not written where they are None."""

_LAST = frozenset({"bandwidth_hz"})
"""Fields of a plan that are younger than a record's own, and are written after them."""


@dataclass(frozen=True)
class PreparationRecord:
    """A client in round 0: its training texts, and what its pass through the frozen trunk costs outside the rounds."""

    client: int
    samples: int
    preparation_s: float | None = None
    preparation_j: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values by name, without costs that the rounds pay for."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class RoundRecord:
    """One round, or with ``round = 0`` the model before training.

    Attributes:
        round: counted from 1.
        status: the plan's ``"optimal"``, ``"feasible"`` or ``"infeasible"`` (nobody could take part); ``None`` for
            round 0.
        rank: largest LoRA rank of a client, 0 where nobody trained; each client's own stands in ``clients``.
        accuracy: share of the test texts classified rightly.
        loss: mean cross-entropy on the test texts [nats].
        macro_f1: F1 averaged over classes.
        worst_client_accuracy: lowest accuracy over the clients' shares of the test texts.
        factor_averaging_error: ‖mean(B)mean(A) − mean(BA)‖/‖mean(BA)‖; ``None`` where nothing was averaged.
        clients: every client, in round 0 as :class:`PreparationRecord`.
        diagnostics: other numbers of the aggregation rule, by name; left out of the line where there are none.
        wall_s: real seconds that the round took on this machine; the only field that differs between equal runs.
    """

    round: int
    status: str | None
    rank: int
    accuracy: float
    loss: float
    macro_f1: float
    worst_client_accuracy: float
    factor_averaging_error: float | None
    clients: Sequence[ClientRecord | PreparationRecord] = ()
    wall_s: float = 0.0
    diagnostics: Mapping[str, float] = field(default_factory=dict)

    @property
    def planned(self) -> list[ClientRecord]:
        """The clients of a round; none in round 0."""
        return [client for client in self.clients if isinstance(client, ClientRecord)]

    @property
    def trained(self) -> list[ClientRecord]:
        """The clients whose work is in the model."""
        return [client for client in self.planned if not client.dropped]

    def to_json(self) -> str:
        """Return one line of JSON; numbers that are not finite become null."""
        plain = {key: value for key, value in vars(self).items() if key != "diagnostics" or value}
        plain["clients"] = [client.to_json() for client in self.clients]
        return json.dumps(finite(plain), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> RoundRecord:
        """Return the record of a line; an accuracy or loss that nobody could tell is not a number."""
        plain = json.loads(line)
        unknown = {
            key: math.nan for key in ("accuracy", "loss", "macro_f1", "worst_client_accuracy") if plain[key] is None
        }
        return cls(**{**plain, **unknown, "clients": [_client_from(client) for client in plain["clients"]]})


def listed(clients: Sequence[int]) -> str:
    """Return up to ten clients' numbers for a sentence, and how many more there are."""
    names = ", ".join(map(str, clients[:10]))
    return names if len(clients) <= 10 else f"{names} and {len(clients) - 10:,} more"


_MEASURED = ("accuracy", "loss", "macro_f1", "worst_client_accuracy")


def _client_from(plain: dict[str, Any]) -> ClientRecord | PreparationRecord:
    if "rank" not in plain:
        return PreparationRecord(**plain)
    shortfall = plain.get("shortfall")
    return ClientRecord(**{**plain, "shortfall": Shortfall(**shortfall) if shortfall else None})


def finite(value: Any) -> Any:
    """Return the same nested plain value with None for every number that is not finite, as JSON wants it."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
