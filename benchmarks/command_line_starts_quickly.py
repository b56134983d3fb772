"""Claim: `splitrank --help` answers within 0.4 s and `splitrank plan paper` within 0.8 s.

Every start is a fresh process, measured from starting it until it has ended; the first one, which compiles modules and
fills the disk cache, is not counted. Beside them, what those seconds hold: starting Python alone, and the five modules
whose own code takes longest to import, by ``python -X importtime`` (which itself costs a few milliseconds).

    .venv/bin/python -m benchmarks.command_line_starts_quickly
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from benchmarks.measure import conclude, seconds

MAX_S = {"--help": 0.4, "plan paper": 0.8}


def splitrank(arguments: str, *flags: str) -> str:
    """Run a command in a fresh process and give what it wrote to stderr."""
    command = [sys.executable, *flags, "-m", "splitrank", *arguments.split()]
    return subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True).stderr


def slowest_imports(arguments: str, count: int = 5) -> dict[str, float]:
    """Modules whose own code takes longest to import [s]."""
    own_s = {}
    for line in splitrank(arguments, "-X", "importtime").splitlines()[1:]:
        own_us, _, module = line.removeprefix("import time:").split("|")
        own_s[module.strip()] = int(own_us) / 1e6
    return dict(sorted(own_s.items(), key=lambda item: -item[1])[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    bare_s = [seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True)) for _ in range(arguments.repeats)]
    started_s: dict[str, list[float]] = {}
    imports_s = {}
    for command in MAX_S:
        splitrank(command)
        started_s[command] = [seconds(lambda command=command: splitrank(command)) for _ in range(arguments.repeats)]
        imports_s[command] = slowest_imports(command)
        slowest = ", ".join(f"{module} {1e3 * own_s:.0f} ms" for module, own_s in imports_s[command].items())
        print(f"splitrank {command}: slowest imports {slowest}", flush=True)
    medians = {command: statistics.median(taken) for command, taken in started_s.items()}
    each = ", ".join(f"splitrank {command} {median:.2f} s" for command, median in medians.items())
    conclude(
        "command_line_starts_quickly",
        f"From start to end, median of {arguments.repeats} after a first: {each}; Python alone "
        f"{statistics.median(bare_s):.2f} s",
        all(medians[command] < most_s for command, most_s in MAX_S.items()),
        most_s=MAX_S,
        started_s=started_s,
        python_alone_s=bare_s,
        imports_s=imports_s,
    )


if __name__ == "__main__":
    main()
