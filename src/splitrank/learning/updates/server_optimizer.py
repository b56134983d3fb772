"""Server optimisers: Reddi et al., "Adaptive federated optimization", ICLR 2021, arXiv 2003.00295 (FedAdam, FedYogi),
and Hsu et al., "Measuring the effects of non-identical data distribution for federated visual classification",
arXiv 1909.06335 (FedAvgM).

A rule's result is not taken as the next adapter, but as the direction of a step: the difference from what the round
started with is a gradient to an optimiser on the server. Its moments are in the basis of the factors, so only rules
that keep the basis can have one, at a fixed rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from splitrank.errors import InputError
from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.aggregation.rule import Combine, Combined, Rule, Starts, on_scaling
from splitrank.traits import RuleTraits, Tag, why_no_server_optimizer

Moments = Mapping[str, Tensor]


class ServerStep(Protocol):
    """An optimiser on the server: a frozen dataclass of its settings."""

    @property
    def name(self) -> str:
        """Return the name by which the settings call it."""

    @property
    def initial(self) -> Mapping[str, float]:
        """Return what its moments start at, by name."""

    def __call__(self, gradient: Tensor, moments: Moments) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the step to add to a tensor, and its new moments by name.

        Args:
            gradient: g = θ⁰ − aggregate, float64.
            moments: after the last step, or as they start; float64, of the same shape.
        """


@dataclass(frozen=True)
class FedAvgM:
    """Momentum: v ← β·v + g, θ ← θ⁰ − η·v, v starting at 0. With η = 1 and β = 0 it is the rule alone.

    Attributes:
        learning_rate: η > 0.
        momentum: β, from 0 up to but not including 1.
    """

    name: ClassVar[str] = "fedavgm"
    learning_rate: float = 1.0
    momentum: float = 0.9

    @property
    def initial(self) -> Mapping[str, float]:
        """Return v = 0."""
        return {"v": 0.0}

    def __call__(self, gradient: Tensor, moments: Moments) -> tuple[Tensor, dict[str, Tensor]]:
        """Return −η·v, and v."""
        v = self.momentum * moments["v"] + gradient
        return -self.learning_rate * v, {"v": v}


@dataclass(frozen=True)
class FedAdam:
    """Adam: m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g², θ ← θ⁰ − η·m/(√v + τ).

    m starts at 0 and v at τ², and nothing is corrected for that, as in the paper's algorithm 2. Flower 1.41 starts v at
    0 and corrects η by √(1 − β₂^(t+1))/(1 − β₁^(t+1)) in round t.

    Attributes:
        learning_rate: η > 0.
        beta1, beta2: β₁ and β₂, from 0 up to but not including 1.
        tau: τ > 0; the larger, the less the steps of different numbers are made alike.
    """

    name: ClassVar[str] = "fedadam"
    learning_rate: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    @property
    def initial(self) -> Mapping[str, float]:
        """Return m = 0 and v = τ²."""
        return {"m": 0.0, "v": self.tau**2}

    def __call__(self, gradient: Tensor, moments: Moments) -> tuple[Tensor, dict[str, Tensor]]:
        """Return −η·m/(√v + τ), m and v."""
        m = self.beta1 * moments["m"] + (1 - self.beta1) * gradient
        v = self.second_moment(moments["v"], gradient.square())
        return -self.learning_rate * m / (v.sqrt() + self.tau), {"m": m, "v": v}

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the next v from the last one and g²."""
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Yogi: as :class:`FedAdam`, but v ← v − (1 − β₂)·g²·sign(v − g²), which falls slowly where gradients become small.

    v starts at τ²; in Flower 1.41 at 0, so that its first step divides by less.
    """

    name: ClassVar[str] = "fedyogi"

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the next v from the last one and g²."""
        return v - (1 - self.beta2) * square * (v - square).sign()


SERVER_OPTIMIZERS: dict[str, Callable[..., ServerStep]] = {"fedavgm": FedAvgM, "fedadam": FedAdam, "fedyogi": FedYogi}


@dataclass(frozen=True)
class ServerOptimized:
    """A rule's result as the direction of a step of a server optimiser.

    Each number goes by itself, in float64, and moments are kept in the tensors' own precision. Tensors that this turn
    does not train keep their values and their moments. What stays on the clients is in no update, and so in no step.
    The error of averaging factors is the rule's, before the step.

    How far a client's update may be from its start is checked before the rule, on what the client sent; the step comes
    after, so that bound is the same with a server optimiser as without.

    Attributes:
        combine: the rule's.
        traits: the rule's, which say what is trained in which turn.
        step: the optimiser.
    """

    combine: Combine
    traits: RuleTraits
    step: ServerStep

    def __call__(
        self,
        starts: Starts,
        updates: Mapping[int, Adapter],
        weights: Mapping[int, float],
        memory: Mapping[str, Tensor],
    ) -> Combined:
        """Combine the updates, and step from the start towards the result.

        Args:
            starts: θ⁰ is the whole.
            updates: at least one, all of the run's one rank.
            weights: n_i/Σn.
            memory: the rule's, and under the optimiser's name its moments and the turns so far.
        """
        owner, whole = f"{self.step.name}/", starts.whole
        own = {name.removeprefix(owner): tensor for name, tensor in memory.items() if name.startswith(owner)}
        others = {name: tensor for name, tensor in memory.items() if not name.startswith(owner)}
        combined = self.combine(starts, updates, weights, others)
        (aggregate,) = on_scaling({0: combined.adapter}, whole.scaling).values()
        turn = own.pop("turn", torch.zeros((), dtype=torch.int64))
        trained = self.traits.trained(whole.kinds, int(turn))
        moved = {}
        for name, start in whole.tensors.items():
            if kind_of(name) not in trained:
                continue
            gradient = start.double() - aggregate.tensors[name]
            before = {
                part: own[f"{part}/{name}"].double() if f"{part}/{name}" in own else torch.full_like(gradient, value)
                for part, value in self.step.initial.items()
            }
            step, after = self.step(gradient, before)
            moved[name] = (start + step).to(start.dtype)
            own |= {f"{part}/{name}": tensor.to(start.dtype) for part, tensor in after.items()}
        ours = {f"{owner}{name}": tensor for name, tensor in {"turn": turn + 1, **own}.items()}
        return replace(combined, adapter=whole.with_tensors(moved), memory={**combined.memory, **ours})


def with_server_optimizer(rule: Rule, step: ServerStep | None) -> Rule:
    """Return a rule whose result is the direction of a server optimiser's step; without an optimiser the same rule.

    Raises:
        InputError: a rule under which moments of one round mean nothing in the next.
    """
    if step is None:
        return rule
    why = why_no_server_optimizer(rule.traits)
    if why is None and rule.selection is not None:
        why = "trains parts of tensors, and momentum would move the others"
    if why:
        raise InputError(f"the rule {rule.name} must have no server optimiser, since it {why}, got {step.name}")
    lost, gained = frozenset[Tag](("exact", "additive")), frozenset[Tag](("needs_fixed_rank",))
    traits = replace(rule.traits, tags=(rule.traits.tags - lost) | gained)
    return replace(rule, traits=traits, combine=ServerOptimized(rule.combine, rule.traits, step))


def make_server_optimizer(name: str, values: Mapping[str, Any]) -> ServerStep | None:
    """Make an optimiser with its settings; None for ``"none"``."""
    return SERVER_OPTIMIZERS[name](**values) if name != "none" else None
