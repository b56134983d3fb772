"""Draw a plan: which ranks and frequencies fit each client, and how the rank follows the budgets."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from splitrank.config import Config
from splitrank.errors import InputError
from splitrank.files import write_atomically
from splitrank.planning.plan import plan_json
from splitrank.records import Shortfall
from splitrank.studies.plan_curves import BudgetCurve, PlanCurves, Region, plan_curves

Style = dict[str, Any]
"""Matplotlib's keyword arguments."""

# What a format writes of its own accord that differs from one minute to the next.
_UNDATED: Mapping[str, Style] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}

# The palette of Okabe and Ito, which the colour-blind can tell apart.
_BLACK, _BLUE, _SKY, _VERMILION = "#000000", "#0072B2", "#56B4E9", "#D55E00"
_CLIENT_LINES = (
    *(("#009E73", "-"), ("#CC79A7", "-"), ("#E69F00", "-")),
    *((_SKY, "--"), (_BLUE, "--"), ("#999999", "--")),
)

_STYLE: Style = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "pdf.fonttype": 42,
    "svg.hashsalt": "splitrank",
}
_POINT: Style = {"color": _BLACK, "markersize": 7, "markeredgecolor": "white", "zorder": 5}
_BACKING: Style = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}
_FIXED: Style = {"color": _BLACK, "linestyle": "-.", "linewidth": 1.2, "label": "adapter.rank"}
_WIDTH_IN, _ROW_IN, _HEADER_IN = 32 / 3, 2.9, 1.1  # 1600 pixels wide


def plot_plan(config: Config, round: int, path: Path) -> None:
    """Draw a round's plan, feasible or not, into a file.

    Args:
        config: the settings.
        round: the round whose channels are drawn, >= 1.
        path: the file; its ending, .png, .pdf or .svg, says the format. Equal settings give equal bytes.

    Raises:
        InputError: another ending, or a folder that does not exist.
    """
    file_format = path.suffix.lower().removeprefix(".")
    if file_format not in _UNDATED:
        raise InputError(f"--plot must be a file that ends in .png, .pdf or .svg, got {path}")
    if not path.parent.is_dir():
        raise InputError(f"--plot must be a file in a folder that exists, got {path}; make {path.parent} first")
    curves = plan_curves(config, round)
    content = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE]):
        figure = _figure(curves)
        figure.savefig(content, format=file_format, metadata=_UNDATED[file_format])
    write_atomically(path, content.getvalue())


def _figure(curves: PlanCurves) -> Figure:
    num_rows, _ = _grid(len(curves.regions))
    heights_in = [_HEADER_IN + _ROW_IN * num_rows, 0.5 + _ROW_IN]
    spacing = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(_WIDTH_IN, sum(heights_in)), layout=spacing)
    figure.suptitle(_headline(curves), fontsize=14, fontweight="bold")
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=heights_in)
    _draw_regions(upper, curves)
    _draw_budgets(lower, curves)
    return figure


def _grid(num_regions: int) -> tuple[int, int]:
    """Return rows and columns for the clients: up to three beside one another, four as two by two."""
    num_columns = 2 if num_regions == 4 else min(3, num_regions)
    return -(-num_regions // num_columns), num_columns


def _headline(curves: PlanCurves) -> str:
    plan = curves.plan
    if plan.status == "infeasible":
        what = "no rank fits" if curves.fixed_rank is None else f"adapter.rank = {curves.fixed_rank} does not fit"
        return f"Round {curves.round}: infeasible, {what} every client"
    how = f"{plan.status}, {plan.method}" if curves.fixed_rank is None else "fixed by adapter.rank"
    if plan.common_rank is None:
        return f"Round {curves.round}: a rank for each client, {plan.rank.min()} to {plan.rank.max()} ({how})"
    return f"Round {curves.round}: rank {plan.common_rank} for all clients ({how})"


def _subtitle(curves: PlanCurves) -> str:
    problem = curves.problem
    least_j, most_j = problem.energy_budget_j.min(), problem.energy_budget_j.max()
    energy = _limit(least_j, "J") if least_j == most_j else f"{least_j:,.6g} to {_limit(most_j, 'J')}"
    time = _limit(problem.latency_budget_s, "s")
    parts = [f"budgets of the round: $T_0$ = {time}, $E_0$ = {energy} per client"]
    if problem.latency_margin:
        parts.append(f"{problem.latency_margin:.3g} of $T_0$ kept free")
    if len(curves.regions) < problem.num_clients:
        parts.append(
            f"{len(curves.regions)} of {problem.num_clients:,} clients shown, those with the smallest max rank"
        )
    return "; ".join(parts)


def _limit(budget: float, unit: str) -> str:
    return f"{budget:,.6g} {unit}" if np.isfinite(budget) else "no limit"


def _draw_regions(figure: SubFigure, curves: PlanCurves) -> None:
    num_rows, num_columns = _grid(len(curves.regions))
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for spare in axes.flat[len(curves.regions) :]:
        spare.remove()
    used = axes.flat[: len(curves.regions)]
    tops_ghz = [_top_ghz(region) for region in curves.regions]
    ends = [region.shown_rank for region in curves.regions]
    clients = plan_json(curves.plan, curves.problem)["clients"]
    for index, (ax, region) in enumerate(zip(used, curves.regions, strict=True)):
        _draw_region(ax, region, curves)
        ax.set_title("\n".join(_title_lines(clients[region.client], region, curves)))
        ax.set_xlim(0, _shared(ends)[index])
        ax.set_ylim(0, _shared(tops_ghz)[index])
        ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
        ax.set_xlabel("LoRA rank r")
        if index % num_columns == 0:
            ax.set_ylabel("CPU frequency f [GHz]")
    figure.suptitle(_subtitle(curves), fontsize=11)
    _legend(figure, list(used), 4)


def _shared(ends: list[Any]) -> list[float]:
    """Return the end of one axis for all clients, unless one of them would then be too small to see."""
    return [max(ends)] * len(ends) if max(ends) <= 4 * min(ends) else [float(end) for end in ends]


def _top_ghz(region: Region) -> float:
    """Return the upper end of the frequency axis: above the region and, unless far away, above f_max."""
    ceiling_hz = region.max_frequency_hz if region.drawn_hz is None else np.fmax(region.drawn_hz, 0.0)
    wanted_hz = [ceiling_hz, *region.highest_hz[region.allowed][:1]]
    if not region.allowed.any():  # what keeps rank 1 from fitting should be in view
        wanted_hz += [region.latency_hz[0], min(region.energy_hz[0], 2 * region.max_frequency_hz)]
    main_hz = region.highest_hz[0] if region.allowed.any() else region.max_frequency_hz
    in_view_hz = [hz for hz in wanted_hz if 0 < hz <= 4 * main_hz]
    return 1.15 * max(in_view_hz, default=region.max_frequency_hz) / 1e9


def _draw_region(ax: Axes, region: Region, curves: PlanCurves) -> None:
    plan, rank = curves.plan, region.rank
    ax.fill_between(
        rank, region.latency_hz / 1e9, region.highest_hz / 1e9, where=region.allowed, color=_SKY, alpha=0.35,
        linewidth=0, label="feasible",
    )  # fmt: skip
    ax.plot(rank, _plain(region.latency_hz) / 1e9, color=_BLUE, label="$f_{\\mathrm{lat}}(r)$, slowest in time")
    fastest = "$f_{\\mathrm{en}}(r)$, fastest within the energy"
    ax.plot(rank, region.energy_hz / 1e9, color=_VERMILION, linestyle="-.", label=fastest)
    ceiling_hz, what = region.max_frequency_hz, "$f_{\\max}$, top speed"
    if region.drawn_hz is not None:
        ceiling_hz, what = region.drawn_hz, "drawn frequency"
    ax.axhline(ceiling_hz / 1e9, color=_BLACK, linestyle="--", linewidth=1.2, label=what)
    if curves.fixed_rank is not None:
        ax.axvline(curves.fixed_rank, **_FIXED)
    max_rank = plan.max_rank[region.client]
    if max_rank > 0:
        ax.axvline(max_rank, color="#009E73", linestyle=":", label="max rank")
    else:
        ax.text(0.5, 0.5, "no rank fits", transform=ax.transAxes, ha="center", va="center", fontsize=12, bbox=_BACKING)
    chosen_rank = plan.rank[region.client]
    if chosen_rank > 0:
        chosen_hz = plan.frequency_hz[region.client]
        ax.plot(chosen_rank, chosen_hz / 1e9, "o", label="chosen: $r^*$ and $f$", **_POINT)
        chosen = f"rank {chosen_rank} at {_ghz(chosen_hz)}"
        if np.isfinite(band_hz := plan.bandwidth_hz[region.client]):
            chosen += f", band {band_hz / 1e3:,.4g} kHz"
        ax.text(0.97, 0.05, chosen, transform=ax.transAxes, ha="right", bbox=_BACKING, zorder=4)


def _plain(values: Any) -> Any:
    """Return values without infinities, which lines cannot reach."""
    return np.where(np.isfinite(values), values, np.nan)


def _title_lines(client: dict[str, Any], region: Region, curves: PlanCurves) -> list[str]:
    """Return a client in two lines: how far it gets, and its limit there."""
    index, max_rank = client["client"], client["max_rank"]
    if "shortfall" in client:
        return [f"client {index}: cannot take part", textwrap.fill(str(Shortfall(**client["shortfall"])), 42)]
    binding, problem = client["binding"], curves.problem
    ceiling_hz = region.max_frequency_hz if region.drawn_hz is None else region.drawn_hz
    beyond = f"rank {max_rank + 1}" if region.drawn_hz is None else f"rank {max_rank + 1} at {_ghz(region.drawn_hz)}"
    blocked = {
        "rank-cap": "no rank above it is allowed",
        "memory": f"rank {max_rank + 1} takes more than {problem.memory_budget_bytes[index]:,.6g} bytes",
        "latency": f"rank {max_rank + 1} is on the air for all {problem.deadline_s:,.6g} s",
        "energy": f"{beyond} takes more than {problem.energy_budget_j[index]:,.6g} J",
        "frequency": f"rank {max_rank + 1} needs more than {_ghz(ceiling_hz)}",
    }
    return [f"client {index}: max rank {max_rank}, limited by {binding}", blocked[binding]]


def _ghz(frequency_hz: float) -> str:
    return f"{frequency_hz / 1e9:.3g} GHz"


def _draw_budgets(figure: SubFigure, curves: PlanCurves) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    energy_j = curves.problem.energy_budget_j
    same = energy_j.min() == energy_j.max()
    whose = "energy budget $E_0$ of a round" if same else "mean energy budget $E_0$ of a round, all scaled alike"
    panels = (
        (curves.over_latency, "$T_0$", "s", "latency budget $T_0$ of a round"),
        (curves.over_energy, "$E_0$", "J", whose),
    )
    for ax, (curve, symbol, unit, label) in zip(axes, panels, strict=True):
        _draw_curve(ax, curve, curves.fixed_rank, curves.problem.num_clients)
        _log_axis(ax, *curve.eventful())
        ax.set_xlabel(f"{label} [{unit}]")
        ax.set_title(f"{symbol} varies, {_limit(curve.given, unit)} given")
    axes[0].set_ylabel("max rank")
    top = axes[0].get_ylim()[1]
    if curves.fixed_rank is not None:  # what goes far beyond the fixed rank does not matter
        top = min(top, 2.0 * max(curves.fixed_rank, curves.plan.max_rank.max()))
    axes[0].set_ylim(-0.02 * top, top)  # a line at 0 stays whole
    _legend(figure, list(axes), 7)


def _log_axis(ax: Axes, low: float, high: float) -> None:
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1, 3)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda budget, _: f"{budget:,.6g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _draw_curve(ax: Axes, curve: BudgetCurve, fixed_rank: int | None, num_clients: int) -> None:
    few = num_clients <= len(_CLIENT_LINES)
    many_label = "each client alone" if num_clients == len(curve.clients) else f"{len(curve.clients)} weakest clients"
    ax.plot(curve.budget, curve.common_rank, color=_BLACK, linewidth=3.5, label="all together")
    for position, client in enumerate(curve.clients):
        color, dashes = _CLIENT_LINES[position] if few else ("#999999", "-")
        ax.plot(
            curve.budget, curve.max_rank[:, position], color=color, linestyle=dashes, linewidth=1.2 if few else 0.6,
            label=f"client {client} alone" if few else many_label,
            zorder=2.5 if few else 1.5,
        )  # fmt: skip
    if np.isfinite(curve.given):
        ax.axvline(curve.given, color=_VERMILION, linestyle="--", linewidth=1.2, label="given budget")
        ax.plot(curve.given, curve.common_rank[len(curve.budget) // 2], "o", **_POINT)
    if fixed_rank is not None:
        ax.axhline(fixed_rank, **_FIXED)


def _legend(figure: SubFigure, axes: list[Axes], num_columns: int) -> None:
    """Draw one legend for all axes, below them."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=num_columns, fontsize=9,
        columnspacing=1.4, handlelength=2.2,
    )  # fmt: skip
