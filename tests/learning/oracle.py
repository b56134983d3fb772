"""Tiny encoders with a method in them, and what they must compute: Hugging Face's whole model with dense weights.

The oracle knows nothing of the wing's forward passes. It puts W + s·B·A, DoRA's m ∘ (W + s·B·A)/‖W + s·B·A‖, IA3's
scaled rows or columns of W, or the trained weights themselves in the place of the pretrained ones, lets hooks add what
comes after a linear, and runs the whole model on padded text in float64.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from splitrank import streams
from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.adapters.method import AdaptedEncoder, attach, initial, trained_head
from splitrank.learning.adapters.methods import make_method
from splitrank.learning.encoder import Encoder, load_encoder
from splitrank.placement import LINEARS

LABELS = ["a", "b", "c", "d"]
LENGTHS = [5, 17, 9, 30, 2, 12]
OWN_WEIGHTS = {"weight", "bias", "head"}
"""Kinds whose tensors stand in the place of the model's own."""


KINDS = ("lora_A", "lora_B", "merged_A", "merged_B", "merged_W")


def load(folder: Path | str, trained_layers="last:3", **options) -> Encoder:
    defaults = {"precision": torch.float32, "device": torch.device("cpu"), "max_length": 32}
    return load_encoder(str(folder), trained_layers, LABELS, **{**defaults, **options})


@cache
def _loaded(folder: str, trained_layers: str | tuple[int, ...], options: tuple) -> Encoder:
    return load(folder, trained_layers, **dict(options))


def fresh(folder: Path | str, trained_layers="last:3", **options) -> Encoder:
    """Return a copy of a loaded encoder, which is quicker than to load it again."""
    layers = trained_layers if isinstance(trained_layers, str) else tuple(trained_layers)
    loaded = _loaded(str(folder), layers, tuple(sorted(options.items())))
    model, fused = deepcopy((loaded.model, loaded.query_key_value))
    return replace(loaded, model=model, query_key_value=fused)


def random_ids(vocab_size: int, lengths: Sequence[int]) -> list[NDArray[np.int32]]:
    draws = streams.generator(3, "test-ids")
    return [np.array([2, *draws.integers(5, vocab_size, length - 2), 3], dtype=np.int32) for length in lengths]


def adapt(
    encoder: Encoder, name: str = "lora", *, linears=LINEARS, scaling=2.0, dropout=0.0, gate=False
) -> AdaptedEncoder:
    """Put a method of the table into an encoder."""
    return attach(
        encoder, make_method(name, {"linears": linears, "scaling": scaling, "dropout": dropout, "gate": gate})
    )


def begin(adapted: AdaptedEncoder, rank: int, policy: str = "full", **options) -> Adapter:
    """Return a first round's adapter."""
    key = {"distribution": "svd", "seed": 0, "round": 1, **options}
    return adapted.method.resize(initial(adapted, trained_head(adapted, policy)), rank, **key)


def moved(adapter: Adapter, key: int = 1, size: float = 0.1) -> Adapter:
    """Add noise to every tensor. With B = 0 the gradient of A would be zero and prove nothing."""
    return adapter.with_tensors(
        {name: tensor + size * noise(name, tensor.shape, key) for name, tensor in adapter.tensors.items()}
    )


def noise(name: str, shape: Sequence[int], key: int = 0) -> Tensor:
    return torch.from_numpy(streams.generator(key, f"test/{name}").standard_normal(tuple(shape))).float()


def whole_model_logits(bare: Encoder, adapter: Adapter, tensors: Mapping[str, Tensor], ids) -> Tensor:
    """Return float64 logits of Hugging Face's whole model on padded text, with dense weights.

    Args:
        bare: an encoder as it was loaded, nothing attached.
        adapter: whose scaling counts.
        tensors: its tensors, float64, from which autograd may go on.
    """
    model = bare.model.double()
    pretrained, dense = dict(model.named_parameters()), {}
    for name, tensor in tensors.items():
        kind, _, path = name.partition("/")
        if kind in OWN_WEIGHTS:
            assert path in pretrained
            dense[path] = tensor
        elif kind == "scale":  # of a linear's outputs, shape (d, 1), or of its inputs, (1, k)
            dense[f"{path}.weight"] = tensor * pretrained[f"{path}.weight"]
            if not path.endswith(bare.family.linears["output"]):
                dense[f"{path}.bias"] = tensor[:, 0] * pretrained[f"{path}.bias"]
        elif kind == "lora_A":
            weight = pretrained[f"{path}.weight"] + adapter.scaling * tensors[f"lora_B/{path}"] @ tensor
            magnitude = tensors.get(f"magnitude/{path}")
            if magnitude is not None:  # the norm is a constant in the backward pass
                weight = (magnitude / weight.detach().norm(dim=1))[:, None] * weight
            dense[f"{path}.weight"] = weight
    batch = bare.tokenizer.pad({"input_ids": [list(map(int, row)) for row in ids]}, return_tensors="pt")
    with ExitStack() as hooks:
        for path in {name.partition("/")[2] for name in tensors if name.startswith("bottleneck_bias/")}:
            hook = bottleneck_hook(tensors, path.removesuffix(".bias"))
            hooks.enter_context(model.get_submodule(path.removesuffix(".bias")).register_forward_hook(hook))
        if any(name.startswith("prefix/") for name in tensors):
            add = add_gated_prefix if any(name.endswith(".gate") for name in tensors) else add_joint_prefix
            add(bare, tensors, hooks)
        return functional_call(model, dense, kwargs=dict(batch)).logits


def bottleneck_hook(tensors: Mapping[str, Tensor], path: str):
    """Return what adds a small network to a linear's output z, unit by unit: Σ_j u_j·gelu(z·d_j + b_j), and a bias."""
    down, inner = (tensors[f"bottleneck_down/{path}.{part}"] for part in ("weight", "bias"))
    up = tensors[f"bottleneck_up/{path}.weight"]
    bias = tensors[f"bottleneck_bias/{path}.bias"]

    def hook(module, inputs, z):
        units = [functional.gelu(z @ d + b)[..., None] * u for d, b, u in zip(down, inner, up.T, strict=True)]
        return z + sum(units) + bias

    return hook


def prefix_of(bare: Encoder, tensors: Mapping[str, Tensor], index: int, part: str) -> Tensor | None:
    attention = bare.family.linears["query"].rpartition(".")[0]
    return tensors.get(f"prefix/{bare.family.layers}.{index}.{attention}.{part}")


def add_joint_prefix(bare: Encoder, tensors: Mapping[str, Tensor], hooks: ExitStack) -> None:
    """Let the text be longer by tokens that nobody sees, but in trained layers, where they have the learned keys."""
    layers = bare.model.get_submodule(bare.family.layers)
    (tokens,) = {len(tensor) for name, tensor in tensors.items() if name.startswith("prefix/")}

    def lengthen(index):
        def hook(module, args, kwargs):
            given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
            given |= given.pop("kwargs", {})
            del given["self"]
            states, mask, bias = (given.get(n) for n in ("hidden_states", "attention_mask", "position_bias"))
            width = states.shape[1] + (tokens if index == 0 else 0)
            if index == 0:
                given["hidden_states"] = functional.pad(states, (0, 0, 0, tokens))
            seen = torch.zeros(len(states), 1, 1, width, dtype=states.dtype)
            seen[..., : width - tokens] = 0 if mask is None else mask[:, :, :1]
            seen[..., width - tokens :] = -1e30 if prefix_of(bare, tensors, index, "key") is None else 0.0
            given["attention_mask"] = seen
            if bias is not None:
                given["position_bias"] = functional.pad(bias, (0, tokens, 0, tokens))
            return (), given

        return hook

    def replace_last(tensor):
        return lambda module, inputs, output: torch.cat(
            [output[:, : output.shape[1] - tokens], tensor.expand(len(output), -1, -1)], dim=1
        )

    for index, layer in enumerate(layers):
        hooks.enter_context(layer.register_forward_pre_hook(lengthen(index), with_kwargs=True))
        for part in ("key", "value"):
            tensor = prefix_of(bare, tensors, index, part)
            if tensor is not None:
                linear = layer.get_submodule(bare.family.linears[part])
                hooks.enter_context(linear.register_forward_hook(replace_last(tensor)))


def add_gated_prefix(bare: Encoder, tensors: Mapping[str, Tensor], hooks: ExitStack) -> None:
    """Add Σ_j g_j·softmax_j(q·k_j/√d)·v_j, head by head, to what goes into the output linear of attention."""
    queries, size = {}, bare.hidden_size // bare.num_heads

    def keep(index):
        return lambda module, inputs, output: queries.update({index: output})

    def add(index):
        key, value, gate = (prefix_of(bare, tensors, index, part) for part in ("key", "value", "gate"))

        def hook(module, inputs):
            parts = []
            for first in range(0, bare.hidden_size, size):
                head = slice(first, first + size)
                scores = queries[index][..., head] @ key[:, head].T / size**0.5
                parts.append((scores.softmax(dim=-1) * gate) @ value[:, head])
            return (inputs[0] + torch.cat(parts, dim=-1),)

        return hook

    for index, layer in enumerate(bare.model.get_submodule(bare.family.layers)):
        if prefix_of(bare, tensors, index, "key") is not None:
            query, output = (layer.get_submodule(bare.family.linears[n]) for n in ("query", "attention_output"))
            hooks.enter_context(query.register_forward_hook(keep(index)))
            hooks.enter_context(output.register_forward_pre_hook(add(index)))


def loss_of(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, torch.arange(len(logits)) % len(LABELS))


def expected(bare: Encoder, adapter: Adapter, ids) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the oracle's logits and gradients."""
    tensors = {name: tensor.double().requires_grad_() for name, tensor in adapter.tensors.items()}
    logits = whole_model_logits(bare, adapter, tensors, ids)
    found = torch.autograd.grad(loss_of(logits), list(tensors.values()))
    return logits.detach(), dict(zip(tensors, found, strict=True))


def gradients(logits: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return dict(zip(parameters, torch.autograd.grad(loss_of(logits), list(parameters.values())), strict=True))


def assert_logits(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.detach().double(), wanted.detach().double(), rtol=0, atol=tolerance)


def assert_gradients(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Compare by relative norm. A key's bias has none: the softmax does not see what is added to all scores."""
    assert list(found) == list(wanted)
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        difference = (found[name].double() - gradient.double()).norm()
        if gradient.norm() < 1e-9 * largest:
            assert kind_of(name) in OWN_WEIGHTS, name
            assert difference < 1e-6 * largest, name
        else:
            assert difference / gradient.norm() < tolerance, name


def product(adapter: Adapter, path: str) -> Tensor:
    """Return s·B·A and what is merged beside it, float64."""
    tensors = {kind: adapter.tensors[name].double() for kind in KINDS if (name := f"{kind}/{path}") in adapter.tensors}
    dense = adapter.scaling * tensors["lora_B"] @ tensors["lora_A"]
    if "merged_W" in tensors:
        return dense + tensors["merged_W"]
    return dense + tensors["merged_B"] @ tensors["merged_A"] if "merged_A" in tensors else dense


def distance(found: Tensor, wanted: Tensor) -> float:
    """Return ‖found − wanted‖ / ‖wanted‖, Frobenius."""
    return float((found - wanted).norm() / wanted.norm())


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
