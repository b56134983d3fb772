"""BitFit: train the biases of the trained layers, those of their layer norms included, and nothing else in them.

Ben Zaken et al., "BitFit: simple parameter-efficient fine-tuning for transformer-based masked language-models", ACL
2022. The paper trains the biases of all layers, here it is those of the trained ones. There is no rank: it counts as 1.
As in the paper the keys' biases are among them, though no loss depends on them: a softmax does not see what is added to
all scores of a query. They follow the rounding of their gradients: next to nothing in float32, visibly in bfloat16.
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
class BitFit:
    """BitFit; implements :class:`method.Method`."""

    name: ClassVar[str] = "bitfit"
    traits: ClassVar[MethodTraits] = METHOD_TRAITS["bitfit"]
    terms: ClassVar[LocalTerms] = NO_TERMS

    def attach(self, encoder: Encoder) -> None:
        """Leave the model as it is."""

    def parameters(self, encoder: Encoder, rank: int, scaling: float) -> dict[str, nn.Parameter]:
        layers = encoder.model.get_submodule(encoder.family.layers)
        return {
            f"bias/{encoder.family.layers}.{index}.{path}": parameter
            for index in encoder.trained_layers
            for path, parameter in layers[index].named_parameters()
            if path.endswith(".bias")
        }

    def scaling_at(self, rank: int) -> float:
        return 1.0

    def resize(self, adapter: Adapter, rank: int, *, distribution: Distribution, seed: int, round: int) -> Adapter:
        return replace(adapter, rank=1)
