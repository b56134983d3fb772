"""Run an experiment of the paper, or what is missing of it, and write down the results.

A folder per experiment: ``members/``, ``results.csv`` and ``.parquet``, ``figure.png`` and ``.pdf``, ``verdicts.json``,
``report.html``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from splitrank.config import Config
from splitrank.federation.problems import plan_round, planned_problem
from splitrank.files import write_atomically
from splitrank.records import finite
from splitrank.studies import figures
from splitrank.studies.experiments import Study
from splitrank.studies.results import table_of
from splitrank.studies.run_reader import read_run
from splitrank.studies.study import run_sweep
from splitrank.studies.sweep import Trial
from splitrank.studies.verdicts import test_expectations

DRAWS = 200
"""Seeds over which planned ranks are averaged, as in the calibration of the paper's constants."""


def reproduce(
    study: Study,
    experiment: str,
    trials: Sequence[Trial],
    out: Path,
    *,
    jobs: int,
    ray_address: str | None,
) -> Iterator[str]:
    """Run an experiment to its end and test what the paper expects; yield the lines to print.

    Args:
        trials: as :func:`experiments.experiment_trials` returns them.
        out: the experiment's folder.

    Raises:
        InputError: settings that cannot be used, or ``out`` holds another study.
        RunError: trials failed; those that are finished are in the table, no expectation is tested.
    """
    title = f"{experiment}, preset {study.name}"
    yield from run_sweep(trials, out, title, jobs=jobs, ray_address=ray_address)
    runs = [read_run(out / "members" / trial.name) for trial in trials]
    table = table_of(trials, runs)
    expected = planned_ranks(trials) if "planner.method" in table else None
    figures.save(figures.draw(experiment, table, title, study.scale, expected), out / "figure")
    verdicts = test_expectations(experiment, table, {run.name: run.clients for run in runs})
    content = {
        "experiment": experiment,
        "preset": study.name,
        "seeds": sorted({trial.config.run.seed for trial in trials}),
        "verdicts": [finite(vars(verdict)) for verdict in verdicts],
    }
    write_atomically(out / "verdicts.json", json.dumps(content, indent=2) + "\n")
    yield from (str(verdict) for verdict in verdicts)
    yield f"{out / 'figure.png'}, {out / 'results.csv'}, {out / 'report.html'}"


def planned_ranks(trials: Sequence[Trial], draws: int = DRAWS) -> pd.DataFrame:
    """Return the mean rank of each trial that differs in more than its seed, over many draws of clients and channels.

    Returns:
        a line for each, with its varied settings and ``rank``.
    """
    lines: dict[str, dict[str, object]] = {}
    for trial in trials:
        varied = {key: value for key, value in trial.varied.items() if key != "run.seed"}
        if str(varied) not in lines:
            lines[str(varied)] = {**varied, "rank": mean_planned_rank(trial.config, draws)}
    return pd.DataFrame(list(lines.values()))


def mean_planned_rank(config: Config, draws: int = DRAWS) -> float:
    """Return the mean rank of the participants of round 1 over the seeds 0, 1, ...; 0 where nobody can take part."""
    ranks = []
    for seed in range(draws):
        drawn = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
        plan = plan_round(drawn, planned_problem(drawn, 1, require_all=False), 1, require_all=False)
        ranks.append(float(plan.rank[plan.participants].mean()) if plan.largest_rank else 0.0)
    return sum(ranks) / draws
