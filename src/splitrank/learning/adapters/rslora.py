"""rsLoRA: LoRA whose product is scaled by 1/√r, so that steps have the same size at any rank.

Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA", arXiv 2312.03732: W + (alpha/√r)·B·A
with one alpha for all ranks, where LoRA here has one alpha/r. Alpha is the setting's scaling, so at rank 1 the two are
the same. The paper trains one fixed rank; a change of rank, and so of the scaling, multiplies B by s_old/s_new to keep
the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from peft import PeftModel

from splitrank.learning.adapters.lora import Lora
from splitrank.learning.adapters.peft_lora import attach_lora
from splitrank.learning.encoder import Encoder
from splitrank.traits import METHOD_TRAITS, MethodTraits


@dataclass(frozen=True)
class RsLora(Lora):
    """rsLoRA; implements :class:`method.Method`. Attributes and errors as those of :class:`lora.Lora`."""

    name: ClassVar[str] = "rslora"
    traits: ClassVar[MethodTraits] = METHOD_TRAITS["rslora"]

    def attach(self, encoder: Encoder) -> PeftModel:
        return attach_lora(encoder, self.linears, scaling=self.scaling, dropout=self.dropout, use_rslora=True)

    def scaling_at(self, rank: int) -> float:
        """Return s(r) = scaling/√r."""
        return self.scaling / math.sqrt(rank)
