"""An adapter's sizes, by the encoder and the settings: how large it may be, and how many numbers it has.

The sizes come from the settings, from a table of common names, or from a model folder; no weights are read and torch
is not loaded: `splitrank plan` lives on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitrank import placement
from splitrank.config import Config
from splitrank.errors import ConfigError
from splitrank.planning.costs.cost import Count, TrainedPart, total
from splitrank.planning.costs.table import COSTS
from splitrank.planning.flops import EncoderShape
from splitrank.planning.workload import KNOWN_SHAPES, Payload, head_numbers
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS, RuleTraits, personal_kinds

DEFAULT_NUM_LABELS = 4
BITS_PER_FLOAT32 = 32.0


@dataclass(frozen=True)
class MergedParts:
    """The merged parts of a state, as far as a round's costs depend on them.

    Attributes:
        ranks: (layer, logical name of a linear) → rank of its merged factors, None of a dense part.
        lacking: numbers that each client is sent of them, one count or float64 of shape (I,).
    """

    ranks: Mapping[tuple[int, str], int | None] = field(default_factory=dict)
    lacking: NDArray[np.float64] | float = 0.0


NOTHING_MERGED = MergedParts()


def encoder_shape(config: Config) -> EncoderShape:
    """Return the sizes of the encoder, from the settings or from the table of common names.

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
    """Read sizes from a model folder's config.json, DistilBERT's names of them included."""
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
    fixed, cap, whole = fixed_rank(config), rank_cap(config, shape), global_rank(config)
    if whole is not None and whole > (largest := _largest_rank(config, shape)):
        what = "the smaller side of the smallest target linear"
        raise ConfigError([f"federation.lora-a2.rank must be at most {largest}, {what}, got {whole}"])
    if fixed is not None and fixed > cap:
        on_linears = "target_modules" in METHOD_TRAITS[config.adapter.method].settings
        what = "the smaller side of the smallest target linear" if on_linears else "the hidden size of the encoder"
        raise ConfigError([f"adapter.rank must be at most {cap}, {what}, got {fixed}"])


def _rule_of(config: Config) -> RuleTraits:
    return RULE_TRAITS[config.federation.aggregation]


def trained_part(
    config: Config,
    shape: EncoderShape,
    turn: int = 0,
    rule: RuleTraits | None = None,
    merged: MergedParts = NOTHING_MERGED,
) -> TrainedPart:
    """Return what is trained of an encoder in a turn, as the costs of the adapter method want to know it.

    Args:
        turn: aggregated rounds so far, >= 0; an aggregation rule may train other kinds in other turns.
        rule: an aggregation rule of one's own; None for the one that the settings name.
        merged: frozen parts that run beside the adapters.
    """
    adapter, rule = config.adapter, rule or _rule_of(config)
    return TrainedPart(
        shape=shape,
        layers=placement.layer_indices(config.model.trained_layers, shape.num_layers),
        linears=placement.target_linears(adapter.target_modules),
        head=config.model.head,
        num_labels=config.model.num_labels or DEFAULT_NUM_LABELS,
        kinds=rule.trained(METHOD_TRAITS[adapter.method].kinds, turn),
        has_dropout=adapter.dropout > 0,
        gate=adapter.prefix.gate,
        merged=merged.ranks,
    )


def fixed_rank(config: Config) -> int | None:
    """Return ``adapter.rank`` where it is given and the adapter method has a rank, else None."""
    return config.adapter.rank if METHOD_TRAITS[config.adapter.method].has_rank else None


def rank_cap(config: Config, shape: EncoderShape) -> int:
    """Return the largest rank that means anything for the adapter method, or ``planner.max_rank`` if it is planned.

    For LoRA's family that is min(d, k) over the linears with adapters, for bottlenecks and prefixes the hidden size,
    for a method without a rank 1; where clients choose slices of an adapter, its rank.
    """
    largest = global_rank(config) or _largest_rank(config, shape)
    return largest if config.adapter.rank is not None else min(largest, config.planner.max_rank)


def _largest_rank(config: Config, shape: EncoderShape) -> int:
    return COSTS[config.adapter.method].rank_cap(trained_part(config, shape))


def global_rank(config: Config) -> int | None:
    """Return the rank of the adapter of which clients choose slices, None under a rule where they do not."""
    return config.federation.lora_a2.rank if "slices" in _rule_of(config).tags else None


def adapter_numbers(config: Config, shape: EncoderShape, rule: RuleTraits | None = None) -> Count:
    """Count the numbers that a client is sent of the adapter each round, without the head."""
    counts = COSTS[config.adapter.method].numbers(trained_part(config, shape))
    received = (rule or _rule_of(config)).received(counts)
    return total(count for kind, count in counts.items() if kind in received)


def head_numbers_sent(config: Config, shape: EncoderShape, rule: RuleTraits | None = None) -> int:
    """Count the head's parameters that are sent each round."""
    if "head" in personal_kinds(rule or _rule_of(config), config.model.head):
        return 0
    return head_numbers(shape.hidden_size, config.model.num_labels or DEFAULT_NUM_LABELS, config.model.head)


def shared_numbers(config: Config, shape: EncoderShape, part: TrainedPart, rule: RuleTraits | None = None) -> Count:
    """Count the numbers that are trained in a turn and shared, the head's included."""
    counts = COSTS[config.adapter.method].numbers(part)
    shared = part.kinds - (rule or _rule_of(config)).personal
    adapter = total(count for kind, count in counts.items() if kind in shared)
    return adapter + Count(head_numbers_sent(config, shape, rule))


def payload(
    config: Config,
    shape: EncoderShape,
    turn: int = 0,
    rule: RuleTraits | None = None,
    merged: MergedParts = NOTHING_MERGED,
) -> Payload:
    """Return the numbers that go up and down in a turn, head included where it is sent.

    Up goes what is trained in this turn, down all but the kinds that everybody draws from the seed, and of merged parts
    what a client lacks; what stays with its client goes neither way. Where clients choose slices, all of the adapter
    goes down, whatever their ranks. With ``workload.model = "paper"`` a number has ``workload.bits_per_parameter``
    bits, and the head counts only on demand.
    """
    part = trained_part(config, shape, turn, rule)
    counts = COSTS[config.adapter.method].numbers(part)
    sent = (rule or _rule_of(config)).sent(counts, turn)
    is_paper = config.workload.model == "paper"
    counts_head = not is_paper or config.workload.count_head
    head = Count(head_numbers_sent(config, shape, rule)) if counts_head else Count()
    downlink, whole = adapter_numbers(config, shape, rule), global_rank(config)
    if whole is not None:
        downlink = Count(downlink.at(whole))
    return Payload(
        uplink=total(count for kind, count in counts.items() if kind in sent) + head,
        downlink=downlink + head,
        bits_per_number=config.workload.bits_per_parameter if is_paper else BITS_PER_FLOAT32,
        merged=merged.lacking,
    )
