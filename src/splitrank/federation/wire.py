"""The wire format: those numbers of an adapter that the other side cannot have, flat, with the list of their names.

Down goes everything but what is drawn from the seed, and of merged parts the rows that the client does not have yet; up
goes what was selected for training. Both sides derive the list of names and shapes for themselves and refuse any other,
so nobody can slip in a tensor or leave one out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from splitrank.errors import InputError
from splitrank.learning.adapters.adapter import Adapter, Shapes, from_vector, kind_of
from splitrank.learning.adapters.merged import largest_rank, merged_ranks, rows_from, rows_until
from splitrank.learning.adapters.method import Method
from splitrank.learning.adapters.selection import selected, selected_shapes, with_selected
from splitrank.learning.aggregation.rule import Rule
from splitrank.traits import MERGED_AXIS, MERGED_KINDS

PROTOCOL = 3
"""Of the messages between server and clients; raised when what they mean changes."""

CODEC = "float32"

NOTHING_HELD: Mapping[str, int] = {}


def header(tensors: Mapping[str, Tensor], turn: int) -> dict[str, Any]:
    """Return what a message says of the numbers it carries."""
    return {"protocol": PROTOCOL, "codec": CODEC, "turn": turn, "tensors": _listed(_shapes(tensors))}


def downlink(start: Adapter, rule: Rule, held: Mapping[str, int] = NOTHING_HELD) -> dict[str, Tensor]:
    """Return what a client is sent of its start: all that it neither has nor can draw from the seed.

    Args:
        start: what it starts from.
        rule: which kinds are drawn.
        held: path → first rows of the start's merged part that it has.
    """
    others = rule.traits.drawn(start.kinds).union(MERGED_KINDS)
    sent = {name: tensor for name, tensor in start.tensors.items() if kind_of(name) not in others}
    return sent | rows_from(start, held)


def merged_header(start: Adapter, held: Mapping[str, int] = NOTHING_HELD) -> dict[str, Any]:
    """Return what a message says of merged parts: path, rank (null of a dense part) and the first row that is sent."""
    listed = [[path, rank, held.get(path, 0)] for path, rank in merged_ranks(start).items()]
    return {"merged": listed} if listed else {}


def merged_digest(adapter: Adapter) -> str | None:
    """Return the SHA-256 of all merged parts, None where there are none."""
    digest, tensors = hashlib.sha256(), adapter.only(*MERGED_KINDS)
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest() if tensors else None


@dataclass(frozen=True)
class ToldPart:
    """A linear's merged part, as a header describes it.

    Attributes:
        rank: of factors, None of a dense part.
        first: the first row that is sent; those before it the client has.
        size: (d, k) of the linear.
    """

    rank: int | None
    first: int
    size: tuple[int, int]

    def shapes(self, path: str, first: int = 0) -> Shapes:
        """Return the shapes of the part's tensors from a row on; empty ones are left out."""
        d, k = self.size
        if self.rank is None:
            shapes: Shapes = {f"merged_W/{path}": (d - first, k)}
        else:
            shapes = {f"merged_A/{path}": (self.rank - first, k), f"merged_B/{path}": (d, self.rank - first)}
        return {name: shape for name, shape in shapes.items() if 0 not in shape}


def told_merged(told: Mapping[str, Any], like: Adapter, rule: Rule) -> dict[str, ToldPart]:
    """Return path → merged part, if a header tells of such as this model can have.

    Args:
        told: the header.
        like: the adapter of round 0, whose linears are those that may have merged parts.
        rule: whether it merges.

    Raises:
        InputError: other linears, ranks or rows, or a rule that does not merge.
    """
    listed = told.get("merged", [])
    if listed and "merges" not in rule.traits.tags:
        raise InputError(
            f'merged must be left out for the rule {rule.name}, whose tags lack "merges", got {_shown(listed)}'
        )
    lora_A, parts = like.of_kind("lora_A"), dict[str, ToldPart]()
    for entry in listed if isinstance(listed, list) else [listed]:
        match entry:
            case [str(path), rank, first] if path in lora_A and path not in parts and type(first) is int:
                d, k = len(like.tensors[f"lora_B/{path}"]), lora_A[path].shape[1]
                is_factors = type(rank) is int and 1 <= rank <= largest_rank(d, k) and 0 <= first <= rank
                if is_factors or (rank is None and first in (0, d)):
                    parts[path] = ToldPart(rank, first, (d, k))
                    continue
        raise InputError(
            "merged must name linears with adapters, each once, with a rank of at most d·k/(d + k) or null and a first "
            f"row within it, got {_shown(entry)}"
        )
    return parts


class LostMergedError(InputError):
    """The client does not have the merged rows that the server takes it to have."""

    def __init__(self) -> None:
        super().__init__("the merged parts of earlier rounds are lost here; they must be sent again, whole")


def received_start(
    told: Mapping[str, Any],
    vector: Tensor,
    like: Adapter,
    rank: int,
    turn: int,
    method: Method,
    rule: Rule,
    seed: int,
    round: int,
    *,
    kept: Mapping[str, Tensor] | None = None,
) -> Adapter:
    """Rebuild the start from a message.

    Args:
        told: the message's header.
        vector: its numbers.
        like: the adapter of round 0.
        rank: at which to train, at most what the model can have.
        turn: of the round, which a client has from the server alone.
        method, rule, seed: of the run.
        round: the round that is to be trained, for what is drawn anew.
        kept: merged tensors that this client has, by name.

    Raises:
        InputError: the message does not carry what this client expects.
        LostMergedError: this client does not have the merged rows before those that are sent.
    """
    drawn, parts = rule.traits.drawn(like.kinds), told_merged(told, like, rule)
    shapes = {name: shape for name, shape in like.shapes(rank).items() if kind_of(name) not in drawn}
    for path, part in parts.items():
        shapes |= part.shapes(path, part.first)
    check(told, shapes, turn)
    _check_length(vector, shapes)
    if not bool(torch.isfinite(vector).all()):
        raise InputError("a start must be finite, got NaN or infinity")
    sent = from_vector(vector, shapes)
    for path, part in parts.items():
        sent |= {name: _joined(name, shape, part.first, sent, kept or {}) for name, shape in part.shapes(path).items()}
    start = like  # before any training there is no rank, and no scaling to resize by
    if rank != like.rank:
        start = method.resize(like, rank, distribution=rule.traits.distribution, seed=seed, round=round)
    return start.with_tensors(sent)


def _joined(
    name: str, shape: tuple[int, ...], first: int, sent: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> Tensor:
    """Return a merged tensor: the first rows as they are kept, then those that were sent."""
    if not first:
        return sent[name]
    axis, before = MERGED_AXIS[kind_of(name)], rows_until(kept, name, first)
    if before is None or before.shape != (*shape[:axis], first, *shape[axis + 1 :]):
        raise LostMergedError
    return torch.cat([before, sent[name]], dim=axis) if name in sent else before


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
