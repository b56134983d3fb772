"""LoRA layers as PEFT makes them: attached to chosen linears of chosen layers, found again, brought to a rank."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from splitrank.learning.encoder import Encoder
from splitrank.placement import LINEARS
from splitrank.traits import TRAINED_ADAPTER


def check_settings(method: str, linears: tuple[str, ...], scaling: float, dropout: float) -> None:
    """Check the settings that LoRA's family shares.

    Raises:
        ValueError: one line for each that breaks its rule.
    """
    problems = []
    if not isinstance(linears, tuple) or not linears or not set(linears) <= set(LINEARS):
        problems.append(f"linears must be a tuple of some of {', '.join(LINEARS)}, got {linears!r}")
    if not isinstance(scaling, int | float) or not 0 < scaling < math.inf:
        problems.append(f"scaling must be finite and > 0, got {scaling!r}; 2.0 is customary")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        problems.append(f"dropout must be at least 0 and below 1, got {dropout!r}; 0 drops nothing")
    if problems:
        raise ValueError("\n".join(f"{method}.{problem}" for problem in problems))


def attach_lora(
    encoder: Encoder, linears: tuple[str, ...], *, scaling: float, dropout: float, **variant: Any
) -> PeftModel:
    """Let PEFT put rank-1 LoRA with zero effect on linears of the trained layers, and wrap the head.

    The encoder's model is changed in place, so its forward pass runs through the adapters from then on. The whole head
    goes into PEFT's ``modules_to_save`` whatever the head policy is: it starts from random weights, so an exported
    adapter without it could not predict.

    Args:
        encoder: a freshly loaded encoder.
        linears, scaling, dropout: as in :class:`Lora`.
        variant: further arguments of PEFT's ``LoraConfig``.
    """
    family = encoder.family
    layers = "|".join(str(layer) for layer in encoder.trained_layers)
    names = "|".join(re.escape(family.linears[name]) for name in linears)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=1,
        lora_alpha=scaling,  # type: ignore[arg-type]  # PEFT divides by r, it need not be whole
        lora_dropout=dropout,
        target_modules=rf"{re.escape(family.layers)}\.({layers})\.({names})",
        modules_to_save=list(family.head_modules),
        base_model_name_or_path=encoder.location,
        **variant,
    )
    # PEFT's initial draws are replaced by named streams; its use of an old name in Transformers is its own.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore", category=FutureWarning):
        return get_peft_model(encoder.model, config)


def alpha_of(scaling: float, rank: int, *, use_rslora: bool) -> float:
    """Return the alpha that PEFT makes a scaling of: s·r, or s·√r with ``use_rslora``."""
    return scaling * math.sqrt(rank) if use_rslora else scaling * rank


def declare(peft_model: PeftModel, rank: int, scaling: float) -> None:
    """Write a rank and its alpha into PEFT's configuration, by which an export is loaded, where it has these."""
    config: Any = peft_model.peft_config[TRAINED_ADAPTER]
    if isinstance(config, LoraConfig):
        alpha: Any = alpha_of(scaling, rank, use_rslora=config.use_rslora)  # it need not be whole
        config.r, config.lora_alpha = rank, alpha


# Looking through all modules takes longer than exchanging an adapter.
_known_layers: WeakKeyDictionary[nn.Module, dict[str, LoraLayer]] = WeakKeyDictionary()


def lora_layers(encoder: Encoder) -> dict[str, LoraLayer]:
    """Return PEFT's layers by path, in the order of the model."""
    if encoder.model not in _known_layers:
        modules = encoder.model.named_modules()
        _known_layers[encoder.model] = {path: layer for path, layer in modules if isinstance(layer, LoraLayer)}
    return _known_layers[encoder.model]


def factor_parameters(encoder: Encoder, rank: int, scaling: float) -> dict[str, nn.Parameter]:
    """Bring PEFT's layers to a rank and scaling; return A and B of each, layer by layer."""
    found: dict[str, nn.Parameter] = {}
    for path, layer in lora_layers(encoder).items():
        lora_A, lora_B = (cast(nn.Linear, part[TRAINED_ADAPTER]) for part in (layer.lora_A, layer.lora_B))
        if lora_A.weight.shape[0] != rank:
            lora_A.weight = nn.Parameter(lora_A.weight.new_zeros(rank, lora_A.in_features))
            lora_B.weight = nn.Parameter(lora_B.weight.new_zeros(lora_B.out_features, rank))
            lora_A.out_features = lora_B.in_features = rank
        alpha = alpha_of(scaling, rank, use_rslora=layer.use_rslora[TRAINED_ADAPTER])
        layer.r[TRAINED_ADAPTER], layer.lora_alpha[TRAINED_ADAPTER] = rank, alpha
        layer.scaling[TRAINED_ADAPTER] = scaling
        found[f"lora_A/{path}"] = cast(nn.Parameter, lora_A.weight)
        found[f"lora_B/{path}"] = cast(nn.Parameter, lora_B.weight)
    return found
