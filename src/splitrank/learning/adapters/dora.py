"""DoRA: LoRA that learns each row's length and direction apart, as PEFT implements it.

Liu et al., "DoRA: weight-decomposed low-rank adaptation", ICML 2024: W' = m ∘ (W + s·B·A)/‖W + s·B·A‖, the norm taken
over each output row and constant in the backward pass; m starts at ‖W‖, so that W' = W before training. The paper says
"column" where PyTorch, which stores W as d × k, has rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from peft import PeftModel
from torch import nn

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.factors import resize_factors
from splitrank.learning.adapters.method import NO_TERMS, LocalTerms
from splitrank.learning.adapters.peft_lora import attach_lora, check_settings, factor_parameters, lora_layers
from splitrank.learning.encoder import Encoder
from splitrank.traits import METHOD_TRAITS, TRAINED_ADAPTER, Distribution, MethodTraits


@dataclass(frozen=True)
class Dora:
    """DoRA; implements :class:`method.Method`. Attributes and errors as those of :class:`lora.Lora`."""

    linears: tuple[str, ...]
    scaling: float
    dropout: float = 0.0

    name: ClassVar[str] = "dora"
    traits: ClassVar[MethodTraits] = METHOD_TRAITS["dora"]
    terms: ClassVar[LocalTerms] = NO_TERMS

    def __post_init__(self) -> None:
        check_settings(type(self).__name__, self.linears, self.scaling, self.dropout)

    def attach(self, encoder: Encoder) -> PeftModel:
        return attach_lora(encoder, self.linears, scaling=self.scaling, dropout=self.dropout, use_dora=True)

    def parameters(self, encoder: Encoder, rank: int, scaling: float) -> dict[str, nn.Parameter]:
        factors = factor_parameters(encoder, rank, scaling)
        found: dict[str, nn.Parameter] = {}
        for path, layer in lora_layers(encoder).items():
            magnitude: Any = cast(Any, layer).lora_magnitude_vector[TRAINED_ADAPTER]
            names = (f"lora_A/{path}", f"lora_B/{path}")
            found |= {name: factors[name] for name in names} | {f"magnitude/{path}": magnitude.weight}
        return found

    def scaling_at(self, rank: int) -> float:
        return self.scaling

    def resize(self, adapter: Adapter, rank: int, *, distribution: Distribution, seed: int, round: int) -> Adapter:
        return resize_factors(adapter, rank, self.scaling_at(rank), distribution=distribution, seed=seed, round=round)
