"""The charts of a report, in the order of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from splitrank.studies.recorded import RecordedRun
from splitrank.studies.report_clients import per_client
from splitrank.studies.report_limits import binding_chart
from splitrank.studies.report_series import (
    ACCURACY,
    BITS,
    JOULES,
    LOSS,
    RANK,
    SECONDS,
    SHARE,
    Chart,
    Line,
    Quantity,
    Series,
    diagnostic,
    labels_without_rank,
    latency_budget,
    mean_train_loss,
    of_round,
    ranks_of,
    series_of,
    total_so_far,
)
from splitrank.studies.totals import Reading, clients_of, has_rank, numbers, of_clients


def charts_of(lines: Sequence[Line]) -> list[Chart]:
    """Return all charts of a report; those of what no run has by its settings are left out."""
    charts = [
        _simple("accuracy", "Accuracy", "Round 0 is the model before training.", ACCURACY, lines, of_round("accuracy")),
        _loss(lines),
        _ranks(lines),
        binding_chart(lines),
        per_client("latency", "Latency of the clients", SECONDS, lines, partial(of_clients, "latency_s"),
                   lambda client: latency_budget),
        per_client("energy", "Energy of the clients", JOULES, lines, partial(of_clients, "energy_j"),
                   partial(of_clients, "energy_budget_j"), "the budget of each client"),
        per_client("uplink", "Bits sent up by each client", BITS, lines, partial(of_clients, "uplink_bits")),
        per_client("downlink", "Bits sent down to each client", BITS, lines, partial(of_clients, "downlink_bits")),
        _total_bits(lines),
        _simple(
            "averaging",
            "Error of averaging the factors",
            "‖mean(B)·mean(A) − mean(B·A)‖ / ‖mean(B·A)‖ over the clients that trained.",
            SHARE,
            lines,
            of_round("factor_averaging_error"),
        ),
        _simple(
            "truncation",
            "Error of cutting the mean",
            "Share of the norm of the clients' mean product that does not fit into the global rank.",
            SHARE,
            lines,
            diagnostic("truncation_error"),
        ),
    ]  # fmt: skip
    runs = [run for line in lines for run in line.runs]
    is_ranked = any(map(has_rank, runs))
    expected = {
        "rank": is_ranked,
        "binding": is_ranked,
        "averaging": any(map(_averages_factors, runs)),
        "truncation": False,
    }
    return [chart for chart in charts if not chart.is_empty or expected.get(chart.key, True)]


def _averages_factors(run: RecordedRun) -> bool:
    return has_rank(run) and run.config.federation.aggregation == "fedavg"


def _simple(key: str, title: str, note: str, quantity: Quantity, lines: Sequence[Line], reading: Reading) -> Chart:
    series = [series_of(index, line, reading, quantity) for index, line in enumerate(lines)]
    return Chart(key, title, note, quantity, series, [], [], from_zero=False)


def _ranks(lines: Sequence[Line]) -> Chart:
    """Draw the common rank of each line; where clients of any had ranks of their own, every client's."""
    if any(_ranks_differ(run) for line in lines for run in line.runs):
        chart = per_client("rank", "Rank of each client", RANK, lines, lambda client: _if_ranked(ranks_of(client)))
    else:
        chart = _simple("rank", "Rank", "", RANK, lines, _if_ranked(of_round("rank")))
    note = f"{chart.note} 0 where no adapter was trained.".strip()
    if rankless := labels_without_rank(lines):
        note += f" Without a rank, and not drawn: {', '.join(rankless)}."
    series = [one for one in chart.series if any(map(has_rank, lines[one.line or 0].runs))]
    return replace(chart, note=note, series=series, from_zero=True)


def _if_ranked(reading: Reading) -> Reading:
    return lambda run: reading(run) if has_rank(run) else {}


def _ranks_differ(run: RecordedRun) -> bool:
    """Whether in any round two clients trained at different ranks."""
    ranks = (set(numbers(entry.get("rank") for entry in clients_of(record))) - {0} for record in run.records)
    return has_rank(run) and any(len(of_round) > 1 for of_round in ranks)


def _two_kinds(
    lines: Sequence[Line], quantity: Quantity, solid: tuple[str, Reading], dashed: tuple[str, Reading]
) -> list[Series]:
    series = []
    for index, line in enumerate(lines):
        for (what, reading), dash in ((solid, "solid"), (dashed, "dash")):
            series.append(replace(series_of(index, line, reading, quantity, f"{line.label}, {what}"), dash=dash))
    return series


def _loss(lines: Sequence[Line]) -> Chart:
    series = _two_kinds(lines, LOSS, ("test", of_round("loss")), ("training", mean_train_loss))
    note = (
        "Solid: on the test texts, after the round. Dashed: on the training texts, while training, mean of the clients."
    )
    return Chart("loss", "Loss", note, LOSS, series, [], [], from_zero=False)


def _total_bits(lines: Sequence[Line]) -> Chart:
    series = _two_kinds(lines, BITS, ("up", total_so_far("uplink_bits")), ("down", total_so_far("downlink_bits")))
    note = (
        "All clients together, from the first round on. Solid: up. Dashed: down; where both are equal, one line shows."
    )
    return Chart("bits", "Bits sent so far", note, BITS, series, [], [])
