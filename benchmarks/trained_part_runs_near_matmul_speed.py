"""Claim: training what is not frozen away takes little longer than the matrix products it needs.

RoBERTa-base's shape, last 3 of 12 layers, trunk cached, LoRA of rank 8, batches of 32 texts of 64 tokens, 2 threads.
The step is the product's own (`learning.client.train_client`): cached states read from disk, forward, backward, clipped
gradients, AdamW. Against it stand the products that PyTorch sees in such a step, each of the same sizes, in bf16, as
a plain `torch.matmul` of its own into memory that is there already. That this list holds nothing but what the
mathematics needs is asserted: its operations sum up to the count of `planning.costs.lora`.

The claim is 75 % for adapters on query and value and 65 % for all six linears. Intel's AMX multiplies bf16 several
times faster than the memory delivers what stands between the products (norms, softmax, activation, sums), whose share
is then larger: there it is 50 %, and the script measures again in a process without AMX
(``ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16``), where the claim must hold as it is.

    .venv/bin/python -m benchmarks.trained_part_runs_near_matmul_speed
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.materials import empty_cache, roberta_base_shape
from benchmarks.measure import alternate, conclude
from splitrank.learning.adapters.lora import Lora
from splitrank.learning.adapters.method import attach, initial, trained_head
from splitrank.learning.client import Task, TrainingConfig, train_client
from splitrank.learning.encoder import Encoder, load_encoder
from splitrank.learning.memory import keep_freed_memory
from splitrank.learning.trunk import TrunkOutputs, trunk_outputs
from splitrank.placement import target_linears
from splitrank.planning.costs.cost import TrainedPart
from splitrank.planning.costs.lora import LORA
from splitrank.planning.flops import EncoderShape

LEAST = {"query-value": 0.75, "all-linear": 0.65}
LEAST_WITH_AMX = {"query-value": 0.5, "all-linear": 0.5}
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
LAYERS, LABELS, RANK, BATCH, TOKENS, STEPS = (9, 10, 11), ["a", "b", "c", "d"], 8, 32, 64, 4
TRAINING = TrainingConfig(
    learning_rate=5e-4,
    batch_size=BATCH,
    schedule="constant",
    weight_decay=0.0,
    max_grad_norm=1.0,
    local_epochs=1,
    num_rounds=1,
)


class Products(TorchDispatchMode):
    """Notes the sizes of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[torch.Size, torch.Size]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}.get(function._overloadpacket.__name__)
        if operands is not None:
            left, right = args[operands : operands + 2]
            self.sizes.append((left.shape, right.shape))
        return function(*args, **(kwargs or {}))


class Step:
    """Some training steps of the product."""

    def __init__(self, encoder: Encoder, outputs: TrunkOutputs, targets: str) -> None:
        self.encoder, self.outputs = encoder, outputs
        self.adapted = attach(encoder, Lora(target_linears(targets), scaling=2.0))
        start = initial(self.adapted, trained_head(self.adapted, "full"))
        self.adapter = self.adapted.method.resize(start, RANK, distribution="svd", seed=0, round=1)
        self.labels = np.arange(len(outputs.lengths)) % len(LABELS)

    def __call__(self, steps: int = STEPS) -> None:
        rows = np.arange(steps * BATCH)
        task = Task(self.adapter, seed=0, round=1, client=0)
        train_client(self.adapted, task, self.outputs, rows, self.labels, TRAINING)


def products(sizes: Sequence[tuple[torch.Size, torch.Size]], dtype: torch.dtype) -> Any:
    """A call that multiplies matrices of these sizes."""
    operands = [(torch.randn(left).to(dtype), torch.randn(right).to(dtype)) for left, right in sizes]
    outputs = [torch.matmul(left, right) for left, right in operands]

    def multiply() -> None:
        for _ in range(STEPS):
            for (left, right), output in zip(operands, outputs, strict=True):
                torch.matmul(left, right, out=output)

    return multiply


def show_profile(step: Step) -> None:
    """Where a step's time goes, by operator."""
    with torch.profiler.profile() as profile:
        step()
    operators = sorted(profile.key_averages(), key=lambda operator: -operator.self_cpu_time_total)
    total_us = sum(operator.self_cpu_time_total for operator in operators)
    for operator in operators[:16]:
        share = operator.self_cpu_time_total / total_us
        print(f"{share:6.1%}  {operator.count / STEPS:4.0f} calls a step  {operator.key}", flush=True)


def measure(folder: Path, targets: str, repeats: int, *, has_amx: bool, profiled: bool) -> bool:
    encoder = load_encoder(
        str(folder), LAYERS, LABELS, precision=torch.bfloat16, device=torch.device("cpu"), max_length=TOKENS
    )
    draws = np.random.default_rng(0)
    ids = draws.integers(1000, encoder.model.config.vocab_size, (STEPS * BATCH, TOKENS), dtype=np.int32)
    outputs = trunk_outputs(encoder, list(ids), limit_bytes=1e9, what="random texts")
    step = Step(encoder, outputs, targets)
    with Products() as noted:
        step(1)
    sizes = EncoderShape(
        encoder.num_layers, encoder.hidden_size, encoder.model.config.intermediate_size, encoder.num_heads
    )
    kinds = frozenset({"lora_A", "lora_B"})
    flops = LORA.flops(TrainedPart(sizes, tuple(LAYERS), target_linears(targets), "full", len(LABELS), kinds))
    needed = BATCH * float((flops.sample + RANK * flops.sample_per_rank) @ [1, TOKENS, TOKENS**2])
    assert needed == sum(2 * left.numel() * right[-1] for left, right in noted.sizes)
    pairs = alternate(step, products(noted.sizes, encoder.precision), repeats=repeats, warm_up=3)
    if profiled:
        show_profile(step)
    outputs.close()
    step_s, products_s = (statistics.median(taken) / STEPS for taken in (pairs.ours_s, pairs.theirs_s))
    shares = [theirs / ours for ours, theirs in zip(pairs.ours_s, pairs.theirs_s, strict=True)]
    least = (LEAST_WITH_AMX if has_amx else LEAST)[targets]
    kind = "with AMX" if has_amx else "without AMX"
    try:
        conclude(
            f"trained_part_runs_near_matmul_speed_{targets}_{kind.replace(' ', '_')}",
            f"RoBERTa-base shape, last 3 layers, {targets}, {kind}: a step's products take "
            f"{statistics.median(shares):.0%} of its time ({min(shares):.0%} to {max(shares):.0%} over "
            f"{repeats} pairs); step {step_s * 1e3:.0f} ms, "
            f"{BATCH / step_s:.0f} texts/s, {needed / BATCH / 1e9:.2f} GFLOP a text at "
            f"{needed / step_s / 1e9:.0f} GFLOP/s, the products alone at {needed / products_s / 1e9:.0f}",
            statistics.median(shares) >= least,
            least=least,
            flops_per_text=needed / BATCH,
            **asdict(pairs),
        )
    except SystemExit:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--profile", action="store_true", help="show where a step's time goes")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary, empty_cache():
        folder = roberta_base_shape(Path(temporary) / "encoder")
        has_amx = torch.cpu._is_amx_tile_supported() and not WITHOUT_AMX.keys() & os.environ.keys()
        hold = [
            measure(folder, targets, arguments.repeats, has_amx=has_amx, profiled=arguments.profile)
            for targets in LEAST
        ]
    if has_amx:
        command = [sys.executable, "-m", "benchmarks.trained_part_runs_near_matmul_speed", "--repeats", "2"]
        hold.append(subprocess.run(command, env={**os.environ, **WITHOUT_AMX}).returncode == 0)
    if not all(hold):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
