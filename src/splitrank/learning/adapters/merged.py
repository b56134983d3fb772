"""Frozen parts that a rule has put aside: products that stay in the model beside the adapter that is trained.

``merged_A/<path>`` (R × k) and ``merged_B/<path>`` (d × R) are one product B·A; its scaling is in B. Where their rank
makes them larger than the product itself, R > d·k/(d + k), they become ``merged_W/<path>`` (d × k), to the same values.
In the model they are a second LoRA adapter of PEFT's, which the packed forward pass honours; the pretrained weights,
and so the trunk's cache, stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.peft_lora import lora_layers
from splitrank.learning.encoder import Encoder
from splitrank.traits import MERGED_KINDS, TRAINED_ADAPTER

_NAME = "merged"

Factors = tuple[Tensor, Tensor]
"""A of shape (R, k) and B of shape (d, R), whose product is B·A."""


def merged_factors(adapter: Adapter) -> dict[str, Factors]:
    """Return the merged parts by path, as factors whatever form they have."""
    merged_B = adapter.of_kind("merged_B")
    found = {path: (a, merged_B[path]) for path, a in adapter.of_kind("merged_A").items()}
    dense = adapter.of_kind("merged_W").items()
    return found | {path: (torch.eye(weight.shape[1]), weight) for path, weight in dense}


def add_merged(adapter: Adapter, parts: Mapping[str, Factors]) -> Adapter:
    """Put products aside, beside those that were put aside before.

    Args:
        adapter: to which they are added.
        parts: path → factors, their scaling in B.
    """
    before = merged_factors(adapter)
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if name not in adapter.only(*MERGED_KINDS)}
    for path in sorted({*before, *parts}):
        given = [factors[path] for factors in (before, parts) if path in factors]
        a, b = torch.cat([one for one, _ in given]), torch.cat([one for _, one in given], dim=1)
        d, k = b.shape[0], a.shape[1]
        if a.shape[0] > d * k / (d + k):
            tensors[f"merged_W/{path}"] = (b.double() @ a.double()).to(b.dtype)
        else:
            tensors |= {f"merged_A/{path}": a, f"merged_B/{path}": b}
    return Adapter(adapter.rank, adapter.scaling, tensors)


def load_merged(encoder: Encoder, adapter: Adapter) -> None:
    """Put the merged parts of an adapter into the model, frozen; an adapter without any takes former ones out."""
    parts = merged_factors(adapter)
    for path, layer in lora_layers(encoder).items():
        if path not in parts:
            if layer.active_adapters != [TRAINED_ADAPTER]:
                layer.set_adapter(TRAINED_ADAPTER)
            continue
        a, b = parts[path]
        if _NAME not in layer.lora_A:
            layer.update_layer(_NAME, r=a.shape[0], lora_alpha=a.shape[0], config=LoraConfig(r=a.shape[0]))
        for module, weight in ((layer.lora_A[_NAME], a), (layer.lora_B[_NAME], b)):
            module.weight = nn.Parameter(weight.to(encoder.model.device, torch.float32), requires_grad=False)
        layer.r[_NAME], layer.scaling[_NAME] = a.shape[0], 1.0
        layer.set_adapter([TRAINED_ADAPTER, _NAME])
        layer.lora_A[_NAME].requires_grad_(False)
        layer.lora_B[_NAME].requires_grad_(False)


@contextmanager
def as_one_adapter(encoder: Encoder, peft_model: PeftModel, adapter: Adapter) -> Iterator[None]:
    """Hold a loaded adapter and its merged parts as one LoRA adapter, as PEFT can save it; without any, change nothing.

    A linear's A has the merged A below it and its B the merged B beside it, divided by the adapter's scaling, so that
    ``rank_pattern`` and ``alpha_pattern`` give every linear that scaling at its own rank. The model is to be loaded
    again afterwards.
    """
    parts = merged_factors(adapter)
    if not parts:
        yield
        return
    load_merged(encoder, Adapter(adapter.rank, adapter.scaling, {}))
    layers = lora_layers(encoder)
    for path, (more_a, more_b) in parts.items():
        lora_A: Any = layers[path].lora_A[TRAINED_ADAPTER]
        lora_B: Any = layers[path].lora_B[TRAINED_ADAPTER]
        more_b = more_b / adapter.scaling
        lora_A.weight = nn.Parameter(torch.cat([lora_A.weight.detach(), more_a.to(lora_A.weight.device)]))
        lora_B.weight = nn.Parameter(torch.cat([lora_B.weight.detach(), more_b.to(lora_B.weight.device)], dim=1))
    config: Any = peft_model.peft_config[TRAINED_ADAPTER]
    config.rank_pattern = {path: adapter.rank + a.shape[0] for path, (a, _) in parts.items()}
    config.alpha_pattern = {path: adapter.scaling * rank for path, rank in config.rank_pattern.items()}
    try:
        yield
    finally:
        config.rank_pattern, config.alpha_pattern = {}, {}
