"""The table of aggregation rules, from which ``federation.aggregation`` in the settings chooses one.

To choose a rule here is to select a strategy in Flower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.method import LocalTerms
from splitrank.learning.aggregation.fedavg import fedavg
from splitrank.learning.aggregation.fedex import fedex
from splitrank.learning.aggregation.fedsvd import fedsvd, with_orthonormal_rows
from splitrank.learning.aggregation.ffa import ffa
from splitrank.learning.aggregation.flexlora import flexlora
from splitrank.learning.aggregation.flora import flora
from splitrank.learning.aggregation.hetlora import SelfPruning, TailPenalty, hetlora
from splitrank.learning.aggregation.raflora import raflora
from splitrank.learning.aggregation.robust import TrimmedMean, median
from splitrank.learning.aggregation.rule import Combine, Rule
from splitrank.learning.aggregation.truncated import with_merged_rank
from splitrank.traits import RULE_TRAITS

_COMBINE: dict[str, Combine] = {
    "fedavg": fedavg,
    "ffa": ffa,
    "flexlora": flexlora,
    "fedex": fedex,
    "flora": flora,
    "fedsvd": fedsvd,
    "raflora": raflora,
    "hetlora": hetlora,
    "median": median,
    "trimmed-mean": TrimmedMean(0.2),
}

_PREPARE: dict[str, Callable[[Adapter], Adapter]] = {"fedsvd": with_orthonormal_rows}

RULES: dict[str, Rule] = {
    name: Rule(name, RULE_TRAITS[name], combine, prepare=_PREPARE.get(name)) for name, combine in _COMBINE.items()
}
"""Every rule as it is without settings; :func:`make_rule` adds these, and only then do hetlora's clients prune."""


def _merging(rule: Rule, values: Mapping[str, Any]) -> Rule:
    return with_merged_rank(rule, values["merged_rank"])


def _pruning(rule: Rule, values: Mapping[str, Any]) -> Rule:
    gamma = values["gamma"]
    penalty = TailPenalty(gamma, values["lambda"])
    return replace(rule, terms=LocalTerms(penalty=penalty), kept_rank=SelfPruning(gamma))


def _trimming(rule: Rule, values: Mapping[str, Any]) -> Rule:
    return replace(rule, combine=TrimmedMean(values["fraction"]))


_WITH_SETTINGS: dict[str, Callable[[Rule, Mapping[str, Any]], Rule]] = {
    "fedex": _merging,
    "flora": _merging,
    "hetlora": _pruning,
    "trimmed-mean": _trimming,
}


def make_rule(name: str, values: Mapping[str, Any]) -> Rule:
    """Make a rule with those of the values that are settings of its own; rules of equal settings are equal."""
    rule = RULES[name]
    return _WITH_SETTINGS[name](rule, values) if name in _WITH_SETTINGS else rule
