"""Full fine-tuning of the trained layers: every weight, bias and norm of them is trained, sent and averaged.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017: the
baseline for adapters. There is no rank: it counts as 1 and no planner changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.method import NO_TERMS, LocalTerms
from splitrank.learning.encoder import Encoder
from splitrank.traits import METHOD_TRAITS, Distribution, MethodTraits


@dataclass(frozen=True)
class Full:
    """Full fine-tuning; implements :class:`method.Method`."""

    name: ClassVar[str] = "full"
    traits: ClassVar[MethodTraits] = METHOD_TRAITS["full"]
    terms: ClassVar[LocalTerms] = NO_TERMS

    def attach(self, encoder: Encoder) -> None:
        """Leave the model as it is."""

    def parameters(self, encoder: Encoder, rank: int, scaling: float) -> dict[str, nn.Parameter]:
        layers = encoder.model.get_submodule(encoder.family.layers)
        return {
            f"weight/{encoder.family.layers}.{index}.{path}": parameter
            for index in encoder.trained_layers
            for path, parameter in layers[index].named_parameters()
        }

    def scaling_at(self, rank: int) -> float:
        return 1.0

    def resize(self, adapter: Adapter, rank: int, *, distribution: Distribution, seed: int, round: int) -> Adapter:
        return replace(adapter, rank=1)
