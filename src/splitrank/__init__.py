"""splitrank: federated split LoRA fine-tuning of RoBERTa-class encoders under radio, time and energy budgets.

Where to find what a round does (``federation.rounds`` is the round itself):

- links: ``federation.radio`` draws them; ``federation.flower.links`` measures a real link's speed (bandwidth);
- planning: ``planning.plan`` finds the rank and processor frequency that the budgets allow;
- local training: ``learning.client.train_client`` trains one client;
- updates: ``federation.flower.checks.check_update`` checks what a client sends;
- aggregation: ``learning.aggregation.rules`` is the table from which the settings choose a rule (an aggregator, or in
  Flower a strategy).

Public names are resolved when first used, so that ``import splitrank`` loads neither torch nor transformers. Those of
the planner, ``Problem``, ``Workload``, ``Affine``, ``Plan`` and ``make_plan``, need only NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitrank.config import Config, load_config
    from splitrank.errors import ConfigError, InfeasibleError, InputError, RunError
    from splitrank.federation.data import load_data
    from splitrank.federation.export import predict
    from splitrank.federation.in_process import make_clients
    from splitrank.federation.loop import run
    from splitrank.federation.plan_report import plan_report
    from splitrank.federation.rounds import run_round
    from splitrank.federation.state import State
    from splitrank.planning.plan import Plan, make_plan
    from splitrank.planning.problem import Problem
    from splitrank.planning.workload import Affine, Workload
    from splitrank.records import RoundRecord

_HOME = {
    "Affine": "planning.workload",
    "Config": "config",
    "ConfigError": "errors",
    "InfeasibleError": "errors",
    "InputError": "errors",
    "Plan": "planning.plan",
    "Problem": "planning.problem",
    "RoundRecord": "records",
    "RunError": "errors",
    "State": "federation.state",
    "Workload": "planning.workload",
    "load_config": "config",
    "load_data": "federation.data",
    "make_clients": "federation.in_process",
    "make_plan": "planning.plan",
    "plan_report": "federation.plan_report",
    "predict": "federation.export",
    "run": "federation.loop",
    "run_round": "federation.rounds",
}

__all__ = [
    "Affine",
    "Config",
    "ConfigError",
    "InfeasibleError",
    "InputError",
    "Plan",
    "Problem",
    "RoundRecord",
    "RunError",
    "State",
    "Workload",
    "load_config",
    "load_data",
    "make_clients",
    "make_plan",
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
