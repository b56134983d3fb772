"""IA3: vectors that scale keys, values and the feed-forward part's inner activations, attached by PEFT.

Liu et al., "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning", NeurIPS 2022: a
trained layer has softmax(Q·(l_k ∘ K)ᵀ/√d)·(l_v ∘ V) and W_2·(l_ff ∘ γ(W_1·x)), where l_k and l_v have h numbers and
l_ff has m. They start at 1, so that nothing changes before training. The paper scales every layer, here it is the
trained ones. There is no rank: it counts as 1.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from peft import IA3Config, PeftModel, TaskType, get_peft_model
from torch import nn

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.method import NO_TERMS, LocalTerms
from splitrank.learning.encoder import Encoder
from splitrank.traits import METHOD_TRAITS, TRAINED_ADAPTER, Distribution, MethodTraits

_SCALED_OUTPUTS = ("key", "value")
_SCALED_INPUT = "output"


@dataclass(frozen=True)
class Ia3:
    """IA3; implements :class:`method.Method`."""

    name: ClassVar[str] = "ia3"
    traits: ClassVar[MethodTraits] = METHOD_TRAITS["ia3"]
    terms: ClassVar[LocalTerms] = NO_TERMS

    def attach(self, encoder: Encoder) -> PeftModel:
        family = encoder.family
        of_a_layer = rf"{re.escape(family.layers)}\.({'|'.join(map(str, encoder.trained_layers))})\."
        inner = re.escape(family.linears[_SCALED_INPUT])
        names = "|".join([*(re.escape(family.linears[name]) for name in _SCALED_OUTPUTS), inner])
        config = IA3Config(
            task_type=TaskType.SEQ_CLS,
            target_modules=f"{of_a_layer}({names})",
            feedforward_modules=f"{of_a_layer}{inner}",
            modules_to_save=list(family.head_modules),
            base_model_name_or_path=encoder.location,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore", category=FutureWarning):
            return get_peft_model(encoder.model, config)

    def parameters(self, encoder: Encoder, rank: int, scaling: float) -> dict[str, nn.Parameter]:
        family = encoder.family
        paths = [
            f"{family.layers}.{index}.{family.linears[name]}"
            for index in encoder.trained_layers
            for name in (*_SCALED_OUTPUTS, _SCALED_INPUT)
        ]
        layers: dict[str, Any] = {path: encoder.model.get_submodule(path) for path in paths}
        return {f"scale/{path}": cast(nn.Parameter, layer.ia3_l[TRAINED_ADAPTER]) for path, layer in layers.items()}

    def scaling_at(self, rank: int) -> float:
        return 1.0

    def resize(self, adapter: Adapter, rank: int, *, distribution: Distribution, seed: int, round: int) -> Adapter:
        return replace(adapter, rank=1)
