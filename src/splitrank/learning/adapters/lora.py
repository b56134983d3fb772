"""LoRA on chosen maps of chosen layers, attached by PEFT, and its resizing from rank to rank.

Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022: a frozen map W (d × k) is used as
W + (alpha/r)·B·A with A (r × k) and B (d × r). The federation passes :class:`Adapter` around, plain tensors without a
model; one model then serves every client, round and rank, its adapter exchanged in place.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from splitrank import streams
from splitrank.learning.encoder import Encoder

_NAME = "default"


@dataclass(frozen=True, eq=False)
class Adapter:
    """Everything that training changes and clients share.

    Attributes:
        rank: r; 0 is the adapter before any training, whose product is zero.
        scaling: alpha/r, part of the product scaling·B·A.
        lora_A: module path → A, float32, shape (rank, k).
        lora_B: module path → B, float32, shape (d, rank).
        head: parameter path → tensor, what ``model.head`` trains and shares.
    """

    rank: int
    scaling: float
    lora_A: Mapping[str, Tensor]
    lora_B: Mapping[str, Tensor]
    head: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under one flat name each; :func:`from_tensors` is the inverse."""
        flat = {f"lora_A/{path}": tensor for path, tensor in self.lora_A.items()}
        flat |= {f"lora_B/{path}": tensor for path, tensor in self.lora_B.items()}
        return flat | {f"head/{path}": tensor for path, tensor in self.head.items()}


def from_tensors(tensors: Mapping[str, Tensor], rank: int, scaling: float) -> Adapter:
    """Build an adapter from the flat names of :meth:`Adapter.tensors`."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    return Adapter(rank, scaling, part("lora_A/"), part("lora_B/"), part("head/"))


def to_flat(adapter: Adapter) -> Tensor:
    """All tensors as one float32 vector, in the order of their flat names; :func:`from_flat` is the inverse."""
    tensors = adapter.tensors()
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def num_numbers(like: Adapter, rank: int) -> int:
    """Length of the vector of an adapter of that rank for the model that ``like`` belongs to."""
    return sum(math.prod(shape) for shape in _shapes(like, rank).values())


def from_flat(vector: Tensor, like: Adapter, rank: int) -> Adapter:
    """Build an adapter from its vector.

    Args:
        vector: float32, shape (num_numbers(like, rank),).
        like: any adapter of the same model, whatever its rank.
        rank: r, at least 1.
    """
    shapes = _shapes(like, rank)
    sizes = [math.prod(shapes[name]) for name in sorted(shapes)]
    parts = zip(sorted(shapes), torch.split(vector, sizes), strict=True)
    tensors = {name: part.reshape(shapes[name]).clone() for name, part in parts}
    return from_tensors({name: tensors[name] for name in shapes}, rank, like.scaling)


def _shapes(like: Adapter, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of :meth:`Adapter.tensors` at another rank."""
    factors = {f"lora_A/{path}": (rank, tensor.shape[1]) for path, tensor in like.lora_A.items()}
    factors |= {f"lora_B/{path}": (tensor.shape[0], rank) for path, tensor in like.lora_B.items()}
    return factors | {f"head/{path}": tuple(tensor.shape) for path, tensor in like.head.items()}


def attach(encoder: Encoder, maps: Sequence[str], *, scaling: float, dropout: float) -> PeftModel:
    """Let PEFT put rank-1 LoRA with zero effect on ``maps`` of the trained layers, and wrap the head.

    The encoder's model is changed in place, so its forward pass runs through the adapters from then on. The whole head
    goes into PEFT's ``modules_to_save`` whatever the head policy is: it starts from random weights, so an exported
    adapter without it could not predict.

    Args:
        encoder: a freshly loaded encoder.
        maps: names out of ``placement.MAPS``.
        scaling: alpha/r, greater than 0.
        dropout: LoRA's own dropout, 0 to 1.
    """
    family = encoder.family
    layers = "|".join(str(layer) for layer in encoder.trained_layers)
    names = "|".join(re.escape(family.maps[name]) for name in maps)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=1,
        lora_alpha=scaling,  # type: ignore[arg-type]  # PEFT divides by r, it need not be whole
        lora_dropout=dropout,
        target_modules=rf"{re.escape(family.layers)}\.({layers})\.({names})",
        modules_to_save=list(family.head_modules),
        base_model_name_or_path=encoder.location,
    )
    # PEFT's initial draws are replaced by named streams in `load`; its use of an old name in Transformers is its own.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore", category=FutureWarning):
        peft_model = get_peft_model(encoder.model, config)
    return peft_model.requires_grad_(False)


@dataclass(frozen=True)
class _Parts:
    """What training changes in a model, by path."""

    layers: dict[str, LoraLayer]
    head: dict[str, nn.Parameter]


# Looking through all modules takes longer than exchanging an adapter.
_known_parts: WeakKeyDictionary[PeftModel, _Parts] = WeakKeyDictionary()


def _parts(peft_model: PeftModel) -> _Parts:
    if peft_model not in _known_parts:
        modules = dict(peft_model.get_base_model().named_modules())
        layers = {path: module for path, module in modules.items() if isinstance(module, LoraLayer)}
        head = {
            f"{path}.{name}": parameter
            for path, module in modules.items()
            if isinstance(module, ModulesToSaveWrapper)
            for name, parameter in module.modules_to_save[_NAME].named_parameters()
        }
        _known_parts[peft_model] = _Parts(layers, head)
    return _known_parts[peft_model]


def _factors(layer: LoraLayer) -> tuple[nn.Linear, nn.Linear]:
    return cast(nn.Linear, layer.lora_A[_NAME]), cast(nn.Linear, layer.lora_B[_NAME])


def trained_head(encoder: Encoder, peft_model: PeftModel, policy: str) -> list[str]:
    """Paths of the head's parameters that ``model.head`` trains."""
    paths = list(_parts(peft_model).head)
    if policy == "frozen":
        return []
    if policy == "out_proj":
        return [path for path in paths if path.startswith(f"{encoder.family.last_linear}.")]
    return paths


def initial(peft_model: PeftModel, *, scaling: float, head: Sequence[str]) -> Adapter:
    """The adapter of round 0: rank 0, and the head as it was initialised."""
    factors = {path: _factors(layer) for path, layer in _parts(peft_model).layers.items()}
    parameters = _parts(peft_model).head
    return Adapter(
        rank=0,
        scaling=scaling,
        lora_A={path: torch.zeros(0, lora_A.in_features) for path, (lora_A, _) in factors.items()},
        lora_B={path: torch.zeros(lora_B.out_features, 0) for path, (_, lora_B) in factors.items()},
        head={path: parameters[path].detach().cpu().clone() for path in head},
    )


def load(peft_model: PeftModel, adapter: Adapter, extra_head: Mapping[str, Tensor] | None = None) -> list[nn.Parameter]:
    """Put an adapter into the model and return the parameters to train.

    PEFT has no rank 0, so the zero adapter goes in as one zero direction.

    Args:
        peft_model: as :func:`attach` made it.
        adapter: shapes must be those of the model's maps; its rank becomes the model's.
        extra_head: head parameters that are trained but not shared (``model.head = "local"``).
    """
    rank = max(adapter.rank, 1)
    trained: list[nn.Parameter] = []
    for path, layer in _parts(peft_model).layers.items():
        lora_A, lora_B = _factors(layer)
        for module, tensor, axis in ((lora_A, adapter.lora_A[path], 0), (lora_B, adapter.lora_B[path], 1)):
            weight = tensor if adapter.rank else torch.zeros_like(_grow(tensor, 1, axis))
            module.weight = nn.Parameter(weight.to(device=module.weight.device, dtype=torch.float32, copy=True))
            trained.append(module.weight)
        lora_A.out_features = lora_B.in_features = rank
        layer.r[_NAME], layer.lora_alpha[_NAME], layer.scaling[_NAME] = rank, adapter.scaling * rank, adapter.scaling
    config: Any = peft_model.peft_config[_NAME]
    config.r, config.lora_alpha = rank, adapter.scaling * rank
    head = {**adapter.head, **(extra_head or {})}
    for path, parameter in _parts(peft_model).head.items():
        parameter.requires_grad_(path in head)
        if path in head:
            with torch.no_grad():
                parameter.copy_(head[path])
            trained.append(parameter)
    return trained


def read(peft_model: PeftModel, like: Adapter) -> Adapter:
    """Copy the model's adapter out, with the rank, scaling and shared head parameters of ``like``."""
    factors = {path: _factors(layer) for path, layer in _parts(peft_model).layers.items()}
    return replace(
        like,
        lora_A={path: lora_A.weight.detach().cpu().clone() for path, (lora_A, _) in factors.items()},
        lora_B={path: lora_B.weight.detach().cpu().clone() for path, (_, lora_B) in factors.items()},
        head=read_head(peft_model, list(like.head)),
    )


def read_head(peft_model: PeftModel, paths: Sequence[str]) -> dict[str, Tensor]:
    """Copy head parameters out of the model."""
    parameters = _parts(peft_model).head
    return {path: parameters[path].detach().cpu().clone() for path in paths}


def _grow(tensor: Tensor, count: int, axis: int) -> Tensor:
    shape = list(tensor.shape)
    shape[axis] = count
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)


def resize(adapter: Adapter, rank: int, *, seed: int, round: int) -> Adapter:
    """Bring an adapter to another rank and keep its product scaling·B·A.

    Growing appends rows drawn as PEFT draws them, U(-1/√k, 1/√k), to A and zero columns to B: the product is the same
    to the bit and the new directions learn from zero effect. Shrinking keeps the best rank-r approximation (Eckart
    and Young, 1936). Not in the paper, which trains one fixed rank.

    Args:
        adapter: the adapter to resize.
        rank: new rank r, at least 1.
        seed, round: key of the stream from which new directions are drawn.
    """
    if rank == adapter.rank:
        return adapter
    lora_A, lora_B = {}, {}
    for path in adapter.lora_A:
        a, b = adapter.lora_A[path], adapter.lora_B[path]
        if rank < adapter.rank:
            a, b = shrink(a, b, rank)
        missing = rank - a.shape[0]
        bound = 1.0 / a.shape[1] ** 0.5
        draws = streams.generator(seed, f"lora_A/{path}", round).uniform(-bound, bound, (missing, a.shape[1]))
        lora_A[path] = torch.cat([a, torch.from_numpy(draws).to(a.dtype)], dim=0)
        lora_B[path] = _grow(b, missing, axis=1)
    return replace(adapter, rank=rank, lora_A=lora_A, lora_B=lora_B)


def shrink(lora_A: Tensor, lora_B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation of B·A of at most ``rank``, without ever forming the d × k product.

    With B = Q_B·R_B and Aᵀ = Q_A·R_A the product is Q_B·(R_B·R_Aᵀ)·Q_Aᵀ, so the singular value decomposition of the
    r × r core is that of the product. Directions without any weight are left out (both factors would be zero there
    and could never learn again); the caller fills them up.

    Args:
        lora_A: A, shape (r, k).
        lora_B: B, shape (d, r).
        rank: directions to keep, less than r.

    Returns:
        (A', B') of shapes (n, k) and (d, n), n ≤ rank, the singular values shared between them evenly.
    """
    q_b, r_b = torch.linalg.qr(lora_B.double())
    q_a, r_a = torch.linalg.qr(lora_A.double().T)
    u, singular_values, v_t = torch.linalg.svd(r_b @ r_a.T)
    kept = int((singular_values[:rank] > singular_values.max() * 1e-12).sum())
    root = singular_values[:kept].sqrt()
    smaller_b = q_b @ (u[:, :kept] * root)
    smaller_a = (root[:, None] * v_t[:kept]) @ q_a.T
    return smaller_a.to(lora_A.dtype), smaller_b.to(lora_B.dtype)
