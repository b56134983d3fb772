"""What a deployment's record is compared with: the same rounds in one process, with the same clients missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from splitrank import load_config, load_data, make_clients, run
from splitrank.federation.clients import NoUpdate
from tests.records import records_of, without_wall


class Disturbed:
    """Clients in this process, of whom some are away or give no update, as the lines of a record tell."""

    def __init__(self, lines: Sequence[dict], config) -> None:
        self._clients = make_clients(config, load_data(config))
        self._told = [line["clients"] for line in lines]

    def __getattr__(self, name):
        return getattr(self._clients, name)

    def problem(self, state):
        problem = self._clients.problem(state)
        is_here = [not client["dropped"] or "missed" in client for client in self._told[state.round + 1]]
        return replace(problem, uplink_bps=np.where(is_here, problem.uplink_bps, 0.0))

    def train(self, starts, plan, state):
        told = self._told[state.round + 1]
        missed = {client["client"]: NoUpdate(client["missed"]) for client in told if "missed" in client}
        return {**self._clients.train(starts, plan, state), **missed}


def in_process(settings: str, texts: Path, folder: Path, lines: Sequence[dict] = ()) -> list[dict]:
    """The record of a run in one process; given a deployment's lines, as long as they and as disturbed."""
    folder.mkdir()
    config = folder / "settings.toml"
    config.write_text(settings + f'\n[data]\npath = "{texts}"\n')
    connect = {"connect": partial(Disturbed, lines)} if lines else {}
    list(islice(run(load_config(str(config)), folder / "run", **connect), len(lines) or None))
    return without_wall(records_of(folder / "run"))
