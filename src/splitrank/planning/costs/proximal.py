"""The pull towards a round's start, ``train.proximal``: some operations for every trained number in each step.

Li et al., "Federated optimization in heterogeneous networks", MLSys 2020.
"""

from __future__ import annotations

from dataclasses import replace

from splitrank.planning.costs.cost import Count, Flops

_OPERATIONS = 6
"""Of μ/2·(w − w_start)²: difference, square, sum; and backward twice a factor, and its sum with the loss's gradient."""


def with_proximal(flops: Flops, pulled: Count) -> Flops:
    """Return the operations with those of the pull, 6 for each number and step, however many samples a step has.

    Args:
        flops: of the adapter method.
        pulled: numbers that are trained and shared.
    """
    return replace(
        flops,
        step=flops.step + _OPERATIONS * pulled.constant,
        step_per_rank=flops.step_per_rank + _OPERATIONS * pulled.per_rank,
    )
