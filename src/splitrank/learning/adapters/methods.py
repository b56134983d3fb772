"""The table of adapter methods: what the settings call each, and the class of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from splitrank.learning.adapters.bitfit import BitFit
from splitrank.learning.adapters.bottleneck import Bottleneck
from splitrank.learning.adapters.dora import Dora
from splitrank.learning.adapters.full import Full
from splitrank.learning.adapters.ia3 import Ia3
from splitrank.learning.adapters.lora import Lora
from splitrank.learning.adapters.method import Method
from splitrank.learning.adapters.prefix import Prefix
from splitrank.learning.adapters.rslora import RsLora

METHODS: dict[str, type[Any]] = {
    "lora": Lora,
    "rslora": RsLora,
    "dora": Dora,
    "full": Full,
    "bitfit": BitFit,
    "ia3": Ia3,
    "bottleneck": Bottleneck,
    "prefix": Prefix,
}


def make_method(name: str, values: Mapping[str, Any]) -> Method:
    """Make a method of those of the values that it has a field for."""
    kind = METHODS[name]
    method: Method = kind(**{field.name: values[field.name] for field in fields(kind)})
    return method
