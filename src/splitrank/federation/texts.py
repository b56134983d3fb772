"""How much text the clients train on, as the planner counts it: planned without data, or counted in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitrank.config import Config

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TextStats:
    """How much text each client trains on, float64 arrays of shape (num_clients,).

    Attributes:
        samples: |D_i|, number of texts.
        token_sum: tokens of all its texts.
        token_square_sum: sum of the squared token counts, for attention's cost.
    """

    samples: FloatArray
    token_sum: FloatArray
    token_square_sum: FloatArray


def nominal_text_stats(config: Config) -> TextStats:
    """Return ``client.samples`` texts of ``workload.tokens_per_sample`` tokens each, for planning without data."""
    samples = np.broadcast_to(np.asarray(config.client.samples, np.float64), (config.federation.num_clients,)).copy()
    tokens = float(config.workload.tokens_per_sample)
    return TextStats(samples, samples * tokens, samples * tokens**2)


def text_stats(lengths: Sequence[NDArray[np.int64]]) -> TextStats:
    """Count the clients' texts as the planner does.

    Args:
        lengths: token counts of each client's texts.
    """
    as_float = [length.astype(np.float64) for length in lengths]
    return TextStats(
        samples=np.array([float(len(length)) for length in as_float]),
        token_sum=np.array([length.sum() for length in as_float]),
        token_square_sum=np.array([(length**2).sum() for length in as_float]),
    )
