"""The rows of the merged parts that each client has: it is sent the others, and they are counted.

The ledger keeps them as ``merged_rows``, a line for each client and a column for each linear with an adapter, in the
order of their paths. A client has the rows of its last update's start; what it missed since is its backlog. Rows that
were rewritten nobody has. There is no such entry while nothing was ever put aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from splitrank.federation.clients import NoUpdate
from splitrank.federation.sizes import NOTHING_MERGED, MergedParts
from splitrank.federation.state import State
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.merged import merged_ranks, merged_rows, rows_until
from splitrank.learning.client import Update
from splitrank.learning.families import Family
from splitrank.traits import MERGED_KINDS

Ledger = Mapping[str, NDArray[np.float64]]

_ROWS = "merged_rows"


def held_rows(state: State, client: int) -> dict[str, int]:
    """Return path → rows of the merged part that a client has."""
    if _ROWS not in state.ledger:
        return {}
    return dict(zip(_paths(state.adapter), map(int, state.ledger[_ROWS][client]), strict=True))


def merged_parts(state: State, family: Family) -> MergedParts:
    """Return what the state's merged parts cost in the next round: their ranks, and what each client lacks.

    numbers of client i = Σ (R − R_i)·(d + k) over linears with factors, Σ (d − d_i)·k over those with a dense part
    """
    ranks, rows = merged_ranks(state.adapter), merged_rows(state.adapter)
    if not ranks:
        return NOTHING_MERGED
    lora_A, lora_B = state.adapter.of_kind("lora_A"), state.adapter.of_kind("lora_B")
    width = {path: lora_A[path].shape[1] + (0 if rank is None else len(lora_B[path])) for path, rank in ranks.items()}
    paths = _paths(state.adapter)
    total, per_row = (np.array([one.get(path, 0) for path in paths], dtype=np.float64) for one in (rows, width))
    held = state.ledger.get(_ROWS, np.zeros((1, len(paths))))
    return MergedParts(placed(ranks, family), (total - held) @ per_row)


def placed(ranks: Mapping[str, int | None], family: Family) -> dict[tuple[int, str], int | None]:
    """Return (layer, logical name) → rank for linears that are named by their paths in the model."""
    names = {inner: name for name, inner in family.linears.items()}
    found = {}
    for path, rank in ranks.items():
        layer, _, inner = path.removeprefix(f"{family.layers}.").partition(".")
        found[int(layer), names[inner]] = rank
    return found


def note_received(state: State, replies: Mapping[int, Update | NoUpdate], num_clients: int) -> State:
    """Return the state with what its clients have after a round: who answered, all of its merged parts."""
    rows = merged_rows(state.adapter)
    if not rows or not replies:
        return state
    paths = _paths(state.adapter)
    held = state.ledger.get(_ROWS, np.zeros((num_clients, len(paths)))).copy()
    for client, reply in replies.items():
        if isinstance(reply, Update):
            held[client] = [rows.get(path, 0) for path in paths]
        elif reply.lost_merged:
            held[client] = 0
    return replace(state, ledger={**state.ledger, _ROWS: held})


def still_held(state: State, adapter: Adapter) -> Ledger:
    """Return the ledger for another adapter than the state's: of merged parts only rows that stand where they stood."""
    if _ROWS not in state.ledger:
        return state.ledger
    stay = np.array([_stays(path, state.adapter, adapter) for path in _paths(adapter)])
    return {**state.ledger, _ROWS: np.where(stay, state.ledger[_ROWS], 0.0)}


def _stays(path: str, before: Adapter, after: Adapter) -> bool:
    """Return whether the rows of a merged part are the first ones of what came after."""
    names = [name for kind in MERGED_KINDS if (name := f"{kind}/{path}") in before.tensors]
    rows = merged_rows(before)
    kept = {name: rows_until(after.tensors, name, rows[path]) for name in names}
    return all(part is not None and torch.equal(part, before.tensors[name]) for name, part in kept.items())


def _paths(adapter: Adapter) -> list[str]:
    return sorted(adapter.of_kind("lora_A"))
