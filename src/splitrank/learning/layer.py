"""One post-norm transformer layer on short texts, forward by hand, backward by autograd and one function of our own.

Vaswani et al., "Attention is all you need", NeurIPS 2017; Hu et al., "LoRA: low-rank adaptation of large language
models", ICLR 2022. Four things differ from the textbook's order of operations and none changes the result:

* the tokens of a batch are packed, a row each and no row for padding, but in attention;
* query, key and value are one product with one frozen matrix, and a linear's LoRA is added to it in place;
* attention is written out as batched products: at the lengths of short texts these beat PyTorch's fused CPU kernel,
  backward above all;
* where only the first token is read, its query goes through the key's matrix to the other tokens' states, and the
  mixture of these states through the value's matrix, so that no other token needs a key or a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer's parts.

    Attributes:
        query_key_value: the three frozen matrices and biases below each other, shapes (3·hidden, hidden), (3·hidden,).
        linears: logical name → module, of PEFT's LoRA class where the linear has an adapter.
        attention_norm, output_norm: the two layer norms.
        activation: between the linears "intermediate" and "output".
        num_heads: attention heads.
    """

    query_key_value: tuple[Tensor, Tensor]
    linears: dict[str, nn.Module]
    attention_norm: nn.Module
    output_norm: nn.Module
    activation: nn.Module
    num_heads: int


@dataclass(frozen=True)
class Dropout:
    """Probabilities of dropping a hidden state and an attention weight, 0 to 1."""

    hidden: float
    attention: float


# oneDNN compiles a product for every new shape, which takes milliseconds and leaves code and buffers in memory. So the
# grid's width is filled up to multiples of 16, and packed rows to multiples of an eighth of a power of two, at least
# 128: 128, 256, ... 2048, 2304, ... 4096, 4608, ... Above 1,024 at most an eighth of the rows is filling, and up to
# 8,192 there are 32 numbers of rows.
_FEWEST_ROWS, _ROW_STEPS, _WIDTH_BLOCK = 128, 8, 16


def num_rows(lengths: Tensor) -> int:
    """Rows of a packed batch: its tokens, and filling of any finite content that nobody reads.

    Where a text leaves places in the grid empty there is at least one row of filling, from which they are filled.
    """
    needed = int(lengths.sum()) + bool((lengths != grid_width(int(lengths.max()))).any())
    block = max(_FEWEST_ROWS, (1 << (needed - 1).bit_length()) // (2 * _ROW_STEPS))
    return -(-needed // block) * block


def grid_width(longest: int) -> int:
    """Return how many places the grid has for each text of a batch whose longest has so many tokens."""
    return -(-longest // _WIDTH_BLOCK) * _WIDTH_BLOCK


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Where the tokens of a batch stand: text after text in packed rows, or in a grid of texts by positions.

    Attributes:
        mask: true where the grid has a token, shape (texts, width).
        num_tokens: tokens of the batch; rows from there on are filling.
        grid_to_row: row of each place in the grid, that of the first filling row where there is no token.
        row_to_grid: place in the grid of each row, 0 for filling rows.
        first_rows: row of each text's first token.
        is_grid: whether the rows are the grid, without filling and without padding.
    """

    mask: Tensor
    num_tokens: int
    grid_to_row: Tensor
    row_to_grid: Tensor
    first_rows: Tensor
    is_grid: bool


def pack(lengths: Tensor, device: torch.device) -> PackedBatch:
    """Return how texts of so many tokens are packed, int64 on the host, shape (texts,); its tensors on ``device``."""
    width, ends = grid_width(int(lengths.max())), lengths.cumsum(0)
    num_tokens, first_rows = int(ends[-1]), ends - lengths
    mask = torch.arange(width) < lengths[:, None]
    grid_to_row = torch.where(mask, first_rows[:, None] + torch.arange(width), num_tokens).flatten()
    row_to_grid = torch.zeros(num_rows(lengths), dtype=torch.int64)
    row_to_grid[:num_tokens] = mask.flatten().nonzero()[:, 0]
    return PackedBatch(
        mask=mask.to(device),
        num_tokens=num_tokens,
        grid_to_row=grid_to_row.to(device),
        row_to_grid=row_to_grid.to(device),
        first_rows=first_rows.to(device),
        is_grid=len(row_to_grid) == mask.numel() == num_tokens,
    )


def run_layer(
    layer: Layer, hidden: Tensor, packed: PackedBatch, bias: Tensor, dropout: Dropout, *, first_token_only: bool
) -> Tensor:
    """Return the layer's output for all tokens or for the first of each text.

    Args:
        hidden: packed, shape (num_rows, hidden_size).
        bias: added to the attention scores, shape (texts, 1 or heads, 1 or width, width).

    Returns:
        shape (num_rows or texts, hidden_size).
    """
    if first_token_only:
        read = hidden.index_select(0, packed.first_rows)
        context = _first_token_context(layer, read, hidden, packed, bias[:, :, :1], dropout)
    else:
        read = hidden
        context = _context(layer, hidden, packed, bias, dropout)
    attended = functional.dropout(_linear(layer.linears["attention_output"], context), dropout.hidden)
    attended = layer.attention_norm(attended + read)
    inner = layer.activation(_linear(layer.linears["intermediate"], attended))
    output = functional.dropout(_linear(layer.linears["output"], inner), dropout.hidden)
    normed: Tensor = layer.output_norm(output + attended)
    return normed


def _context(layer: Layer, hidden: Tensor, packed: PackedBatch, bias: Tensor, dropout: Dropout) -> Tensor:
    """Return what every token attends to, shape (num_rows, hidden_size)."""
    texts, width = packed.mask.shape
    modules = [layer.linears[name] for name in ("query", "key", "value")]
    linears = _fused_linears(modules, hidden, *layer.query_key_value)
    query, key, value = (_split_heads(_to_grid(states, packed), layer.num_heads) for states in linears)
    bias = bias.expand(texts, layer.num_heads, -1, width).flatten(0, 1)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=1.0 / math.sqrt(query.shape[-1]))
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    context = torch.bmm(functional.dropout(weights, dropout.attention), value)
    return _to_rows(context.view(texts, layer.num_heads, width, -1).transpose(1, 2).flatten(2), packed)


def _first_token_context(
    layer: Layer, first: Tensor, hidden: Tensor, packed: PackedBatch, bias: Tensor, dropout: Dropout
) -> Tensor:
    """Return what the first tokens attend to, shape (texts, hidden_size).

    With q = W_q·x_1 + b_q the score of token i is q·(W_k·x_i + b_k) = (W_kᵀ·q)·x_i + q·b_k, head by head, whose last
    term is the same for all tokens and so without effect on the softmax; and for attention weights w_i,
    Σ w_i·(W_v·x_i + b_v) = W_v·(Σ w_i·x_i) + b_v·Σ w_i. LoRA's factors go the same way, on the states after LoRA's
    own dropout.
    """
    hidden = _to_grid(hidden, packed)
    texts, _, hidden_size = hidden.shape
    num_heads = layer.num_heads

    def by_head(matrix: Tensor) -> Tensor:  # (hidden_size, n) → (heads, head_size, n)
        return matrix.view(num_heads, hidden_size // num_heads, -1)

    _, key_weight, value_weight = (by_head(weight) for weight in layer.query_key_value[0].chunk(3))
    value_bias = by_head(layer.query_key_value[1].chunk(3)[2])
    query = _linear(layer.linears["query"], first).view(texts, num_heads, -1).transpose(0, 1)
    query = query / math.sqrt(query.shape[-1])

    scores = torch.bmm(torch.bmm(query, key_weight).transpose(0, 1), hidden.transpose(1, 2))
    for key_lora in _low_ranks(layer.linears["key"], hidden):
        through = torch.bmm(query, by_head(key_lora.lora_B))
        through = _times(through, key_lora.lora_A, key_lora.scaling)
        scores = scores + torch.bmm(through.transpose(0, 1), key_lora.source.transpose(1, 2))
    weights = torch.softmax(scores + bias[:, :, 0], dim=-1).to(hidden.dtype)
    weights = functional.dropout(weights, dropout.attention)

    mixed = torch.bmm(weights, hidden).transpose(0, 1)  # (heads, texts, hidden_size)
    context = torch.bmm(mixed, value_weight.transpose(1, 2))
    context = context + weights.sum(dim=2).T[:, :, None] * value_bias.transpose(1, 2)
    for value_lora in _low_ranks(layer.linears["value"], hidden):
        source = mixed
        if value_lora.source is not hidden:
            source = torch.bmm(weights, value_lora.source).transpose(0, 1)
        low = source if value_lora.lora_A is None else torch.matmul(source, value_lora.lora_A.T)
        low = low * value_lora.scaling
        context = context + torch.bmm(low, by_head(value_lora.lora_B).transpose(1, 2))
    return context.transpose(0, 1).reshape(texts, hidden_size)


@dataclass(frozen=True, eq=False)
class _LowRank:
    """LoRA of a linear: scaling·B·A·source, its factors in the states' precision; A is None for the identity."""

    source: Tensor
    lora_A: Tensor | None
    lora_B: Tensor
    scaling: float


def frozen_part(module: nn.Module) -> nn.Linear:
    """Return the linear as it was pretrained, whatever PEFT has put around it."""
    return cast(nn.Linear, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module)


def is_plain(module: nn.Module) -> bool:
    """Return whether this pass honours all of a linear: a frozen ``nn.Linear``, or PEFT's LoRA on one, no variant."""
    linear = frozen_part(module)
    if type(linear) is not nn.Linear or linear.weight.requires_grad or linear.bias.requires_grad:
        return False
    if any(part._forward_hooks or part._forward_pre_hooks for part in (module, linear)):
        return False
    if module is linear:
        return True
    return (
        type(module) is LoraLinear
        and not module.lora_variant
        and not any(module.lora_bias.values())
        and not module.merged
        and not module.disable_adapters
    )


def _low_ranks(module: nn.Module, states: Tensor) -> list[_LowRank]:
    """Return the LoRA of a linear: first the one that is trained, then frozen ones, each on its own dropped states."""
    if not is_plain(module):
        raise TypeError(f"the packed layer must run frozen linears with plain LoRA, got {type(module).__name__}")
    if not isinstance(module, LoraLayer):
        return []
    found = []
    for name in module.active_adapters:
        lora_A, lora_B = module.lora_A[name], cast(nn.Linear, module.lora_B[name])
        dropout = module.lora_dropout[name]
        source = dropout(states) if isinstance(dropout, nn.Dropout) and dropout.training else states
        first = None if isinstance(lora_A, nn.Identity) else cast(nn.Linear, lora_A).weight.to(states.dtype)
        found.append(_LowRank(source, first, lora_B.weight.to(states.dtype), module.scaling[name]))
    return found


def _linear(module: nn.Module, states: Tensor) -> Tensor:
    """Return a linear layer, with its LoRA if it has one."""
    frozen = frozen_part(module)
    (output,) = _fused_linears([module], states, frozen.weight, frozen.bias)
    return output


def _fused_linears(modules: Sequence[nn.Module], states: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Linears of the same states (rows, k) whose frozen matrices lie below each other in ``weight``.

    Returns:
        each linear's output, shape (rows, d), views of one tensor.
    """
    low_ranks = [_low_ranks(module, states) for module in modules]
    scalings = [low[0].scaling if low else None for low in low_ranks]
    factors = [
        part
        for low in low_ranks
        for part in ((low[0].source, low[0].lora_A, low[0].lora_B) if low else (None, None, None))
    ]
    outputs: tuple[Tensor, ...] = cast(Any, _FusedLoraLinear).apply(states, weight, bias, scalings, *factors)
    return tuple(_with_frozen(output, low[1:]) for output, low in zip(outputs, low_ranks, strict=True))


def _times(states: Tensor, lora_A: Tensor | None, scaling: float) -> Tensor:
    """Return states·A·scaling, A being None for the identity."""
    return states * scaling if lora_A is None else torch.matmul(states, lora_A * scaling)


def _with_frozen(output: Tensor, low_ranks: Sequence[_LowRank]) -> Tensor:
    """Add LoRA that nobody trains any more."""
    for low in low_ranks:
        reduced = low.source if low.lora_A is None else low.source @ low.lora_A.T
        output = output + reduced @ (low.lora_B.T * low.scaling)
    return output


class _FusedLoraLinear(torch.autograd.Function):
    """y_i = W_i·x + b_i + s_i·B_i·A_i·x for several i as one product, with the gradients of x, A_i and B_i.

    Autograd would hold LoRA's output and its sum with W·x in memory of their own, and their gradients again.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, scalings: Sequence[float | None], *factors: Any
    ) -> tuple[Tensor, ...]:
        outputs = functional.linear(states, weight, bias).chunk(len(scalings), dim=1)
        saved: list[Any] = [weight]
        for index, (output, scaling) in enumerate(zip(outputs, scalings, strict=True)):
            source, lora_A, lora_B = factors[3 * index : 3 * index + 3]
            low = None
            if scaling is not None:
                low = source @ lora_A.T
                output.addmm_(low, lora_B.T, alpha=scaling)
            saved += [source, lora_A, lora_B, low]
        ctx.save_for_backward(*saved)
        ctx.scalings = scalings
        ctx.shared_source = [factors[3 * index] is states for index in range(len(scalings))]
        ctx.set_materialize_grads(False)
        if not ctx.needs_input_grad[0]:
            ctx.mark_non_differentiable(
                *(output for output, scaling in zip(outputs, scalings, strict=True) if scaling is None)
            )
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        wants_states = ctx.needs_input_grad[0]
        states_gradient: Any = _concat_gradients(gradients) @ weight if wants_states else None
        factor_gradients: list[Tensor | None] = []
        for index, (gradient, scaling) in enumerate(zip(gradients, ctx.scalings, strict=True)):
            source, lora_A, lora_B, low = saved[4 * index : 4 * index + 4]
            if scaling is None or gradient is None:
                factor_gradients += [None, None, None]
                continue
            _, trains_a, trains_b = ctx.needs_input_grad[4 + 3 * index : 7 + 3 * index]
            source_gradient = a_gradient = b_gradient = None
            if wants_states or trains_a:
                low_gradient = (gradient @ lora_B).mul_(scaling)
                if wants_states and ctx.shared_source[index]:
                    states_gradient.addmm_(low_gradient, lora_A)
                elif wants_states:
                    source_gradient = low_gradient @ lora_A
                if trains_a:
                    a_gradient = low_gradient.T @ source
            if trains_b:
                b_gradient = (gradient.T @ low).mul_(scaling)
            factor_gradients += [source_gradient, a_gradient, b_gradient]
        return states_gradient, None, None, None, *factor_gradients


def _concat_gradients(gradients: Sequence[Tensor | None]) -> Tensor:
    """Gradients (rows, d) beside each other, zero where an output was not used."""
    some = next(gradient for gradient in gradients if gradient is not None)
    if len(gradients) == 1:
        return some
    return torch.cat([torch.zeros_like(some) if part is None else part for part in gradients], dim=1)


def _split_heads(grid: Tensor, num_heads: int) -> Tensor:
    """(texts, width, hidden_size) → (texts·heads, width, head_size)."""
    texts, width, _ = grid.shape
    return grid.view(texts, width, num_heads, -1).transpose(1, 2).flatten(0, 1)


def _to_grid(rows: Tensor, packed: PackedBatch) -> Tensor:
    """(num_rows, n) → (texts, width, n), filling where there is no token."""
    if not packed.is_grid:
        rows = cast(Any, _GatherRows).apply(rows, packed.grid_to_row, packed.row_to_grid, packed.num_tokens)
    return rows.view(*packed.mask.shape, -1)


def _to_rows(grid: Tensor, packed: PackedBatch) -> Tensor:
    """(texts, width, n) → (num_rows, n)."""
    rows = grid.flatten(0, 1)
    if not packed.is_grid:
        rows = cast(Any, _GatherRows).apply(rows, packed.row_to_grid, packed.grid_to_row, None)
    return rows


class _GatherRows(torch.autograd.Function):
    """Rows moved to other places, y_i = x_(there_i), and their gradients back.

    The way back is a mere choice of rows too: what the loss does not depend on, filling and places without a token,
    has a gradient of zero in the grid and among the rows, but for filling rows, whose gradient is set to zero.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, there: Tensor, back: Tensor, num_tokens: int | None) -> Tensor:
        ctx.save_for_backward(back)
        ctx.num_tokens = num_tokens
        return states.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        moved = gradient.index_select(0, back)
        if ctx.num_tokens is not None:
            moved[ctx.num_tokens :] = 0.0
        return moved, None, None, None
