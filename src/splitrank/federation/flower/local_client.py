"""A client where its texts are: it tells amounts, plans for itself, trains, and evaluates on its own test texts.

Its model is trained by :func:`splitrank.learning.client.train_client`, as in a run in one process. This module reads
and writes no messages; :mod:`worker` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from splitrank.errors import InputError
from splitrank.federation.costs import epochs_trained, round_workload
from splitrank.federation.flower.device_profile import DeviceProfile, at_frequency, read_energy_j
from splitrank.federation.flower.prepared import Prepared
from splitrank.federation.flower.requests import ClockPlan, PlanRequest, TrainRequest
from splitrank.federation.problems import Measured, measured_problem, round_problem
from splitrank.federation.slices import rule_of_client
from splitrank.federation.state import State
from splitrank.federation.texts import TextStats
from splitrank.learning.adapters.adapter import Adapter
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.client import Throttle, Update
from splitrank.learning.memory import return_freed_memory
from splitrank.planning.plan import make_plan
from splitrank.planning.problem import Problem, subproblem
from splitrank.planning.solvers.exact import exact

_LOG = logging.getLogger("splitrank")


@dataclass(frozen=True, eq=False)
class TrainResult:
    """An update and what it took.

    Attributes:
        update: the trained adapter, with the client's own part.
        rule: as it held for the client in this round.
        busy_s: time of one core, over those that trained [s].
        energy_j: what the machine's own counters say [J], None where it has none.
        machine: what is now known of the machine, None where budgets are simulated.
    """

    update: Update
    rule: Rule
    busy_s: float
    energy_j: float | None
    machine: DeviceProfile | None


@dataclass(frozen=True, eq=False)
class LocalClient:
    """One client of a run, on the machine that has its texts.

    Attributes:
        prepared: its model and texts.
        client: its number.
    """

    prepared: Prepared
    client: int

    @property
    def is_private(self) -> bool:
        """Return whether the client keeps its machine to itself (``planner.where = "client"``)."""
        return self.prepared.model.config.planner.where == "client"

    @property
    def amounts(self) -> TextStats:
        """Amounts of text to train on."""
        return self.prepared.amounts(self.client)

    @property
    def num_test_samples(self) -> int:
        """Texts to evaluate on, where something is personal."""
        return len(self.prepared.test.rows[self.client]) if self.prepared.test else 0

    def measure_machine(self) -> DeviceProfile:
        """Measure the machine anew: speed, clock and power."""
        self.prepared.machines.pop(self.client, None)
        return self.prepared.estimate(self.client).machine

    def max_rank(self, request: PlanRequest) -> int:
        """Return the largest rank that meets the client's own budgets, 0 where none does."""
        return int(exact(self.own_problem(request))[0])

    def own_problem(self, request: PlanRequest) -> Problem:
        """Return P1 of this client alone: its machine and energy budget, the server's T0 and link estimate."""
        prepared, link, turn = self.prepared, request.link, request.turn
        config, shape, traits = prepared.model.config, prepared.model.shape, prepared.rule.traits
        # Problems are of all clients of the run; all others are taken to be like this one, and left out at the end.
        everybody = np.ones(config.federation.num_clients)
        alike = TextStats(*(everybody * amount[0] for amount in vars(self.amounts).values()))
        rates = {name: everybody * getattr(link, name) for name in ("uplink_bps", "downlink_bps", "overhead_s")}
        if request.measures:
            machine = prepared.estimate(self.client).machine
            names = ("seconds_per_sample", "seconds_per_sample_per_rank", "reference_frequency_hz", "capacitance")
            own = {name: everybody * getattr(machine, name) for name in names}
            throttled = np.full(len(everybody), machine.is_throttled)
            measured = Measured(**own, **rates, throttled=throttled, latency_margin=link.latency_margin)
            problem = measured_problem(config, shape, alike, measured, turn, traits, request.merged)
        else:
            workload = round_workload(config, shape, alike, turn, traits, request.merged)
            problem = replace(round_problem(config, shape, workload, request.round, require_all=False), **rates)
        return subproblem(problem, np.array([self.client]))

    def train(self, request: TrainRequest, stop_at_s: float) -> TrainResult:
        """Train the client's model for one round, at the planned clock or pace where its machine is measured.

        Args:
            request: what to start from, and the plan.
            stop_at_s: time of the monotonic clock after which nobody waits for the update any more [s].

        Raises:
            RunError: that time is over.
        """
        model, share, rank = self.prepared.model, self.prepared.training, request.rank
        own = share.outputs, share.rows[self.client], share.labels
        estimate = self.prepared.estimate(self.client) if request.plan else None
        plan = self._own_plan(request.plan, rank) if isinstance(request.plan, PlanRequest) else request.plan
        _LOG.info(f"Round {request.round}: training at rank {rank}.")
        state = State(request.round - 1, request.turn, request.start, {self.client: request.personal})
        task = model.task(request.start, state, self.prepared.rule, self.client)
        throttle = Throttle(stop_at_s=stop_at_s)
        before_j, before_cpu_s, before_s = read_energy_j(), time.process_time(), time.monotonic()
        with at_frequency(plan.frequency_hz) if plan else nullcontext(False) as is_set:
            slowdown = estimate.measured.reference_frequency_hz / plan.frequency_hz if estimate and plan else 1.0
            if plan and not is_set:
                throttle.slowdown, throttle.planned_s = slowdown, plan.compute_s
            epochs = epochs_trained(model.config)
            trial = replace(throttle, planned_s=throttle.planned_s / epochs)
            rule = rule_of_client(model, self.prepared.rule, task, rank, *own, throttle=trial)
            throttle.planned_s *= model.config.federation.local_epochs / epochs
            update = model.train(replace(task, select=rule.select), *own, throttle=throttle)
        trained_s, after_j = time.monotonic() - before_s - throttle.rested_s - trial.rested_s, read_energy_j()
        busy_s = (time.process_time() - before_cpu_s) / torch.get_num_threads()
        return_freed_memory()
        if estimate:
            num_samples = update.num_samples * epochs
            estimate.observe(trained_s / slowdown if is_set else trained_s, request.start.rank, num_samples)
        return TrainResult(
            update,
            rule,
            busy_s=busy_s,
            energy_j=None if before_j is None or after_j is None else max(0.0, after_j - before_j),
            machine=estimate.machine if estimate else None,
        )

    def _own_plan(self, request: PlanRequest, rank: int) -> ClockPlan:
        """Return the client's own plan for its machine at a rank."""
        problem = replace(self.own_problem(request), rank_floor=np.array([rank]), rank_ceiling=np.array([rank]))
        planner = self.prepared.model.config.planner
        plan = make_plan(problem, frequency_policy=planner.frequency_policy, objective=planner.objective)
        return ClockPlan(float(plan.frequency_hz[0]), float(plan.compute_s[0]))

    def evaluate(self, adapter: Adapter, personal: Mapping[str, Tensor]) -> tuple[int, float]:
        """Return hits and the sum of losses of an adapter with a personal part on the client's own test texts.

        Raises:
            InputError: nothing is personal by the settings, so there are no such texts.
        """
        share = self.prepared.test
        if share is None:
            raise InputError("a client evaluates only where something is personal, by the settings nothing is")
        return self.prepared.model.count_hits(share.outputs, share.labels, share.rows[self.client], adapter, personal)
