"""What a round leaves behind: one line of ``rounds.jsonl``, plain fields only."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any


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
        clients: for each client the fields of the plan, and ``uplink_bits``, ``downlink_bits``, ``train_loss``,
            ``samples``, ``dropped`` (whether its work is not in the model). A participant that gave no update has the
            reason as ``missed``; on real machines there is what the round took, ``wall_latency_s`` (sending to reply),
            ``wall_compute_s`` and ``wall_energy_j``. In round 0 what preparing the frozen trunk
            costs it: ``preparation_s``, ``preparation_j``.
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
    clients: list[dict[str, Any]] = field(default_factory=list)
    wall_s: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON; numbers that are not finite become null."""
        fields = {key: value for key, value in vars(self).items() if key != "diagnostics" or value}
        return json.dumps(finite(fields), ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """The same nested plain value with None for every number that is not finite, as JSON wants it."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
