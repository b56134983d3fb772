"""LoRA-A²: Koo et al., "Towards robust and efficient federated low-rank adaptation with heterogeneous clients",
arXiv 2410.22815.

B and A are trained in turn, as in RoLoRA. All clients hold the whole global adapter, of one rank r_G for the run, and
each trains and sends only some of its slices: a slice is one direction of one linear, a column of B or a row of A. A
client chooses its slices by what a trial epoch over all of them would change, and throws the trial away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.adapters.selection import NOTHING, Index, Select
from splitrank.learning.aggregation.rule import Combined, Starts, mean_of, on_scaling
from splitrank.traits import FACTORS, RANK_AXIS, RuleTraits

Slices = Mapping[str, Sequence[int]]
"""Path of a linear → its chosen directions, ascending; linears without any are left out."""


def lora_a2(
    starts: Starts, updates: Mapping[int, Adapter], weights: Mapping[int, float], memory: Mapping[str, Tensor]
) -> Combined:
    """Add what the clients changed: B + Σ_k p_k·ΔB_k, or A + Σ_k p_k·ΔA_k, p_k = n_k/Σn over all who sent an update.

    Who has not chosen a slice counts as no change of it, so no slice shrinks because few have it. An update holds the
    start's values where nothing was sent, so this is the mean of the updates; and since the other factor is common to
    all, it is exact.

    Args:
        starts: the whole's scaling becomes the result's.
        updates: at least one, all of the global rank, with one factor in common.
        weights: n_k/Σn.
        memory: not used.
    """
    whole = starts.whole
    updates = on_scaling(updates, whole.scaling)
    return Combined(whole.with_tensors(mean_of(whole.tensors, updates, weights)), {}, 0.0)


def factor_of(traits: RuleTraits, turn: int) -> str:
    """Return the kind of the factor that is trained in a turn."""
    (kind,) = traits.trained(FACTORS, turn)
    return kind


def slice_scores(start: Adapter, tried: Adapter, kind: str) -> dict[str, Tensor]:
    """Return how much a trial has moved each slice's product: S_mj = ‖ΔB_j·A_j‖ = ‖ΔB_j‖·‖A_j‖, or ‖B_j‖·‖ΔA_j‖.

    Args:
        start: before the trial.
        tried: after it.
        kind: of the factor that was trained.

    Returns:
        path → float64 of shape (r_G,).
    """
    scores = {}
    for path in start.of_kind(kind):
        norms = []
        for factor in sorted(FACTORS):
            name, axis = f"{factor}/{path}", RANK_AXIS[factor]
            tensor = start.tensors[name].double()
            moved = tried.tensors[name].double() - tensor if factor == kind else tensor
            norms.append(moved.norm(dim=1 - axis))
        scores[path] = norms[0] * norms[1]
    return scores


def choose_slices(start: Adapter, tried: Adapter, kind: str, num_slices: int) -> Slices:
    """Return the slices with the largest scores, as many as a client's plan has room for.

    The best ``num_slices`` times the number of linears; then the worst of these are dropped until the rest is no larger
    than ``num_slices`` slices of every linear, which is what the plan has counted. Equal scores go by the order of the
    linears and of the directions.

    Args:
        start, tried, kind: as for :func:`slice_scores`.
        num_slices: the planned rank r_i, 1 to r_G.
    """
    scores = slice_scores(start, tried, kind)
    sizes = _slice_sizes(start, kind)
    every = [
        (-float(score), order, j, path) for order, path in enumerate(scores) for j, score in enumerate(scores[path])
    ]
    chosen = sorted(every)[: num_slices * len(scores)]
    room, used = num_slices * sum(sizes.values()), sum(sizes[path] for *_, path in chosen)
    while used > room:
        *_, path = chosen.pop()
        used -= sizes[path]
    slices: dict[str, list[int]] = {}
    for _, _, j, path in sorted(chosen, key=lambda one: one[1:3]):
        slices.setdefault(path, []).append(j)
    return slices


def rank_sent(start: Adapter, kind: str, slices: Slices) -> float:
    """Return to what rank the slices amount, all linears together: Σ numbers sent / Σ numbers of one rank."""
    sizes = _slice_sizes(start, kind)
    return sum(sizes[path] * len(chosen) for path, chosen in slices.items()) / sum(sizes.values())


def _slice_sizes(start: Adapter, kind: str) -> dict[str, int]:
    """Return path → numbers in a slice of a factor."""
    return {path: tensor.shape[1 - RANK_AXIS[kind]] for path, tensor in start.of_kind(kind).items()}


@dataclass(frozen=True)
class OfSlices:
    """The selection of a client that trains some slices of the turn's factor, and whole tensors of all other kinds.

    Attributes:
        whole: the rule's own selection.
        slices: of the factors.
    """

    whole: Select
    slices: Slices

    def __call__(self, name: str, tensor: Tensor, client: int, turn: int) -> Index | None:
        index = self.whole(name, tensor, client, turn)
        kind, _, path = name.partition("/")
        if index is not None or kind not in FACTORS:
            return index
        if path not in self.slices:
            return NOTHING
        chosen = list(self.slices[path])
        return chosen if RANK_AXIS[kind] == 0 else (slice(None), chosen)


@dataclass(frozen=True)
class FactorRate:
    """The learning rate of lora_B over that of everything else.

    Attributes:
        ratio: > 0; the paper takes 5.
    """

    ratio: float

    def __call__(self, name: str) -> float:
        return self.ratio if kind_of(name) == "lora_B" else 1.0
