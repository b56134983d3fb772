"""The ServerApp: the same run as in one process, its clients being Flower nodes.

Its run configuration (``flwr run --run-config``) has three keys: ``config``, the settings' file or preset; ``out``, the
run folder; and ``clients``, ``"own"`` where every client has texts of its own and the server only test texts, or
``"shards"`` where all read the settings' data set and each takes its share, as in a simulation. A folder in which a
run was begun is gone on with.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from splitrank.config import Config, load_config
from splitrank.errors import InfeasibleError, InputError, RunError
from splitrank.federation.data import announced, load_data, table_format
from splitrank.federation.flower.flower_clients import FlowerClients, connect
from splitrank.federation.flower.messenger import look_often
from splitrank.federation.loop import run
from splitrank.federation.manifest import run_id_of
from splitrank.federation.resume import resumed_config
from splitrank.federation.round_lines import round_lines
from splitrank.federation.tracking import tracked
from splitrank.files import try_lock
from splitrank.learning.data import TextData, load_split, text_data
from splitrank.learning.text_rules import Split
from splitrank.logs import show_log

_LOG = logging.getLogger("splitrank")

# A ServerApp that lost its SuperLink may live for some seconds more and still hold the folder.
_WAIT_FOR_FOLDER_S = 60.0

app = ServerApp()


def main(grid: Grid, context: Context) -> None:
    """Run a federation over Flower's nodes until its last round or its target."""
    Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    look_often()
    show_log(with_time=True)
    del sys.argv[1:]  # Flower's, a token among them, which manifest.json must not keep
    try:
        _run(grid, context)
    except (InputError, InfeasibleError, RunError) as error:
        raise error.with_traceback(None) from None  # Flower prints it; the sentence says all


def _run(grid: Grid, context: Context) -> None:
    source, out = str(context.run_config["config"]), Path(str(context.run_config["out"])).expanduser()
    clients_have = str(context.run_config["clients"])
    if clients_have not in ("own", "shards"):
        raise InputError(f'clients must be "own" or "shards", got {clients_have!r}')
    resume = (out / "config.toml").exists()
    if resume:
        _LOG.info(f"{out} holds a run already; going on with it.")
        _wait_until_free(out)
    asked = load_config(source)
    run_id = run_id_of(out) if resume else secrets.token_hex(16)
    config = resumed_config(out, asked, []) if resume else asked

    def nodes(config: Config) -> FlowerClients:
        resumes = out if resume else None
        read = load_data if clients_have == "shards" else _test_data
        data = read(config, resumes=resumes)
        return connect(grid, config, data, tell_data=clients_have == "shards", run_id=run_id)

    rounds = tracked(run(config, out, resume=resume, connect=nodes), config.run.tracking, out)
    for line in round_lines(rounds, config, out):
        print(line, file=sys.stderr, flush=True)


def _end_with_parent(parent: int) -> None:
    """End as soon as the SuperLink's side has: Flower's grid would look for it for ever, with the folder held."""
    while os.getppid() == parent:
        time.sleep(1.0)
    _LOG.info("The SuperLink has gone; start it and the run again, which goes on after its last finished round.")
    os._exit(1)


def _wait_until_free(out: Path) -> None:
    ends_s = time.monotonic() + _WAIT_FOR_FOLDER_S
    while (lock := try_lock(out / ".lock")) is None and time.monotonic() < ends_s:
        time.sleep(1.0)
    if lock is not None:
        lock.close()


def _test_data(config: Config, *, resumes: Path | None) -> TextData:
    """Return the server's test texts, where training texts are on the clients alone."""
    table = config.data
    if table.path is None:
        raise InputError('data.path must name the server\'s test texts where clients = "own", got a data.name')
    text = list(table.text) if table.text else None
    test, classes, origin = load_split(table.path, "test", text=text, label=table.label, form=table_format(config))
    nothing = Split([], np.zeros(0, dtype=np.int64))
    return announced(text_data(nothing, test, classes, f"test texts of {table.path}", origin), resumes=resumes)


app.main()(main)
