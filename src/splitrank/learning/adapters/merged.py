"""Frozen parts that a rule has put aside: products that stay in the model beside the adapter that is trained.

``merged_A/<path>`` (R × k) and ``merged_B/<path>`` (d × R) are one product B·A; its scaling is in B. Where their rank
makes them larger than the product itself, R > d·k/(d + k), they become ``merged_W/<path>`` (d × k), to the same values.
In the model they are a second LoRA adapter of PEFT's, which the packed forward pass honours; the pretrained weights,
and so the trunk's cache, stay what they were.

A merged part has rows: row j of factors is row j of A with column j of B, row j of a dense part is row j of W. New
products come after the old ones, so who has the first rows is sent the others only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.adapters.factors import best_factors
from splitrank.learning.adapters.peft_lora import alpha_of, lora_layers
from splitrank.learning.encoder import Encoder
from splitrank.traits import MERGED_AXIS, MERGED_KINDS, TRAINED_ADAPTER

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
    tensors = dict(adapter.tensors)
    for path, (a, b) in sorted(parts.items()):
        if not len(a):
            continue
        name_A, name_B, name_W = (f"{kind}/{path}" for kind in MERGED_KINDS)
        if name_W in tensors:
            tensors[name_W] = (tensors[name_W].double() + b.double() @ a.double()).to(b.dtype)
            continue
        if name_A in tensors:
            a, b = torch.cat([tensors.pop(name_A), a]), torch.cat([tensors.pop(name_B), b], dim=1)
        if len(a) > largest_rank(len(b), a.shape[1]):
            tensors[name_W] = (b.double() @ a.double()).to(b.dtype)
        else:
            tensors |= {name_A: a.clone(), name_B: b.clone()}  # a checkpoint's tensors must share no memory
    return Adapter(adapter.rank, adapter.scaling, tensors)


def truncate_merged(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """Return an adapter whose merged parts are the best approximations of at most a rank, and the share that is lost.

    A part of that rank or less stays what it is. The share is that of the merged parts' norm, over all linears, 0 where
    nothing is cut.
    """
    parts = {path: (a, b) for path, (a, b) in merged_factors(adapter).items() if len(a) > rank}
    if not parts:
        return adapter, 0.0
    lost_squared = norm_squared = 0.0
    cut, tensors = dict[str, Factors](), dict(adapter.tensors)
    for path, (a, b) in merged_factors(adapter).items():
        left, right, singular_values = best_factors(b.double(), a.double(), rank)
        norm_squared += float(singular_values.square().sum())
        if path in parts:
            lost_squared += float(singular_values[rank:].square().sum())
            cut[path] = right.to(a.dtype), left.to(b.dtype)
            for kind in MERGED_KINDS:
                tensors.pop(f"{kind}/{path}", None)
    kept = add_merged(Adapter(adapter.rank, adapter.scaling, tensors), cut)
    return kept, (lost_squared / norm_squared) ** 0.5 if norm_squared else 0.0


def largest_rank(d: int, k: int) -> int:
    """Return the largest rank of factors that are no larger than their product, ⌊d·k/(d + k)⌋."""
    return d * k // (d + k)


def merged_ranks(adapter: Adapter) -> dict[str, int | None]:
    """Return path → rank R of the merged factors, None of a dense part, in the order of the paths."""
    ranks: dict[str, int | None] = {path: len(a) for path, a in adapter.of_kind("merged_A").items()}
    return dict(sorted((ranks | dict.fromkeys(adapter.of_kind("merged_W"))).items()))


def merged_rows(adapter: Adapter) -> dict[str, int]:
    """Return path → rows of a merged part: R of factors, d of a dense one."""
    dense = {path: len(weight) for path, weight in adapter.of_kind("merged_W").items()}
    return {path: len(a) for path, a in adapter.of_kind("merged_A").items()} | dense


def rows_from(adapter: Adapter, first: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the merged tensors from a row on, by name; those of which nothing is left are left out.

    Args:
        adapter: whose merged parts.
        first: path → row; 0 where there is none.
    """
    tensors = adapter.only(*MERGED_KINDS)
    found = {name: _cut(name, tensor, first.get(path_of(name), 0), None) for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if tensor.numel()}


def rows_until(tensors: Mapping[str, Tensor], name: str, end: int) -> Tensor | None:
    """Return the rows of a merged tensor before a row, None where there are not as many."""
    axis = MERGED_AXIS[kind_of(name)]
    has_them = name in tensors and tensors[name].shape[axis] >= end
    return _cut(name, tensors[name], 0, end) if has_them else None


def path_of(name: str) -> str:
    """Return what follows the first word of a tensor's name."""
    return name.partition("/")[2]


def _cut(name: str, tensor: Tensor, first: int, end: int | None) -> Tensor:
    index = [slice(None)] * tensor.ndim
    index[MERGED_AXIS[kind_of(name)]] = slice(first, end)
    return tensor[tuple(index)]


def load_merged(encoder: Encoder, adapter: Adapter) -> None:
    """Put the merged parts of an adapter into the model, frozen; an adapter without any takes former ones out."""
    ranks, device = merged_ranks(adapter), encoder.model.device
    for path, layer in lora_layers(encoder).items():
        if path not in ranks:
            if layer.active_adapters != [TRAINED_ADAPTER]:
                layer.set_adapter(TRAINED_ADAPTER)
            continue
        if _NAME not in layer.lora_A:
            layer.update_layer(_NAME, r=1, lora_alpha=1, config=LoraConfig(r=1))
            layer.scaling[_NAME] = 1.0
        is_dense = ranks[path] is None
        b = adapter.tensors[f"merged_W/{path}" if is_dense else f"merged_B/{path}"]
        layer.lora_A[_NAME] = _identity(device) if is_dense else _linear(adapter.tensors[f"merged_A/{path}"], device)
        layer.lora_B[_NAME], layer.r[_NAME] = _linear(b, device), b.shape[1]
        layer.set_adapter([TRAINED_ADAPTER, _NAME])
        layer.lora_A[_NAME].requires_grad_(False)
        layer.lora_B[_NAME].requires_grad_(False)


def _linear(weight: Tensor, device: torch.device) -> nn.Linear:
    """Return a linear of a weight, without drawing another one first."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(device, torch.float32), requires_grad=False)
    return linear


def _identity(device: torch.device) -> nn.Identity:
    """Return what stands in A's place where W is dense: the packed layer leaves it out, PEFT asks for its weight."""
    identity = nn.Identity()
    identity.weight = torch.empty(0, device=device)  # no parameter, which PEFT would miss numbers in
    return identity


@contextmanager
def as_one_adapter(encoder: Encoder, peft_model: PeftModel, adapter: Adapter) -> Iterator[None]:
    """Hold a loaded adapter and its merged parts as one LoRA adapter, as PEFT can save it; without any, change nothing.

    A linear's A has the merged A below it and its B the merged B beside it, divided by the adapter's scaling, so that
    ``rank_pattern`` and ``alpha_pattern`` give every linear that scaling at its own rank. The model must be loaded
    again afterwards.
    """
    parts = merged_factors(adapter)
    if not parts:
        yield
        return
    load_merged(encoder, Adapter(adapter.rank, adapter.scaling, {}))
    layers, ranks = lora_layers(encoder), dict[str, int]()
    for path, (more_a, more_b) in parts.items():
        lora_A: Any = layers[path].lora_A[TRAINED_ADAPTER]
        lora_B: Any = layers[path].lora_B[TRAINED_ADAPTER]
        more_b = more_b / adapter.scaling
        ranks[path] = len(lora_A.weight) + len(more_a)  # not the adapter's rank, which PEFT has no 0 of
        lora_A.weight = nn.Parameter(torch.cat([lora_A.weight.detach(), more_a.to(lora_A.weight.device)]))
        lora_B.weight = nn.Parameter(torch.cat([lora_B.weight.detach(), more_b.to(lora_B.weight.device)], dim=1))
    config: Any = peft_model.peft_config[TRAINED_ADAPTER]
    config.rank_pattern = ranks
    config.alpha_pattern = {
        path: alpha_of(adapter.scaling, rank, use_rslora=config.use_rslora) for path, rank in ranks.items()
    }
    try:
        yield
    finally:
        config.rank_pattern, config.alpha_pattern = {}, {}
