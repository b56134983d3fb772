"""Properties of every adapter method and aggregation rule, in the words that settings, planner and learning share.

A tensor that training changes is named ``"<kind>/<path>"``; methods, rules and costs speak of kinds. Neither wing may
import the other, and the settings must check a combination without PyTorch, so what all of them need to know of a
method or a rule stands here: one line in each of the two tables. A test holds their keys equal to the tables of the
wings and to the values that the settings allow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

RANK_AXIS = {"lora_A": 0, "lora_B": 1, "bottleneck_down": 0, "bottleneck_up": 1, "prefix": 0}
"""Kinds whose tensors grow with the rank, and along which axis; tensors of all other kinds have one size."""

MERGED_AXIS = {"merged_A": 0, "merged_B": 1, "merged_W": 0}
"""Kinds of the frozen parts that a rule has put aside, used by the forward pass and never trained; and along which axis
they grow, or are cut into rows."""

MERGED_KINDS = tuple(MERGED_AXIS)

TRAINED_ADAPTER = "default"
"""PEFT's name for the adapter that is trained."""

Contract = Literal["product", "prefix", "once", "fixed"]
Distribution = Literal["svd", "prefix"]
Export = Literal["peft", "model", "splitrank"]
Tag = Literal[
    "exact", "unequal_ranks", "additive", "keeps_basis", "merges", "prunes", "unweighted", "needs_fixed_rank", "slices"
]


def _check_words(what: str, words: Collection[str], known: Any) -> None:
    """Raise a ValueError for a word that would be without effect."""
    if isinstance(words, str) or not set(words) <= set(get_args(known)):
        raise ValueError(f"{what} must be among {', '.join(get_args(known))}, got {words!r}")


@dataclass(frozen=True)
class MethodTraits:
    """The properties of an adapter method.

    Attributes:
        kinds: of the tensors that it trains, the head's apart.
        contract: what a change of rank keeps: the ``"product"`` scaling·B·A; the first units, ``"prefix"``;
            ``"once"``: nothing, so that the first round's rank is that of the run; or ``"fixed"``: there is no rank.
        export: a folder in ``"peft"``'s format, a whole transformers ``"model"``, or a folder in ``"splitrank"``'s own
            format, for what neither has a place for.
        settings: keys of the table ``[adapter]`` that it reads, beside ``method`` and ``rank``.
        in_paper: whether the paper's count of operations, equation (2), is one of it.

    Raises:
        ValueError: a contract or an export that nobody knows.
    """

    kinds: frozenset[str]
    contract: Contract
    export: Export
    settings: frozenset[str] = frozenset()
    in_paper: bool = False

    def __post_init__(self) -> None:
        _check_words("contract", {self.contract}, Contract)
        _check_words("export", {self.export}, Export)

    @property
    def has_rank(self) -> bool:
        """Return whether the planner has a rank to choose; without one the rank is 1."""
        return self.contract != "fixed"


def _all(kind: str, turn: int) -> bool:
    return True


def _factors_in_turn(kind: str, turn: int) -> bool:
    """Leave lora_A alone in even turns and lora_B in odd ones; B first, since A has no gradient while B is 0."""
    return kind != ("lora_A", "lora_B")[turn % 2]


@dataclass(frozen=True)
class RuleTraits:
    """The properties of an aggregation rule.

    Attributes:
        tags: ``"exact"``, the new product is the mean of the clients' at equal ranks; ``"unequal_ranks"``, clients may
            train at different ranks; ``"additive"``, a weighted sum of updates is all it needs; ``"keeps_basis"``,
            direction j of the new factors is direction j of the old ones; ``"merges"``, it puts products aside as
            merged parts, and so does a plan whose smaller rank would cut something off; ``"prunes"``, clients give up
            ranks of their own, so that each must be planned one; ``"unweighted"``, every client counts the same,
            however many texts it has; ``"needs_fixed_rank"``, what it or a client keeps means nothing at another rank;
            ``"slices"``, every client holds the whole adapter, of a rank that the rule sets, and trains as many
            of its directions as its own rank says, which it chooses itself in an epoch more.
        distribution: how an adapter is cut for a client of a smaller rank: ``"svd"``, the best approximation of its
            product, or ``"prefix"``, its first directions.
        needs: kinds that the adapter must have.
        from_seed: kinds that everybody draws from the seed: never trained, never sent.
        redrawn: kinds that start every round from the seed and the round's number: trained and sent up, never down.
        trains: whether tensors of a kind are trained, sent and averaged in a turn; turns count aggregated rounds from
            0.
        min_updates: updates below which a round takes their mean instead, so that as many clients must take part.
        personal: kinds that are trained and stay with their client: never sent, never averaged.

    Raises:
        ValueError: a tag or a distribution that nobody knows, or a personal factor at ranks that change.
    """

    tags: frozenset[Tag]
    distribution: Distribution = "svd"
    needs: frozenset[str] = frozenset()
    from_seed: frozenset[str] = frozenset()
    redrawn: frozenset[str] = frozenset()
    trains: Callable[[str, int], bool] = _all
    min_updates: int = 1
    personal: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _check_words("tags", self.tags, Tag)
        _check_words("distribution", {self.distribution}, Distribution)
        if self.personal.intersection(RANK_AXIS) and "needs_fixed_rank" not in self.tags:
            raise ValueError('tags must have "needs_fixed_rank" where a factor is personal: nobody could resize it')

    def trained(self, kinds: Collection[str], turn: int) -> frozenset[str]:
        """Return those of the kinds that are trained in a turn; merged parts never are."""
        never = self.from_seed.union(MERGED_KINDS)
        return frozenset(kind for kind in kinds if kind not in never and self.trains(kind, turn))

    def sent(self, kinds: Collection[str], turn: int) -> frozenset[str]:
        """Return those of the kinds that a client sends in a turn: what is trained and not personal."""
        return self.trained(kinds, turn) - self.personal

    def received(self, kinds: Collection[str]) -> frozenset[str]:
        """Return those of the kinds that a client is sent each round: what it neither draws nor has to itself."""
        return frozenset(kinds) - self.drawn(kinds) - self.personal

    def takes(self, kinds: Collection[str]) -> bool:
        """Return whether a method of these kinds has what the rule needs; beside merged parts only plain LoRA."""
        return self.needs.issubset(kinds) and ("merges" not in self.tags or set(kinds) == FACTORS)

    def drawn(self, kinds: Collection[str]) -> frozenset[str]:
        """Return those of the kinds that a client draws from the seed rather than being sent them."""
        return (self.from_seed | self.redrawn).intersection(kinds)


def why_no_server_optimizer(rule: RuleTraits) -> str | None:
    """Return what a rule does that makes moments of one round mean nothing in the next; None where they do."""
    if rule.redrawn:
        return "starts every round from new factors"
    if "merges" in rule.tags:
        return "merges what the mean of the factors lacks, and a step would leave that mean"
    if "prunes" in rule.tags:
        return "lets clients give up ranks"
    if "keeps_basis" not in rule.tags:
        return "turns the basis of the factors in every round"
    return None


def personal_kinds(rule: RuleTraits, head: str) -> frozenset[str]:
    """Return the kinds that stay with their client, by the rule and by ``model.head``."""
    return rule.personal | ({"head"} if head == "local" else set())


FACTORS = frozenset({"lora_A", "lora_B"})
"""Kinds of plain LoRA, beside which a product may be merged."""

_OF_LINEARS = frozenset({"target_modules", "scaling", "dropout"})

METHOD_TRAITS: dict[str, MethodTraits] = {
    "lora": MethodTraits(FACTORS, "product", "peft", _OF_LINEARS, in_paper=True),
    "rslora": MethodTraits(FACTORS, "product", "peft", _OF_LINEARS, in_paper=True),
    "dora": MethodTraits(FACTORS | {"magnitude"}, "product", "peft", _OF_LINEARS),
    "full": MethodTraits(frozenset({"weight"}), "fixed", "model"),
    "bitfit": MethodTraits(frozenset({"bias"}), "fixed", "model"),
    "ia3": MethodTraits(frozenset({"scale"}), "fixed", "peft"),
    "bottleneck": MethodTraits(
        frozenset({"bottleneck_down", "bottleneck_up", "bottleneck_bias"}), "prefix", "splitrank"
    ),
    "prefix": MethodTraits(frozenset({"prefix"}), "once", "splitrank"),
}

RULE_TRAITS: dict[str, RuleTraits] = {
    "fedavg": RuleTraits(frozenset({"additive", "keeps_basis"})),
    "ffa": RuleTraits(
        frozenset({"exact", "unequal_ranks", "additive", "keeps_basis"}), "prefix", FACTORS, frozenset({"lora_A"})
    ),
    "flexlora": RuleTraits(frozenset({"unequal_ranks"}), needs=FACTORS),
    "fedex": RuleTraits(frozenset({"exact", "keeps_basis", "merges"}), needs=FACTORS),
    "flora": RuleTraits(frozenset({"exact", "unequal_ranks", "merges"}), needs=FACTORS, redrawn=FACTORS),
    "fedsvd": RuleTraits(frozenset({"exact"}), needs=FACTORS, trains=lambda kind, turn: kind != "lora_A"),
    "raflora": RuleTraits(frozenset({"unequal_ranks", "keeps_basis"}), "prefix", FACTORS),
    "hetlora": RuleTraits(frozenset({"unequal_ranks", "prunes"}), "prefix", FACTORS),
    "rolora": RuleTraits(frozenset({"exact", "additive", "keeps_basis"}), needs=FACTORS, trains=_factors_in_turn),
    "fedsa": RuleTraits(
        frozenset({"additive", "keeps_basis", "needs_fixed_rank"}),
        needs=FACTORS,
        personal=frozenset({"lora_B", "head"}),
    ),
    "lora-a2": RuleTraits(
        frozenset({"exact", "unequal_ranks", "additive", "keeps_basis", "slices"}),
        needs=FACTORS,
        trains=_factors_in_turn,
    ),
    "median": RuleTraits(frozenset({"keeps_basis", "unweighted"}), min_updates=3),
    "trimmed-mean": RuleTraits(frozenset({"keeps_basis", "unweighted"}), min_updates=3),
}
