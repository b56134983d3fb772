"""LoRA: the packed forward pass and two factors a linear.

Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022.
"""

from __future__ import annotations

from splitrank.planning.costs.cost import MethodCost, factor_numbers, smallest_side
from splitrank.planning.costs.packed import packed_flops

LORA = MethodCost(flops=packed_flops, numbers=factor_numbers, rank_cap=smallest_side)
