"""Why the trunk is not built in int8: PyTorch's dynamically quantised linears take longer than bf16 ones.

    .venv/bin/python -m benchmarks.int8_is_slower_for_the_trunk

8,192 tokens, the four sizes of linears in a layer of MiniLM and of RoBERTa-base, medians of 12 calls, 2 threads.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import seconds
from splitrank.learning.memory import keep_freed_memory


def median_ms(call: Callable[[], object]) -> float:
    for _ in range(3):
        call()
    return 1e3 * statistics.median(seconds(call) for _ in range(12))


@torch.no_grad()
def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    keep_freed_memory()
    torch.backends.quantized.engine = "onednn"
    for hidden in (384, 768):
        for k, d in ((hidden, 3 * hidden), (hidden, hidden), (hidden, 4 * hidden), (4 * hidden, hidden)):
            linear, states = nn.Linear(k, d), torch.randn(8192, k)
            quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8)
            int8_ms = median_ms(lambda quantised=quantised, states=states: quantised(states))
            half, half_states = linear.bfloat16(), states.bfloat16()
            bf16_ms = median_ms(lambda half=half, half_states=half_states: half(half_states))
            print(f"{k:4} to {d:4}: bf16 {bf16_ms:5.2f} ms, int8 {int8_ms:5.2f} ms", flush=True)


if __name__ == "__main__":
    main()
