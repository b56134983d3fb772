"""What an update must be before it touches the model."""

from __future__ import annotations

import math
from typing import Any

import torch

from splitrank.federation.flower.payload import is_count, is_finite
from splitrank.federation.flower.post import Reply
from splitrank.federation.rounds import Missed
from splitrank.learning.adapters import lora
from splitrank.learning.adapters.lora import Adapter
from splitrank.learning.client import Training, Update

_MOST_SHOWN = 60
# AdamW's step of one number is at most this times the learning rate: (1 - β1)/√(1 - β2) with PyTorch's β.
_MOST_STEP = 0.1 / math.sqrt(0.001)


def norm_bound(start: Adapter, num_samples: int, training: Training) -> float:
    """The farthest that AdamW can move an adapter in a round, so what no honest client exceeds.

    ‖θ − θ_start‖ ≤ s·η·(c·√n + λ·(‖θ_start‖ + s·η·c·√n)),  c = (1 − β1)/√(1 − β2)

    after s steps at learning rate η and weight decay λ on n numbers: Kingma and Ba, "Adam", ICLR 2015, section 2.1,
    and the decay of what is there at most.

    Args:
        start: what the client started from.
        num_samples: texts that it trained on.
        training: how.
    """
    vector = lora.to_flat(start)
    steps = training.local_epochs * math.ceil(num_samples / training.batch_size)
    reach = steps * training.learning_rate
    moved = _MOST_STEP * math.sqrt(len(vector)) * reach
    return moved + reach * training.weight_decay * (float(vector.norm()) + moved)


def checked_update(
    reply: Reply, start: Adapter, *, client: int, round: int, num_samples: int, training: Training
) -> Update | Missed:
    """Turn an answer into an update if it is one for this request, else say in one sentence what is wrong with it.

    Args:
        reply: what came.
        start: the adapter that was sent, at the rank that was asked for.
        client, round: what was asked of whom.
        num_samples: how many texts the client registered.
        training: how it was to train.
    """
    if reply.failure is not None:
        return Missed(reply.failure)
    header, floats = reply.header, reply.floats
    if header.get("kind") != "update" or floats is None:
        return Missed(f"rejected: an update was asked for, got {_shown(header.get('kind'))}")
    for key, expected in (("client", client), ("round", round)):
        if header.get(key) != expected:
            return Missed(f"rejected: {key} must be {expected}, got {_shown(header.get(key))}")
    samples, loss = header.get("samples"), header.get("train_loss")
    if not is_count(samples) or not 1 <= samples <= num_samples:
        return Missed(f"rejected: samples must be 1 to the {num_samples} registered, got {_shown(samples)}")
    if not is_finite(loss):
        return Missed(f"rejected: train_loss must be a finite number, got {_shown(loss)}")
    expected_length = lora.num_numbers(start, start.rank)
    if len(floats) != expected_length:
        return Missed(
            f"rejected: an update at rank {start.rank} must have {expected_length} numbers, got {len(floats)}"
        )
    vector = torch.from_numpy(floats.copy())
    if not bool(torch.isfinite(vector).all()):
        return Missed("rejected: an update must be finite, got NaN or infinity")
    moved, bound = float((vector - lora.to_flat(start)).norm()), norm_bound(start, num_samples, training)
    if not moved <= bound:
        return Missed(f"rejected: an update may move by {bound:.4g} at most (AdamW's own bound), got {moved:.4g}")
    return Update(lora.from_flat(vector, start, start.rank), float(loss), samples, {})


def _shown(value: Any) -> str:
    """A value for a sentence, however long it is."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
