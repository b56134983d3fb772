"""Draw the paper's figures 2 to 5 from a table of trials: mean over seeds, and from the least to the greatest seed."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from splitrank.files import write_atomically
from splitrank.studies.experiments import VARIED
from splitrank.studies.verdicts import spread

# Okabe and Ito's colours, told apart by most who are colour-blind.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F"

_STYLE: Any = {
    "font.size": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "splitrank",
}
_BASELINES = {"centralised": GREEN, "full-fine-tuning": PURPLE}
_AXES = {
    "latency": "latency budget T0 [s]",
    "energy": "energy budget E0 of each client [J]",
    "bandwidth": "bandwidth of each client [Hz]",
    "distance": "distance of all clients [m]",
}


def draw(experiment: str, table: pd.DataFrame, title: str, scale: float, expected: pd.DataFrame | None) -> Figure:
    """Return the figure of an experiment.

    Args:
        table: of its trials.
        title: above all.
        scale: budgets over the paper's; where it is not 1 the paper's stand on a second axis.
        expected: planned mean common ranks over many draws, columns the varied key, ``planner.method`` and
            ``rank``; None for experiments at a fixed rank.
    """
    with rc_context(_STYLE):
        panels = 1 if experiment == "rank" else 2
        figure = Figure(figsize=(5.5 * panels + 0.5, 4.4), layout="constrained")
        figure.suptitle(title)
        axes = [figure.add_subplot(1, panels, index + 1) for index in range(panels)]
        if experiment == "placement":
            _placement(axes[0], axes[1], table)
        elif experiment == "rank":
            _rank(axes[0], table)
        else:
            _budget(experiment, axes[0], axes[1], table, scale, expected)
        return figure


def save(figure: Figure, stem: Path) -> None:
    """Write ``STEM.png`` and ``STEM.pdf``, without dates, so that equal results give equal files."""
    with rc_context(_STYLE):
        for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
            image = io.BytesIO()
            figure.savefig(image, format=ending, dpi=150, metadata=metadata)
            write_atomically(stem.with_name(f"{stem.name}.{ending}"), image.getvalue())


def _placement(accuracy: Axes, cost: Axes, table: pd.DataFrame) -> None:
    layers = VARIED["placement"]
    federated = table[table["baseline"] == ""]
    groups = [(name, lines, BLUE) for name, lines in federated.groupby(layers, sort=False)]
    for baseline, lines in table[table["baseline"] != ""].groupby("baseline", sort=False):
        name = baseline.replace("-", "\n")
        groups.append((f"{name}\n{lines[layers].iloc[0]}", lines, _BASELINES[baseline]))
    groups.append(("no\nfine-tuning", federated.assign(accuracy=federated["accuracy_before"]), GREY))
    for place, (_, lines, colour) in enumerate(groups):
        points = 100 * lines["accuracy"]
        accuracy.bar(place, points.mean(), width=0.6, color=colour, alpha=0.35)
        accuracy.plot([place] * len(points), points, "o", color=colour, markersize=4)
        accuracy.annotate(
            f"{points.mean():.1f}", (place, points.max()), (0, 5), textcoords="offset points", ha="center"
        )
    accuracy.set_xticks(range(len(groups)), [name for name, _, _ in groups], fontsize=8)
    accuracy.set_ylabel("accuracy on the test texts [%]")
    accuracy.set_ylim(0, 105)
    accuracy.set_title("after the last round; a dot per seed")

    # The centralised machine is another one. Older tables have no costs of full fine-tuning.
    costed = [(name, lines) for name, lines, colour in groups if colour in (BLUE, PURPLE)]
    means = [(name, lines[["latency_s", "energy_j"]].astype(float).mean()) for name, lines in costed]
    means = [(name, mean) for name, mean in means if mean.notna().all()]
    energy = cost.twinx()
    for place, (_, mean) in enumerate(means):
        cost.bar(place - 0.2, mean["latency_s"], width=0.38, color=ORANGE)
        energy.bar(place + 0.2, mean["energy_j"], width=0.38, color=GREEN)
    cost.set_xticks(range(len(means)), [name for name, _ in means], fontsize=8)
    cost.set_ylabel("time of all rounds, slowest client [s]", color=ORANGE)
    energy.set_ylabel("energy of all rounds and clients [J]", color=GREEN)
    energy.grid(False)
    energy.spines["right"].set_visible(True)
    cost.set_title("simulated devices at full speed, FLOPs counted")


def _rank(axes: Axes, table: pd.DataFrame) -> None:
    _line(axes, spread(table.assign(points=100 * table["accuracy"]), VARIED["rank"], "points"), BLUE, "o-", None)
    axes.set_xscale("log", base=2)
    ranks = sorted({int(rank) for rank in table[VARIED["rank"]]})
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_xlabel("LoRA rank")
    axes.set_ylabel("accuracy on the test texts [%]")
    if table["run.seed"].nunique() > 1:
        axes.set_title("mean over seeds, least to greatest")


def _budget(
    experiment: str, accuracy: Axes, rank: Axes, table: pd.DataFrame, scale: float, expected: pd.DataFrame | None
) -> None:
    varied = VARIED[experiment]
    for method, lines in table.assign(points=100 * table["accuracy"]).groupby("planner.method", sort=False):
        drawn = method == "random-frequency"
        colour, style, name = (ORANGE, "s--", "random frequency") if drawn else (BLUE, "o-", "planner")
        _line(accuracy, spread(lines, varied, "points"), colour, style, name)
        _line(rank, spread(lines, varied, "mean_rank"), colour, style, name)
        if expected is not None:
            mine = expected[expected["planner.method"] == method]
            label = "planned, mean of 200 draws" if not drawn else None
            rank.plot(mine[varied], mine["rank"], ":", color=colour, alpha=0.8, label=label)
    for axes in (accuracy, rank):
        if experiment != "distance":
            axes.set_xscale("log")
        axes.set_xlabel(_AXES[experiment])
        axes.legend(frameon=False)
        if scale != 1.0 and experiment in ("latency", "energy"):
            to_and_from = partial(np.multiply, 1 / scale), partial(np.multiply, scale)
            second = axes.secondary_xaxis("top", functions=to_and_from)
            second.set_xlabel("the same budget at the paper's size", fontsize=9)
    least = table["mean_rank"].min()  # 0 where no client could take part
    rank.set_yscale("symlog", linthresh=1)
    rank.set_ylim(0 if least < 1 else 0.9, 140)
    ticks = [*([0] if least < 1 else []), 1, 2, 4, 8, 16, 32, 64, 128]
    rank.set_yticks(ticks, [str(tick) for tick in ticks])
    accuracy.set_ylabel("accuracy on the test texts [%]")
    rank.set_ylabel("rank, mean over rounds")


def _line(axes: Axes, values: pd.DataFrame, colour: str, style: str, name: str | None) -> None:
    places = [float(place) for place in values.index]
    axes.plot(places, values["mean"], style, color=colour, label=name, markersize=5)
    axes.fill_between(places, values["min"], values["max"], color=colour, alpha=0.15, linewidth=0)
