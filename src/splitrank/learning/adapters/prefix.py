"""Prefix tuning: learned keys and values stand before those of the text, in every trained layer.

Li and Liang, "Prefix-tuning: optimizing continuous prompts for generation", ACL 2021; for classification Liu et al.,
"P-tuning v2", ACL 2022. With p learned keys P_K and values P_V, each p × h, a layer's attention is
softmax(Q·[P_K; K]ᵀ/√d)·[P_V; V], one softmax over both as PEFT has it. With ``gate`` it is

    softmax(Q·Kᵀ/√d)·V + Σ_j g_j·softmax_j(Q·P_Kᵀ/√d)·P_V,j

with one number g_j for each learned token, 0 at the start, so that nothing changes before training. Without it a fresh
prefix takes its share of the softmax at once. The number of tokens p is what the planner calls the rank. Neither more
tokens nor fewer are the same function, so it is chosen in the first round and stays.

It differs from the papers in two points. P is trained itself, not through a network (Li and Liang) that is thrown away
later. The layers below the cut have none. PEFT also moves the positions of the text by p, which the papers do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from splitrank import streams
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.method import NO_TERMS, LocalTerms
from splitrank.learning.encoder import Encoder
from splitrank.traits import METHOD_TRAITS, Distribution, MethodTraits


class PrefixAttention(nn.Module):
    """Attention in the place of a family's own, whose linears it takes over under their names.

    Attributes:
        prefix_key, prefix_value: P_K and P_V, shape (p, hidden_size) each.
        prefix_gate: g, shape (p,); None without gates.
    """

    def __init__(self, attention: nn.Module, encoder: Encoder, gate: bool) -> None:
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        family = encoder.family
        self._names = {name: family.linears[name].rpartition(".") for name in ("query", "key", "value")}
        place, _, last = family.linears["attention_output"].rpartition(".")
        self._output_name = last if place == self._names["query"][0] else None
        self._num_heads, self._num_returned = encoder.num_heads, family.attention_returns
        hidden_size, device = encoder.hidden_size, encoder.model.device
        self.prefix_key = nn.Parameter(torch.zeros(1, hidden_size, device=device))
        self.prefix_value = nn.Parameter(torch.zeros(1, hidden_size, device=device))
        self.prefix_gate = nn.Parameter(torch.zeros(1, device=device)) if gate else None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, position_bias: Tensor | None = None, **_: Any
    ) -> tuple[Tensor | None, ...]:
        """Return what every token attends to, as the family's own attention does; weights are left out.

        Args:
            hidden_states: shape (texts, width, hidden_size).
            attention_mask, position_bias: added to the scores of the text, not to those of the prefix.
        """
        query, key, value = (
            self._split(self.get_submodule(last)(hidden_states)) for _, _, last in self._names.values()
        )
        scaling = 1.0 / math.sqrt(query.shape[-1])
        scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
        for added in (position_bias, attention_mask):
            scores = scores if added is None else scores + added
        prefix_scores = torch.matmul(query, self._split(self.prefix_key).transpose(-1, -2)) * scaling
        prefix_value, num_tokens = self._split(self.prefix_value), len(self.prefix_key)
        dropout = cast(nn.Dropout, self.dropout)
        if self.prefix_gate is None:
            joint = dropout(torch.softmax(torch.cat([prefix_scores, scores], dim=-1), dim=-1))
            context = torch.matmul(joint[..., num_tokens:], value)
            weights = joint[..., :num_tokens]
        else:
            context = torch.matmul(dropout(torch.softmax(scores, dim=-1)), value)
            weights = dropout(torch.softmax(prefix_scores, dim=-1)) * self.prefix_gate
        if num_tokens:
            context = context + torch.matmul(weights, prefix_value)
        context = context.transpose(-2, -3).flatten(-2)
        if self._output_name is not None:
            context = self.get_submodule(self._output_name)(context)
        return (context, *[None] * (self._num_returned - 1))

    def _split(self, states: Tensor) -> Tensor:
        """Return (…, tokens, hidden_size) head by head, (…, heads, tokens, head_size)."""
        return states.view(*states.shape[:-1], self._num_heads, states.shape[-1] // self._num_heads).transpose(-2, -3)

    def set_tokens(self, tokens: int) -> None:
        """Make room for so many learned tokens, without keeping the ones there are."""
        if len(self.prefix_key) != tokens:
            hidden_size = self.prefix_key.shape[1]
            self.prefix_value = nn.Parameter(self.prefix_value.new_zeros(tokens, hidden_size))
            if self.prefix_gate is not None:
                self.prefix_gate = nn.Parameter(self.prefix_gate.new_zeros(tokens))
            self.prefix_key = nn.Parameter(self.prefix_key.new_zeros(tokens, hidden_size))


@dataclass(frozen=True)
class Prefix:
    """Prefix tuning; implements :class:`method.Method`.

    Attributes:
        gate: whether each learned token has a gate, beside the softmax over the text.
    """

    gate: bool = False

    name: ClassVar[str] = "prefix"
    traits: ClassVar[MethodTraits] = METHOD_TRAITS["prefix"]
    terms: ClassVar[LocalTerms] = NO_TERMS

    def attach(self, encoder: Encoder) -> None:
        """Put attention with one learned token into each trained layer."""
        for path in _paths(encoder):
            attention = encoder.model.get_submodule(path)
            encoder.model.set_submodule(path, PrefixAttention(attention, encoder, self.gate))

    def parameters(self, encoder: Encoder, rank: int, scaling: float) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        for path in _paths(encoder):
            module = cast(PrefixAttention, encoder.model.get_submodule(path))
            module.set_tokens(rank)
            found |= {f"prefix/{path}.key": module.prefix_key, f"prefix/{path}.value": module.prefix_value}
            if module.prefix_gate is not None:
                found[f"prefix/{path}.gate"] = module.prefix_gate
        return found

    def scaling_at(self, rank: int) -> float:
        return 1.0

    def resize(self, adapter: Adapter, rank: int, *, distribution: Distribution, seed: int, round: int) -> Adapter:
        """Draw the run's prefix, N(0, 1) as PEFT does, from the streams (seed, path); gates start at 0.

        Raises:
            ValueError: the run has a prefix of another length.
        """
        if rank == adapter.rank:
            return adapter
        if adapter.rank:
            raise ValueError(f"a prefix must keep its {adapter.rank} tokens for the whole run, got {rank}")
        drawn = {}
        for name, empty in adapter.only("prefix").items():
            if name.endswith(".gate"):
                drawn[name] = empty.new_zeros(rank)
            else:
                tokens = streams.generator(seed, name).standard_normal((rank, empty.shape[1]))
                drawn[name] = torch.from_numpy(tokens).to(empty.dtype)
        return replace(adapter.with_tensors(drawn), rank=rank)


def _paths(encoder: Encoder) -> list[str]:
    """Return the paths of the trained layers' attention, the module that has the linear "query"."""
    family = encoder.family
    attention = family.linears["query"].rpartition(".")[0]
    return [f"{family.layers}.{index}.{attention}" for index in encoder.trained_layers]
