"""The count of the frozen layers equals what torch's own counter sees."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from splitrank.learning import layer
from splitrank.planning.flops import trunk_flops
from tests.planning.tiny import BATCH, SHAPE, TOKENS, per_batch, tiny_encoder


def test_trunk_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Batches are filled up, which the mathematics does not need.
    for name, value in (("_FEWEST_ROWS", 1), ("_ROW_STEPS", 2**20), ("_WIDTH_BLOCK", 1)):
        monkeypatch.setattr(layer, name, value)
    encoder = tiny_encoder([3])
    with FlopCounterMode(display=False) as counter:
        encoder.trunk([np.full(TOKENS, 5, dtype=np.int32)] * BATCH)
    assert per_batch(trunk_flops(SHAPE, 3)) == counter.get_total_flops()
