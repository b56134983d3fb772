"""Claim: a run of MiniLM on AG News stays below 2.5 GB, however many rounds, clients and rows it has.

Every run is ``splitrank run`` in a process of its own, from reading the rows to writing the adapter, the frozen
trunk's output being computed into an empty cache; its peak is what the kernel reports when it has ended. One run is
the base, each other differs from it in one number. Rounds, clients and rows each may raise the peak by a quarter.

By default the runs are short, and where there are more rows the added clients have no energy to train, so that as
many steps are done as in the base. With ``--full`` every client trains, and rows are all 76,532 of the training file
(about ten minutes on 2 cores).

    SPLITRANK_SHARED=... .venv/bin/python -m benchmarks.memory_stays_flat --full
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

from benchmarks.materials import agnews_rows, empty_cache
from benchmarks.measure import conclude

MAX_GB = 2.5
MAX_GROWTH = 1.25
KIB = 1024


@dataclass(frozen=True)
class Size:
    """How large a run is; the first ``training`` clients take part in its rounds."""

    rows: int
    clients: int
    rounds: int
    training: int


SHORT = {
    "base": Size(rows=1500, clients=4, rounds=2, training=4),
    "rounds": Size(rows=1500, clients=4, rounds=6, training=4),
    "clients": Size(rows=1500, clients=40, rounds=2, training=40),
    "rows": Size(rows=3000, clients=8, rounds=2, training=4),
}
FULL = {
    "base": Size(rows=10_000, clients=3, rounds=2, training=3),
    "rounds": Size(rows=10_000, clients=3, rounds=6, training=3),
    "clients": Size(rows=10_000, clients=30, rounds=2, training=30),
    "rows": Size(rows=76_532, clients=3, rounds=1, training=3),
}


def peak_bytes(size: Size, test_rows: int) -> int:
    """Largest resident memory of such a run [B]."""
    energy_j = ["1e9"] * size.training + ["1e-9"] * (size.clients - size.training)
    with empty_cache() as folder:
        rows = agnews_rows(folder / "rows", size.rows, test_rows)
        settings = [
            f'data.path="{rows}"',
            f"federation.num_clients={size.clients}",
            f"federation.rounds={size.rounds}",
            "adapter.rank=8",
            "budget.latency_s=1e6",
            f"budget.energy_j=[{', '.join(energy_j)}]",
        ]
        command = [sys.executable, "-m", "splitrank", "run", "offline", "--out", str(folder / "run"), "--json"]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [*command, *(part for setting in settings for part in ("--set", setting))],
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            if process.returncode:
                raise RuntimeError(f"the run ended with {process.returncode}: {said.read().decode()[-3000:]}")
    # A process starts with its parent's peak, so this must be the smaller one.
    assert usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage.ru_maxrss * KIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all rows, all clients train")
    parser.add_argument("--test-rows", type=int, default=300)
    arguments = parser.parse_args()
    peaks: dict[str, int] = {}
    sizes = FULL if arguments.full else SHORT
    for name, size in sizes.items():
        peaks[name] = peak_bytes(size, arguments.test_rows)
        print(f"{name}: {peaks[name] / 1e9:.2f} GB, {size}", flush=True)
    base = sizes["base"]
    each = ", ".join(
        f"{peaks[name] / 1e9:.2f} GB with {getattr(size, name):,} {name} instead of {getattr(base, name):,}"
        for name, size in sizes.items()
        if name != "base"
    )
    conclude(
        "memory_stays_flat",
        f"Peak memory of a run on {base.rows:,} rows, {base.clients} clients, {base.rounds} rounds: "
        f"{peaks['base'] / 1e9:.2f} GB; {each}",
        all(peak < MAX_GB * 1e9 and peak < MAX_GROWTH * peaks["base"] for peak in peaks.values()),
        most_gb=MAX_GB,
        most_growth=MAX_GROWTH,
        full=arguments.full,
        test_rows=arguments.test_rows,
        sizes={name: asdict(size) for name, size in sizes.items()},
        peak_bytes=peaks,
    )


if __name__ == "__main__":
    main()
