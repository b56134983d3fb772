"""A whole run: prepare, then round after round until the last or a reason to stop, leaving a run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from splitrank.config import Config
from splitrank.errors import check_types
from splitrank.federation import run_folder
from splitrank.federation.clients import Clients
from splitrank.federation.costs import preparation_records
from splitrank.federation.data import load_data
from splitrank.federation.export import export
from splitrank.federation.export_forms import export_sentence
from splitrank.federation.in_process import InProcessClients, make_clients
from splitrank.federation.manifest import manifest_of
from splitrank.federation.resume import check_resumable, resumed_state
from splitrank.federation.rounds import run_round
from splitrank.federation.run_folder import RunFolder
from splitrank.federation.state import State
from splitrank.federation.stopping import stop_reason
from splitrank.learning.device import resolve_device
from splitrank.learning.summary import summarise
from splitrank.records import RoundRecord

_LOG = logging.getLogger("splitrank")


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
        config: the settings; for a resumed run those of :func:`resume.resumed_config`.
        out: the run folder, new or empty unless resumed.
        resume: continue the run in ``out``.
        connect: returns the clients; None for those of this process.
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
    resolve_device(config.run.device)  # refuses a missing one before any text is read
    with ExitStack() as held:
        if resume:
            folder = run_folder.open_to_resume(out)
            held.callback(folder.close)
            check_resumable(folder)
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
            state = resumed_state(folder, config, manifest)
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
