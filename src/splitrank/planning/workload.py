"""The cost of a client's round, operations and bits, as affine functions of the rank.

Three models: the paper's operation count (Xie and Wen, equations 2 and 5), the true FLOPs of the trained part, and
times measured on the client. All end in the same `Workload`, so no solver knows which one was used.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from splitrank.planning.costs.cost import Count, Flops
from splitrank.planning.flops import EncoderShape, Head, trunk_flops

FloatArray = NDArray[np.float64]
Rank = NDArray[np.int64] | FloatArray | int

KNOWN_SHAPES: dict[str, EncoderShape] = {
    name: shape
    for shape, names in {
        EncoderShape(num_layers=6, hidden_size=384, intermediate_size=1536, num_heads=12): ["minilm"],
        EncoderShape(num_layers=6, hidden_size=768, intermediate_size=3072, num_heads=12): [
            *("distilroberta-base", "distilbert/distilroberta-base"),
            *("distilbert-base-uncased", "distilbert/distilbert-base-uncased"),
            *("distilbert-base-cased", "distilbert/distilbert-base-cased"),
            *("distilbert-base-multilingual-cased", "distilbert/distilbert-base-multilingual-cased"),
        ],
        EncoderShape(num_layers=12, hidden_size=768, intermediate_size=3072, num_heads=12): [
            *("roberta-base", "FacebookAI/roberta-base"),
            *("xlm-roberta-base", "FacebookAI/xlm-roberta-base"),
            *("camembert-base", "almanach/camembert-base"),
            *("bert-base-uncased", "google-bert/bert-base-uncased"),
            *("bert-base-cased", "google-bert/bert-base-cased"),
            *("bert-base-multilingual-uncased", "google-bert/bert-base-multilingual-uncased"),
            *("bert-base-multilingual-cased", "google-bert/bert-base-multilingual-cased"),
            "microsoft/mpnet-base",
        ],
        EncoderShape(num_layers=24, hidden_size=1024, intermediate_size=4096, num_heads=16): [
            *("roberta-large", "FacebookAI/roberta-large"),
            *("xlm-roberta-large", "FacebookAI/xlm-roberta-large"),
            *("bert-large-uncased", "google-bert/bert-large-uncased"),
            *("bert-large-cased", "google-bert/bert-large-cased"),
        ],
    }.items()
    for name in names
}


@dataclass(frozen=True)
class Affine:
    """A cost as a function of the rank: constant + per_rank·r.

    >>> bits = Affine(constant=593_668 * 32, per_rank=9_216 * 32)
    >>> float(bits(8))
    21356672.0

    Attributes:
        constant: what the round costs beside the rank; may be negative, as in the paper's count of cycles.
        per_rank: what each rank adds. Both are float64 of shape (I,), or one number for all clients; a `Problem` has
            them in shape (I,).
    """

    constant: FloatArray
    per_rank: FloatArray

    def __call__(self, rank: Rank) -> FloatArray:
        """Return the cost at a rank, one for all clients or one for each."""
        return self.constant + self.per_rank * rank


@dataclass(frozen=True)
class Workload:
    """The cost of one round for each client. Costs may be 0, but none below 0 from rank 1 on.

    RoBERTa-base with a head of 593,668 numbers and LoRA of 9,216 numbers per rank, all sent as float32, and 2e12 cycles
    of training beside 1e10 for each rank:

    >>> numbers = Affine(593_668 * 32, 9_216 * 32)
    >>> workload = Workload(cycles=Affine(2e12, 1e10), uplink_bits=numbers, downlink_bits=numbers)
    >>> float(workload.cycles(8)), float(workload.uplink_bits(8))
    (2080000000000.0, 21356672.0)

    `paper_workload`, `flops_workload` and `measured_workload` count it from a model's sizes and a client's texts.

    Attributes:
        cycles: C·|D|·epochs [cycles] of the whole round, all samples and local epochs included. The constant of the
            paper's count is negative; at r = 1 no cost is.
        uplink_bits: M·Q sent once up [bits].
        downlink_bits: M·Q sent once down [bits]; the paper sends the same both ways.
        memory_bytes: peak of what training holds in memory [bytes]; 0 in the paper and if left out.

    Raises:
        ValueError: a cost that is no `Affine`.
    """

    cycles: Affine
    uplink_bits: Affine
    downlink_bits: Affine
    memory_bytes: Affine = field(default_factory=lambda: Affine(np.zeros(()), np.zeros(())))

    def __post_init__(self) -> None:
        problems = [
            f"Workload.{name} must be an Affine(constant, per_rank), got {reprlib.repr(cost)}; a cost without a rank "
            "has per_rank 0"
            for name, cost in vars(self).items()
            if not isinstance(cost, Affine)
        ]
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True)
class Payload:
    """Numbers that a client sends and receives once a round, the head's included.

    Attributes:
        uplink, downlink: counts as functions of the rank.
        bits_per_number: Q, > 0.
        merged: further numbers that each client receives, of merged parts that it lacks; one count or shape (I,). They
            are known before the round, so P1 stays one problem per client.
    """

    uplink: Count
    downlink: Count
    bits_per_number: float
    merged: FloatArray | float = 0.0


@dataclass(frozen=True)
class TrainingAmount:
    """How much every client trains in a round, float64 arrays of shape (I,).

    Attributes:
        samples: |D|.
        token_sum: ΣL, tokens of the samples.
        token_square_sum: ΣL².
        epochs: local epochs, >= 1.
        batch_size: samples of an optimiser step, >= 1.
    """

    samples: FloatArray
    token_sum: FloatArray
    token_square_sum: FloatArray
    epochs: int
    batch_size: int

    @property
    def steps(self) -> FloatArray:
        """Optimiser steps, the last one of an epoch with what is left."""
        return self.epochs * np.ceil(self.samples / self.batch_size)


def head_numbers(hidden_size: int, num_labels: int, policy: Head) -> int:
    """Count the classification head's parameters that are sent: dense (h·h + h) and out_proj (h·n + n).

    The paper trains the head but leaves it out of M.

    Args:
        hidden_size: h.
        num_labels: n, number of classes.
        policy: ``"full"`` sends both linears, ``"out_proj"`` the last, ``"frozen"`` and ``"local"`` none.
    """
    out_proj = hidden_size * num_labels + num_labels
    dense = hidden_size * hidden_size + hidden_size
    return {"full": dense + out_proj, "out_proj": out_proj, "frozen": 0, "local": 0}[policy]


def paper_workload(
    sizes: Sequence[tuple[int, int]], num_trained_layers: int, samples: FloatArray, epochs: int, payload: Payload
) -> Workload:
    """Count as the paper does, one operation per cycle.

    C(r)·|D|·epochs = l·Σ(2r - 1)·d·k · |D|·epochs,  M(r)·Q = (l·Σ r·(d + k) + head)·Q

    Equation (2), and equation (5) with its misprint (r + k)·d mended. It counts the product B·A of each adapter,
    not the passes through the network. The paper's head is 0 here; a count above 0 is a departure.

    Args:
        sizes: (d, k) of one layer's linears with adapters.
        num_trained_layers: l.
        samples: |D|, training samples, shape (I,), > 0.
        epochs: local epochs per round, >= 1.
        payload: numbers sent, those of equation (5) and the head's.
    """
    products = num_trained_layers * sum(d * k for d, k in sizes)
    passes = np.asarray(samples, np.float64) * epochs
    return _with_payload(Affine(-products * passes, 2 * products * passes), payload)


def flops_workload(
    flops: Flops,
    amount: TrainingAmount,
    payload: Payload,
    *,
    flops_per_cycle: FloatArray,
    trunk_cycles_every_round: FloatArray | None = None,
) -> Workload:
    """Count true FLOPs, forward and backward, of the trained part over the client's real token lengths.

    cycles(r) = ((a·|D| + b·ΣL + c·ΣL²)·epochs + s·steps) / φ, with a, b, c and s affine in r

    Replaces equation (2). Attention makes the cost quadratic in L, hence two sums over the samples.

    Args:
        flops: a, b, c and s of the adapter method.
        amount: what the clients train on.
        payload: numbers really sent.
        flops_per_cycle: φ [FLOP/cycle], shape (I,), > 0.
        trunk_cycles_every_round: of one trunk pass over the samples, whose activations then serve all the round's
            epochs, shape (I,); None where the trunk is prepared outside the rounds.
    """
    sums = np.stack([amount.samples, amount.token_sum, amount.token_square_sum])
    constant = flops.sample @ sums * amount.epochs / flops_per_cycle + flops.step * amount.steps / flops_per_cycle
    if trunk_cycles_every_round is not None:
        constant = constant + trunk_cycles_every_round
    per_rank = flops.sample_per_rank @ sums * amount.epochs / flops_per_cycle
    return _with_payload(Affine(constant, per_rank + flops.step_per_rank * amount.steps / flops_per_cycle), payload)


def trunk_cycles(
    shape: EncoderShape,
    cut_layer: int,
    token_sum: FloatArray,
    token_square_sum: FloatArray,
    flops_per_cycle: FloatArray,
) -> FloatArray:
    """Count the cycles of one pass of the frozen trunk over a client's samples: the one-off preparation.

    Args:
        shape: the encoder's sizes.
        cut_layer: index of the first trained layer.
        token_sum: ΣL, shape (I,).
        token_square_sum: ΣL², shape (I,).
        flops_per_cycle: φ [FLOP/cycle], shape (I,), > 0.

    Returns:
        cycles, shape (I,).
    """
    _, per_token, per_token_pair = trunk_flops(shape, cut_layer)
    cycles: FloatArray = (per_token * token_sum + per_token_pair * token_square_sum) / flops_per_cycle
    return cycles


def measured_workload(
    seconds_per_sample: FloatArray,
    seconds_per_sample_per_rank: FloatArray,
    reference_frequency_hz: FloatArray,
    samples: FloatArray,
    epochs: int,
    payload: Payload,
) -> Workload:
    """Take times measured on the client to scale with its frequency.

    cycles(r) = (a + b·r)·f_ref·|D|·epochs

    Replaces equation (2). Memory-bound work speeds up less than the clock, so measure near the frequency in use.

    Args:
        seconds_per_sample: a [s], shape (I,), > 0.
        seconds_per_sample_per_rank: b [s], shape (I,), >= 0.
        reference_frequency_hz: f_ref, clock at which a and b were measured [Hz], shape (I,), > 0.
        samples: |D|, shape (I,).
        epochs: local epochs per round, >= 1.
        payload: numbers really sent.
    """
    cycles_per_second_per_sample = reference_frequency_hz * np.asarray(samples, np.float64) * epochs
    cycles = Affine(
        seconds_per_sample * cycles_per_second_per_sample, seconds_per_sample_per_rank * cycles_per_second_per_sample
    )
    return _with_payload(cycles, payload)


def _with_payload(cycles: Affine, payload: Payload) -> Workload:
    num_clients = len(cycles.constant)

    def bits(count: Count) -> Affine:
        return Affine(
            np.full(num_clients, float(count.constant * payload.bits_per_number)),
            np.full(num_clients, float(count.per_rank * payload.bits_per_number)),
        )

    downlink = bits(payload.downlink)
    downlink = replace(downlink, constant=downlink.constant + payload.merged * payload.bits_per_number)
    return Workload(cycles, bits(payload.uplink), downlink)
