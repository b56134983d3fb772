"""How every script here measures and reports: both sides alternately, medians of ratios, one sentence, one JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Paired:
    """Seconds of two sides that ran alternately, one pair per repeat."""

    ours_s: list[float]
    theirs_s: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times longer the other side took, pair by pair."""
        return [theirs / ours for ours, theirs in zip(self.ours_s, self.theirs_s, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        spread = f"{min(self.ratios):.3g} to {max(self.ratios):.3g}" if len(self.ratios) > 1 else "once"
        return f"{self.ratio:.3g} times ({spread} over {len(self.ratios)} pairs)"


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes [s]."""
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s


def alternate(ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int, warm_up: int = 1) -> Paired:
    """Run both sides in turn, first ``warm_up`` times unmeasured, the order swapped from pair to pair."""
    ours_s: list[float] = []
    theirs_s: list[float] = []
    for repeat in range(-warm_up, repeats):
        first, second = (theirs, ours) if repeat % 2 else (ours, theirs)
        taken = seconds(first), seconds(second)
        if repeat >= 0:
            ours_s.append(taken[repeat % 2])
            theirs_s.append(taken[1 - repeat % 2])
    return Paired(ours_s, theirs_s)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def conclude(name: str, sentence: str, holds: bool, **measured: Any) -> None:
    """Print the sentence, write ``results/NAME.json``, and exit with 1 if the claim does not hold."""
    print(sentence if holds else f"{sentence}\nTHE CLAIM DOES NOT HOLD", flush=True)
    RESULTS.mkdir(exist_ok=True)
    result = {
        "claim": name,
        "holds": holds,
        "sentence": sentence,
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        **measured,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    if not holds:
        raise SystemExit(1)
