"""The default solver: integer bisection on the feasibility kernel, all clients at once."""

from __future__ import annotations

import numpy as np

from splitrank.planning.problem import IntArray, Problem, feasible


def exact(problem: Problem) -> IntArray:
    """Largest feasible rank of every client.

    r_i* = max{r in 1..cap_i : r fits client i}, 0 if none

    P1 of Xie and Wen, equation (20), without its coupling through a common r. The ranks that fit a client are
    1..r_i*, so halving the integers 0..cap finds r_i* with no tolerance, in log2(cap + 1) calls of the kernel.

    Args:
        problem: the round.

    Returns:
        r*, shape (I,), in 0..cap.
    """
    low, high = np.zeros_like(problem.rank_cap), problem.rank_cap  # low fits or is 0, high + 1 does not fit
    while np.any(low < high):
        middle = np.maximum((low + high + 1) // 2, 1)  # a client that is done at 0 is asked about 1 again
        fits = feasible(problem, middle)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low
