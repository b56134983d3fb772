"""Adapter methods and aggregation rules for people and programs: tags and sizes. Loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from splitrank.config import Config
from splitrank.federation.export_forms import EXPORTS
from splitrank.federation.sizes import (
    BITS_PER_FLOAT32,
    DEFAULT_NUM_LABELS,
    encoder_shape,
    head_numbers_sent,
    trained_part,
)
from splitrank.planning.costs.cost import Count, total
from splitrank.planning.costs.table import COSTS
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS, RuleTraits


def methods_report(config: Config) -> dict[str, Any]:
    """Return what every method and rule is, with sizes for the settings' encoder, layers and linears.

    Bits are those of float32 numbers without the head, as constant and per rank. A rule's are those of the settings'
    adapter method, in its even and odd turns where they differ; up goes what is trained, down what nobody can draw
    from the seed.
    """
    shape = encoder_shape(config)
    part = trained_part(config, shape)
    methods = {}
    for name, traits in METHOD_TRAITS.items():
        numbers = COSTS[name].numbers(replace(part, kinds=traits.kinds))
        rules = [rule for rule, other in RULE_TRAITS.items() if other.takes(traits.kinds)]
        methods[name] = {
            "trains": sorted(traits.kinds),
            "has_rank": traits.has_rank,
            "export": traits.export,
            "rules": rules,
            "bits": _bits(total(numbers.values())),
        }
    numbers = COSTS[config.adapter.method].numbers(part)
    rules_told = {name: _rule(traits, numbers) for name, traits in RULE_TRAITS.items()}
    return {
        "model": config.model.name,
        "trained_layers": len(part.layers),
        "linears": list(part.linears),
        "num_labels": config.model.num_labels or DEFAULT_NUM_LABELS,
        "head_bits": BITS_PER_FLOAT32 * head_numbers_sent(config, shape),
        "methods": methods,
        "method_of_rules": config.adapter.method,
        "rules": rules_told,
    }


def _rule(traits: RuleTraits, numbers: Mapping[str, Count]) -> dict[str, Any]:
    uplink = [_bits(total(numbers[kind] for kind in traits.sent(numbers, turn))) for turn in (0, 1)]
    received = traits.received(numbers)
    return {
        "tags": sorted(traits.tags),
        "min_updates": traits.min_updates,
        "needs": sorted(traits.needs),
        "distribution": traits.distribution,
        "drawn_from_seed": sorted(traits.drawn(numbers)),
        "uplink_bits": uplink[0] if uplink[0] == uplink[1] else uplink,
        "downlink_bits": _bits(total(count for kind, count in numbers.items() if kind in received)),
        "personal": sorted(traits.personal),
    }


def _bits(count: Count) -> dict[str, float]:
    return {"constant": BITS_PER_FLOAT32 * count.constant, "per_rank": BITS_PER_FLOAT32 * count.per_rank}


def methods_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as two tables that fit a terminal of 100 columns, a line at a time."""
    yield (
        f"{report['model']}, {report['trained_layers']} trained layers, {', '.join(report['linears'])}; "
        f"bits of float32 without the head's {report['head_bits']:,.0f}"
    )
    yield ""
    yield from _table(
        ("adapter.method", "trains", "bits of a client's whole adapter", "with federation.aggregation", "leaves"),
        [
            (
                name,
                ", ".join(kind.removeprefix(f"{name}_") for kind in told["trains"]),
                _shown(told["bits"]),
                _taken(told["rules"], report["rules"]),
                f"{EXPORTS[told['export']]}/",
            )
            for name, told in report["methods"].items()
        ],
    )
    yield ""
    yield from _table(
        ("federation.aggregation", f"bits up, {report['method_of_rules']}", "bits down", "tags"),
        [
            (name, _uplink(told["uplink_bits"]), _shown(told["downlink_bits"]), ", ".join(told["tags"]))
            for name, told in report["rules"].items()
        ],
    )
    yield ""
    yield "exact: the new product is the mean of the clients' at equal ranks. unequal_ranks: clients may have their own"
    yield "rank. additive: a weighted sum of updates is all that the server needs. keeps_basis: direction j of the new"
    yield "factors is direction j of the old ones. merges: what is lost, or all, goes into a frozen part beside the"
    yield "adapter, which each client is sent, too. prunes: clients give up ranks, and each has its own. unweighted:"
    yield "every client counts the same, however many texts it has. needs_fixed_rank: one rank in all rounds. slices:"
    yield "all of an adapter of federation.lora-a2.rank goes down, and a client's own rank says how much of it goes up."


def _taken(rules: Sequence[str], everything: Collection[str]) -> str:
    """Return the rules that take a method in few words."""
    others = [rule for rule in everything if rule not in rules]
    if len(others) >= len(rules):
        return ", ".join(rules)
    return f"any but {', '.join(others)}" if others else "any"


def _uplink(bits: Any) -> str:
    return _shown(bits) if isinstance(bits, dict) else " / ".join(_shown(turn) for turn in bits)


def _shown(bits: Mapping[str, float]) -> str:
    parts = [f"{bits['constant']:,.0f}"] if bits["constant"] or not bits["per_rank"] else []
    parts += [f"{bits['per_rank']:,.0f} · rank"] if bits["per_rank"] else []
    return " + ".join(parts)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(line[column]) for line in [names, *rows]) for column in range(len(names))]
    for line in [names, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
