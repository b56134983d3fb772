"""The forms that a run's result can have, known before any work is done. Loads no torch."""

from __future__ import annotations

from splitrank.config import Config
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS, personal_kinds

EXPORTS = {"peft": "adapter", "model": "model", "splitrank": "adapter"}
"""Form of an export → the folder of a run that holds it."""

_FORMS = {
    "peft": "an adapter in PEFT's format",
    "model": "a whole transformers model",
    "splitrank": "an adapter in splitrank's own format",
}


def export_folder(config: Config) -> str:
    """Return which folder of a run will hold its result: an ``adapter``, or a whole ``model``."""
    return EXPORTS[METHOD_TRAITS[config.adapter.method].export]


def export_text(config: Config) -> str:
    """Return what a run's result is, and where."""
    what = _FORMS[METHOD_TRAITS[config.adapter.method].export]
    each = " for each client" if has_personal(config) else ""
    return f"{what}{each}, in {export_folder(config)}/"


def has_personal(config: Config) -> bool:
    """Return whether the settings leave something of the model with each client."""
    return bool(personal_kinds(RULE_TRAITS[config.federation.aggregation], config.model.head))


def export_sentence(config: Config) -> str:
    """Return what a run says of its result before it starts."""
    return f"The result will be {export_text(config)}."
