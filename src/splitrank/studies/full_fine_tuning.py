"""Baseline: federated averaging of full fine-tuning, against which a run's LoRA is to be judged.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017. Clients,
texts, frozen trunk, batches, rounds and evaluation are those of a run with the same settings, and so is the head of
round 0; but every weight of the trained layers (maps with their biases, layer norms) and of the head is trained, sent
with 32 bits and averaged by samples. Adapters, radio, budgets and planner play no part: no latency or energy is
planned and every client takes part in every round.

    python -m splitrank.studies.member SETTINGS.toml RUN_DIR full-fine-tuning
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from splitrank.config import Config
from splitrank.errors import InputError
from splitrank.federation import run_folder
from splitrank.federation.in_process import InProcessClients, make_clients
from splitrank.federation.loop import load_data, manifest_of
from splitrank.learning.adapters import lora
from splitrank.learning.adapters.lora import Adapter
from splitrank.learning.aggregation.fedavg import fedavg
from splitrank.learning.client import Evaluation, descend, judge, predict_logits
from splitrank.learning.data import TextData
from splitrank.learning.encoder import Encoder, load_encoder, resolve_precision
from splitrank.learning.layer import lay_out
from splitrank.records import RoundRecord

FAMILIES = ("roberta", "xlm-roberta", "camembert", "bert")
"""Model families whose layers take (hidden states, attention mask) and nothing else."""

BITS_PER_PARAMETER = 32

Weights = Mapping[str, Tensor]
"""Parameter path → float32 tensor on the host: all that is trained and sent."""


def run_full_fine_tuning(config: Config, out: Path) -> Iterator[RoundRecord]:
    """Run the baseline and yield each round's record once it is safe on disk, round 0 first.

    The folder reads like a run's, but holds neither checkpoints nor an adapter and cannot be resumed.

    Args:
        config: the settings of the run to compare with; those that the baseline never reads may say anything.
        out: the run folder, new or empty.

    Raises:
        InputError: settings, data or a folder that cannot be used.
        RunError: training diverged.
    """
    with ExitStack() as held:
        run_folder.check_new(out)
        tuning = prepare(config)
        held.callback(tuning.clients.close)
        config = tuning.clients.config
        manifest = {"baseline": "full fine-tuning", **manifest_of(config, tuning.clients)}
        folder = run_folder.create(out, config, manifest)
        held.callback(folder.close)
        weights, record = _round_zero(tuning)
        folder.append(record)
        yield record
        target = config.federation.target_accuracy
        while record.round < config.federation.rounds and not (target is not None and record.accuracy >= target):
            weights, record = run_round(tuning, weights, record.round + 1)
            folder.append(record)
            yield record


@dataclass(frozen=True, eq=False)
class DenseEncoder(Encoder):
    """An encoder whose layers from the cut on are Hugging Face's own, in float32: every weight can have a gradient."""

    def logits(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """As :meth:`Encoder.logits`, on a grid of texts by positions."""
        layout = lay_out(lengths, self.model.device)
        grid = hidden.new_zeros(*layout.mask.shape, self.hidden_size)
        grid[layout.mask] = hidden[: layout.num_tokens]
        layers = self.model.get_submodule(self.family.layers)
        with self._compute():
            for layer in layers[self.cut_layer :]:
                grid = layer(grid, layout.mask[:, None, None])
            return self.family.head(self.model, grid[:, 0]).float()


@dataclass(frozen=True, eq=False)
class FullFineTuning:
    """The clients of a run with all weights of their trained layers to train; one model serves them in turn.

    Attributes:
        clients: texts, trunk output and settings of the run to compare with.
        encoder: the model that is trained.
        parameters: path → what is trained of it, in the model's order.
    """

    clients: InProcessClients
    encoder: DenseEncoder
    parameters: Mapping[str, nn.Parameter]

    def weights(self) -> dict[str, Tensor]:
        """Copy the trained weights out of the model; before any training those of round 0."""
        return {path: parameter.detach().cpu().clone() for path, parameter in self.parameters.items()}

    def payload_bits(self) -> float:
        """What a client sends, and receives, in a round [bit]."""
        return float(BITS_PER_PARAMETER * sum(parameter.numel() for parameter in self.parameters.values()))

    def train(self, client: int, weights: Weights, round: int) -> tuple[dict[str, Tensor], float]:
        """Train one client for one round as :func:`learning.client.train` does: same batches, optimiser, schedule.

        Args:
            client: its index.
            weights: the global weights of the round.
            round: counted from 1.

        Returns:
            the client's weights, and its mean loss over the texts it trained on.

        Raises:
            RunError: the loss or a weight is no longer finite.
        """
        self._load(weights)
        train_loss = descend(
            self.encoder,
            list(self.parameters.values()),
            self.clients.train_outputs,
            self.clients.train_rows[client],
            self.clients.data.train_labels,
            self.clients.model.local_training,
            seed=self.clients.config.run.seed,
            round=round,
            client=client,
        )
        return self.weights(), train_loss

    def evaluate(self, weights: Weights) -> Evaluation:
        """Judge the model on the test texts, each client's share of them being that of the run."""
        self._load(weights)
        rows = np.arange(len(self.clients.data.test_labels))
        logits = predict_logits(self.encoder, self.clients.test_outputs, rows, "evaluating")
        return judge(logits, self.clients.data.test_labels, self.clients.test_rows)

    @torch.no_grad()
    def _load(self, weights: Weights) -> None:
        for path, parameter in self.parameters.items():
            parameter.copy_(weights[path])


def prepare(config: Config) -> FullFineTuning:
    """Load texts and model and open the trunk's cached output; ``clients`` of the result is the caller's to close.

    Raises:
        InputError, ConfigError: settings that the baseline, the model or the texts cannot meet.
    """
    if config.model.head == "local":
        raise InputError(
            'model.head must be "full", "out_proj" or "frozen" for full fine-tuning, got "local"; try "full"'
        )
    data = load_data(config)
    encoder = _load_dense(config, data)
    clients = make_clients(config, data)
    head = lora.trained_head(clients.model.encoder, clients.model.peft_model, config.model.head)
    layers = tuple(f"{encoder.family.layers}.{index}." for index in encoder.trained_layers)
    parameters = {
        path: parameter.requires_grad_()
        for path, parameter in encoder.model.named_parameters()
        if path.startswith(layers) or path in head
    }
    return FullFineTuning(clients, encoder, parameters)


def _load_dense(config: Config, data: TextData) -> DenseEncoder:
    """The run's model a second time, in float32; the run's own holds its frozen matrices in bf16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_encoder(
        config.model.name,
        config.model.trained_layers,
        data.label_names,
        precision=torch.float32,
        device=device,
        max_length=config.model.max_length,
        dropout=config.train.dropout,
        seed=config.run.seed,
    )
    family = loaded.model.config.model_type
    if family not in FAMILIES:
        raise InputError(
            f"model.name must be of a family that full fine-tuning supports ({', '.join(FAMILIES)}), "
            f"got {config.model.name!r} of family {family!r}"
        )
    precision = resolve_precision(config.model.precision, device)
    return DenseEncoder(
        loaded.model, loaded.tokenizer, loaded.trained_layers, precision, loaded.location, loaded.query_key_value
    )


def run_round(tuning: FullFineTuning, weights: Weights, round: int) -> tuple[Weights, RoundRecord]:
    """Train every client from the same weights, average, evaluate."""
    started_s = time.perf_counter()
    num_samples = tuning.clients.num_samples
    updates = [tuning.train(client, weights, round) for client in range(len(num_samples))]
    averaged = _averaged([trained for trained, _ in updates], num_samples)
    bits = tuning.payload_bits()
    clients = [
        {
            "client": client,
            "samples": samples,
            "train_loss": train_loss,
            "uplink_bits": bits,
            "downlink_bits": bits,
            "dropped": False,
        }
        for client, (samples, (_, train_loss)) in enumerate(zip(num_samples, updates, strict=True))
    ]
    return averaged, _record(round, tuning.evaluate(averaged), clients, started_s)


def _round_zero(tuning: FullFineTuning) -> tuple[Weights, RoundRecord]:
    started_s = time.perf_counter()
    weights = tuning.weights()
    clients = [{"client": client, "samples": samples} for client, samples in enumerate(tuning.clients.num_samples)]
    return weights, _record(0, tuning.evaluate(weights), clients, started_s)


def _averaged(updates: Sequence[Weights], num_samples: Sequence[int]) -> Weights:
    """θ = Σ_i n_i·θ_i / Σ_i n_i, by the rule that a run applies to its head."""
    as_adapters = [Adapter(rank=0, scaling=1.0, lora_A={}, lora_B={}, head=weights) for weights in updates]
    return fedavg(as_adapters, num_samples).head


def _record(round: int, evaluation: Evaluation, clients: list[dict[str, Any]], started_s: float) -> RoundRecord:
    return RoundRecord(
        round=round,
        status=None,
        rank=0,
        **asdict(evaluation),
        factor_averaging_error=None,
        clients=clients,
        wall_s=time.perf_counter() - started_s,
    )
