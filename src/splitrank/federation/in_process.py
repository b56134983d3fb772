"""All clients in this process: one model serves them in turn, each sees only its own texts."""

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
from splitrank.federation.budgets import ClientTexts, check_fits, preparation, round_problem, round_workload
from splitrank.federation.rounds import State
from splitrank.learning import client as training
from splitrank.learning.adapters import lora
from splitrank.learning.client import Evaluation, Training, Update
from splitrank.learning.data import TextData
from splitrank.learning.encoder import Encoder, load_encoder, resolve_precision, tokenize
from splitrank.learning.memory import keep_freed_memory
from splitrank.learning.partition import partition_iid
from splitrank.learning.trunk import TrunkOutputs, trunk_outputs
from splitrank.planning.flops import EncoderShape
from splitrank.planning.workload import Workload
from splitrank.progress import say


@dataclass(frozen=True, eq=False)
class InProcessClients:
    """Clients whose texts, weights and cache are on this machine. Implements :class:`rounds.Clients`.

    Attributes:
        shape: sizes of the encoder.
        workload: cost of a round as a function of the rank, for the texts that the clients really have.
        num_samples: training texts of each client.
        texts: amounts of text per client, as the planner counts them.
    """

    config: Config
    encoder: Encoder
    peft_model: PeftModel
    data: TextData
    train_outputs: TrunkOutputs
    test_outputs: TrunkOutputs
    train_rows: Sequence[NDArray[np.int64]]
    test_rows: Sequence[NDArray[np.int64]]
    shape: EncoderShape
    workload: Workload
    num_samples: list[int]
    texts: ClientTexts

    def close(self) -> None:
        """Let go of the cached trunk output."""
        self.train_outputs.close()
        self.test_outputs.close()

    def initial_state(self) -> State:
        """The state of round 0: rank 0, a head of random weights."""
        head = lora.trained_head(self.encoder, self.peft_model, self.config.model.head)
        is_local = self.config.model.head == "local"
        adapter = lora.initial(self.peft_model, scaling=self.config.adapter.scaling, head=[] if is_local else head)
        own_heads = range(len(self.num_samples)) if is_local else ()
        local_heads = {client: lora.read_head(self.peft_model, head) for client in own_heads}
        return State(0, adapter, local_heads)

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

    def train(self, client: int, state: State, round: int) -> Update:
        """Train one client on its own texts for one round."""
        return training.train(
            self.encoder,
            self.peft_model,
            state.adapter,
            self.train_outputs,
            self.train_rows[client],
            self.data.train_labels,
            self.local_training,
            seed=self.config.run.seed,
            round=round,
            client=client,
            local_head=state.local_heads.get(client, {}),
        )

    def evaluate(self, state: State) -> Evaluation:
        """Judge the model on the test texts; with local heads each client's share by that client's model."""
        num_texts = len(self.data.test_labels)
        if not state.local_heads:
            lora.load(self.peft_model, state.adapter)
            logits = training.predict_logits(self.encoder, self.test_outputs, np.arange(num_texts), "evaluating")
        else:
            logits = np.zeros((num_texts, len(self.data.label_names)), dtype=np.float32)
            for client, rows in enumerate(self.test_rows):
                lora.load(self.peft_model, state.adapter, state.local_heads[client])
                logits[rows] = training.predict_logits(
                    self.encoder, self.test_outputs, rows, f"evaluating client {client}"
                )
        return training.judge(logits, self.data.test_labels, self.test_rows)

    def preparation_records(self) -> list[dict[str, Any]]:
        """For round 0: each client's texts, and what its one-off pass through the trunk costs it."""
        cost = preparation(self.config, self.shape, self.texts)
        records: list[dict[str, Any]] = [
            {"client": client, "samples": samples} for client, samples in enumerate(self.num_samples)
        ]
        if cost is not None:
            for record, seconds, joules in zip(records, cost.seconds, cost.joules, strict=True):
                record.update(preparation_s=float(seconds), preparation_j=float(joules))
        return records


def make_clients(config: Config, data: TextData) -> InProcessClients:
    """Load the encoder, share out the texts, and open the trunk's cached output.

    Args:
        config: the settings; the clients' own ``config`` is the same with nothing left to the machine or the data.
        data: the labelled texts.

    Raises:
        InputError, ConfigError: settings that the model or the texts cannot meet.
    """
    config = _resolved(config, data)
    torch.set_num_threads(config.run.threads)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_clients, seed = config.federation.num_clients, config.run.seed
    num_labels = len(data.label_names)
    if config.model.num_labels != num_labels:
        raise ConfigError(
            [f"model.num_labels must be {num_labels}, the classes of the data, got {config.model.num_labels}"]
        )
    train_rows = partition_iid(data.train_labels, num_clients, seed)
    # Every client also gets its share of the test texts, so that "the worst client" means something; with fewer
    # texts than clients some shares stay empty.
    test_rows = partition_iid(data.test_labels, min(num_clients, len(data.test_labels)), seed)
    say(f"Loading {config.model.name}.")
    encoder = load_encoder(
        config.model.name,
        config.model.trained_layers,
        data.label_names,
        precision=resolve_precision(config.model.precision, device),
        device=device,
        max_length=config.model.max_length,
        dropout=config.train.dropout,
        seed=seed,
    )
    sizes = encoder.model.config
    intermediate_size = sizes.hidden_dim if sizes.model_type == "distilbert" else sizes.intermediate_size
    shape = EncoderShape(encoder.num_layers, encoder.hidden_size, intermediate_size, encoder.num_heads)
    _check_sizes(config, shape)
    check_fits(config, shape)

    train_ids = tokenize(encoder, data.train_texts, config.model.max_length)
    test_ids = tokenize(encoder, data.test_texts, config.model.max_length)
    lengths = [np.array([len(train_ids[row]) for row in rows], dtype=np.float64) for rows in train_rows]
    texts = ClientTexts(
        samples=np.array([float(len(length)) for length in lengths]),
        token_sum=np.array([length.sum() for length in lengths]),
        token_square_sum=np.array([(length**2).sum() for length in lengths]),
    )
    workload = round_workload(config, shape, texts)
    round_problem(config, shape, workload, 1, sit_out=True)  # finds impossible quantities before any work is done

    limit_bytes = config.run.cache_limit_gb * 1e9
    train_outputs = trunk_outputs(encoder, train_ids, limit_bytes=limit_bytes, what="training texts")
    test_outputs = trunk_outputs(encoder, test_ids, limit_bytes=limit_bytes, what="test texts")
    peft_model = lora.attach(
        encoder,
        placement.target_maps(config.adapter.target_modules),
        scaling=config.adapter.scaling,
        dropout=config.adapter.dropout,
    )
    return InProcessClients(
        config=config,
        encoder=encoder,
        peft_model=peft_model,
        data=data,
        train_outputs=train_outputs,
        test_outputs=test_outputs,
        train_rows=train_rows,
        test_rows=test_rows,
        shape=shape,
        workload=workload,
        num_samples=[len(rows) for rows in train_rows],
        texts=texts,
    )


def _resolved(config: Config, data: TextData) -> Config:
    """Settings with nothing left to the machine or the data: threads, precision, classes, absolute paths."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(config.model.precision, device)
    values: dict[str, Any] = {
        "run.threads": config.run.threads or _num_cores(),
        "model.precision": "bf16" if precision == torch.bfloat16 else "fp32",
    }
    if config.model.num_labels is None:
        values["model.num_labels"] = len(data.label_names)
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
