"""How the server checks an update before it touches the model: its shape, its numbers, and how far it has moved."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from splitrank.errors import InputError
from splitrank.federation.clients import NoUpdate
from splitrank.federation.flower.messenger import Reply
from splitrank.federation.flower.payload import is_count, is_finite
from splitrank.federation.flower.personal import digest_record
from splitrank.federation.wire import merged_digest, received_update, uplink
from splitrank.learning.adapters.adapter import Adapter, to_vector
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.client import TrainingConfig, Update

_MAX_SHOWN = 60
_SHA256 = re.compile(r"[0-9a-f]{64}")
# AdamW's step of one number is at most this times the learning rate: (1 - β1)/√(1 - β2) with PyTorch's β.
_MAX_STEP = 0.1 / math.sqrt(0.001)


def norm_bound(start: Tensor, num_samples: int, training: TrainingConfig) -> float:
    """Return the farthest that AdamW can move numbers in a round; no honest client exceeds it.

    ‖θ − θ_start‖ ≤ s·η·(c·√n + λ·(‖θ_start‖ + s·η·c·√n)),  c = (1 − β1)/√(1 − β2)

    after s steps at learning rate η and weight decay λ on n numbers: Kingma and Ba, "Adam", ICLR 2015, section 2.1,
    and the decay of what is there at most.

    Args:
        start: the numbers that are trained, flat, as they were sent.
        num_samples: texts that it trained on.
        training: how.
    """
    steps = training.local_epochs * math.ceil(num_samples / training.batch_size)
    reach = steps * training.learning_rate
    moved = _MAX_STEP * math.sqrt(len(start)) * reach
    return moved + reach * training.weight_decay * (float(start.norm()) + moved)


def check_update(
    reply: Reply,
    start: Adapter,
    rule: Rule,
    *,
    client: int,
    round: int,
    turn: int,
    num_samples: int,
    training: TrainingConfig,
    has_personal: bool = False,
) -> Update | NoUpdate:
    """Check an answer, and return its update; a :class:`NoUpdate` with one sentence where something is wrong with it.

    Args:
        reply: what came.
        start: the adapter that was sent, at the rank that was asked for.
        rule: which numbers are trained and sent.
        client, round, turn: what was asked of whom.
        num_samples: how many texts the client registered.
        training: how it was to train.
        has_personal: whether the client keeps a part to itself, of which it tells the digest.
    """
    if reply.failure is not None:
        return NoUpdate(reply.failure, lost_merged=reply.header.get("merged_lost") is True)
    header, floats = reply.header, reply.floats
    if header.get("kind") != "update" or floats is None:
        return NoUpdate(f"rejected: an update was asked for, got {_shown(header.get('kind'))}")
    for key, expected in (("client", client), ("round", round)):
        if header.get(key) != expected:
            return NoUpdate(f"rejected: {key} must be {expected}, got {_shown(header.get(key))}")
    samples, loss, digest = (header.get(name) for name in ("samples", "train_loss", "personal_sha256"))
    if not is_count(samples) or not 1 <= samples <= num_samples:
        return NoUpdate(f"rejected: samples must be 1 to the {num_samples} registered, got {_shown(samples)}")
    if not is_finite(loss):
        return NoUpdate(f"rejected: train_loss must be a finite number, got {_shown(loss)}")
    if has_personal and not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        return NoUpdate(f"rejected: personal_sha256 must be 64 hexadecimal digits, got {_shown(digest)}")
    if (held := header.get("merged_sha256")) != merged_digest(start):
        return NoUpdate(f"rejected: merged_sha256 must be that of the merged parts sent, got {_shown(held)}")
    vector = torch.from_numpy(floats.copy())
    try:
        update = received_update(header, vector, start, rule, client, turn)
    except InputError as error:
        return NoUpdate(f"rejected: {error}")
    if not bool(torch.isfinite(vector).all()):
        return NoUpdate("rejected: an update must be finite, got NaN or infinity")
    before = to_vector(uplink(start, rule, client, turn))
    moved, bound = float((vector - before).norm()), norm_bound(before, num_samples, training)
    if not moved <= bound:
        return NoUpdate(f"rejected: an update may move by {bound:.4g} at most (AdamW's own bound), got {moved:.4g}")
    personal = digest_record(round, digest) if has_personal and isinstance(digest, str) else {}
    lost = {"personal_lost": True} if header.get("personal_lost") is True else {}
    return Update(update, float(loss), samples, personal, notes=lost)


def _shown(value: Any) -> str:
    """Return a value for a sentence, however long it is."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
