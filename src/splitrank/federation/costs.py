"""The cost of a round for each client, by ``workload.model``, and that of preparing the frozen trunk, once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splitrank import placement
from splitrank.config import Config
from splitrank.errors import ConfigError
from splitrank.federation.per_client import per_client
from splitrank.federation.sizes import (
    NOTHING_MERGED,
    MergedParts,
    global_rank,
    payload,
    shared_numbers,
    trained_part,
)
from splitrank.federation.texts import TextStats
from splitrank.planning.costs.proximal import with_proximal
from splitrank.planning.costs.table import COSTS
from splitrank.planning.flops import EncoderShape
from splitrank.planning.workload import (
    Affine,
    TrainingAmount,
    Workload,
    flops_workload,
    measured_workload,
    paper_workload,
    trunk_cycles,
)
from splitrank.records import PreparationRecord
from splitrank.traits import RuleTraits

FloatArray = NDArray[np.float64]


def round_workload(
    config: Config,
    shape: EncoderShape,
    texts: TextStats,
    turn: int = 0,
    rule: RuleTraits | None = None,
    merged: MergedParts = NOTHING_MERGED,
) -> Workload:
    """Return what a round costs each client as a function of the rank, by ``workload.model``.

    ``"paper"`` counts as equations (2) and (5) do, the other two replace them. Operations with merged parts count with
    ``"flops"`` alone: the paper counts no pass of the network, and seconds are as they were measured.

    Args:
        turn: aggregated rounds so far, >= 0.
        rule: an aggregation rule of one's own; None for the one that the settings name.
        merged: frozen parts that run beside the adapters, and what the clients lack of them.

    Raises:
        ConfigError: ``"measured"`` with nothing measured.
    """
    workload = _operations_and_bits(config, shape, texts, turn, rule, merged)
    return replace(workload, memory_bytes=round_memory(config, shape, texts))


def round_memory(config: Config, shape: EncoderShape, texts: TextStats) -> Affine:
    """Return what training holds in memory as a function of the rank [bytes]: nothing, as nobody counts it yet.

    With ``budget.memory_bytes``, which is not available yet, it would be `Problem.memory_budget_bytes` that limits it.
    """
    nothing = np.zeros(len(texts.samples))
    return Affine(nothing, nothing)


def _operations_and_bits(
    config: Config, shape: EncoderShape, texts: TextStats, turn: int, rule: RuleTraits | None, merged: MergedParts
) -> Workload:
    client, epochs = config.client, epochs_trained(config)
    sent, part = payload(config, shape, turn, rule, merged), trained_part(config, shape, turn, rule, merged)
    if config.workload.model == "paper":
        counted = paper_workload(part.sizes(), len(part.layers), texts.samples, epochs, sent)
        return at_global_rank(counted, config)
    if config.workload.model == "flops":
        flops_per_cycle = per_client(client.flops_per_cycle, "client.flops_per_cycle", config)
        every_round = None
        if config.workload.trunk == "every-round":
            every_round = _trunk_cycles(part.cut_layer, shape, texts, flops_per_cycle)
        flops = COSTS[config.adapter.method].flops(part)
        if config.train.proximal:
            flops = with_proximal(flops, shared_numbers(config, shape, part, rule))
        counted = flops_workload(
            flops,
            TrainingAmount(texts.samples, texts.token_sum, texts.token_square_sum, epochs, config.train.batch_size),
            sent,
            flops_per_cycle=flops_per_cycle,
            trunk_cycles_every_round=every_round,
        )
        return at_global_rank(counted, config)
    if client.seconds_per_sample is None or client.seconds_per_sample_per_rank is None:
        raise ConfigError(
            [
                'client.seconds_per_sample must be given when workload.model = "measured" and there are no machines to '
                "measure, got nothing; name it with client.seconds_per_sample_per_rank and "
                "client.reference_frequency_hz, or run through Flower"
            ]
        )
    assert client.reference_frequency_hz is not None
    counted = measured_workload(
        per_client(client.seconds_per_sample, "client.seconds_per_sample", config),
        per_client(client.seconds_per_sample_per_rank, "client.seconds_per_sample_per_rank", config),
        per_client(client.reference_frequency_hz, "client.reference_frequency_hz", config),
        texts.samples,
        epochs,
        sent,
    )
    return at_global_rank(counted, config)


def epochs_trained(config: Config) -> int:
    """Return the epochs that a client computes in a round, that in which it tries slices among them."""
    return config.federation.local_epochs + (global_rank(config) is not None)


def at_global_rank(workload: Workload, config: Config) -> Workload:
    """Return the workload with the operations of the whole adapter at every rank, where clients choose slices of it.

    They run all of it forward and backward, whatever they choose.
    """
    whole = global_rank(config)
    if whole is None:
        return workload
    cycles = workload.cycles(whole)
    return replace(workload, cycles=Affine(cycles, np.zeros_like(cycles)))


def _trunk_cycles(cut_layer: int, shape: EncoderShape, texts: TextStats, flops_per_cycle: FloatArray) -> FloatArray:
    return trunk_cycles(shape, cut_layer, texts.token_sum, texts.token_square_sum, flops_per_cycle)


@dataclass(frozen=True)
class Preparation:
    """The cost of the one-off pass through the frozen trunk, each client at full speed, outside the round budgets."""

    seconds: FloatArray
    joules: FloatArray


def preparation(config: Config, shape: EncoderShape, texts: TextStats) -> Preparation | None:
    """Time cycles/f_max and energy Ω·cycles·f_max² of the trunk, where the workload leaves it out of the rounds."""
    if config.workload.model != "flops" or config.workload.trunk != "prepared":
        return None
    cut_layer = placement.layer_indices(config.model.trained_layers, shape.num_layers)[0]
    flops_per_cycle = per_client(config.client.flops_per_cycle, "client.flops_per_cycle", config)
    cycles = _trunk_cycles(cut_layer, shape, texts, flops_per_cycle)
    max_frequency_hz = per_client(config.client.max_frequency_hz, "client.max_frequency_hz", config)
    capacitance = per_client(config.client.capacitance, "client.capacitance", config)
    return Preparation(cycles / max_frequency_hz, capacitance * cycles * max_frequency_hz**2)


def preparation_records(config: Config, shape: EncoderShape, texts: TextStats) -> list[PreparationRecord]:
    """Return what round 0's line says of the clients: their texts, and what their pass through the trunk costs."""
    cost = preparation(config, shape, texts)
    costs = zip(cost.seconds, cost.joules, strict=True) if cost else [(None, None)] * len(texts.samples)
    return [
        PreparationRecord(
            client, int(samples), None if seconds is None else float(seconds), None if joules is None else float(joules)
        )
        for client, (samples, (seconds, joules)) in enumerate(zip(texts.samples, costs, strict=True))
    ]
