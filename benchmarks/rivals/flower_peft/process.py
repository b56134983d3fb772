"""Start the simulation in a process of its own and wait for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.loopback import SWITCHES
from benchmarks.rivals.task import Task


@dataclass(frozen=True)
class Simulation:
    """What a simulation did.

    Attributes:
        accuracies: share of the test texts classified rightly after each round.
        process_s: from starting the process to its end.
        import_s: of these, importing Flower, PyTorch, Transformers and PEFT in that process. Ray's actors import
            them once more; that is not counted here.
    """

    accuracies: list[float]
    process_s: float
    import_s: float


def simulate(task: Task, threads: int) -> Simulation:
    """Train as ``federated_peft.train_federated`` does, on ``threads`` cores, with Flower between server and clients.

    Raises:
        RuntimeError: the process failed; the message ends with what it printed last.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        (folder / "task.json").write_text(json.dumps(asdict(task)))
        folders = {"FLWR_HOME": str(folder / "flwr"), "RAY_TMPDIR": str(folder)}
        files = [str(folder / "task.json"), str(folder / "result.json")]
        command = [sys.executable, "-m", f"{__package__}.simulate", *files, str(threads)]
        with (folder / "log.txt").open("w+") as log:
            started_s = time.perf_counter()
            process = subprocess.Popen(
                command,
                env={**os.environ, **SWITCHES, **folders},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait()
            finally:
                with suppress(ProcessLookupError):  # whatever is left of it, if it was broken off
                    os.killpg(process.pid, signal.SIGKILL)
            process_s = time.perf_counter() - started_s
            if process.returncode != 0:
                log.seek(0)
                raise RuntimeError(f"the simulation ended with {process.returncode}: {log.read()[-3000:]}")
        result = json.loads((folder / "result.json").read_text())
    return Simulation(result["accuracies"], process_s, result["import_s"])
