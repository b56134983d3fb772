"""A limit to the rank of merged parts, around any rule that merges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.merged import truncate_merged
from splitrank.learning.aggregation.rule import Combine, Combined, Rule, Starts


@dataclass(frozen=True)
class Truncated:
    """What a rule makes of a round, its merged parts cut to a rank; what that loses is ``merged_truncation_error``.

    Attributes:
        combine: the rule's.
        rank: the largest rank that a merged part keeps, at least 1.
    """

    combine: Combine
    rank: int

    def __call__(
        self,
        starts: Starts,
        updates: Mapping[int, Adapter],
        weights: Mapping[int, float],
        memory: Mapping[str, Tensor],
    ) -> Combined:
        combined = self.combine(starts, updates, weights, memory)
        adapter, error = truncate_merged(combined.adapter, self.rank)
        diagnostics = {**combined.diagnostics, "merged_truncation_error": error}
        return replace(combined, adapter=adapter, diagnostics=diagnostics)


def with_merged_rank(rule: Rule, rank: int | None) -> Rule:
    """Return a rule that cuts its merged parts to a rank, and so is no longer exact; without a rank the same rule."""
    if rank is None:
        return rule
    traits = replace(rule.traits, tags=rule.traits.tags - {"exact"})
    return replace(rule, traits=traits, combine=Truncated(rule.combine, rank))
