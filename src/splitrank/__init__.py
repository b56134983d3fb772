"""splitrank: federated split LoRA fine-tuning of RoBERTa-class encoders under radio, time and energy budgets.

Public names are resolved when first used, so that ``import splitrank`` loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitrank.config import Config, load_config
    from splitrank.errors import ConfigError, InputError, RunError
    from splitrank.federation.data import load_data
    from splitrank.federation.export import predict
    from splitrank.federation.in_process import make_clients
    from splitrank.federation.loop import run
    from splitrank.federation.plan_report import plan_report
    from splitrank.federation.rounds import run_round
    from splitrank.federation.state import State
    from splitrank.records import RoundRecord

_HOME = {
    "Config": "config",
    "ConfigError": "errors",
    "InputError": "errors",
    "RoundRecord": "records",
    "RunError": "errors",
    "State": "federation.state",
    "load_config": "config",
    "load_data": "federation.data",
    "make_clients": "federation.in_process",
    "plan_report": "federation.plan_report",
    "predict": "federation.export",
    "run": "federation.loop",
    "run_round": "federation.rounds",
}

__all__ = [
    "Config",
    "ConfigError",
    "InputError",
    "RoundRecord",
    "RunError",
    "State",
    "load_config",
    "load_data",
    "make_clients",
    "plan_report",
    "predict",
    "run",
    "run_round",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'splitrank' has no attribute {name!r}")
    return getattr(import_module(f"splitrank.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
