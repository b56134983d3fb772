"""Read which runs a sweep consists of: every combination of some settings, or a list of them, times seeds.

A sweep file names a base and what varies:

    base = "offline"                        # a preset or a TOML file
    seeds = [0, 1, 2]

    [set]                                   # the same for all
    federation.rounds = 3

    [grid]                                  # every combination; or [[list]] tables, one per trial
    adapter.rank = [1, 4, 16]
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from splitrank.config import Config, config_of, flatten, read_toml, with_values
from splitrank.errors import ConfigError, InputError

THREADS_OF_A_TRIAL = 1
"""Stands for ``run.threads = 0``: bits depend on the number of threads, and must not on that of the processes."""

MAX_TRIALS = 10_000

Settings = dict[str, Any]
"""Dotted key → value, such as ``adapter.rank`` → 4."""

FULL_FINE_TUNING: Settings = {
    "adapter.method": "full",
    "budget.latency_s": math.inf,
    "budget.energy_j": math.inf,
    "federation.aggregation": "fedavg",
    "planner.frequency_policy": "least-latency",
    "planner.method": "exact",
    "planner.objective": "largest-rank",
    "planner.rank_policy": "common",
    "workload.model": "flops",
}
"""Make a trial the baseline ``"full-fine-tuning"``: all weights of the trained layers, no limits, operations as they
really are, since the paper's count knows LoRA alone."""

Baseline = Literal["", "centralised", "full-fine-tuning"]

_MAX_NAME = 120


@dataclass(frozen=True)
class Trial:
    """One run among many.

    Attributes:
        name: tells it from the others; also its folder's name.
        varied: the settings in which it differs.
        config: all its settings.
        baseline: which one it is, ``""`` for a trial that is none. Both are runs like any other; see
            :data:`FULL_FINE_TUNING`.
    """

    name: str
    varied: Settings
    config: Config
    baseline: Baseline = ""


def read_sweep(path: Path) -> list[Trial]:
    """Return the trials of a sweep file, in its order, seeds varying fastest.

    Raises:
        InputError: the file cannot be read, names no value to vary, or settings that do not exist.
    """
    content = read_toml(path)
    if unknown := set(content) - {"base", "seeds", "set", "grid", "list"}:
        raise InputError(
            f"{path} must hold base, seeds, [set], [grid] or [[list]], got {', '.join(sorted(unknown))}; "
            "settings that all trials share go under [set]"
        )
    base, shared, grid, listed = (content.get(key, kind()) for key, kind, _ in _PARTS)
    for (key, kind, rule), part in zip(_PARTS, (base, shared, grid, listed), strict=True):
        if not isinstance(part, kind):
            raise InputError(f"{key} in {path} must be {rule}, got {part!r}")
    if not all(isinstance(entry, dict) for entry in listed):
        raise InputError(f"list in {path} must be [[list]] tables of settings, got {listed!r}")
    if grid and listed:
        raise InputError(f"{path} must hold [grid] or [[list]], got both; write the combinations out as a list")
    combinations = [flatten(entry) for entry in listed] if listed else list(combined(flatten(grid), str(path)))
    seeds = _checked_seeds(content["seeds"], path) if "seeds" in content else None
    if "seeds" not in content and not grid and not listed:
        raise InputError(f"{path} must vary something, got an empty grid; give [grid], [[list]] or seeds")
    varied = {key for combination in combinations for key in combination} | ({"run.seed"} if seeds else set())
    check_not_set(flatten(shared), varied, f"[set] in {path}")
    if seeds and any("run.seed" in combination for combination in combinations):
        raise InputError(f"{path} must vary run.seed once, got it beside seeds; leave one of them out")
    return make_trials(base or "offline", [flatten(shared)], combinations, seeds)


def check_not_set(given: Iterable[str], varied: Iterable[str], where: str) -> None:
    """Refuse settings that would be without effect, since every trial has a value of its own.

    Raises:
        InputError: ``given`` holds a key that is varied.
    """
    if both := sorted(set(given) & set(varied)):
        raise InputError(
            f"{', '.join(both)} must be either varied or the same for all, got both; leave it out of {where}"
        )


_PARTS: tuple[tuple[str, type, str], ...] = (
    ("base", str, "a preset or a TOML file"),
    ("set", dict, "a table of settings"),
    ("grid", dict, "a table of settings"),
    ("list", list, "[[list]] tables of settings"),
)


def _checked_seeds(seeds: Any, path: Path) -> list[int]:
    whole = isinstance(seeds, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    if not whole or not seeds:
        raise InputError(f"seeds in {path} must be a list of whole numbers, such as [0, 1, 2], got {seeds!r}")
    return list(seeds)


def combined(grid: Mapping[str, Any], where: str) -> Iterator[Settings]:
    """Yield every combination of a grid's values, the last key varying fastest.

    Args:
        grid: dotted key → list of values.
        where: the file, for messages.

    Raises:
        InputError: a key without a list of values.
    """
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{key} in {where} must be a list of at least one value, got {values!r}")
    if math.prod(len(values) for values in grid.values()) > MAX_TRIALS:
        raise InputError(f"grid in {where} must have at most {MAX_TRIALS:,} combinations; take some values out")
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def make_trials(
    base: str,
    layers: Sequence[Mapping[str, Any]],
    combinations: Sequence[Mapping[str, Any]],
    seeds: Sequence[int] | None,
    baseline: Baseline = "",
) -> list[Trial]:
    """Return a trial for every combination and seed.

    Args:
        base: a preset or a TOML file.
        layers: dotted keys that all trials have in common, the later over the earlier.
        combinations: dotted keys of each.
        seeds: values of ``run.seed``, None to leave it as it is.
        baseline: the one that all of them are; their names begin with it.

    Raises:
        ConfigError: every broken rule once, however many trials break it.
        InputError: two trials are the same.
    """
    found: dict[str, Trial] = {}
    problems: dict[str, None] = {}
    for combination, seed in product(combinations, seeds if seeds is not None else [None]):
        varied = {**combination, **({} if seed is None else {"run.seed": seed})}
        try:
            config = config_of(base, *layers, varied)
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
            continue
        if baseline == "full-fine-tuning":
            # Twice, since what has lost its effect is only then back at its default, as it is read from a run folder.
            config = with_values(with_values(config, FULL_FINE_TUNING), {})
        config = _wherever_it_runs(config)
        name = f"{baseline},{trial_name(varied)}" if baseline else trial_name(varied)
        if name in found:
            raise InputError(f"The trials of a sweep must differ, got {name} twice")
        found[name] = Trial(name, varied, config, baseline)
    if problems:
        raise ConfigError(list(problems))
    return list(found.values())


def _wherever_it_runs(config: Config) -> Config:
    """Return the same settings with nothing left to the machine's cores or to the folder that it runs in."""
    values: Settings = {}
    if config.run.threads == 0:
        values["run.threads"] = THREADS_OF_A_TRIAL
    if config.data.path is not None:
        values["data.path"] = str(Path(config.data.path).resolve())
    if Path(config.model.name).is_dir():
        values["model.name"] = str(Path(config.model.name).resolve())
    return with_values(config, values) if values else config


def trial_name(varied: Mapping[str, Any]) -> str:
    """Return a name that can be a folder's, such as ``rank=4,seed=0``."""
    last = [key.rpartition(".")[2] for key in varied]
    parts = [
        f"{key if last.count(short) > 1 else short}={_shown(varied[key])}"
        for key, short in zip(varied, last, strict=True)
    ]
    full = ",".join(parts) or "all"
    name = re.sub(r"[^\w.,=+:-]", "_", full, flags=re.ASCII)
    if name != full or len(name) > _MAX_NAME or name.endswith((".toml", ".log")):
        name = f"{name[:_MAX_NAME]}~{hashlib.sha256(full.encode()).hexdigest()[:8]}"
    return name


def _shown(value: Any) -> str:
    if isinstance(value, float):
        short = f"{value:.10g}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value, default=str).replace(" ", "").replace('"', "")
