"""Run the whole simulation in this process and Ray's, and write down what came out.

    python -m benchmarks.rivals.flower_peft.simulate TASK.json RESULT.json THREADS

``flwr run`` would drive the same engine, but through a SuperLink, one more process and a packed app, which only adds to
the time. So the rival gets the quicker start, although Flower 1.41 calls ``run_simulation`` deprecated. The environment
is that of :func:`benchmarks.rivals.flower_peft.process.simulate`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(task_file: str, result_file: str, threads: str) -> None:
    """Import, simulate, report; importing is timed, hence not at the top."""
    started_s = time.perf_counter()
    from flwr.simulation import run_simulation

    from benchmarks.rivals.flower_peft.client_app import CPUS_PER_CLIENT
    from benchmarks.rivals.flower_peft.client_app import app as client_app
    from benchmarks.rivals.flower_peft.loaded import read_task
    from benchmarks.rivals.flower_peft.server_app import server_app

    imported_s = time.perf_counter()
    task = read_task(task_file)
    accuracies: list[float] = []
    run_simulation(
        server_app(task_file, int(threads), accuracies),
        client_app,
        num_supernodes=len(task.client_texts),
        backend_config={
            "client_resources": {"num_cpus": CPUS_PER_CLIENT, "num_gpus": 0.0},
            "init_args": {"num_cpus": int(threads)},
        },
    )
    result = {
        "accuracies": accuracies,
        "import_s": imported_s - started_s,
        "run_s": time.perf_counter() - imported_s,
    }
    Path(result_file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
