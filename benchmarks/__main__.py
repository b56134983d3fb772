"""Every claim of this folder, one after the other, each script in a process of its own: ``python -m benchmarks``.

Goes on after a claim that does not hold, prints all sentences together at the end, and then exits with 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from benchmarks.measure import RESULTS

SCRIPTS = [
    "trained_part_runs_near_matmul_speed",
    "ten_rounds_beat_peft",
    "twenty_clients_beat_flower",
    "second_run_starts_at_once",
    "framework_time_is_small",
    "memory_stays_flat",
    "a_million_clients_planned_in_a_second",
    "a_million_clients_share_a_band",
    "command_line_starts_quickly",
    "bf16_is_as_accurate_as_fp32",
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"all by default: {', '.join(SCRIPTS)}")
    scripts = parser.parse_args().scripts or SCRIPTS
    if unknown := set(scripts) - set(SCRIPTS):
        parser.error(f"SCRIPT must be one of {', '.join(SCRIPTS)}, got {', '.join(sorted(unknown))}")
    begun_s, failed = time.time(), []
    for script in scripts:
        print(f"== {script}", flush=True)
        started_s = time.perf_counter()
        ended = subprocess.run([sys.executable, "-m", f"benchmarks.{script}"])
        print(f"== {time.perf_counter() - started_s:.0f} s", flush=True)
        if ended.returncode:
            failed.append(script)
    print("\nIn short:")
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stat().st_mtime):
        if path.stat().st_mtime >= begun_s:
            result = json.loads(path.read_text())
            print(f"{'holds' if result['holds'] else 'FAILS'}  {result['sentence']}")
    print(f"{len(scripts)} scripts in {(time.time() - begun_s) / 60:.1f} minutes")
    if failed:
        raise SystemExit(f"not shown: {', '.join(failed)}")


if __name__ == "__main__":
    main()
