"""Median and trimmed mean: Yin et al., "Byzantine-robust distributed learning: towards optimal statistical rates",
ICML 2018, arXiv 1803.01498.

Both go number by number over the clients, so that no single client can pull the result beyond what the others hold.
Every client counts the same, however many texts it has: a weight that a client tells is one that it can lie about. The
paper takes the gradients of one step; here it is what the clients have trained, each factor by itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.aggregation.fedavg import factor_averaging_error
from splitrank.learning.aggregation.rule import Combined, Starts, mean, mean_of, on_scaling
from splitrank.traits import MERGED_KINDS, RULE_TRAITS

_LOG = logging.getLogger("splitrank")

FEWEST_UPDATES = RULE_TRAITS["median"].min_updates
"""Of fewer updates none can be outvoted by the others; a round with fewer takes their unweighted mean."""


def median(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Take the median of every number over the clients; of an even number of clients the mean of the middle two.

    Args:
        starts: the whole's scaling becomes the result's, and what changed is measured from it.
        updates: at least one, all of one rank.
        weights: not used.
        memory: not used.
    """
    return _without_extremes(starts, updates, (len(updates) - 1) // 2)


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of every number over the clients without its ⌊β·K⌋ smallest and ⌊β·K⌋ largest values.

    Attributes:
        fraction: β, from 0, the unweighted mean, up to but not including 1/2.
    """

    fraction: float

    def __call__(
        self,
        starts: Starts,
        updates: Mapping[int, Adapter],
        weights: Mapping[int, float],
        memory: Mapping[str, Tensor],
    ) -> Combined:
        """Take the trimmed mean; arguments as for :func:`median`."""
        return _without_extremes(starts, updates, num_trimmed(self.fraction, len(updates)))


def num_trimmed(fraction: float, num_updates: int) -> int:
    """Return ⌊β·K⌋, the values that are left out at each end, whatever the last digit of β·K."""
    return math.floor(fraction * num_updates + 1e-9)


def _without_extremes(starts: Starts, updates: Mapping[int, Adapter], trimmed: int) -> Combined:
    """Average every number over the clients but those with the smallest and the largest values of it.

    The diagnostics say how many were left out at each end (``trimmed_at_each_end``), and how far the result is from the
    start against the unweighted mean's distance (``robust_step_ratio``): where honest clients differ much, it is below
    1. With fewer than three updates ``unweighted_mean_of`` says of how many the plain mean was taken. There is an error
    of averaging factors in that case alone, since otherwise the result is not meant to be the mean.
    """
    whole = starts.whole
    updates = on_scaling(updates, whole.scaling)
    equal = dict.fromkeys(updates, 1 / len(updates))
    plain = whole.with_tensors(mean_of(whole.tensors, updates, equal))
    if len(updates) < FEWEST_UPDATES:
        _LOG.warning("The unweighted mean was taken: the rule needs %d updates, got %d.", FEWEST_UPDATES, len(updates))
        told = {"unweighted_mean_of": float(len(updates))}
        return Combined(plain, {}, factor_averaging_error(updates, equal, plain), told)
    tensors = {
        name: _middle([update.tensors[name] for update in updates.values()], trimmed)
        for name in whole.tensors
        if kind_of(name) not in MERGED_KINDS
    }
    result = whole.with_tensors(tensors)
    moved, moved_by_mean = _distance(result, whole), _distance(plain, whole)
    ratio = moved / moved_by_mean if moved_by_mean else 1.0
    return Combined(result, {}, None, {"trimmed_at_each_end": float(trimmed), "robust_step_ratio": ratio})


def _middle(tensors: list[Tensor], trimmed: int) -> Tensor:
    """Return the mean of the middle values of each number, in float64 from the smallest on."""
    kept = torch.stack(tensors).sort(dim=0).values[trimmed : len(tensors) - trimmed]
    return mean(kept, [1 / len(kept)] * len(kept))


def _distance(adapter: Adapter, start: Adapter) -> float:
    squares = [(tensor.double() - start.tensors[name]).square().sum() for name, tensor in adapter.tensors.items()]
    return math.sqrt(sum(map(float, squares)))
