"""The cost of a client's round, operations and bits, as an affine function of the LoRA rank.

Three models: the paper's operation count (Xie and Wen, equations 2 and 5), the true FLOPs of the trained part, and
times measured on the client. All end in the same `Workload`, so no solver knows which one was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitrank.placement import target_maps
from splitrank.planning.flops import EncoderShape, Head, training_flops, trunk_flops

FloatArray = NDArray[np.float64]

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
class Workload:
    """What one round costs each client: constant + per_rank · r. All fields float64, shape (I,).

    Cycles are those of the whole round, all samples and local epochs included; bits are sent once up and once down.
    The constant of the paper's cycle count is negative; at r = 1 every cost is positive.
    """

    cycles_constant: FloatArray
    cycles_per_rank: FloatArray
    payload_bits_constant: FloatArray
    payload_bits_per_rank: FloatArray

    def cycles(self, rank: NDArray[np.int64] | FloatArray | int) -> FloatArray:
        """C·|D|·epochs at a rank [cycles], shape (I,)."""
        return self.cycles_constant + self.cycles_per_rank * rank

    def payload_bits(self, rank: NDArray[np.int64] | FloatArray | int) -> FloatArray:
        """M·Q at a rank [bits], shape (I,)."""
        return self.payload_bits_constant + self.payload_bits_per_rank * rank


def map_shapes(shape: EncoderShape, target_modules: str | Sequence[str]) -> list[tuple[int, int]]:
    """Shapes (d, k) = (out, in) of one layer's target maps: the paper's set Â for a layer."""
    maps = shape.maps()
    return [maps[name] for name in target_maps(target_modules)]


def adapter_parameters_per_rank(maps: Sequence[tuple[int, int]], num_trained_layers: int) -> int:
    """l·Σ(d + k): adapter parameters that one more rank adds, equation (5) with its misprint (r + k)·d mended."""
    return num_trained_layers * sum(d + k for d, k in maps)


def head_parameters(hidden_size: int, num_labels: int, policy: Head) -> int:
    """Parameters of the classification head that are sent: dense (h·h + h) and out_proj (h·n + n).

    The paper trains the head but leaves it out of M.

    Args:
        hidden_size: h.
        num_labels: n, number of classes.
        policy: ``"full"`` sends both maps, ``"out_proj"`` the last, ``"frozen"`` and ``"local"`` none.
    """
    out_proj = hidden_size * num_labels + num_labels
    dense = hidden_size * hidden_size + hidden_size
    return {"full": dense + out_proj, "out_proj": out_proj, "frozen": 0, "local": 0}[policy]


def paper_workload(
    maps: Sequence[tuple[int, int]],
    num_trained_layers: int,
    samples: FloatArray,
    epochs: int,
    bits_per_parameter: float,
    head_parameters_sent: int,
) -> Workload:
    """The paper's workload, one operation per cycle.

    C(r)·|D|·epochs = l·Σ(2r - 1)·d·k · |D|·epochs,  M(r)·Q = (l·Σ r·(d + k) + head)·Q

    Equation (2), and equation (5) with its misprint (r + k)·d mended. It counts the product B·A of each adapter,
    not the passes through the network. The paper's head is 0 here; a count above 0 is a departure.

    Args:
        maps: (d, k) of one layer's target maps.
        num_trained_layers: l.
        samples: |D|, training samples, shape (I,), > 0.
        epochs: local epochs per round, >= 1.
        bits_per_parameter: Q [bits], > 0.
        head_parameters_sent: parameters sent beside the adapters, >= 0.
    """
    products = num_trained_layers * sum(d * k for d, k in maps)
    passes = np.asarray(samples, np.float64) * epochs
    return _with_payload(
        -products * passes,
        2 * products * passes,
        adapter_parameters_per_rank(maps, num_trained_layers),
        head_parameters_sent,
        bits_per_parameter,
    )


def flops_workload(
    shape: EncoderShape,
    trained_layers: Sequence[int],
    target_modules: str | Sequence[str],
    *,
    head: Head,
    num_labels: int,
    token_sum: FloatArray,
    token_square_sum: FloatArray,
    samples: FloatArray,
    epochs: int,
    flops_per_cycle: FloatArray,
    bits_per_parameter: float,
    head_parameters_sent: int,
    trunk: Literal["prepared", "every-round"] = "prepared",
) -> Workload:
    """True FLOPs, forward and backward, of the trained part over the client's real token lengths.

    cycles(r) = (a·|D| + b·ΣL + c·ΣL²)·epochs / φ, with a, b, c affine in r (`flops.training_flops`)

    Replaces equation (2). Attention makes the cost quadratic in L, hence two sums over the samples.

    Args:
        shape: the encoder's sizes.
        trained_layers: indices of the layers with adapters.
        target_modules: group or logical names of the maps with adapters.
        head: how the head is trained.
        num_labels: number of classes.
        token_sum: ΣL, tokens of the client's samples, shape (I,).
        token_square_sum: ΣL², shape (I,).
        samples: |D|, shape (I,).
        epochs: local epochs per round, >= 1.
        flops_per_cycle: φ [FLOP/cycle], shape (I,), > 0.
        bits_per_parameter: Q [bits], > 0.
        head_parameters_sent: parameters sent beside the adapters, >= 0.
        trunk: ``"prepared"`` leaves the frozen trunk's pass out of the round; ``"every-round"`` charges one trunk
            pass over the samples to each round, whose activations then serve all its epochs.
    """
    constant, per_rank = training_flops(shape, trained_layers, target_maps(target_modules), head, num_labels)
    sums = np.stack([samples, token_sum, token_square_sum])
    cycles_constant = constant @ sums * epochs / flops_per_cycle
    if trunk == "every-round":
        cycles_constant = cycles_constant + trunk_cycles(
            shape, min(trained_layers), token_sum, token_square_sum, flops_per_cycle
        )
    return _with_payload(
        cycles_constant,
        per_rank @ sums * epochs / flops_per_cycle,
        adapter_parameters_per_rank(map_shapes(shape, target_modules), len(set(trained_layers))),
        head_parameters_sent,
        bits_per_parameter,
    )


def trunk_cycles(
    shape: EncoderShape,
    cut_layer: int,
    token_sum: FloatArray,
    token_square_sum: FloatArray,
    flops_per_cycle: FloatArray,
) -> FloatArray:
    """Cycles of one pass of the frozen trunk over a client's samples: the one-off preparation.

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
    *,
    samples: FloatArray,
    epochs: int,
    parameters_per_rank: int,
    bits_per_parameter: float,
    head_parameters_sent: int,
) -> Workload:
    """Times measured on the client, taken to scale with its frequency.

    cycles(r) = (a + b·r)·f_ref·|D|·epochs

    Replaces equation (2). Memory-bound work speeds up less than the clock, so measure near the frequency in use.

    Args:
        seconds_per_sample: a [s], shape (I,), > 0.
        seconds_per_sample_per_rank: b [s], shape (I,), >= 0.
        reference_frequency_hz: f_ref, clock at which a and b were measured [Hz], shape (I,), > 0.
        samples: |D|, shape (I,).
        epochs: local epochs per round, >= 1.
        parameters_per_rank: adapter parameters that one more rank adds.
        bits_per_parameter: Q, bits really sent per parameter, > 0.
        head_parameters_sent: parameters sent beside the adapters, >= 0.
    """
    cycles_per_second_per_sample = reference_frequency_hz * np.asarray(samples, np.float64) * epochs
    return _with_payload(
        seconds_per_sample * cycles_per_second_per_sample,
        seconds_per_sample_per_rank * cycles_per_second_per_sample,
        parameters_per_rank,
        head_parameters_sent,
        bits_per_parameter,
    )


def _with_payload(
    cycles_constant: FloatArray,
    cycles_per_rank: FloatArray,
    parameters_per_rank: int,
    head_parameters_sent: int,
    bits_per_parameter: float,
) -> Workload:
    return Workload(
        cycles_constant=cycles_constant,
        cycles_per_rank=cycles_per_rank,
        payload_bits_constant=np.full(len(cycles_constant), float(head_parameters_sent * bits_per_parameter)),
        payload_bits_per_rank=np.full(len(cycles_constant), float(parameters_per_rank * bits_per_parameter)),
    )
