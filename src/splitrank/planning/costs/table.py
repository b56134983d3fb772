"""The costs of all adapter methods; a test holds the keys equal to those of `traits.METHOD_TRAITS`."""

from __future__ import annotations

from splitrank.planning.costs.bitfit import BITFIT
from splitrank.planning.costs.bottleneck import BOTTLENECK
from splitrank.planning.costs.cost import MethodCost
from splitrank.planning.costs.dora import DORA
from splitrank.planning.costs.full import FULL
from splitrank.planning.costs.ia3 import IA3
from splitrank.planning.costs.lora import LORA
from splitrank.planning.costs.prefix import PREFIX

COSTS: dict[str, MethodCost] = {
    "lora": LORA,
    "rslora": LORA,  # the scaling costs nothing
    "dora": DORA,
    "full": FULL,
    "bitfit": BITFIT,
    "ia3": IA3,
    "bottleneck": BOTTLENECK,
    "prefix": PREFIX,
}
