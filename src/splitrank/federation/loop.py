"""A whole run: prepare, then round after round until the last or a reason to stop, leaving a run folder."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from splitrank.config import Config
from splitrank.errors import InputError, check_types
from splitrank.federation import run_folder
from splitrank.federation.clients import Clients
from splitrank.federation.costs import preparation_records
from splitrank.federation.data import load_data
from splitrank.federation.export import export
from splitrank.federation.export_forms import export_sentence
from splitrank.federation.in_process import InProcessClients, make_clients
from splitrank.federation.model import method_of, rule_of
from splitrank.federation.rounds import run_round
from splitrank.federation.run_folder import Manifest, RunFolder
from splitrank.federation.state import State
from splitrank.federation.stopping import stop_reason
from splitrank.learning.device import resolve_device
from splitrank.learning.summary import summarise
from splitrank.records import RoundRecord

_LOG = logging.getLogger("splitrank")

_PACKAGES = ("splitrank", "torch", "transformers", "peft", "datasets", "numpy", "scipy", "tokenizers", "safetensors")


def make_clients_of(config: Config, *, resumes: Path | None = None, refuse_unable: bool = True) -> InProcessClients:
    """Return all clients in this process, with the texts that the settings name.

    Args:
        config: the settings.
        resumes: the folder of a run that goes on with these texts; None where a run starts.
        refuse_unable: as in `make_clients`.
    """
    return make_clients(config, load_data(config, resumes=resumes), refuse_unable=refuse_unable)


def run(
    config: Config,
    out: Path | str,
    *,
    resume: bool = False,
    connect: Callable[[Config], Clients] | None = None,
    refuse_unable: bool = True,
) -> Generator[RoundRecord]:
    """Run a federation and yield each round's record once it is safe on disk, round 0 first.

    Breaking off at any moment, by exception, signal or power cut, leaves a folder that ``resume=True`` continues to
    the same bits. A resumed run yields only the rounds it does itself.

    Args:
        config: the settings; for a resumed run those of :func:`run_folder.resumed_config`.
        out: the run folder, new or empty unless resumed.
        resume: continue the run in ``out``.
        connect: gives the clients; None for those of this process.
        refuse_unable: as in `make_clients`; of no effect where ``connect`` is given.

    Raises:
        InfeasibleError: too few clients could ever take part; nothing is left.
        InputError: settings, data or a folder that cannot be used; nothing half-written is left.
        RunError: training diverged; the folder stays resumable.
    """
    check_types(
        config=(config, Config, 'load_config("offline") returns one'), out=(out, Path | str, "name the run's folder")
    )
    out = Path(out)
    resolve_device(config.run.device)  # refuses one that is not there before any text is read
    with ExitStack() as held:
        if resume:
            folder = run_folder.open_to_resume(out)
            held.callback(folder.close)
            _check_resumable(folder)
        else:
            run_folder.check_new(out)
        clients = (
            connect(config)
            if connect
            else make_clients_of(config, resumes=out if resume else None, refuse_unable=refuse_unable)
        )
        config = clients.config
        held.callback(clients.close)
        manifest = manifest_of(config, clients)
        if resume:
            state = _resumed_state(folder, config, manifest)
        else:
            folder, state = run_folder.create(out, config, manifest), None
            held.callback(folder.close)
        _LOG.info(export_sentence(config))
        summary = summarise(clients.data, clients.partition)
        _LOG.info(summary.worth_line())
        if config.federation.partition != "iid":
            for line in summary.client_lines():
                _LOG.info(line)
        if state is None:
            state, record = _round_zero(clients)
            _keep(folder, state, record, config)
            yield record
        accuracies = [one.accuracy for one in run_folder.read_records(out)]
        while (reason := stop_reason(config, accuracies)) is None and state.round < config.federation.rounds:
            state, record = run_round(state, clients)
            _keep(folder, state, record, config)
            accuracies.append(record.accuracy)
            yield record
        if reason is not None:
            _LOG.info(reason)
        if state.turn == 0:
            _LOG.warning("no client could take part in any round, so the adapter is untrained; loosen the budgets.")
        if clients.run_id is not None:  # what is personal stays on the clients, of which the state has digests only
            state = replace(state, local={})
        export(clients.model, state, out)


def _keep(folder: RunFolder, state: State, record: RoundRecord, config: Config) -> None:
    folder.append(record)
    folder.checkpoints.save(state, config)


def _round_zero(clients: Clients) -> tuple[State, RoundRecord]:
    started_s = time.perf_counter()
    state = clients.initial_state()
    return state, RoundRecord(
        round=0,
        status=None,
        rank=0,
        **asdict(clients.evaluate(state)),
        factor_averaging_error=None,
        clients=preparation_records(clients.config, clients.model.shape, clients.texts),
        wall_s=time.perf_counter() - started_s,
    )


def manifest_of(config: Config, clients: Clients) -> Manifest:
    """Return what manifest.json says of a run: when and how it started, versions, hardware, data and weights."""
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
        **({"run_id": clients.run_id} if clients.run_id else {}),
        **_own_parts(clients),
        "data_summary": summarise(clients.data, clients.partition).to_json(),
    }


def _own_parts(clients: Clients) -> dict[str, str]:
    """Return a rule and a method that are not those of the settings, by name: resuming asks for them again."""
    own, rule, method = {}, clients.rule, clients.model.method
    if rule != rule_of(clients.config):
        own["own_rule"] = f"{rule.name} ({_named(rule.combine)})"
    if method != method_of(clients.config):
        own["own_method"] = f"{method} ({_named(type(method))})"
    return own


def _named(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', '?')}"


def _check_resumable(folder: RunFolder) -> None:
    """Refuse before any work what no splitrank of this version can go on with."""
    before = folder.read_manifest()
    if "baseline" in before:
        what = before["baseline"]
        raise InputError(f"--resume needs the folder of a run, got {folder.path} of {what} by splitrank 0.1.0")
    folder.checkpoints.check_format()


def _resumed_state(folder: RunFolder, config: Config, manifest: Manifest) -> State | None:
    before = folder.read_manifest()
    run_folder.check_unchanged(folder.path, before, "data", manifest["data"]["sha256"])
    run_folder.check_unchanged(folder.path, before, "model", manifest["model"]["trunk_sha256"])
    for key, what in (("own_rule", "rule"), ("own_method", "method")):
        if before.get(key) != manifest.get(key):
            raise InputError(
                f"The {what} must be the one that the run in {folder.path} started with, "
                f"{before.get(key) or 'that of the settings'}, got {manifest.get(key) or 'that of the settings'}"
            )
    for key in ("versions", "hardware"):
        changed = [name for name, value in manifest[key].items() if before[key].get(name) != value]
        if changed:
            _LOG.warning(f"{', '.join(changed)} changed since the run started; from here on its bits may differ.")
    state = folder.checkpoints.load(config)
    resumed = [
        *(before["resumed"] if isinstance(before.get("resumed"), list) else []),
        {"utc": manifest["started_utc"], "after_round": state.round if state else None},
    ]
    folder.write_manifest({**before, "resumed": resumed})
    run_folder.update_config(folder, config)
    if state is None:
        _LOG.info("No round was finished yet; starting from the beginning.")
    else:
        _LOG.info(f"Resuming after round {state.round}.")
    return state
