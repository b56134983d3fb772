"""Start SuperLink and SuperNodes, run the app, stop everything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loopback import BIN, listens, processes
from benchmarks.rivals.task import Task

APP = Path(__file__).parent / "app"
_MAX_S = 900.0


def deployed_rounds(
    task: Task, folder: Path, *, client_files: Sequence[Path], test_file: Path, keys: Path, ports: Iterator[int]
) -> list[dict[str, Any]]:
    """What each round took: ``wall_s``, ``train_s`` of the slowest client, ``test_s``; and its ``accuracy``.

    Args:
        task: sizes of the training.
        folder: new, for logs and Flower's own files.
        client_files, test_file: the texts, with class numbers as labels.
        keys: a folder with ``ca.crt``, ``server.crt`` and ``server.key`` for TLS on loopback.
        ports: free ones.

    Raises:
        RuntimeError: a process failed, or a client gave no update in some round, which would have been too quick.
    """
    environment = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05", "HF_HUB_OFFLINE": "1"}
    port, out, home = next(ports), folder / "rounds.json", folder / "flwr"
    home.mkdir(parents=True)
    certificate = f"root-certificates = {json.dumps(str(keys / 'ca.crt'))}"
    (home / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{port}"\n{certificate}\n')
    config = {
        "encoder": task.location,
        "test": str(test_file),
        "out": str(out),
        "labels": task.num_labels,
        "layers": " ".join(map(str, task.layers)),
        "rank": task.rank,
        "max-length": task.max_length,
        "batch-size": task.batch_size,
        "learning-rate": task.learning_rate,
        "clients": len(client_files),
        "rounds": task.rounds,
        "seed": task.seed,
    }
    with processes(folder) as running:
        tls = ["--ssl-ca-certfile", keys / "ca.crt", "--ssl-certfile", keys / "server.crt"]
        tls += ["--ssl-keyfile", keys / "server.key"]
        address = ["--host", "127.0.0.1", "--port", str(port)]
        running.start("superlink", BIN / "flower-superlink", *tls, *address, FLWR_HOME=str(home), **environment)
        running.wait_for(lambda: listens(port), 60, "the SuperLink")
        for client, file in enumerate(client_files):
            running.start(
                f"supernode-{client}",
                BIN / "flower-supernode",
                *("--superlink", f"127.0.0.1:{port}", "--root-certificates", keys / "ca.crt"),
                *("--port", str(next(ports)), "--node-config", f"texts={json.dumps(str(file))}"),
                FLWR_HOME=str(folder / f"flwr-{client}"),
                **environment,
            )
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        command = [BIN / "flwr", "run", APP, "here", "--stream", "--run-config", given]
        running.run("run", *command, max_s=_MAX_S, FLWR_HOME=str(home))
        if not out.exists():
            raise RuntimeError(f"the run failed:\n{running.log('run')[-3000:]}")
    rounds: list[dict[str, Any]] = json.loads(out.read_text())
    if [took["clients"] for took in rounds] != [len(client_files)] * task.rounds:
        raise RuntimeError(f"every client must train in every round, got {rounds}")
    return rounds
