"""Rules of the tests' own that put products aside, and clients of whom one is away in some rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from splitrank import load_data, make_clients
from splitrank.federation.in_process import InProcessClients
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.adapters.merged import add_merged
from splitrank.learning.aggregation.fedavg import fedavg
from splitrank.learning.aggregation.rule import Combined, Rule, on_scaling
from splitrank.traits import FACTORS, MERGED_KINDS, RuleTraits

TRAITS = RuleTraits(frozenset({"merges"}), needs=FACTORS)


def put_aside(starts, updates, weights, memory):
    """Average, then put the whole product aside and start from a zero product again."""
    averaged = fedavg(starts, updates, weights, memory).adapter
    lora_B = averaged.of_kind("lora_B")
    parts = {path: (a, averaged.scaling * lora_B[path]) for path, a in averaged.of_kind("lora_A").items()}
    empty = {name: torch.zeros_like(tensor) for name, tensor in averaged.only("lora_B").items()}
    return Combined(add_merged(averaged, parts).with_tensors(empty), {})


def residual(starts, updates, weights, memory):
    """Average the factors and put aside what that loses: Σ w_i·s·(B_i − B̄)·(A_i − Ā), of rank K·r."""
    averaged, parts = fedavg(starts, updates, weights, memory).adapter, {}
    updates = on_scaling(updates, averaged.scaling)
    for path, mean_a in averaged.of_kind("lora_A").items():
        mean_b = averaged.tensors[f"lora_B/{path}"]
        a = [update.tensors[f"lora_A/{path}"] - mean_a for update in updates.values()]
        b = [
            weights[client] * averaged.scaling * (update.tensors[f"lora_B/{path}"] - mean_b)
            for client, update in updates.items()
        ]
        parts[path] = torch.cat(a), torch.cat(b, dim=1)
    return Combined(add_merged(averaged, parts), {})


def rewrites(starts, updates, weights, memory):
    """Put aside as above, in the place of what was put aside before."""
    former = starts.whole.only(*MERGED_KINDS)

    def without(adapter: Adapter) -> Adapter:
        return replace(adapter, tensors={n: tensor for n, tensor in adapter.tensors.items() if n not in former})

    bare = {client: without(update) for client, update in updates.items()}
    return put_aside(replace(starts, whole=without(starts.whole)), bare, weights, memory)


PUT_ASIDE = Rule("put-aside", TRAITS, put_aside)
RESIDUAL = Rule("residual", TRAITS, residual)
REWRITES = Rule("rewrites", TRAITS, rewrites)


def of_rule(rule: Rule):
    """What makes clients in this process under a rule."""
    return lambda config: make_clients(config, load_data(config), rule=rule)


class Absent:
    """Clients in this process, of whom client 1 is away in some rounds."""

    def __init__(self, clients: InProcessClients, away: set[int]) -> None:
        self._clients, self._away = clients, away

    def __getattr__(self, name):
        return getattr(self._clients, name)

    def problem(self, state):
        problem = self._clients.problem(state)
        is_here = [client != 1 or state.round + 1 not in self._away for client in range(problem.num_clients)]
        return replace(problem, uplink_bps=np.where(is_here, problem.uplink_bps, 0.0))
