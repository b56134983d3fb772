"""Bottleneck adapters: two small networks in each trained layer, after attention and after the feed-forward part.

Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019: the output z of the last linear of
either part becomes z + W_up·gelu(W_down·z + b_down) + b_up, before the residual connection and the layer norm. W_down
is m × h and W_up is h × m. The number of units m is what the planner calls the rank.

It differs from the paper in four points. W_up starts at 0 rather than near it, so that nothing changes before training,
and W_down as PyTorch draws a linear. The layer's dropout comes after the adapter rather than before it. The layer norms
stay frozen. And m may change between rounds: then the first units stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from splitrank import streams
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.method import NO_TERMS, LocalTerms
from splitrank.learning.encoder import Encoder
from splitrank.traits import METHOD_TRAITS, Distribution, MethodTraits

_AFTER = ("attention_output", "output")


class WithBottleneck(nn.Module):
    """A frozen linear and the small network after it: z + W_up·gelu(W_down·z + b_down) + b_up with z = W·x + b."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        width = linear.weight.new_zeros(linear.out_features)
        self.linear = linear
        self.down = nn.Parameter(width.new_zeros(1, len(width)))
        self.down_bias = nn.Parameter(width.new_zeros(1))
        self.up = nn.Parameter(width.new_zeros(len(width), 1))
        self.up_bias = nn.Parameter(width)

    def forward(self, states: Tensor) -> Tensor:
        """Return what the linear makes of some states, plus what the network makes of that."""
        mapped: Tensor = self.linear(states)
        inner = functional.gelu(functional.linear(mapped, self.down, self.down_bias))
        return mapped + functional.linear(inner, self.up, self.up_bias)

    def set_units(self, units: int) -> None:
        """Make room for so many units, without keeping the ones there are."""
        if len(self.down) != units:
            hidden_size = len(self.up_bias)
            self.down = nn.Parameter(self.down.new_zeros(units, hidden_size))
            self.down_bias = nn.Parameter(self.down.new_zeros(units))
            self.up = nn.Parameter(self.down.new_zeros(hidden_size, units))


@dataclass(frozen=True)
class Bottleneck:
    """Bottleneck adapters; implements :class:`method.Method`."""

    name: ClassVar[str] = "bottleneck"
    traits: ClassVar[MethodTraits] = METHOD_TRAITS["bottleneck"]
    terms: ClassVar[LocalTerms] = NO_TERMS

    def attach(self, encoder: Encoder) -> None:
        """Put a network without effect after two linears of each trained layer."""
        for path in _paths(encoder):
            linear = cast(nn.Linear, encoder.model.get_submodule(path))
            encoder.model.set_submodule(path, WithBottleneck(linear))

    def parameters(self, encoder: Encoder, rank: int, scaling: float) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        for path in _paths(encoder):
            module = cast(WithBottleneck, encoder.model.get_submodule(path))
            module.set_units(rank)
            found[f"bottleneck_down/{path}.weight"] = module.down
            found[f"bottleneck_down/{path}.bias"] = module.down_bias
            found[f"bottleneck_up/{path}.weight"] = module.up
            found[f"bottleneck_bias/{path}.bias"] = module.up_bias
        return found

    def scaling_at(self, rank: int) -> float:
        return 1.0

    def resize(self, adapter: Adapter, rank: int, *, distribution: Distribution, seed: int, round: int) -> Adapter:
        """Keep the first units, and add units whose column of W_up is zero.

        The W_down of unit j is row j of one draw for the whole run, U(-1/√h, 1/√h) from the stream (seed, path).
        """
        if rank == adapter.rank:
            return adapter
        resized = {}
        for name, weight in adapter.only("bottleneck_down").items():
            rows = weight[:rank]
            new = weight.new_zeros(rank - len(rows), *weight.shape[1:])
            if weight.ndim == 2:
                new = _units(name, rank, weight.shape[1], seed)[len(rows) :].to(weight.dtype)
            resized[name] = torch.cat([rows, new])
        for name, weight in adapter.only("bottleneck_up").items():
            columns = weight[:, :rank]
            resized[name] = torch.cat([columns, weight.new_zeros(len(weight), rank - columns.shape[1])], dim=1)
        return replace(adapter.with_tensors(resized), rank=rank)


def _paths(encoder: Encoder) -> list[str]:
    """Return the paths of the linears that are followed by a network, layer by layer."""
    family = encoder.family
    return [f"{family.layers}.{i}.{family.linears[name]}" for i in encoder.trained_layers for name in _AFTER]


def _units(name: str, count: int, width: int, seed: int) -> Tensor:
    """Draw rows of W_down; the first rows of a longer draw are those of a shorter one."""
    bound = 1.0 / width**0.5
    return torch.from_numpy(streams.generator(seed, name).uniform(-bound, bound, (count, width)))
