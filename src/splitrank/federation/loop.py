"""A whole run: prepare, then round after round until the last or the target, leaving a run folder."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from splitrank.config import Config
from splitrank.errors import InputError
from splitrank.federation import run_folder
from splitrank.federation.budgets import ClientTexts, preparation_records
from splitrank.federation.export import export_adapter
from splitrank.federation.in_process import InProcessClients, make_clients
from splitrank.federation.model import Model
from splitrank.federation.rounds import Clients, State, run_round
from splitrank.federation.run_folder import RunFolder
from splitrank.federation.tracking import tracked
from splitrank.learning.data import TextData, load_hub, load_path, take_rows
from splitrank.learning.docstrings import load_docstrings
from splitrank.progress import say
from splitrank.records import RoundRecord

OFFLINE_DATA = "docstrings"
"""``data.name`` of the texts that any installation has."""

_PACKAGES = ("splitrank", "torch", "transformers", "peft", "datasets", "numpy", "scipy", "tokenizers", "safetensors")


def make_clients_of(config: Config) -> InProcessClients:
    """All clients in this process, with the texts that the settings name."""
    return make_clients(config, load_data(config))


def load_data(config: Config) -> TextData:
    """The texts that the settings name: the docstrings, a folder or file, or a data set on the hub."""
    table, seed = config.data, config.run.seed
    say(f"Reading the texts: {table.path or table.name}.")
    text = list(table.text) if table.text else None
    if table.path is not None:
        data = load_path(Path(table.path), text=text, label=table.label, test_share=table.test_share, seed=seed)
    elif table.name == OFFLINE_DATA:
        data = load_docstrings()
    else:
        assert table.name is not None
        data = load_hub(table.name, text=text, label=table.label, test_share=table.test_share, seed=seed)
    return take_rows(data, table.train_rows, table.test_rows, seed)


class RunClients(Clients, Protocol):
    """The clients of a whole run: all that a round sees of them, and what the run folder tells of model and texts."""

    @property
    def model(self) -> Model:
        """The model that judges; its settings are those of the run, with nothing left to the machine or the data."""

    @property
    def data(self) -> TextData:
        """The texts that are on this machine."""

    @property
    def texts(self) -> ClientTexts:
        """Amounts of text of each client."""

    @property
    def trunk_computed(self) -> dict[str, bool]:
        """Whether the frozen trunk's outputs had to be computed here."""

    def close(self) -> None:
        """Let go of what is open."""


def run(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    connect: Callable[[Config], RunClients] = make_clients_of,
) -> Iterator[RoundRecord]:
    """Run a federation and yield each round's record once it is safe on disk, round 0 first.

    Breaking off at any moment, by exception, signal or power cut, leaves a folder that ``resume=True`` continues to
    the same bits. A resumed run yields only the rounds it does itself.

    Args:
        config: the settings; for a resumed run those of :func:`run_folder.resumed_config`.
        out: the run folder, new or empty unless resumed.
        resume: continue the run in ``out``.
        connect: gives the clients; those of this process unless told otherwise.

    Raises:
        InputError: settings, data or a folder that cannot be used; nothing half-written is left.
        RunError: training diverged; the folder stays resumable.
    """
    with ExitStack() as held:
        if resume:
            folder = run_folder.open_to_resume(out)
            held.callback(folder.close)
        else:
            run_folder.check_new(out)
        log = held.enter_context(tracked(config.run.tracking, out))
        clients = connect(config)
        config = clients.model.config
        held.callback(clients.close)
        manifest = manifest_of(config, clients)
        if resume:
            state = _resumed_state(folder, config, manifest)
        else:
            folder, state = run_folder.create(out, config, manifest), None
            held.callback(folder.close)
        if state is None:
            state, record = _round_zero(clients)
            folder.append(record)
            log(record)
            folder.save_checkpoint(state, config)
            yield record
        while state.round < config.federation.rounds and not _reached_target(folder, config):
            state, record = run_round(state, clients, config)
            folder.append(record)
            log(record)
            folder.save_checkpoint(state, config)
            yield record
        if state.adapter.rank == 0:
            say("Warning: no client could take part in any round, so the adapter is untrained; loosen the budgets.")
        export_adapter(clients.model, state, out / "adapter")


def _reached_target(folder: RunFolder, config: Config) -> bool:
    target = config.federation.target_accuracy
    return target is not None and folder.last_accuracy() >= target


def _round_zero(clients: RunClients) -> tuple[State, RoundRecord]:
    started_s = time.perf_counter()
    state = clients.model.initial_state()
    return state, RoundRecord(
        round=0,
        status=None,
        rank=0,
        **asdict(clients.evaluate(state)),
        factor_averaging_error=None,
        clients=preparation_records(clients.model.config, clients.model.shape, clients.texts),
        wall_s=time.perf_counter() - started_s,
    )


def manifest_of(config: Config, clients: RunClients) -> dict[str, Any]:
    """What manifest.json says of a run: when and how it started, versions, hardware, data and weights."""
    return {
        "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "seed": config.run.seed,
        "threads": config.run.threads,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cpu_count": os.cpu_count(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "device": str(clients.model.encoder.model.device),
        },
        "data": {
            "source": clients.data.source,
            "sha256": clients.data.fingerprint,
            "train_texts": len(clients.data.train_texts),
            "test_texts": len(clients.data.test_texts),
            "labels": clients.data.label_names,
        },
        "model": {"location": clients.model.encoder.location, "trunk_sha256": clients.model.encoder.trunk_digest},
        "trunk_computed": clients.trunk_computed,
    }


def _resumed_state(folder: RunFolder, config: Config, manifest: dict[str, Any]) -> State | None:
    before = folder.read_manifest()
    if "baseline" in before:
        what = before["baseline"]
        raise InputError(f"--resume needs the folder of a run, got {folder.path} of {what}; start a new one")
    for key, what in (("data", "texts"), ("model", "weights")):
        digest = "sha256" if key == "data" else "trunk_sha256"
        if before[key][digest] != manifest[key][digest]:
            raise InputError(
                f"The {what} must be those the run in {folder.path} started with, but they have changed since "
                f"({key} {manifest[key][digest][:12]} instead of {before[key][digest][:12]}); start a new run"
            )
    for key in ("versions", "hardware"):
        changed = [name for name, value in manifest[key].items() if before[key].get(name) != value]
        if changed:
            say(f"Warning: {', '.join(changed)} changed since the run started; from here on its bits may differ.")
    state = folder.load_checkpoint(config)
    resumed = [
        *before.get("resumed", []),
        {"utc": manifest["started_utc"], "after_round": state.round if state else None},
    ]
    folder.write_manifest({**before, "resumed": resumed})
    run_folder.update_config(folder, config)
    if state is None:
        say("No round was finished yet; starting from the beginning.")
    else:
        say(f"Resuming after round {state.round}.")
    return state
