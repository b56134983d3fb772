"""The model on one machine: an encoder cut at a layer, with adapters; it trains a client's texts and judges test texts.

One model serves every client of its machine, one after the other: all clients of a run in one process, the single
client of a node, or the server, which only judges.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from splitrank import placement
from splitrank.config import Config, with_values
from splitrank.errors import ConfigError
from splitrank.federation.budgets import ClientTexts, check_fits
from splitrank.federation.rounds import State
from splitrank.learning import client as training
from splitrank.learning.adapters import lora
from splitrank.learning.client import FULL_SPEED, Evaluation, Pace, Training, Update
from splitrank.learning.encoder import Encoder, load_encoder, resolve_precision, tokenize
from splitrank.learning.memory import keep_freed_memory
from splitrank.learning.trunk import TrunkOutputs, trunk_outputs
from splitrank.planning.flops import EncoderShape
from splitrank.progress import say


@dataclass(frozen=True, eq=False)
class Model:
    """An encoder with adapters attached, and the settings it was loaded for.

    Attributes:
        config: the settings, with nothing left to the machine or the data.
        encoder, peft_model: the same weights, as splitrank and as PEFT see them.
        shape: sizes of the encoder.
    """

    config: Config
    encoder: Encoder
    peft_model: PeftModel
    shape: EncoderShape

    def initial_state(self) -> State:
        """The state of round 0: rank 0, a head of random weights."""
        head = lora.trained_head(self.encoder, self.peft_model, self.config.model.head)
        is_local = self.config.model.head == "local"
        adapter = lora.initial(self.peft_model, scaling=self.config.adapter.scaling, head=[] if is_local else head)
        own_heads = range(self.config.federation.num_clients) if is_local else ()
        local_heads = {client: lora.read_head(self.peft_model, head) for client in own_heads}
        return State(0, adapter, local_heads)

    def tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Token ids of each text, cut to ``model.max_length`` tokens."""
        return tokenize(self.encoder, texts, self.config.model.max_length)

    def prepare(self, token_ids: Sequence[NDArray[np.int32]], what: str) -> TrunkOutputs:
        """The frozen trunk's output of some texts, from the cache or computed into it; the caller closes it.

        Args:
            token_ids: of at least one text.
            what: what they are, for the line that says how long it takes.
        """
        return trunk_outputs(self.encoder, token_ids, limit_bytes=self.config.run.cache_limit_gb * 1e9, what=what)

    @property
    def local_training(self) -> Training:
        """How every client trains."""
        train, federation = self.config.train, self.config.federation
        return Training(
            learning_rate=train.learning_rate,
            batch_size=train.batch_size,
            schedule=train.schedule,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            local_epochs=federation.local_epochs,
            num_rounds=federation.rounds,
        )

    def train(
        self,
        texts: TrunkOutputs,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        state: State,
        *,
        round: int,
        client: int,
        pace: Pace = FULL_SPEED,
    ) -> Update:
        """Train one client on its rows of some texts for one round, starting from the state's adapter."""
        return training.train(
            self.encoder,
            self.peft_model,
            state.adapter,
            texts,
            rows,
            labels,
            self.local_training,
            seed=self.config.run.seed,
            round=round,
            client=client,
            local_head=state.local_heads.get(client, {}),
            pace=pace,
        )

    def evaluate(
        self, texts: TrunkOutputs, labels: NDArray[np.int64], shares: Sequence[NDArray[np.int64]], state: State
    ) -> Evaluation:
        """Judge the state on test texts; with local heads each client's share by that client's model."""
        if not state.local_heads:
            lora.load(self.peft_model, state.adapter)
            logits = training.predict_logits(self.encoder, texts, np.arange(len(labels)), "evaluating")
        else:
            logits = np.zeros((len(labels), self.encoder.model.config.num_labels), dtype=np.float32)
            for client, rows in enumerate(shares):
                lora.load(self.peft_model, state.adapter, state.local_heads[client])
                logits[rows] = training.predict_logits(self.encoder, texts, rows, f"evaluating client {client}")
        return training.judge(logits, labels, shares)


def load_model(config: Config, label_names: Sequence[str]) -> Model:
    """Load the encoder that the settings name and attach its adapters.

    Args:
        config: the settings; the model's own are the same with nothing left to the machine or the data.
        label_names: the classes.

    Raises:
        InputError, ConfigError: settings that the model or the classes cannot meet.
    """
    config = _resolved(config, len(label_names))
    torch.set_num_threads(config.run.threads)
    keep_freed_memory()
    if config.model.num_labels != len(label_names):
        raise ConfigError(
            [f"model.num_labels must be {len(label_names)}, the classes of the data, got {config.model.num_labels}"]
        )
    say(f"Loading {config.model.name}.")
    device = _device()
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
    peft_model = lora.attach(
        encoder,
        placement.target_maps(config.adapter.target_modules),
        scaling=config.adapter.scaling,
        dropout=config.adapter.dropout,
    )
    return Model(config, encoder, peft_model, shape)


def amounts_of_text(lengths: Sequence[NDArray[np.int64]]) -> ClientTexts:
    """What the planner counts of the clients' texts.

    Args:
        lengths: token counts of each client's texts.
    """
    as_float = [length.astype(np.float64) for length in lengths]
    return ClientTexts(
        samples=np.array([float(len(length)) for length in as_float]),
        token_sum=np.array([length.sum() for length in as_float]),
        token_square_sum=np.array([(length**2).sum() for length in as_float]),
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _resolved(config: Config, num_labels: int) -> Config:
    """Settings with nothing left to the machine or the data: threads, precision, classes, absolute paths."""
    precision = resolve_precision(config.model.precision, _device())
    values: dict[str, Any] = {
        "run.threads": config.run.threads or _num_cores(),
        "model.precision": "bf16" if precision == torch.bfloat16 else "fp32",
    }
    if config.model.num_labels is None:
        values["model.num_labels"] = num_labels
    if config.data.path is not None:
        values["data.path"] = str(Path(config.data.path).resolve())
    if Path(config.model.name).is_dir():
        values["model.name"] = str(Path(config.model.name).resolve())
    return with_values(config, values)


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
