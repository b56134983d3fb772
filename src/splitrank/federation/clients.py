"""The clients as a run sees them, wherever they are: in this process, or Flower's nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from splitrank.config import Config
from splitrank.federation.model import Model
from splitrank.federation.state import State
from splitrank.federation.texts import TextStats
from splitrank.learning.aggregation.rule import Rule, Starts
from splitrank.learning.client import Evaluation, Update
from splitrank.learning.data import TextData
from splitrank.learning.partition import Partition
from splitrank.planning.plan import Plan
from splitrank.planning.problem import Problem


@dataclass(frozen=True)
class NoUpdate:
    """A participant that gave no update, and why; ``wall`` as in :class:`Update`.

    ``lost_merged`` says that it no longer has the merged parts that it was sent in earlier rounds, ``late`` that its
    update came after those of enough others.
    """

    reason: str
    wall: Mapping[str, float] = field(default_factory=dict)
    lost_merged: bool = False
    late: bool = False


class Clients(Protocol):
    """The clients of a run: what a round asks of them, and what the run folder tells of model and texts."""

    @property
    def config(self) -> Config:
        """The settings of the run, with nothing left to the machine or the data."""

    @property
    def model(self) -> Model:
        """The model that evaluates."""

    @property
    def rule(self) -> Rule:
        """How the clients' work is aggregated."""

    @property
    def num_samples(self) -> Sequence[int]:
        """Training texts of each client."""

    @property
    def data(self) -> TextData:
        """The texts that are on this machine."""

    @property
    def texts(self) -> TextStats:
        """Amounts of text of each client."""

    @property
    def partition(self) -> Partition | None:
        """Who holds which training rows; None where they are with the clients alone."""

    @property
    def trunk_computed(self) -> dict[str, bool]:
        """Return whether the frozen trunk's outputs had to be computed here."""

    @property
    def run_id(self) -> str | None:
        """Name of the run, by which clients find what they keep of it; None where they keep nothing."""

    def initial_state(self) -> State:
        """Return the state of round 0."""

    def problem(self, state: State) -> Problem:
        """Return the next round's problem P1: links, processors, workload and budgets of every client."""

    def plan(self, problem: Problem, state: State) -> Plan:
        """Return who takes part in the next round, at which rank and frequency; who fits none sits out."""

    def train(self, starts: Starts, plan: Plan, state: State) -> Mapping[int, Update | NoUpdate]:
        """Let every participant train on its own texts, from its own start, at the plan's frequency."""

    def evaluate(self, state: State) -> Evaluation:
        """Evaluate the state's model on the test texts."""

    def close(self) -> None:
        """Let go of what is open."""
