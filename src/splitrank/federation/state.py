"""The state between two rounds: all of it is in the checkpoint, so that every method resumes to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter


@dataclass(frozen=True, eq=False)
class State:
    """The state after a round.

    Attributes:
        round: last finished round, 0 before training.
        turn: rounds aggregated so far; 0 while nothing was learnt. Rules that alternate go by it.
        adapter: the global adapter, with the head where it is shared.
        local: client → its own tensors, trained but not shared, by name.
        memory: what the rule keeps, by name.
        ledger: what the planner keeps, by name: float64 arrays. So it knows what it sent to whom; see :mod:`backlog`.
    """

    round: int
    turn: int
    adapter: Adapter
    local: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    ledger: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
