"""From settings to the planner's problem P1, simulated or measured, and to its plan.

This module loads neither torch nor transformers: `splitrank plan` lives on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitrank.config import Config
from splitrank.errors import ConfigError
from splitrank.federation.costs import at_global_rank, epochs_trained, round_memory, round_workload
from splitrank.federation.per_client import per_client
from splitrank.federation.radio import gains, noise_w, sub_bands_hz
from splitrank.federation.selection import Ledger, choice_of, num_chosen, selects
from splitrank.federation.sizes import NOTHING_MERGED, MergedParts, encoder_shape, fixed_rank, payload, rank_cap
from splitrank.federation.texts import TextStats, nominal_text_stats
from splitrank.planning import link
from splitrank.planning.flops import EncoderShape
from splitrank.planning.plan import Plan, make_plan
from splitrank.planning.problem import FloatArray, IntArray, Problem, feasible
from splitrank.planning.solvers.random_frequency import draw_frequency_hz
from splitrank.planning.workload import Workload, measured_workload
from splitrank.traits import RULE_TRAITS, RuleTraits

# Settings at the ends of what a float can hold overflow; infinity then means infeasible, or is refused by name.
_EXTREMES_ARE_INFEASIBLE = np.errstate(over="ignore", invalid="ignore", divide="ignore")


def _problem(**quantities: Any) -> Problem:
    try:
        return Problem(**quantities)
    except ValueError as error:
        what = "The settings must give rates, cycles and bits within reach of a computer"
        raise ConfigError([f"{what}: {problem}" for problem in str(error).splitlines()]) from None


def _ranks(config: Config, shape: EncoderShape) -> dict[str, IntArray]:
    """Return the ranks between which the planner chooses; floor and ceiling are the fixed rank where there is one."""
    num_clients, cap, fixed = config.federation.num_clients, rank_cap(config, shape), fixed_rank(config)
    floor = config.planner.min_rank if fixed is None else fixed
    ranks = {"rank_cap": cap, "rank_floor": floor}
    if fixed is not None:
        ranks["rank_ceiling"] = fixed
    return {name: np.full(num_clients, rank, dtype=np.int64) for name, rank in ranks.items()}


@_EXTREMES_ARE_INFEASIBLE
def round_problem(config: Config, shape: EncoderShape, workload: Workload, round: int, *, require_all: bool) -> Problem:
    """Draw the round's channels and state P1 for them: every client's rates, budgets and limits.

    Args:
        require_all: whether all clients must take part. Otherwise a broadcast runs at the rate of the slowest client
            that could take part at its own rate, chosen or not; one that could not even so holds nobody up. Where the
            band is shared together with the rank the plan finds the slowest participant.
    """
    radio, client, budget = config.radio, config.client, config.budget
    bandwidth_hz = sub_bands_hz(config)
    uplink_noise_w, downlink_noise_w = noise_w(config, bandwidth_hz)
    uplink_gain, downlink_gain = gains(config, round)
    uplink_power_w = per_client(radio.uplink_power_w, "radio.uplink_power_w", config)
    downlink_power_w = per_client(radio.downlink_power_w, "radio.downlink_power_w", config)
    rate_bps = link.full_band_bps if radio.downlink == "broadcast" else link.shannon_bps
    downlink_bps = rate_bps(bandwidth_hz, downlink_gain, downlink_power_w, downlink_noise_w)
    if radio.downlink == "broadcast" and radio.total_bandwidth_hz is not None and selects(config):
        # The whole band is that of as many as take part, not of all.
        downlink_bps *= num_chosen(config) / config.federation.num_clients
    band = None
    if radio.total_bandwidth_hz is not None:
        band = link.Band(
            radio.total_bandwidth_hz,
            num_chosen(config),
            uplink_gain * uplink_power_w / uplink_noise_w,
            downlink_gain * _alike(downlink_power_w) / downlink_noise_w,
            is_broadcast=radio.downlink == "broadcast",
        )
    if is_joint := config.planner.bandwidth == "joint":
        assert band is not None
        downlink_bps = band.downlink_bps(bandwidth_hz)
    problem = _problem(
        workload=workload,
        uplink_bps=link.shannon_bps(bandwidth_hz, uplink_gain, uplink_power_w, uplink_noise_w),
        downlink_bps=downlink_bps,
        uplink_power_w=uplink_power_w,
        capacitance=per_client(client.capacitance, "client.capacitance", config),
        max_frequency_hz=per_client(client.max_frequency_hz, "client.max_frequency_hz", config),
        circuit_energy_j=per_client(client.circuit_energy_j, "client.circuit_energy_j", config),
        energy_budget_j=per_client(budget.energy_j, "budget.energy_j", config),
        **_ranks(config, shape),
        latency_budget_s=budget.latency_s,
        latency_margin=config.planner.latency_margin,
        band=band,
    )
    if radio.downlink == "unicast" or is_joint:
        return problem
    heard = feasible(problem, problem.rank_floor)
    if require_all or not heard.any():
        heard = np.ones_like(heard)
    slowest_bps = problem.downlink_bps[heard].min()
    return replace(problem, downlink_bps=np.minimum(problem.downlink_bps, slowest_bps))


def _alike(power_w: FloatArray) -> FloatArray:
    """Return the power of a sub-band where the server spreads all its power evenly over the band."""
    return power_w if np.all(power_w == power_w[0]) else np.full_like(power_w, power_w.mean())


@dataclass(frozen=True)
class Measured:
    """Measured machines and links, float64 arrays of shape (num_clients,).

    Attributes:
        seconds_per_sample, seconds_per_sample_per_rank: a and b [s] of :func:`workload.measured_workload`.
        reference_frequency_hz: the clock they were measured at, taken for the fastest there is [Hz].
        capacitance: Ω such that Ω·f³ is the power at that clock.
        throttled: whether the machine keeps that clock and rests instead of slowing down, so that its energy is
            Ω·C·f_max² at any planned clock; bool.
        uplink_bps, downlink_bps: rates of the links [bit/s], 0 for a client that is offline.
        overhead_s: what a round's exchange takes that no rate explains [s].
        latency_margin: share of T0 that covers how much the actual latency strays.
    """

    seconds_per_sample: FloatArray
    seconds_per_sample_per_rank: FloatArray
    reference_frequency_hz: FloatArray
    capacitance: FloatArray
    throttled: NDArray[np.bool_]
    uplink_bps: FloatArray
    downlink_bps: FloatArray
    overhead_s: FloatArray
    latency_margin: float


def measured_problem(
    config: Config,
    shape: EncoderShape,
    texts: TextStats,
    measured: Measured,
    turn: int = 0,
    rule: RuleTraits | None = None,
    merged: MergedParts = NOTHING_MERGED,
) -> Problem:
    """State P1 on measured numbers; powers, circuit energy and budgets are those of the settings.

    Args:
        turn, rule, merged: as for :func:`costs.round_workload`.
    """
    workload = measured_workload(
        measured.seconds_per_sample,
        measured.seconds_per_sample_per_rank,
        measured.reference_frequency_hz,
        texts.samples,
        epochs_trained(config),
        payload(config, shape, turn, rule, merged),
    )
    workload = at_global_rank(workload, config)
    return _problem(
        workload=replace(workload, memory_bytes=round_memory(config, shape, texts)),
        uplink_bps=measured.uplink_bps,
        downlink_bps=measured.downlink_bps,
        uplink_power_w=per_client(config.radio.uplink_power_w, "radio.uplink_power_w", config),
        capacitance=np.where(measured.throttled, 0.0, measured.capacitance),
        joules_per_cycle=np.where(measured.throttled, measured.capacitance * measured.reference_frequency_hz**2, 0.0),
        max_frequency_hz=measured.reference_frequency_hz,
        circuit_energy_j=per_client(config.client.circuit_energy_j, "client.circuit_energy_j", config),
        energy_budget_j=per_client(config.budget.energy_j, "budget.energy_j", config),
        **_ranks(config, shape),
        latency_budget_s=config.budget.latency_s,
        latency_margin=config.planner.latency_margin or measured.latency_margin,
        overhead_s=measured.overhead_s,
    )


def planned_problem(config: Config, round: int, *, require_all: bool, turn: int = 0) -> Problem:
    """State the round's problem without data or weights, for :func:`texts.nominal_text_stats`."""
    shape = encoder_shape(config)
    workload = round_workload(config, shape, nominal_text_stats(config), turn)
    return round_problem(config, shape, workload, round, require_all=require_all)


@_EXTREMES_ARE_INFEASIBLE
def plan_round(
    config: Config,
    problem: Problem,
    round: int,
    *,
    require_all: bool,
    ledger: Ledger = MappingProxyType({}),
    told_max_rank: IntArray | None = None,
    samples: FloatArray | None = None,
) -> Plan:
    """Choose who takes part, ranks and every client's frequency for a round, as the settings say.

    Where a round takes fewer clients than there are, they are chosen among those who can, and the plan is theirs.

    Args:
        require_all: whether a client that can do no rank, or not the fixed one, makes the whole plan infeasible (a
            plan for all) or sits out (a run); of no effect where clients are chosen.
        ledger: what is remembered of earlier rounds' choices; nothing before the first.
        told_max_rank: as for :func:`make_plan`.
        samples: training texts of each client, > 0, shape (I,); ``client.samples`` if None.
    """
    planner = config.planner
    frequency_hz = None
    if planner.method == "random-frequency":
        frequency_hz = draw_frequency_hz(problem, config.run.seed, round, planner.random_range)
    make = partial(
        make_plan,
        problem,
        method=planner.method,
        frequency_policy=planner.frequency_policy,
        rank_policy=planner.rank_policy,
        bandwidth=planner.bandwidth,
        objective=planner.objective,
        participation=planner.participation,
        frequency_hz=frequency_hz,
        told_max_rank=told_max_rank,
    )
    if planner.participation == "worth":
        return _worth_it(config, make, samples)
    if not selects(config):
        return make(require_all=require_all)
    choice = choice_of(config, make(bandwidth="equal", require_all=False), ledger, round)
    return replace(make(require_all=False, chosen=choice.chosen), reasons=choice.reasons)


def _worth_it(config: Config, make: Callable[..., Plan], samples: FloatArray | None) -> Plan:
    """Plan for those who are worth it; for a rule under which every client counts the same all weigh the same."""
    traits = RULE_TRAITS[config.federation.aggregation]
    if samples is None:
        samples = nominal_text_stats(config).samples
    plan = make(
        weights=None if "unweighted" in traits.tags else samples,
        min_clients=max(config.federation.min_clients, traits.min_updates),
    )
    if plan.chosen is None:
        return plan
    left_out = ~plan.chosen & (plan.shortfalls.constraint == "")
    return replace(plan, reasons=tuple(_NOT_WORTH_IT if out else "" for out in left_out.tolist()))


_NOT_WORTH_IT = "the others' larger rank is worth more"
