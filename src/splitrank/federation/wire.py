"""What a round sends: the numbers of an adapter that the other side cannot have, flat, with the list of their names.

Down goes everything but what is drawn from the seed; up goes what was selected for training. Both sides derive the
list of names and shapes for themselves and refuse any other, so nobody can slip in a tensor or leave one out.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from splitrank.errors import InputError
from splitrank.learning.adapters.adapter import Adapter, Shapes, from_vector, kind_of
from splitrank.learning.adapters.method import Method
from splitrank.learning.adapters.selection import selected, selected_shapes, with_selected
from splitrank.learning.aggregation.rule import Rule

PROTOCOL = 3
"""Of the messages between server and clients; raised when what they mean changes."""

CODEC = "float32"


def header(tensors: Mapping[str, Tensor], turn: int) -> dict[str, Any]:
    """Return what a message says of the numbers it carries."""
    return {"protocol": PROTOCOL, "codec": CODEC, "turn": turn, "tensors": _listed(_shapes(tensors))}


def downlink(start: Adapter, rule: Rule) -> dict[str, Tensor]:
    """Return what a client is sent of its start: all that it cannot draw from the seed."""
    drawn = rule.traits.drawn(start.kinds)
    return {name: tensor for name, tensor in start.tensors.items() if kind_of(name) not in drawn}


def received_start(
    told: Mapping[str, Any], vector: Tensor, like: Adapter, rank: int, turn: int, method: Method, rule: Rule, seed: int
) -> Adapter:
    """Rebuild the start from a message.

    Args:
        told: the message's header.
        vector: its numbers.
        like: the adapter of round 0.
        rank: at which to train, at most what the model can have.
        turn: of the round, which a client has from the server alone.
        method, rule, seed: of the run.

    Raises:
        InputError: the message does not carry what this client expects.
    """
    drawn = rule.traits.drawn(like.kinds)
    shapes = {name: shape for name, shape in like.shapes(rank).items() if kind_of(name) not in drawn}
    check(told, shapes, turn)
    _check_length(vector, shapes)
    start = method.resize(like, rank, distribution=rule.traits.distribution, seed=seed, round=0)
    return start.with_tensors(from_vector(vector, shapes))


def uplink(update: Adapter, rule: Rule, client: int, turn: int) -> dict[str, Tensor]:
    """Return what a client sends of what it trained: the selected numbers."""
    return selected(update.tensors, rule.select, client, turn)


def received_update(
    told: Mapping[str, Any], vector: Tensor, start: Adapter, rule: Rule, client: int, turn: int
) -> Adapter:
    """Rebuild a client's adapter from a message; what was not selected is as it started.

    Raises:
        InputError: the message does not carry what was asked for.
    """
    shapes = selected_shapes(start.tensors, rule.select, client, turn)
    check(told, shapes, turn)
    _check_length(vector, shapes)
    return start.with_tensors(with_selected(start.tensors, from_vector(vector, shapes), rule.select, client, turn))


def check(told: Mapping[str, Any], shapes: Shapes, turn: int) -> None:
    """Refuse a header that is not the one expected.

    Raises:
        InputError: another protocol, codec, turn or list of tensors.
    """
    expected = {"protocol": PROTOCOL, "codec": CODEC, "turn": turn}
    for key, value in expected.items():
        if told.get(key) != value:
            hint = "; install the same splitrank on every machine" if key == "protocol" else ""
            raise InputError(f"{key} must be {value!r}, got {_shown(told.get(key))}{hint}")
    wanted, got = _listed(shapes), told.get("tensors")
    if got != wanted:
        pairs = zip_longest(wanted, got) if isinstance(got, list) else [(wanted, got)]
        different = next((pair for pair in pairs if pair[0] != pair[1]), (wanted, got))
        raise InputError(f"tensors must have {_shown(different[0])}, got {_shown(different[1])}")


def _check_length(vector: Tensor, shapes: Shapes) -> None:
    length = sum(torch.Size(shape).numel() for shape in shapes.values())
    if len(vector) != length:
        raise InputError(f"an adapter of this rank must have {length} numbers, got {len(vector)}")


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _listed(shapes: Shapes) -> list[list[Any]]:
    """Return names and shapes as JSON has them, in the order of the numbers."""
    return [[name, list(shapes[name])] for name in sorted(shapes)]


def _shown(value: Any) -> str:
    """Return a value for a sentence, however long it is."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
