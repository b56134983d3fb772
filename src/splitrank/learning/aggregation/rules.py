"""The table of aggregation rules."""

from __future__ import annotations

from splitrank.learning.aggregation.fedavg import fedavg
from splitrank.learning.aggregation.ffa import ffa
from splitrank.learning.aggregation.flexlora import flexlora
from splitrank.learning.aggregation.rule import Combine, Rule
from splitrank.traits import RULE_TRAITS

_COMBINE: dict[str, Combine] = {"fedavg": fedavg, "ffa": ffa, "flexlora": flexlora}

RULES: dict[str, Rule] = {name: Rule(name, RULE_TRAITS[name], combine) for name, combine in _COMBINE.items()}
