"""Profile a client's machine, on the machine itself: speed, power, clock.

Speed: seconds per sample are timed at two ranks and taken for a line in the rank. Power: Linux's energy counters
(powercap, "RAPL") where they can be read, else Ω·f³ with ``client.capacitance``. Clock: where the operating system lets
the program (cpufreq), the planned frequency is set; otherwise training is throttled to take as long as it would there,
which keeps the plan's time but spends the energy of the clock as it is, and the plan reckons with that. The speed is
kept running by the rounds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from splitrank.federation.flower.links import KEPT_ROUNDS
from splitrank.federation.flower.payload import is_finite
from splitrank.federation.model import Model
from splitrank.federation.per_client import per_client
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.trunk import TrunkOutputs

CPUS = Path("/sys/devices/system/cpu")
COUNTERS = Path("/sys/class/powercap")

_RANKS = (2, 32)
_MAX_BATCHES = 8
_LEAST_S, _LEAST_TIMES = 1.0, 3


@dataclass(frozen=True)
class DeviceProfile:
    """A client's machine, as it is told to the server where ``planner.where = "server"``.

    Attributes:
        cores: processors that the worker may use.
        memory_bytes: the machine's memory.
        reference_frequency_hz: clock at full speed [Hz].
        seconds_per_sample, seconds_per_sample_per_rank: a and b of a + b·r seconds to train on one text at full speed.
        power_w: power while training at full speed [W].
        capacitance: Ω such that Ω·f³ is that power at full speed.
        power_from: ``"powercap"`` or ``"client.capacitance"``.
        clock: ``"cpufreq"``, the planned frequency is set, or ``"throttled"``, training takes as long as it would.
    """

    cores: int
    memory_bytes: int
    reference_frequency_hz: float
    seconds_per_sample: float
    seconds_per_sample_per_rank: float
    power_w: float
    capacitance: float
    power_from: str
    clock: str

    @property
    def is_throttled(self) -> bool:
        """Return whether it keeps its clock and rests instead, so that a cycle takes the same energy in any plan."""
        return self.clock == "throttled"

    def to_json(self) -> dict[str, Any]:
        """Plain values for a message."""
        return asdict(self)


@dataclass
class DeviceEstimate:
    """A machine as it is known now: as it was measured, with its speed corrected by the rounds since.

    A machine that was busy while it was timed, or now is, takes a and b times its slowness: the median, over the last
    rounds, of what training took at full clock over what a + b·r says.

    Attributes:
        measured: by :func:`profile_device`.
        slowness: of the last rounds.
    """

    measured: DeviceProfile
    slowness: list[float] = field(default_factory=list)

    @property
    def machine(self) -> DeviceProfile:
        """The machine as it is now."""
        times = statistics.median(self.slowness or [1.0])
        return replace(
            self.measured,
            seconds_per_sample=times * self.measured.seconds_per_sample,
            seconds_per_sample_per_rank=times * self.measured.seconds_per_sample_per_rank,
        )

    def observe(self, full_clock_s: float, rank: int, num_samples: int) -> None:
        """Learn from a round.

        Args:
            full_clock_s: what training took without rests, or would have at full clock [s].
            rank: at which.
            num_samples: texts trained on, each as often as there are epochs.
        """
        measured = self.measured
        planned_s = num_samples * (measured.seconds_per_sample + measured.seconds_per_sample_per_rank * rank)
        self.slowness = [*self.slowness, full_clock_s / planned_s][-KEPT_ROUNDS:]


UNKNOWN_DEVICE = DeviceProfile(1, 1, 1e9, 1e-3, 0.0, 1.0, 1e-27, "client.capacitance", "throttled")
"""Stands in the planner's arrays for a machine that has not joined, or that the client keeps to itself."""


def profile_from(told: Any) -> DeviceProfile | None:
    """Return a machine from the values of a message, None if they are not those of one."""
    names = {field.name: str(field.type) for field in fields(DeviceProfile)}
    if not isinstance(told, dict) or set(told) != set(names):
        return None
    for name, kind in names.items():
        value = told[name]
        if kind == "str":
            fits = isinstance(value, str) and len(value) < 100
        else:
            fits = is_finite(value) and (value >= 0 if name == "seconds_per_sample_per_rank" else value > 0)
        if not fits:
            return None
    return DeviceProfile(**told)


def profile_device(
    model: Model,
    rule: Rule,
    texts: TrunkOutputs,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    client: int,
) -> DeviceProfile:
    """Time the client's own training, on its own texts, at two ranks.

    Args:
        model: what is trained; what it learns here is thrown away.
        rule: which numbers are trained.
        texts, rows, labels: the client's texts, as in :func:`splitrank.learning.client.train_client`.
        client: its number, for the settings that are drawn per client.
    """
    some = rows[: _MAX_BATCHES * model.config.train.batch_size]
    initial = model.initial_state()
    ranks = _timed_ranks(initial.adapter)
    before_j, started_s = read_energy_j(), time.monotonic()
    taken_s = []
    for rank in ranks:
        adapter = model.method.resize(initial.adapter, rank, distribution="svd", seed=model.config.run.seed, round=0)
        task = model.task(adapter, initial, rule, client)
        model.train(task, texts, some, labels)  # warms up
        times: list[float] = []
        while sum(times) < _LEAST_S or len(times) < _LEAST_TIMES:
            begun_s = time.monotonic()
            model.train(task, texts, some, labels)
            times.append(time.monotonic() - begun_s)
        epochs = model.config.federation.local_epochs
        taken_s.append(statistics.median(times) / (len(some) * epochs))
    after_j, elapsed_s = read_energy_j(), time.monotonic() - started_s
    slope_s = max(0.0, (taken_s[-1] - taken_s[0]) / (ranks[-1] - ranks[0])) if len(ranks) > 1 else 0.0
    frequency_hz = full_frequency_hz() or float(
        per_client(model.config.client.max_frequency_hz, "client.max_frequency_hz", model.config)[client]
    )
    if before_j is not None and after_j is not None and after_j > before_j:
        power_w, power_from = (after_j - before_j) / elapsed_s, "powercap"
        capacitance = power_w / frequency_hz**3
    else:
        capacitance = float(per_client(model.config.client.capacitance, "client.capacitance", model.config)[client])
        power_w, power_from = capacitance * frequency_hz**3, "client.capacitance"
    return DeviceProfile(
        cores=torch.get_num_threads(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        reference_frequency_hz=frequency_hz,
        seconds_per_sample=max(taken_s[0] - slope_s * ranks[0], 0.1 * taken_s[0]),
        seconds_per_sample_per_rank=slope_s,
        power_w=power_w,
        capacitance=capacitance,
        power_from=power_from,
        clock="cpufreq" if _clock_files() else "throttled",
    )


def _timed_ranks(adapter: Adapter) -> tuple[int, ...]:
    """Return the ranks to time: two that the adapter can have, or 1 where it has no rank or can have no other."""
    widths = [tensor.shape[1] for tensor in adapter.of_kind("lora_A").values()]
    low, high = _RANKS
    cap = min([*widths, high]) if widths else 1
    return (min(low, cap - 1), cap) if cap > 1 else (1,)


def read_energy_j() -> float | None:
    """Return what Linux's counters say that the processors have used [J], None where they cannot be read."""
    used = []
    for zone in COUNTERS.glob("intel-rapl:[0-9]*"):
        if zone.name.count(":") == 1:
            try:
                used.append(int((zone / "energy_uj").read_text()) / 1e6)
            except (OSError, ValueError):
                return None
    return sum(used) if used else None


def full_frequency_hz() -> float | None:
    """Return the processors' highest clock [Hz], None where the system does not tell."""
    with suppress(OSError, ValueError):
        return 1e3 * float((CPUS / "cpu0" / "cpufreq" / "cpuinfo_max_freq").read_text())
    with suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
        if told:
            return 1e6 * max(told)
    return None


@contextmanager
def at_frequency(frequency_hz: float) -> Iterator[bool]:
    """Hold the processors at a clock if the system lets us, and return whether it does."""
    files = _clock_files()
    before = {file: file.read_text() for file in files}
    try:
        for file in files:
            file.write_text(str(max(1, round(frequency_hz / 1e3))))
        yield bool(files)
    except OSError:
        yield False
    finally:
        for file, text in before.items():
            with suppress(OSError):
                file.write_text(text)


def _clock_files() -> list[Path]:
    """Files in which the highest clock may be set, none unless all of them may."""
    files = sorted(CPUS.glob("cpu[0-9]*/cpufreq/scaling_max_freq"))
    return files if all(os.access(file, os.W_OK) for file in files) else []
