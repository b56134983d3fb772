"""LoRA on chosen linears of chosen layers, attached by PEFT.

Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022: a frozen matrix W (d × k) is used as
W + (alpha/r)·B·A with A (r × k) and B (d × r). Here alpha/r is one number s for all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peft import PeftModel
from torch import nn

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.factors import resize_factors
from splitrank.learning.adapters.method import NO_TERMS, LocalTerms
from splitrank.learning.adapters.peft_lora import attach_lora, check_settings, factor_parameters
from splitrank.learning.encoder import Encoder
from splitrank.traits import METHOD_TRAITS, Distribution, MethodTraits


@dataclass(frozen=True)
class Lora:
    """LoRA; implements :class:`method.Method`.

    Attributes:
        linears: logical names of a layer's linears, out of ``placement.LINEARS``.
        scaling: s = alpha/r, > 0.
        dropout: of the adapter's input, at least 0 and below 1.

    Raises:
        ValueError: one line for each setting that breaks its rule.
    """

    linears: tuple[str, ...]
    scaling: float
    dropout: float = 0.0

    name: ClassVar[str] = "lora"
    traits: ClassVar[MethodTraits] = METHOD_TRAITS["lora"]
    terms: ClassVar[LocalTerms] = NO_TERMS

    def __post_init__(self) -> None:
        check_settings(type(self).__name__, self.linears, self.scaling, self.dropout)

    def attach(self, encoder: Encoder) -> PeftModel:
        return attach_lora(encoder, self.linears, scaling=self.scaling, dropout=self.dropout)

    def parameters(self, encoder: Encoder, rank: int, scaling: float) -> dict[str, nn.Parameter]:
        return factor_parameters(encoder, rank, scaling)

    def scaling_at(self, rank: int) -> float:
        return self.scaling

    def resize(self, adapter: Adapter, rank: int, *, distribution: Distribution, seed: int, round: int) -> Adapter:
        return resize_factors(adapter, rank, self.scaling_at(rank), distribution=distribution, seed=seed, round=round)
