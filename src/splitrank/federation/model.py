"""The model on one machine: an encoder cut at a layer, with adapters; it trains on a client's texts and evaluates.

One model serves every client of its machine, one after the other: all clients of a run in one process, the single
client of a node, or the server, which only evaluates.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from splitrank import placement
from splitrank.config import Config, absolute_paths, with_values
from splitrank.errors import ConfigError
from splitrank.federation.sizes import check_fits, fixed_rank
from splitrank.federation.state import State
from splitrank.learning.adapters.adapter import Adapter, kind_of
from splitrank.learning.adapters.method import AdaptedEncoder, Method, attach, initial, load, trained_head
from splitrank.learning.adapters.methods import make_method
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.aggregation.rules import make_rule
from splitrank.learning.client import (
    FULL_SPEED,
    Evaluation,
    Task,
    Throttle,
    TrainingConfig,
    Update,
    classification_metrics,
    predict_logits,
    train_client,
)
from splitrank.learning.data import TextData
from splitrank.learning.device import resolve_device
from splitrank.learning.encoder import Encoder, load_encoder, resolve_precision, tokenize
from splitrank.learning.lengths import TokenIds, with_lengths
from splitrank.learning.memory import keep_freed_memory, return_freed_memory
from splitrank.learning.summary import summarise
from splitrank.learning.trunk import TrunkOutputs, trunk_outputs
from splitrank.learning.updates.proximal import proximal_terms
from splitrank.learning.updates.server_optimizer import make_server_optimizer, with_server_optimizer
from splitrank.planning.flops import EncoderShape
from splitrank.traits import RANK_AXIS, personal_kinds

_LOG = logging.getLogger("splitrank")


@dataclass(frozen=True, eq=False)
class Model:
    """An encoder with an adapter method, and the settings it was loaded for.

    Attributes:
        config: the settings, with nothing left to the machine or the data.
        adapted: the encoder with the method in it.
        shape: sizes of the encoder.
        initial: the adapter of round 0 with all of the head that is trained, read before anything was.
        personal: kinds that stay with their client.
    """

    config: Config
    adapted: AdaptedEncoder
    shape: EncoderShape
    initial: Adapter
    personal: frozenset[str] = frozenset()

    @property
    def encoder(self) -> Encoder:
        """The encoder, whatever a method has put into it."""
        return self.adapted.encoder

    @property
    def method(self) -> Method:
        """The adapter method."""
        return self.adapted.method

    def initial_state(self) -> State:
        """Return the state of round 0: rank 0, a head of random weights."""
        if not self.personal:
            return State(0, 0, self.initial)
        clients = range(self.config.federation.num_clients)
        rank = fixed_rank(self.config) or 0
        local = {client: untrained_personal(self, rank) for client in clients}
        return State(0, 0, self.initial_shared, local)

    @property
    def initial_shared(self) -> Adapter:
        """The adapter of round 0 without what is personal."""
        shared = {name: tensor for name, tensor in self.initial.tensors.items() if kind_of(name) not in self.personal}
        return replace(self.initial, tensors=shared)

    def tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return token ids of each text, cut to ``model.max_length`` tokens."""
        return tokenize(self.encoder, texts, self.config.model.max_length)

    def measure(self, data: TextData, train_ids: TokenIds | None, test_ids: TokenIds) -> TextData:
        """Return a data set with the lengths of its texts, and say what they are.

        Args:
            data: the texts.
            train_ids, test_ids: what :meth:`tokenize` returned; None for training texts that are elsewhere.
        """
        data = with_lengths(data, self.encoder.tokenizer, self.config.model.max_length, train_ids, test_ids)
        for line in summarise(data).length_lines():
            _LOG.info(line)
        return data

    def prepare(self, token_ids: Sequence[NDArray[np.int32]], what: str) -> TrunkOutputs:
        """Open the frozen trunk's output of some texts, from the cache or computed into it; the caller closes it.

        Args:
            token_ids: of at least one text.
            what: what they are, for the line that says how long it takes.
        """
        return trunk_outputs(self.encoder, token_ids, limit_bytes=self.config.run.cache_limit_gb * 1e9, what=what)

    @property
    def local_training(self) -> TrainingConfig:
        """How every client trains."""
        train, federation = self.config.train, self.config.federation
        return TrainingConfig(
            learning_rate=train.learning_rate,
            batch_size=train.batch_size,
            schedule=train.schedule,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            local_epochs=federation.local_epochs,
            num_rounds=federation.rounds,
            class_weights=train.class_weights,
        )

    def task(self, start: Adapter, state: State, rule: Rule, client: int) -> Task:
        """Return what a client is asked to do in the round after a state.

        Args:
            start: the adapter that it is sent.
            state: the state before the round, with the client's own tensors.
            rule: which numbers are trained.
            client: its index.
        """
        return Task(
            start=start,
            personal=state.local.get(client, {}),
            select=rule.select,
            seed=self.config.run.seed,
            round=state.round + 1,
            client=client,
            turn=state.turn,
            terms=(self.method.terms, rule.terms, *proximal_terms(self.config.train.proximal)),
        )

    def train(
        self,
        task: Task,
        texts: TrunkOutputs,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        *,
        throttle: Throttle = FULL_SPEED,
    ) -> Update:
        """Train one client on its rows of some texts for one round (:func:`learning.client.train_client`)."""
        return train_client(self.adapted, task, texts, rows, labels, self.local_training, throttle=throttle)

    def evaluate(
        self,
        texts: TrunkOutputs,
        labels: NDArray[np.int64],
        shares: Sequence[NDArray[np.int64]],
        state: State,
        class_counts: NDArray[np.int64] | None = None,
    ) -> Evaluation:
        """Evaluate the state on test texts; with personal tensors each client's share by that client's model."""
        if not state.local:
            load(self.adapted, state.adapter)
            logits = predict_logits(self.adapted, texts, np.arange(len(labels)), "evaluating")
        else:
            class_counts = None
            logits = np.zeros((len(labels), self.encoder.model.config.num_labels), dtype=np.float32)
            for client, rows in enumerate(shares):
                load(self.adapted, state.adapter, state.local[client])
                logits[rows] = predict_logits(self.adapted, texts, rows, f"evaluating client {client}")
        return_freed_memory()
        return classification_metrics(logits, labels, shares, class_counts)

    def count_hits(
        self,
        texts: TrunkOutputs,
        labels: NDArray[np.int64],
        rows: NDArray[np.int64],
        adapter: Adapter,
        personal: Mapping[str, Tensor],
    ) -> tuple[int, float]:
        """Return how many of some texts an adapter with a personal part classifies rightly, and the sum of losses."""
        load(self.adapted, adapter, personal)
        logits = predict_logits(self.adapted, texts, rows, "evaluating")
        losses = functional.cross_entropy(
            torch.from_numpy(logits).double(), torch.from_numpy(labels[rows]), reduction="sum"
        )
        return int((logits.argmax(axis=1) == labels[rows]).sum()), float(losses)


def untrained_personal(model: Model, rank: int) -> dict[str, Tensor]:
    """Return what is personal, by name, as every client has it before any training, at a rank from 0."""
    start = model.initial
    if rank and model.personal.intersection(RANK_AXIS):
        start = model.method.resize(start, rank, distribution="svd", seed=model.config.run.seed, round=1)
    return {name: tensor.clone() for name, tensor in start.only(*model.personal).items()}


def load_model(
    config: Config, label_names: Sequence[str], method: Method | None = None, rule: Rule | None = None
) -> Model:
    """Load the encoder that the settings name and attach its adapters.

    Args:
        config: the settings; the model's own are the same with nothing left to the machine or the data.
        label_names: the classes.
        method, rule: an adapter method or an aggregation rule of one's own; None for the one that the settings name.

    Raises:
        InputError, ConfigError: settings that the model or the classes cannot meet.
        TypeError: a method that the forward pass would leave out in part.
    """
    config = _resolved(config, len(label_names))
    torch.set_num_threads(config.run.threads)
    keep_freed_memory()
    if config.model.num_labels != len(label_names):
        raise ConfigError(
            [f"model.num_labels must be {len(label_names)}, the classes of the data, got {config.model.num_labels}"]
        )
    _LOG.info(f"Loading {config.model.name}.")
    device = resolve_device(config.run.device)
    encoder = load_encoder(
        config.model.name,
        config.model.trained_layers,
        list(label_names),
        precision=resolve_precision(config.model.precision, device),
        device=device,
        max_length=config.model.max_length,
        dropout=config.train.dropout,
        seed=config.run.seed,
    )
    sizes = encoder.model.config
    intermediate_size = sizes.hidden_dim if sizes.model_type == "distilbert" else sizes.intermediate_size
    shape = EncoderShape(encoder.num_layers, encoder.hidden_size, intermediate_size, encoder.num_heads)
    _check_sizes(config, shape)
    check_fits(config, shape)
    adapted = attach(encoder, method or method_of(config))
    personal = personal_kinds((rule or rule_of(config)).traits, config.model.head)
    return Model(config, adapted, shape, initial(adapted, trained_head(adapted, config.model.head)), personal)


def method_of(config: Config) -> Method:
    """Return the adapter method that the settings name."""
    adapter = config.adapter
    linears = placement.target_linears(adapter.target_modules)
    values = {"linears": linears, "scaling": adapter.scaling, "dropout": adapter.dropout, "gate": adapter.prefix.gate}
    return make_method(adapter.method, values)


def rule_of(config: Config) -> Rule:
    """Return the aggregation rule that the settings name, with the settings of its own and its server optimiser."""
    federation = config.federation
    pruning = {"gamma": federation.hetlora.gamma, "lambda": federation.hetlora.lambda_}
    trimming = {"fraction": federation.trimmed_mean.fraction}
    choosing = {
        "global_rank": federation.lora_a2.rank,
        "learning_rate_ratio": federation.lora_a2.learning_rate_ratio,
    }
    values = {"merged_rank": federation.merged_rank, **pruning, **trimming, **choosing}
    rule = make_rule(federation.aggregation, values)
    chosen = federation.server_optimizer
    settings = {} if chosen == "none" else getattr(federation, chosen).model_dump()
    return with_server_optimizer(rule, make_server_optimizer(chosen, settings))


def _resolved(config: Config, num_labels: int) -> Config:
    """Settings with nothing left to the machine or the data: threads, precision, classes, absolute paths."""
    precision = resolve_precision(config.model.precision, resolve_device(config.run.device))
    values: dict[str, Any] = {
        "run.threads": config.run.threads or _num_cores(),
        "model.precision": "bf16" if precision == torch.bfloat16 else "fp32",
    }
    if config.model.num_labels is None:
        values["model.num_labels"] = num_labels
    return with_values(config, values | absolute_paths(config))


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_sizes(config: Config, shape: EncoderShape) -> None:
    problems = []
    for key in ("num_layers", "hidden_size", "intermediate_size"):
        given, real = getattr(config.model, key), getattr(shape, key)
        if given is not None and given != real:
            problems.append(f"model.{key} must be {real}, that of {config.model.name}, got {given}; leave it out")
    if problems:
        raise ConfigError(problems)
