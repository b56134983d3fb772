"""The cost of an adapter method, from plain sizes: no kernel sees the whole configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from splitrank.planning.flops import FIRST_TOKEN, TOKEN_PAIRS, EncoderShape, Head


@dataclass(frozen=True)
class TrainedPart:
    """The part of an encoder that is trained in a turn.

    Attributes:
        shape: the encoder's sizes.
        layers: indices of the trained layers, at least one; the lowest is the cut.
        linears: logical names of the linears with adapters, among those of `EncoderShape.linears`; without effect for a
            method that trains whole layers.
        head: how the head is trained; ``"local"`` is trained like ``"full"``.
        num_labels: n, number of classes, >= 2.
        kinds: of the tensors that are trained, the head's apart; not all that the method has, if the aggregation rule
            leaves some as they are.
        has_dropout: whether adapters drop some of their input, ``adapter.dropout`` > 0.
        gate: whether learned tokens have gates, ``adapter.prefix.gate``; without effect for other methods.
        merged: (layer, logical name) → rank R of the frozen factors that stand beside a linear's adapter, None of a
            dense d × k part; among the trained layers and the linears with adapters.
    """

    shape: EncoderShape
    layers: tuple[int, ...]
    linears: tuple[str, ...]
    head: Head
    num_labels: int
    kinds: frozenset[str]
    has_dropout: bool = False
    gate: bool = False
    merged: Mapping[tuple[int, str], int | None] = field(default_factory=dict)

    @property
    def cut_layer(self) -> int:
        """The lowest layer that runs in every step."""
        return min(self.layers)

    def sizes(self) -> list[tuple[int, int]]:
        """Return (d, k) = (out, in) of one layer's linears with adapters: the paper's set Â for a layer."""
        sizes = self.shape.linears()
        return [sizes[name] for name in self.linears]


@dataclass(frozen=True)
class Flops:
    """Operations of local training, affine in the rank: constant + per_rank·r.

    Attributes:
        sample, sample_per_rank: of a sample of L tokens, forward and backward, as coefficients of (1, L, L²), shape
            (3,) each.
        step, step_per_rank: of an optimiser step beside its samples.
    """

    sample: NDArray[np.float64]
    sample_per_rank: NDArray[np.float64]
    step: float = 0.0
    step_per_rank: float = 0.0


@dataclass(frozen=True)
class Count:
    """Numbers of a kind's tensors: constant + per_rank·r."""

    constant: int = 0
    per_rank: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.constant + other.constant, self.per_rank + other.per_rank)

    def at(self, rank: int) -> int:
        """Return the count at a rank."""
        return self.constant + self.per_rank * rank


@dataclass(frozen=True)
class MethodCost:
    """The cost of an adapter method.

    Attributes:
        flops: operations of the forward pass that really runs, and of the backward pass for the kinds trained now.
        numbers: kind → numbers of all its tensors, whether trained in this turn or not.
        rank_cap: the largest rank that means anything, >= 1; 1 for a method without a rank.
    """

    flops: Callable[[TrainedPart], Flops]
    numbers: Callable[[TrainedPart], Mapping[str, Count]]
    rank_cap: Callable[[TrainedPart], int]


def total(counts: Iterable[Count]) -> Count:
    """Add counts up."""
    return sum(counts, Count())


def factor_numbers(part: TrainedPart) -> dict[str, Count]:
    """Count lora_A (r × k) and lora_B (d × r) of every trained layer, equation (5) with its misprint (r + k)·d mended.

    M(r) = l·Σ r·(d + k)
    """
    num_layers = len(set(part.layers))
    return {
        "lora_A": Count(per_rank=num_layers * sum(k for _, k in part.sizes())),
        "lora_B": Count(per_rank=num_layers * sum(d for d, _ in part.sizes())),
    }


def smallest_side(part: TrainedPart) -> int:
    """Return min(d, k) over the linears with adapters: a product B·A has no larger rank."""
    return min(min(size) for size in part.sizes())


def head_flops(part: TrainedPart) -> NDArray[np.float64]:
    """Count the head, which reads the first token: dense (h × h) and out_proj (n × h), forward and backward.

    2·h·(h·p + n·q),  p, q = 2 passes of a frozen matrix (forward, input gradient), 3 of a trained one

    Returns:
        FLOPs of a sample as coefficients of (1, L, L²), shape (3,).
    """
    hidden = part.shape.hidden_size
    dense_passes = 3 if part.head in ("full", "local") else 2
    out_proj_passes = 2 if part.head == "frozen" else 3
    flops: NDArray[np.float64] = 2 * hidden * (hidden * dense_passes + part.num_labels * out_proj_passes) * FIRST_TOKEN
    return flops


@dataclass(frozen=True)
class GradientFlow:
    """The activations of a layer that need a gradient: those below which, or in which, something is trained.

    Attributes:
        below: the layer's input.
        query, key, value: what the three linears return.
        weights: attention weights.
        context: what they mix.
        attended, expanded: inputs of the linears "intermediate" and "output".
    """

    below: bool
    query: bool
    key: bool
    value: bool
    weights: bool
    context: bool
    attended: bool
    expanded: bool

    def into(self, name: str) -> bool:
        """Return whether the input of a linear needs a gradient."""
        return {"attention_output": self.context, "intermediate": self.attended, "output": self.expanded}.get(
            name, self.below
        )


def gradient_flow(part: TrainedPart, layer: int, trained: frozenset[str]) -> GradientFlow:
    """Follow a layer from bottom to top.

    Args:
        part: what is trained.
        layer: index of the layer, from the cut on.
        trained: its linears that have something trained, by logical name; or an attribute of the flow, ``"weights"``
            or ``"context"``, on which something else that is trained has an effect.
    """
    below = layer > part.cut_layer
    query, key, value = (below or name in trained for name in ("query", "key", "value"))
    weights = query or key or "weights" in trained
    context = weights or value or "context" in trained
    attended = context or "attention_output" in trained
    expanded = attended or "intermediate" in trained
    return GradientFlow(below, query, key, value, weights, context, attended, expanded)


def attention_flops(part: TrainedPart, flow: GradientFlow) -> NDArray[np.float64]:
    """Count the two batched products of attention for all tokens, each with the gradients that are needed.

    2·h·L² for each of: scores, its gradients of query and key; mixture, its gradients of weights and values
    """
    passes = (1 + flow.query + flow.key) + (1 + flow.weights + flow.value)
    return 2 * part.shape.hidden_size * passes * TOKEN_PAIRS


def factor_passes(flow: GradientFlow, name: str, kinds: frozenset[str]) -> tuple[int, int]:
    """Return how many products of a row with lora_A and with lora_B a step of a linear's LoRA takes.

    lora_A: forward, gradient of the source where the linear's input needs one, own gradient where it is trained;
    lora_B: forward, gradient of the low-rank state where lora_A or the source wants it, own gradient where trained.
    """
    into, trains_A, trains_B = flow.into(name), "lora_A" in kinds, "lora_B" in kinds
    return 1 + into + trains_A, 1 + (into or trains_A) + trains_B
