"""One post-norm transformer layer on short texts, forward by hand, backward by autograd and one function of our own.

Vaswani et al., "Attention is all you need", NeurIPS 2017; Hu et al., "LoRA: low-rank adaptation of large language
models", ICLR 2022. Three things differ from the textbook's order of operations and none changes the result:

* query, key and value are one product with one frozen matrix, and a map's LoRA is added to it in place;
* attention is written out as batched products: at the lengths of short texts these beat PyTorch's fused CPU kernel,
  whose backward pass takes longer than the rest of the layer;
* where only the first token is read, its query goes through the key's matrix to the other tokens' states, and the
  mixture of these states through the value's matrix, so that no other token needs a key or a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer's parts.

    Attributes:
        query_key_value: the three frozen matrices and biases below each other, shapes (3·hidden, hidden), (3·hidden,).
        maps: logical name → module, of PEFT's LoRA class where the map has an adapter.
        attention_norm, output_norm: the two layer norms.
        activation: between the maps "intermediate" and "output".
        num_heads: attention heads.
    """

    query_key_value: tuple[Tensor, Tensor]
    maps: dict[str, nn.Module]
    attention_norm: nn.Module
    output_norm: nn.Module
    activation: nn.Module
    num_heads: int


@dataclass(frozen=True)
class Dropout:
    """Probabilities of dropping a hidden state and an attention weight, 0 to 1."""

    hidden: float
    attention: float


def run_layer(layer: Layer, hidden: Tensor, bias: Tensor, dropout: Dropout, *, first_token_only: bool) -> Tensor:
    """The layer's output for all tokens or for the first.

    Args:
        hidden: shape (batch, tokens, hidden_size).
        bias: added to the attention scores, shape (batch, 1 or heads, 1 or tokens, tokens).

    Returns:
        shape (batch, tokens or 1, hidden_size).
    """
    if first_token_only:
        read = hidden[:, :1]
        context = _first_token_context(layer, read, hidden, bias[:, :, :1], dropout)
    else:
        read = hidden
        context = _context(layer, hidden, bias, dropout)
    attended = functional.dropout(_map(layer.maps["attention_output"], context), dropout.hidden)
    attended = layer.attention_norm(attended + read)
    inner = layer.activation(_map(layer.maps["intermediate"], attended))
    output = functional.dropout(_map(layer.maps["output"], inner), dropout.hidden)
    normed: Tensor = layer.output_norm(output + attended)
    return normed


def _context(layer: Layer, hidden: Tensor, bias: Tensor, dropout: Dropout) -> Tensor:
    """What every token attends to, shape (batch, tokens, hidden_size)."""
    batch, tokens, hidden_size = hidden.shape
    modules = [layer.maps[name] for name in ("query", "key", "value")]
    query, key, value = _maps(modules, hidden, *layer.query_key_value, num_heads=layer.num_heads)
    bias = bias.expand(batch, layer.num_heads, -1, tokens).flatten(0, 1)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=1.0 / math.sqrt(query.shape[-1]))
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    context = torch.bmm(functional.dropout(weights, dropout.attention), value)
    return context.view(batch, layer.num_heads, tokens, -1).transpose(1, 2).reshape(batch, tokens, hidden_size)


def _first_token_context(layer: Layer, first: Tensor, hidden: Tensor, bias: Tensor, dropout: Dropout) -> Tensor:
    """What the first token attends to, shape (batch, 1, hidden_size).

    With q = W_q·x_1 + b_q the score of token i is q·(W_k·x_i + b_k) = (W_kᵀ·q)·x_i + q·b_k, head by head, whose last
    term is the same for all tokens and so without effect on the softmax; and for attention weights w_i,
    Σ w_i·(W_v·x_i + b_v) = W_v·(Σ w_i·x_i) + b_v·Σ w_i. LoRA's factors go the same way, on the states after LoRA's
    own dropout.
    """
    batch, _, hidden_size = hidden.shape
    num_heads = layer.num_heads

    def by_head(matrix: Tensor) -> Tensor:  # (hidden_size, n) → (heads, head_size, n)
        return matrix.view(num_heads, hidden_size // num_heads, -1)

    _, key_weight, value_weight = (by_head(weight) for weight in layer.query_key_value[0].chunk(3))
    value_bias = by_head(layer.query_key_value[1].chunk(3)[2])
    query = _map(layer.maps["query"], first).view(batch, num_heads, -1).transpose(0, 1)
    query = query / math.sqrt(query.shape[-1])

    scores = torch.bmm(torch.bmm(query, key_weight).transpose(0, 1), hidden.transpose(1, 2))
    key_lora = _low_rank(layer.maps["key"], hidden)
    if key_lora is not None:
        through = torch.matmul(torch.bmm(query, by_head(key_lora.lora_B)), key_lora.lora_A * key_lora.scaling)
        scores = scores + torch.bmm(through.transpose(0, 1), key_lora.source.transpose(1, 2))
    weights = torch.softmax(scores + bias[:, :, 0], dim=-1).to(hidden.dtype)
    weights = functional.dropout(weights, dropout.attention)

    mixed = torch.bmm(weights, hidden).transpose(0, 1)  # (heads, batch, hidden_size)
    context = torch.bmm(mixed, value_weight.transpose(1, 2))
    context = context + weights.sum(dim=2).T[:, :, None] * value_bias.transpose(1, 2)
    value_lora = _low_rank(layer.maps["value"], hidden)
    if value_lora is not None:
        if value_lora.source is not hidden:
            mixed = torch.bmm(weights, value_lora.source).transpose(0, 1)
        low = torch.matmul(mixed, value_lora.lora_A.T) * value_lora.scaling
        context = context + torch.bmm(low, by_head(value_lora.lora_B).transpose(1, 2))
    return context.transpose(0, 1).reshape(batch, 1, hidden_size)


@dataclass(frozen=True, eq=False)
class _LowRank:
    """LoRA of a map on states: scaling·B·A·source, its factors in the states' precision."""

    source: Tensor
    lora_A: Tensor
    lora_B: Tensor
    scaling: float


def _low_rank(module: nn.Module, states: Tensor) -> _LowRank | None:
    if not isinstance(module, LoraLayer):
        return None
    (name,) = module.active_adapters
    lora_A, lora_B = cast(nn.Linear, module.lora_A[name]), cast(nn.Linear, module.lora_B[name])
    dropout = module.lora_dropout[name]
    source = dropout(states) if isinstance(dropout, nn.Dropout) and dropout.training else states
    return _LowRank(source, lora_A.weight.to(states.dtype), lora_B.weight.to(states.dtype), module.scaling[name])


def _map(module: nn.Module, states: Tensor) -> Tensor:
    """A linear map, with its LoRA if it has one."""
    frozen = cast(nn.Linear, module.get_base_layer() if isinstance(module, LoraLayer) else module)
    (mapped,) = _maps([module], states, frozen.weight, frozen.bias)
    return mapped


def _maps(
    modules: Sequence[nn.Module], states: Tensor, weight: Tensor, bias: Tensor, num_heads: int | None = None
) -> tuple[Tensor, ...]:
    """Linear maps of the same states whose frozen matrices lie below each other in ``weight``.

    Returns:
        for each map its output; with ``num_heads`` as (batch·heads, tokens, head_size).
    """
    low_ranks = [_low_rank(module, states) for module in modules]
    scalings = [low_rank and low_rank.scaling for low_rank in low_ranks]
    factors = [
        part for low in low_ranks for part in ((low.source, low.lora_A, low.lora_B) if low else (None, None, None))
    ]
    outputs: tuple[Tensor, ...] = cast(Any, _Maps).apply(states, weight, bias, num_heads, scalings, *factors)
    return outputs


class _Maps(torch.autograd.Function):
    """y_i = W_i·x + b_i + s_i·B_i·A_i·x for several i as one product, with the gradients of x, A_i and B_i.

    Autograd would hold LoRA's output and its sum with W·x in memory of their own, and their gradients again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor,
        num_heads: int | None,
        scalings: Sequence[float | None],
        *factors: Any,
    ) -> tuple[Tensor, ...]:
        rows = states.flatten(0, -2)
        mapped = functional.linear(rows, weight, bias)
        saved: list[Any] = [weight]
        parts = mapped.chunk(len(scalings), dim=1)
        for index, (part, scaling) in enumerate(zip(parts, scalings, strict=True)):
            source, lora_A, lora_B = factors[3 * index : 3 * index + 3]
            low = None
            if scaling is not None:
                low = source.flatten(0, -2) @ lora_A.T
                part.addmm_(low, lora_B.T, alpha=scaling)
            saved += [source, lora_A, lora_B, low]
        ctx.save_for_backward(*saved)
        ctx.scalings, ctx.num_heads, ctx.shape = scalings, num_heads, states.shape
        ctx.shared_source = [factors[3 * index] is states for index in range(len(scalings))]
        ctx.set_materialize_grads(False)
        outputs = tuple(_split_heads(part, states.shape, num_heads) for part in parts)
        if not ctx.needs_input_grad[0]:
            ctx.mark_non_differentiable(
                *(output for output, scaling in zip(outputs, scalings, strict=True) if scaling is None)
            )
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        merged = _merge_heads(gradients, ctx.shape, ctx.num_heads, weight)
        wants_states = ctx.needs_input_grad[0]
        states_gradient: Any = merged @ weight if wants_states else None
        factor_gradients: list[Tensor | None] = []
        for index, (part, scaling) in enumerate(zip(merged.chunk(len(gradients), dim=1), ctx.scalings, strict=True)):
            source, lora_A, lora_B, low = saved[4 * index : 4 * index + 4]
            if scaling is None:
                factor_gradients += [None, None, None]
                continue
            low_gradient = (part @ lora_B).mul_(scaling)
            source_gradient = None
            if wants_states and ctx.shared_source[index]:
                states_gradient.addmm_(low_gradient, lora_A)
            elif wants_states:
                source_gradient = (low_gradient @ lora_A).view(ctx.shape)
            factor_gradients += [
                source_gradient,
                low_gradient.T @ source.flatten(0, -2),
                (part.T @ low).mul_(scaling),
            ]
        if states_gradient is not None:
            states_gradient = states_gradient.view(ctx.shape)
        return states_gradient, None, None, None, None, *factor_gradients


def _split_heads(part: Tensor, shape: torch.Size, num_heads: int | None) -> Tensor:
    if num_heads is None:
        return part.view(*shape[:-1], -1)
    batch, tokens, _ = shape
    return part.view(batch, tokens, num_heads, -1).transpose(1, 2).reshape(batch * num_heads, tokens, -1)


def _merge_heads(
    gradients: Sequence[Tensor | None], shape: torch.Size, num_heads: int | None, weight: Tensor
) -> Tensor:
    """Gradients of several maps beside each other, shape (rows, len(gradients)·d); what nobody asks for stays zero."""
    if num_heads is None:
        (gradient,) = gradients
        assert gradient is not None
        return gradient.flatten(0, -2)
    batch, tokens, _ = shape
    merged = torch.empty(batch * tokens, len(weight), dtype=weight.dtype, device=weight.device)
    for part, gradient in zip(merged.chunk(len(gradients), dim=1), gradients, strict=True):
        if gradient is None:
            part.zero_()
        else:
            heads = gradient.view(batch, num_heads, tokens, -1)
            part.view(batch, tokens, num_heads, -1).copy_(heads.transpose(1, 2))
    return merged
