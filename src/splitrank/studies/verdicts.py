"""Test what the paper expects. Every expectation is a difference that must be positive, paired over seeds.

Trials with the same seed share their texts, head, batches and channels, so a difference between them is due to what
the experiment varies. The 95 % interval of its mean over seeds (Student's t) decides: above 0 the expectation holds,
below 0 it does not, around 0 these seeds do not resolve it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from splitrank.studies.experiments import BASELINE_LAYERS, VARIED

CONFIDENCE = 0.95
HOLDS, FAILS, UNRESOLVED = "holds", "does not hold", "not resolved"

Clients = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a test of an expectation.

    Attributes:
        expectation: in words.
        outcome: ``"holds"``, ``"does not hold"`` or ``"not resolved"``.
        difference: mean over seeds of the difference that must be positive; NaN if nothing could be compared.
        low, high: its 95 % interval; NaN with one seed.
        seeds: number of pairs.
        unit: of the difference.
    """

    expectation: str
    outcome: str
    difference: float
    low: float
    high: float
    seeds: int
    unit: str

    def __str__(self) -> str:
        at = f" at {self.seeds} seed{'' if self.seeds == 1 else 's'}" if self.outcome == UNRESOLVED else ""
        interval = "" if math.isnan(self.low) else f", 95 % interval {self.low:+.2f} to {self.high:+.2f}"
        return f"{self.outcome}{at}: {self.expectation} ({self.difference:+.2f} {self.unit}{interval})"


def paired(expectation: str, more: pd.Series, less: pd.Series, unit: str = "points") -> Verdict:
    """Test that ``more`` is greater than ``less``; both indexed by seed."""
    differences = (more - less).dropna().to_numpy(dtype=float)
    count = len(differences)
    if count == 0:
        return Verdict(expectation, UNRESOLVED, math.nan, math.nan, math.nan, 0, unit)
    mean = float(differences.mean())
    if count == 1:
        return Verdict(expectation, UNRESOLVED, mean, math.nan, math.nan, 1, unit)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * float(differences.std(ddof=1)) / math.sqrt(count)
    low, high = mean - reach, mean + reach
    outcome = HOLDS if low > 0 else FAILS if high < 0 else UNRESOLVED
    return Verdict(expectation, outcome, mean, low, high, count, unit)


def test_expectations(experiment: str, table: pd.DataFrame, clients: Clients) -> list[Verdict]:
    """Return the verdicts on all that the paper expects of an experiment.

    Args:
        experiment: its name.
        table: of its trials, as :func:`results.table_of` returns it.
        clients: trial's name → :attr:`run_reader.RecordedRun.clients`.
    """
    if experiment == "placement":
        return _placement(table)
    if experiment == "rank":
        return _rank(table)
    return _budget(experiment, table, clients)


def _points(table: pd.DataFrame, column: str = "accuracy") -> pd.Series:
    """Return a share in points by seed, averaged over whatever else the lines differ in."""
    points: pd.Series = 100 * table.groupby("run.seed")[column].mean()
    return points


def _placement(table: pd.DataFrame) -> list[Verdict]:
    layers = VARIED["placement"]
    federated = table[table["baseline"] == ""]
    by_placement = {name: _points(lines) for name, lines in federated.groupby(layers)}
    last, untuned = by_placement[BASELINE_LAYERS], _points(federated, "accuracy_before")
    verdicts = [
        paired(f"{name} is better than no fine-tuning", points, untuned) for name, points in by_placement.items()
    ]
    others = [name for name in by_placement if name not in (BASELINE_LAYERS, "all")]
    if "all" in by_placement:
        verdicts.append(paired(f"all layers are better than {BASELINE_LAYERS}", by_placement["all"], last))
    verdicts += [paired(f"{BASELINE_LAYERS} is better than {name}", last, by_placement[name]) for name in others]
    for baseline, lines in table[table["baseline"] != ""].groupby("baseline", sort=False):
        what = f"{baseline.replace('-', ' ')} of {BASELINE_LAYERS} is better than federated LoRA (a baseline)"
        verdicts.append(paired(what, _points(lines), last))
    return verdicts


def _rank(table: pd.DataFrame) -> list[Verdict]:
    by_rank = {int(rank): _points(lines) for rank, lines in table.groupby(VARIED["rank"])}
    least, most = min(by_rank), max(by_rank)
    peak = 32 if 32 in by_rank else most
    verdicts = [paired(f"accuracy rises from rank {least} to rank {peak}", by_rank[peak], by_rank[least])]
    if most > peak:
        verdicts.append(paired(f"accuracy is higher at rank {peak} than at rank {most}", by_rank[peak], by_rank[most]))
    return verdicts


def _budget(experiment: str, table: pd.DataFrame, clients: Clients) -> list[Verdict]:
    varied = VARIED[experiment]
    planned = table[table["planner.method"] != "random-frequency"]
    drawn = table[table["planner.method"] == "random-frequency"]
    tight, loose = planned[varied].min(), planned[varied].max()
    if experiment == "distance":
        tight, loose = loose, tight
    looser = {
        "latency": "a larger T0",
        "energy": "a larger E0",
        "bandwidth": "more bandwidth",
        "distance": "less distance",
    }
    return [
        paired(
            f"accuracy rises with {looser[experiment]}, {tight:g} to {loose:g}",
            _points(planned[planned[varied] == loose]),
            _points(planned[planned[varied] == tight]),
        ),
        paired(
            "the planner's accuracy is above random frequency's, mean of the grid", _points(planned), _points(drawn)
        ),
        paired(
            "the planner's rank is above random frequency's, mean of the grid",
            planned.groupby("run.seed")["mean_rank"].mean(),
            drawn.groupby("run.seed")["mean_rank"].mean(),
            unit="ranks",
        ),
        _never_below(varied, planned, drawn, clients),
    ]


def _never_below(varied: str, planned: pd.DataFrame, drawn: pd.DataFrame, clients: Clients) -> Verdict:
    """Test that no rank is above the planner's: a random frequency is one that the planner could have chosen."""
    margins: list[float] = []
    pairs = planned.merge(drawn, on=[varied, "run.seed"], suffixes=("", "_drawn"))
    for ours, theirs in zip(pairs["member"], pairs["member_drawn"], strict=True):
        one, other = (clients[name]["max_rank"].loc[1:].to_numpy() for name in (ours, theirs))
        margins += list(one - other)
    least = min(margins, default=0)
    what = f"no client's max_rank is below its rank under random frequency ({len(margins):,} client-rounds; the least)"
    outcome = UNRESOLVED if not margins else HOLDS if least >= 0 else FAILS
    return Verdict(what, outcome, float(least), math.nan, math.nan, planned["run.seed"].nunique(), "ranks")


def spread(table: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """Return mean, least and greatest over seeds of a column for each value of ``by``, in the table's order."""
    return table.groupby(by, sort=False)[column].agg(["mean", "min", "max"])
