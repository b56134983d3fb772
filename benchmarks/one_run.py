"""One run of splitrank in a process of its own, for scripts that measure whole processes.

    python -m benchmarks.one_run RUN_FOLDER [--until-training] KEY=VALUE...

The settings are laid over the ``offline`` preset. The last line on stdout is a JSON object: ``import_s``, ``run_s``
from calling ``run``, ``accuracies`` after each round, and ``trunk_computed`` as in the run's manifest. With
``--until-training`` the run stops where the first client would take its first training step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class FirstStepError(Exception):
    """The run has come to its first training step."""


def in_own_process(out: Path, settings: Sequence[str], *, until_training: bool = False) -> dict[str, Any]:
    """What such a process reports, and ``process_s``, how long it lived."""
    flags = ["--until-training"] if until_training else []
    command = [sys.executable, "-m", "benchmarks.one_run", str(out), *flags, *settings]
    started_s = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True)
    process_s = time.perf_counter() - started_s
    if ended.returncode != 0:
        raise RuntimeError(f"the run ended with {ended.returncode}: {ended.stderr[-3000:]}")
    return {**json.loads(ended.stdout.splitlines()[-1]), "process_s": process_s}


def main() -> None:
    """Import, run, report; importing is timed, hence not at the top."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--until-training", action="store_true")
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_intermixed_args()

    started_s = time.perf_counter()
    from splitrank import load_config, run
    from splitrank.federation.in_process import InProcessClients

    imported_s = time.perf_counter()

    def stop(*_: object) -> None:
        raise FirstStepError

    if arguments.until_training:
        InProcessClients.train_client = stop
    config = load_config("offline", arguments.settings)
    accuracies: list[float] = []
    with suppress(FirstStepError):
        accuracies.extend(record.accuracy for record in run(config, arguments.out))
    result = {
        "import_s": imported_s - started_s,
        "run_s": time.perf_counter() - imported_s,
        "accuracies": accuracies[1:],
        "trunk_computed": json.loads((arguments.out / "manifest.json").read_text())["trunk_computed"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
