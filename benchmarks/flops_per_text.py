"""Operations that one text costs: the frozen trunk once, and every training step on it.

    .venv/bin/python -m benchmarks.flops_per_text

LoRA of rank 8 on query and value, four classes, the whole head trained; GFLOP, a multiply-add counting two. The last
column is about what a step costs where nothing is cached and every layer runs for all tokens, as with PEFT around
Hugging Face: all layers forward, the trained ones backward.
"""

from __future__ import annotations

import numpy as np

from splitrank.planning.costs.cost import TrainedPart
from splitrank.planning.costs.lora import LORA
from splitrank.planning.flops import EncoderShape, trunk_flops
from splitrank.planning.workload import KNOWN_SHAPES

TARGETS, RANK, NUM_LABELS = ("query", "value"), 8, 4


def step(shape: EncoderShape, num_trained: int) -> np.ndarray:
    layers = tuple(range(shape.num_layers - num_trained, shape.num_layers))
    kinds = frozenset({"lora_A", "lora_B"})
    flops = LORA.flops(TrainedPart(shape, layers, TARGETS, "full", NUM_LABELS, kinds))
    return flops.sample + RANK * flops.sample_per_rank


def main() -> None:
    print("model          trained  tokens  trunk once   step  step of the whole network")
    for name in ("roberta-base", "minilm"):
        shape = KNOWN_SHAPES[name]
        for num_trained in sorted({1, 3, 6, shape.num_layers}):
            for tokens in (32, 64, 128):
                powers = np.array([1, tokens, tokens**2])
                trunk, ours, usual = (
                    coefficients @ powers / 1e9
                    for coefficients in (
                        trunk_flops(shape, shape.num_layers - num_trained),
                        step(shape, num_trained),
                        trunk_flops(shape, shape.num_layers + num_trained),
                    )
                )
                print(f"{name:14} {num_trained:7}  {tokens:6}  {trunk:10.2f}  {ours:5.2f}  {usual:25.2f}")


if __name__ == "__main__":
    main()
