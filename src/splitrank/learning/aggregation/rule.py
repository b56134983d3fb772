"""Aggregation rules: the clients' adapters become one, by pure functions of what was sent out and what came back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from splitrank.errors import InputError, check_types
from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.adapters.method import NO_TERMS, LocalTerms
from splitrank.learning.adapters.selection import Index, Select, by_kind
from splitrank.traits import MERGED_KINDS, RuleTraits


@dataclass(frozen=True, eq=False)
class Starts:
    """The adapters that a round starts from.

    Attributes:
        whole: the global adapter, at the rank of the largest.
        of: client → the adapter that it is sent, cut from the whole.
    """

    whole: Adapter
    of: Mapping[int, Adapter]


@dataclass(frozen=True, eq=False)
class Combined:
    """The result of a rule for a round.

    Attributes:
        adapter: the new global one, at the rank of ``Starts.whole``; at rank 0 for a rule that starts every round from
            factors that are drawn anew.
        memory: what the rule hands to its next round, by name.
        factor_averaging_error: ‖product of means − mean of products‖ / ‖mean of products‖, None where the rule
            averages no factors.
        diagnostics: other numbers for the record.
    """

    adapter: Adapter
    memory: Mapping[str, Tensor]
    factor_averaging_error: float | None = None
    diagnostics: Mapping[str, float] = field(default_factory=dict)


Combine = Callable[[Starts, Mapping[int, Adapter], Mapping[int, float], Mapping[str, Tensor]], Combined]
"""(starts, client → what it trained, client → its weight, memory) → what becomes of it.

Clients come in ascending order and sums run in it, in float64, so the result does not depend on who finished first.
Weights are n_i/Σn over the clients whose updates there are.
"""


@dataclass(frozen=True)
class Rule:
    """An aggregation rule.

    Attributes:
        name: what the settings call it.
        traits: its tags, how adapters are cut for it, what it trains in which turn.
        combine: see :data:`Combine`.
        selection: which numbers are trained and sent; None for what the traits say of whole kinds.
        terms: what it adds to a client's steps.
        prepare: global adapter, at a round's rank → the same products as the rule wants to send them.
        kept_rank: (a client's start, what it trained) → how many of its directions it keeps for good.
        choose: (a client's start, what a trial epoch made of it, the kind of factor trained, its rank) → the slices
            that it trains, path → directions.
        global_rank: the rank of the adapter that every client is sent, where the clients' ranks are numbers of slices.

    Raises:
        InputError: one line for each attribute of another type.
    """

    name: str
    traits: RuleTraits
    combine: Combine
    selection: Select | None = None
    terms: LocalTerms = NO_TERMS
    prepare: Callable[[Adapter], Adapter] | None = None
    kept_rank: Callable[[Adapter, Adapter], int] | None = None
    choose: Callable[[Adapter, Adapter, str, int], Mapping[str, Sequence[int]]] | None = None
    global_rank: int | None = None

    def __post_init__(self) -> None:
        combine: object = self.combine
        check_types(
            name=(self.name, str, "any name that the package does not use"),
            traits=(self.traits, RuleTraits, "see splitrank.traits"),
        )
        if not callable(combine):
            what = "a function of starts, updates, weights and memory"
            raise InputError(f"combine must be {what}, got {combine!r}; see splitrank.learning.aggregation.rule")

    def select(self, name: str, tensor: Tensor, client: int, turn: int) -> Index | None:
        """Return the index of what a client trains and sends of a tensor in a turn; None for all of it."""
        return (self.selection or by_kind(self.traits))(name, tensor, client, turn)


def weights_of(num_samples: Mapping[int, int]) -> dict[int, float]:
    """Return n_i/Σn, by client."""
    total = sum(num_samples.values())
    return {client: count / total for client, count in num_samples.items()}


def on_scaling(updates: Mapping[int, Adapter], scaling: float) -> dict[int, Adapter]:
    """Return the same products s·B·A with one scaling for all: B is multiplied by s_i/s where they differ."""
    return {client: _rescaled(update, scaling) for client, update in updates.items()}


def _rescaled(adapter: Adapter, scaling: float) -> Adapter:
    if adapter.scaling == scaling:
        return adapter
    moved = {name: b * (adapter.scaling / scaling) for name, b in adapter.only("lora_B").items()}
    return replace(adapter.with_tensors(moved), scaling=scaling)


def mean(tensors: Iterable[Tensor], weights: Collection[float]) -> Tensor:
    """Return Σ w_i·θ_i, summed in float64 in the order given, in the precision of the first."""
    total: Tensor | None = None
    dtype = torch.float32
    for weight, tensor in zip(weights, tensors, strict=True):
        if total is None:
            total, dtype = torch.zeros(tensor.shape, dtype=torch.float64), tensor.dtype
        total.add_(tensor, alpha=weight)  # computes in total's float64
    assert total is not None
    return total.to(dtype)


def mean_of(names: Iterable[str], updates: Mapping[int, Adapter], weights: Mapping[int, float]) -> dict[str, Tensor]:
    """Return the weighted mean of each of some tensors, all of one size; of merged parts, which nobody trains, none."""
    names = [name for name in names if kind_of(name) not in MERGED_KINDS]
    return {name: mean((update.tensors[name] for update in updates.values()), weights.values()) for name in names}
