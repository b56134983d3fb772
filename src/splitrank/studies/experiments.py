"""Make the experiments of Xie and Wen as sweeps, from the presets beside this module.

A preset names a base configuration, the changes of all its experiments, and for each experiment its grid. ``scale`` is
the factor between its budgets and the paper's; see ``presets/small.toml``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from splitrank.config import flatten
from splitrank.errors import InputError
from splitrank.studies.sweep import Settings, Trial, check_not_set, combined, make_trials
from splitrank.traits import RULE_TRAITS

PRESETS = ("small", "paper", "edge")

VARIED = {
    "placement": "model.trained_layers",
    "rank": "adapter.rank",
    "latency": "budget.latency_s",
    "energy": "budget.energy_j",
    "bandwidth": "radio.bandwidth_hz",
    "distance": "radio.distance_m",
}
"""Experiment → the setting that it varies; all but the first two compare the planner with random frequency."""

BASELINE_LAYERS = "last:3"


@dataclass(frozen=True)
class Study:
    """A preset.

    Attributes:
        name: of the preset.
        base: a preset of ``splitrank run``.
        scale: its budgets over the paper's.
        shared: dotted keys that all experiments have in common.
        experiments: name → its tables.
    """

    name: str
    base: str
    scale: float
    shared: Settings
    experiments: Mapping[str, Mapping[str, Any]]


def read_study(preset: str) -> Study:
    """Read one of the presets.

    Raises:
        InputError: no preset has that name.
    """
    if preset not in PRESETS:
        close = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}{hint}")
    file = resources.files("splitrank") / "studies" / "presets" / f"{preset}.toml"
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    experiments = {name: content[name] for name in VARIED if name in content}
    return Study(preset, content["base"], content["scale"], flatten(content.get("set", {})), experiments)


def chosen_experiments(study: Study, experiment: str) -> list[str]:
    """Return the experiments that a name stands for, ``"all"`` for all of the preset's.

    Raises:
        InputError: the preset has no such experiment.
    """
    if experiment == "all":
        return list(study.experiments)
    if experiment not in study.experiments:
        raise InputError(
            f"EXPERIMENT must be one of {', '.join(study.experiments)} or all with --preset {study.name}, "
            f"got {experiment!r}"
        )
    return [experiment]


def experiment_trials(study: Study, experiment: str, overrides: Mapping[str, Any], seeds: Sequence[int]) -> list[Trial]:
    """Return the trials of an experiment, baselines last.

    Args:
        overrides: dotted keys that the user changes in all of them.
        seeds: of ``run.seed``.

    Raises:
        InputError: overrides that do not exist, or that the experiment varies.
    """
    tables = study.experiments[experiment]
    layers = [study.shared, flatten(tables.get("set", {})), overrides]
    grid = flatten(tables["grid"])
    check_not_set(overrides, [*grid, "run.seed"], f"--set, {experiment} varies it")
    found = make_trials(study.base, layers, list(combined(grid, study.name)), seeds)
    if experiment == "placement":
        federation = found[0].config.federation
        passes = federation.rounds * federation.local_epochs
        alone = [{key: value for key, value in layer.items() if _has_meaning_alone(key, value)} for layer in layers]
        found += make_trials(study.base, alone, [_centralised(passes)], seeds, "centralised")
        own = {key: value for key, value in flatten(tables["full-fine-tuning"]).items() if key not in overrides}
        full = {"model.trained_layers": BASELINE_LAYERS, **own}
        found += make_trials(study.base, layers, [full], seeds, "full-fine-tuning")
    return found


_OF_SEVERAL_CLIENTS = frozenset(
    f"federation.{key}"
    for key in (
        *("partition", "partition_alpha", "classes_per_client", "shards_per_client", "partition_min_samples"),
        *("clients_per_round", "selection", "over_selection", "min_clients", "server_optimizer"),
    )
)
"""Settings that mean nothing where there is one client."""


def _has_meaning_alone(key: str, value: Any) -> bool:
    """Return whether a setting means something where there is one client, whom nothing pulls and nobody outvotes."""
    if key == "federation.aggregation" and value in RULE_TRAITS:
        return RULE_TRAITS[value].min_updates == 1
    within = key.startswith(
        tuple(f"federation.{table}." for table in ("trimmed-mean", "fedavgm", "fedadam", "fedyogi"))
    )
    return key not in _OF_SEVERAL_CLIENTS and key != "train.proximal" and not within


def _centralised(passes: int) -> Settings:
    """Return settings for as many passes over the same texts on one machine, its optimiser never starting anew."""
    return {
        "model.trained_layers": BASELINE_LAYERS,
        "federation.num_clients": 1,
        "federation.rounds": 1,
        "federation.local_epochs": passes,
    }
