"""From settings to the planner's problem: the round's draws, rates and workload.

Draws that describe a client (its power, capacitance, distance) happen once per run; the fading is drawn every round.
This module loads neither torch nor transformers: `splitrank plan` lives on it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitrank import placement, streams, units
from splitrank.config import Config, NoiseFigure, PerClient, Uniform
from splitrank.errors import ConfigError
from splitrank.planning import channel, link
from splitrank.planning.flops import EncoderShape
from splitrank.planning.plan import Plan, make_plan
from splitrank.planning.problem import Problem, feasible
from splitrank.planning.solvers.random_frequency import draw_frequency_hz
from splitrank.planning.workload import (
    KNOWN_SHAPES,
    Workload,
    adapter_parameters_per_rank,
    flops_workload,
    head_parameters,
    measured_workload,
    paper_workload,
    trunk_cycles,
)

FloatArray = NDArray[np.float64]

DEFAULT_NUM_LABELS = 4
BITS_PER_FLOAT32 = 32.0

# Settings at the ends of what a float can hold overflow; infinity then means infeasible, or is refused by name.
_EXTREMES_ARE_INFEASIBLE = np.errstate(over="ignore", invalid="ignore", divide="ignore")


@dataclass(frozen=True)
class ClientTexts:
    """How much text each client trains on, float64 arrays of shape (num_clients,).

    Attributes:
        samples: |D_i|, number of texts.
        token_sum: tokens of all its texts.
        token_square_sum: sum of the squared token counts, for attention's cost.
    """

    samples: FloatArray
    token_sum: FloatArray
    token_square_sum: FloatArray


@dataclass(frozen=True)
class Parameters:
    """Parameter counts of what is trained: ``adapter_per_rank``·r in the adapters, ``head`` in the head."""

    adapter_per_rank: int
    head: int


def per_client(value: PerClient, key: str, config: Config) -> FloatArray:
    """One number per client; a ``{uniform = [low, high]}`` is drawn from the stream (seed, key), once per run.

    Returns:
        float64, shape (num_clients,).
    """
    num_clients = config.federation.num_clients
    if isinstance(value, Uniform):
        draws = streams.uniform_per_client(config.run.seed, key, 0, num_clients)
        return value.low + (value.high - value.low) * draws
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (num_clients,)).copy()


def planned_texts(config: Config) -> ClientTexts:
    """``client.samples`` texts of ``workload.tokens_per_sample`` tokens each, for planning without data."""
    samples = np.broadcast_to(np.asarray(config.client.samples, np.float64), (config.federation.num_clients,)).copy()
    tokens = float(config.workload.tokens_per_sample)
    return ClientTexts(samples, samples * tokens, samples * tokens**2)


def encoder_shape(config: Config) -> EncoderShape:
    """Sizes of the encoder, from the settings or from the table of common names.

    Raises:
        ConfigError: sizes that are neither given nor known, or layers and ranks that do not fit them.
    """
    model = config.model
    known = KNOWN_SHAPES.get(model.name) or _shape_in_folder(Path(model.name))
    sizes = {}
    problems = []
    for key in ("num_layers", "hidden_size", "intermediate_size"):
        value = getattr(model, key) or (getattr(known, key) if known else None)
        if value is None:
            problems.append(
                f"model.{key} must be given for a model that is no folder and no well-known name, got {model.name!r}"
            )
        else:
            sizes[key] = value
    if problems:
        raise ConfigError(problems)
    # The count of operations depends on the heads by less than a thousandth; 64 numbers each are the common choice.
    num_heads = known.num_heads if known else max(1, sizes["hidden_size"] // 64)
    shape = EncoderShape(**sizes, num_heads=num_heads)
    check_fits(config, shape)
    return shape


def check_if_known(config: Config) -> None:
    """Check what depends on the encoder's sizes, if they can be known without loading it.

    Raises:
        ConfigError: trained layers or a fixed rank that the encoder does not have.
    """
    model = config.model
    given = model.num_layers and model.hidden_size and model.intermediate_size
    if given or model.name in KNOWN_SHAPES or _shape_in_folder(Path(model.name)):
        encoder_shape(config)


def _shape_in_folder(folder: Path) -> EncoderShape | None:
    """Sizes from a model folder's config.json, DistilBERT's names of them included."""
    try:
        sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return EncoderShape(
            num_layers=int(sizes.get("num_hidden_layers") or sizes["n_layers"]),
            hidden_size=int(sizes.get("hidden_size") or sizes["dim"]),
            intermediate_size=int(sizes.get("intermediate_size") or sizes["hidden_dim"]),
            num_heads=int(sizes.get("num_attention_heads") or sizes["n_heads"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_fits(config: Config, shape: EncoderShape) -> None:
    """Check the settings that depend on the encoder's sizes.

    Raises:
        ConfigError: trained layers or a fixed rank that the encoder does not have.
    """
    placement.layer_indices(config.model.trained_layers, shape.num_layers)
    cap = rank_cap(config, shape)
    if config.adapter.rank is not None and config.adapter.rank > cap:
        what = "the smaller side of the smallest target map"
        raise ConfigError([f"adapter.rank must be at most {cap}, {what}, got {config.adapter.rank}"])


def rank_cap(config: Config, shape: EncoderShape) -> int:
    """The largest rank that means anything: min(d, k) over the target maps, and ``planner.max_rank`` if planned."""
    smallest = min(min(shape.maps()[name]) for name in placement.target_maps(config.adapter.target_modules))
    return smallest if config.adapter.rank is not None else min(smallest, config.planner.max_rank)


def trained_parameters(config: Config, shape: EncoderShape) -> Parameters:
    """Parameters that are trained and sent each round."""
    maps = [shape.maps()[name] for name in placement.target_maps(config.adapter.target_modules)]
    num_layers = len(placement.layer_indices(config.model.trained_layers, shape.num_layers))
    num_labels = config.model.num_labels or DEFAULT_NUM_LABELS
    return Parameters(
        adapter_per_rank=adapter_parameters_per_rank(maps, num_layers),
        head=head_parameters(shape.hidden_size, num_labels, config.model.head),
    )


def round_workload(config: Config, shape: EncoderShape, texts: ClientTexts) -> Workload:
    """What a round costs each client as a function of the rank, by ``workload.model``.

    ``"paper"`` counts as equations (2) and (5) do, the other two replace them.
    """
    layers = placement.layer_indices(config.model.trained_layers, shape.num_layers)
    maps = placement.target_maps(config.adapter.target_modules)
    parameters = trained_parameters(config, shape)
    epochs = config.federation.local_epochs
    client = config.client
    if config.workload.model == "paper":
        return paper_workload(
            [shape.maps()[name] for name in maps],
            len(layers),
            texts.samples,
            epochs,
            config.workload.bits_per_parameter,
            parameters.head if config.workload.count_head else 0,
        )
    if config.workload.model == "flops":
        return flops_workload(
            shape,
            layers,
            maps,
            head=config.model.head,
            num_labels=config.model.num_labels or DEFAULT_NUM_LABELS,
            token_sum=texts.token_sum,
            token_square_sum=texts.token_square_sum,
            samples=texts.samples,
            epochs=epochs,
            flops_per_cycle=per_client(client.flops_per_cycle, "client.flops_per_cycle", config),
            bits_per_parameter=BITS_PER_FLOAT32,
            head_parameters_sent=parameters.head,
            trunk=config.workload.trunk,
        )
    if client.seconds_per_sample is None or client.seconds_per_sample_per_rank is None:
        raise ConfigError(
            [
                'client.seconds_per_sample must be given when workload.model = "measured" and there are no machines to '
                "measure, got nothing; name it with client.seconds_per_sample_per_rank and "
                "client.reference_frequency_hz, or run through Flower"
            ]
        )
    assert client.reference_frequency_hz is not None
    return measured_workload(
        per_client(client.seconds_per_sample, "client.seconds_per_sample", config),
        per_client(client.seconds_per_sample_per_rank, "client.seconds_per_sample_per_rank", config),
        per_client(client.reference_frequency_hz, "client.reference_frequency_hz", config),
        samples=texts.samples,
        epochs=epochs,
        parameters_per_rank=parameters.adapter_per_rank,
        bits_per_parameter=BITS_PER_FLOAT32,
        head_parameters_sent=parameters.head,
    )


@dataclass(frozen=True)
class Preparation:
    """What the one-off pass through the frozen trunk costs each client at full speed, outside the round budgets."""

    seconds: FloatArray
    joules: FloatArray


def preparation(config: Config, shape: EncoderShape, texts: ClientTexts) -> Preparation | None:
    """Time cycles/f_max and energy Ω·cycles·f_max² of the trunk, where the workload leaves it out of the rounds."""
    if config.workload.model != "flops" or config.workload.trunk != "prepared":
        return None
    cycles = trunk_cycles(
        shape,
        placement.layer_indices(config.model.trained_layers, shape.num_layers)[0],
        texts.token_sum,
        texts.token_square_sum,
        per_client(config.client.flops_per_cycle, "client.flops_per_cycle", config),
    )
    max_frequency_hz = per_client(config.client.max_frequency_hz, "client.max_frequency_hz", config)
    capacitance = per_client(config.client.capacitance, "client.capacitance", config)
    return Preparation(cycles / max_frequency_hz, capacitance * cycles * max_frequency_hz**2)


def preparation_records(config: Config, shape: EncoderShape, texts: ClientTexts) -> list[dict[str, Any]]:
    """What round 0's line says of the clients: their texts, and what their one-off pass through the trunk costs."""
    cost = preparation(config, shape, texts)
    records: list[dict[str, Any]] = [
        {"client": client, "samples": int(samples)} for client, samples in enumerate(texts.samples)
    ]
    if cost is not None:
        for record, seconds, joules in zip(records, cost.seconds, cost.joules, strict=True):
            record.update(preparation_s=float(seconds), preparation_j=float(joules))
    return records


def sub_bands_hz(config: Config) -> FloatArray:
    """B_i [Hz]: given per client, or an equal share of the total band."""
    radio = config.radio
    if radio.bandwidth_hz is not None:
        return per_client(radio.bandwidth_hz, "radio.bandwidth_hz", config)
    assert radio.total_bandwidth_hz is not None
    return np.full(config.federation.num_clients, radio.total_bandwidth_hz / config.federation.num_clients)


def _noise_w(config: Config, bandwidth_hz: FloatArray) -> tuple[FloatArray, FloatArray]:
    """N0 [W] at the server (uplink) and at the clients (downlink)."""
    radio = config.radio
    if radio.noise_power_w is not None:
        noise_w = per_client(radio.noise_power_w, "radio.noise_power_w", config)
        return noise_w, noise_w
    assert radio.noise_psd_dbm_hz is not None
    assert radio.noise_figure_db is not None
    figure = radio.noise_figure_db
    if not isinstance(figure, NoiseFigure):
        figure = NoiseFigure(uplink=figure, downlink=figure)
    uplink_w = units.noise_power_w(radio.noise_psd_dbm_hz, bandwidth_hz, figure.uplink)
    return uplink_w, units.noise_power_w(radio.noise_psd_dbm_hz, bandwidth_hz, figure.downlink)


def _gains(config: Config, round: int) -> tuple[FloatArray, FloatArray]:
    """h [dimensionless] up and down in a round."""
    radio, seed = config.radio, config.run.seed
    if radio.uplink_gain is not None and radio.downlink_gain is not None:
        return np.array(radio.uplink_gain), np.array(radio.downlink_gain)
    if radio.distance_m is not None:
        large_scale = channel.path_loss_gain(per_client(radio.distance_m, "radio.distance_m", config))
    else:
        assert radio.large_scale_gain is not None
        large_scale = per_client(radio.large_scale_gain, "radio.large_scale_gain", config)
    fades = radio.fading == "rayleigh"
    uplink = channel.rayleigh_gain(large_scale, seed, "uplink", round) if fades else large_scale
    downlink = channel.rayleigh_gain(large_scale, seed, "downlink", round) if fades else large_scale
    return (
        np.array(radio.uplink_gain) if radio.uplink_gain is not None else uplink,
        np.array(radio.downlink_gain) if radio.downlink_gain is not None else downlink,
    )


def _problem(**quantities: Any) -> Problem:
    try:
        return Problem(**quantities)
    except ValueError as error:
        raise ConfigError(
            [f"The settings must give rates, cycles and bits within reach of a computer: {error}"]
        ) from None


@_EXTREMES_ARE_INFEASIBLE
def round_problem(config: Config, shape: EncoderShape, workload: Workload, round: int, *, sit_out: bool) -> Problem:
    """Draw the round's channels and state P1 for them: every client's rates, budgets and limits.

    Args:
        sit_out: whether clients may sit the round out. A broadcast then runs at the rate of the slowest client that
            could take part at its own rate; one that could not even so holds nobody up.
    """
    radio, client, budget = config.radio, config.client, config.budget
    bandwidth_hz = sub_bands_hz(config)
    uplink_noise_w, downlink_noise_w = _noise_w(config, bandwidth_hz)
    uplink_gain, downlink_gain = _gains(config, round)
    uplink_power_w = per_client(radio.uplink_power_w, "radio.uplink_power_w", config)
    downlink_power_w = per_client(radio.downlink_power_w, "radio.downlink_power_w", config)
    downlink_bps = link.full_band_bps if radio.downlink == "broadcast" else link.shannon_bps
    problem = _problem(
        workload=workload,
        uplink_bps=link.shannon_bps(bandwidth_hz, uplink_gain, uplink_power_w, uplink_noise_w),
        downlink_bps=downlink_bps(bandwidth_hz, downlink_gain, downlink_power_w, downlink_noise_w),
        uplink_power_w=uplink_power_w,
        capacitance=per_client(client.capacitance, "client.capacitance", config),
        max_frequency_hz=per_client(client.max_frequency_hz, "client.max_frequency_hz", config),
        circuit_energy_j=per_client(client.circuit_energy_j, "client.circuit_energy_j", config),
        energy_j=per_client(budget.energy_j, "budget.energy_j", config),
        rank_cap=np.full(config.federation.num_clients, rank_cap(config, shape), dtype=np.int64),
        latency_s=budget.latency_s,
        latency_margin=config.planner.latency_margin,
    )
    if radio.downlink == "unicast":
        return problem
    heard = feasible(problem, config.adapter.rank or 1)
    if not sit_out or not heard.any():
        heard = np.ones_like(heard)
    slowest_bps = problem.downlink_bps[heard].min()
    return replace(problem, downlink_bps=np.minimum(problem.downlink_bps, slowest_bps))


@dataclass(frozen=True)
class Measured:
    """What was measured of machines and links, float64 arrays of shape (num_clients,).

    Attributes:
        seconds_per_sample, seconds_per_sample_per_rank: a and b [s] of :func:`workload.measured_workload`.
        reference_frequency_hz: the clock they were measured at, taken for the fastest there is [Hz].
        capacitance: Ω such that Ω·f³ is the power at that clock.
        paced: whether the machine keeps that clock and rests instead of slowing down, so that its energy is Ω·C·f_max²
            at any planned clock; bool.
        uplink_bps, downlink_bps: rates of the links [bit/s], 0 for a client that is not there.
        overhead_s: what a round's exchange takes that no rate explains [s].
        latency_margin: share of T0 that covers how much the actual latency strays.
    """

    seconds_per_sample: FloatArray
    seconds_per_sample_per_rank: FloatArray
    reference_frequency_hz: FloatArray
    capacitance: FloatArray
    paced: NDArray[np.bool_]
    uplink_bps: FloatArray
    downlink_bps: FloatArray
    overhead_s: FloatArray
    latency_margin: float


def measured_problem(config: Config, shape: EncoderShape, texts: ClientTexts, measured: Measured) -> Problem:
    """P1 on measured numbers; powers, circuit energy and budgets are those of the settings."""
    parameters = trained_parameters(config, shape)
    return _problem(
        workload=measured_workload(
            measured.seconds_per_sample,
            measured.seconds_per_sample_per_rank,
            measured.reference_frequency_hz,
            samples=texts.samples,
            epochs=config.federation.local_epochs,
            parameters_per_rank=parameters.adapter_per_rank,
            bits_per_parameter=BITS_PER_FLOAT32,
            head_parameters_sent=parameters.head,
        ),
        uplink_bps=measured.uplink_bps,
        downlink_bps=measured.downlink_bps,
        uplink_power_w=per_client(config.radio.uplink_power_w, "radio.uplink_power_w", config),
        capacitance=np.where(measured.paced, 0.0, measured.capacitance),
        joules_per_cycle=np.where(measured.paced, measured.capacitance * measured.reference_frequency_hz**2, 0.0),
        max_frequency_hz=measured.reference_frequency_hz,
        circuit_energy_j=per_client(config.client.circuit_energy_j, "client.circuit_energy_j", config),
        energy_j=per_client(config.budget.energy_j, "budget.energy_j", config),
        rank_cap=np.full(config.federation.num_clients, rank_cap(config, shape), dtype=np.int64),
        latency_s=config.budget.latency_s,
        latency_margin=config.planner.latency_margin or measured.latency_margin,
        overhead_s=measured.overhead_s,
    )


def planned_problem(config: Config, round: int, *, sit_out: bool) -> Problem:
    """The round's problem without data or weights, for :func:`planned_texts`."""
    shape = encoder_shape(config)
    return round_problem(config, shape, round_workload(config, shape, planned_texts(config)), round, sit_out=sit_out)


@_EXTREMES_ARE_INFEASIBLE
def plan_round(config: Config, problem: Problem, round: int, *, sit_out: bool) -> Plan:
    """Choose the rank and every client's frequency for a round, by ``planner.method``.

    Args:
        sit_out: whether a client that can do no rank, or not the fixed one, sits out (a run) or makes the whole plan
            infeasible (a plan for all).
    """
    planner = config.planner
    frequency_hz = None
    if planner.method == "random-frequency":
        frequency_hz = draw_frequency_hz(
            problem, config.run.seed, round, planner.random_range, config.adapter.rank or 1
        )
    return make_plan(
        problem,
        method=planner.method,
        frequency_policy=planner.frequency_policy,
        rank=config.adapter.rank,
        sit_out=sit_out,
        frequency_hz=frequency_hz,
    )
