"""Claim: a run long enough for all shapes of products to occur stays below 1.5 GB, and grows no more after round 1.

MiniLM on 12,000 rows of AG News, 3 clients, LoRA of rank 8 on all six linears, tested on all 7,600 test rows: one
``splitrank run`` in a process of its own. Its resident memory is read twice a second. The highest reading of each round
after the first may be at most 5 % above that of everything before.

    SPLITRANK_SHARED=... .venv/bin/python -m benchmarks.memory_of_eight_rounds
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.materials import FREE_BUDGETS, agnews_rows, empty_cache
from benchmarks.measure import conclude

MAX_GB = 1.5
MAX_GROWTH = 1.05
READ_EVERY_S = 0.5
KIB = 1024


def peaks_of_rounds(process: subprocess.Popen[bytes], out: Path) -> list[int]:
    """Return the highest resident memory [B] up to the end of round 1, then of each round, until the process ends."""
    peaks: list[int] = [0]
    while process.poll() is None:
        records = out / "rounds.jsonl"
        num_done = len(records.read_bytes().splitlines()) - 1 if records.is_file() else 0  # without round 0's
        peaks += [0] * (max(num_done, 1) - len(peaks))
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
        peaks[-1] = max(peaks[-1], *(int(kib) * KIB for kib in resident), 0)
        time.sleep(READ_EVERY_S)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--test-rows", type=int, default=7_600)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    with empty_cache() as folder:
        rows, out = agnews_rows(folder / "rows", arguments.rows, arguments.test_rows), folder / "run"
        settings = [f'data.path="{rows}"', f"federation.rounds={arguments.rounds}", "adapter.rank=8", *FREE_BUDGETS]
        command = [sys.executable, "-m", "splitrank", "run", "offline", "--out", str(out)]
        command += [part for setting in settings for part in ("--set", setting)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peaks = peaks_of_rounds(process, out)
        if process.returncode:
            raise RuntimeError(f"the run ended with {process.returncode}")
    each = ", ".join(f"{peak / 1e6:,.0f}" for peak in peaks)
    conclude(
        "memory_of_eight_rounds",
        f"Highest resident memory up to the end of round 1, then of each round: {each} MB "
        f"({arguments.rows:,} rows, {arguments.rounds} rounds)",
        max(peaks) < MAX_GB * 1e9 and max(peaks) <= MAX_GROWTH * peaks[0],
        most_gb=MAX_GB,
        most_growth=MAX_GROWTH,
        peak_bytes=peaks,
        rows=arguments.rows,
        test_rows=arguments.test_rows,
    )


if __name__ == "__main__":
    main()
