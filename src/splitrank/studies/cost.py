"""Estimate what an experiment would cost on this machine, before anybody pays for it."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import BertTokenizer, RobertaConfig, RobertaModel

from splitrank import placement, streams
from splitrank.config import Config, with_values
from splitrank.federation.costs import round_workload
from splitrank.federation.model import method_of
from splitrank.federation.selection import num_chosen
from splitrank.federation.sizes import encoder_shape
from splitrank.federation.texts import nominal_text_stats
from splitrank.learning.adapters.method import attach, initial, load, trained_head
from splitrank.learning.encoder import Encoder, load_encoder, quiet_transformers, resolve_precision
from splitrank.planning.flops import EncoderShape
from splitrank.planning.workload import trunk_cycles
from splitrank.studies.reproduce import DRAWS, mean_planned_rank
from splitrank.studies.sweep import Trial
from splitrank.traits import METHOD_TRAITS

_LOG = logging.getLogger("splitrank")

CALIBRATION_S = 20.0
_BATCH = 32
_DRAWS = 20
_TEST_TEXTS = 7600
"""Test texts where the settings do not limit them: AG News's."""
_EVALUATION_SHARE = 1 / 3
"""Forward passes only, of the two or three times as much that training a text takes."""


@dataclass(frozen=True)
class TrialCost:
    """Counted operations of a trial.

    Attributes:
        training_flops: of all its rounds, evaluations included.
        trunk_flops: of computing the frozen part's output, if no other trial has.
        cache_bytes: that output's size on disk.
        cache_key: trials of which this is the same share the output.
        rank: fixed, or the mean that is planned; 1 for an adapter method without a rank.
    """

    training_flops: float
    trunk_flops: float
    cache_bytes: float
    cache_key: tuple[int, int]
    rank: float


def trial_cost(config: Config) -> TrialCost:
    """Count what a run with these settings computes and stores, for texts of ``workload.tokens_per_sample`` tokens."""
    counted = with_values(config, {"workload.model": "flops", "client.flops_per_cycle": 1.0})
    shape, texts = encoder_shape(counted), nominal_text_stats(counted)
    rank = float(config.adapter.rank or mean_planned_rank(config, _DRAWS))
    train_texts, test_texts = texts.samples.sum(), config.data.test_rows or _TEST_TEXTS
    rounds = config.federation.rounds
    everybody = float(round_workload(counted, shape, texts).cycles(np.array(max(rank, 1.0))).sum())
    a_text = everybody / config.federation.local_epochs / train_texts
    a_round = everybody * num_chosen(config) / config.federation.num_clients
    cut_layer = placement.layer_indices(config.model.trained_layers, shape.num_layers)[0]
    one = np.ones(1)
    trunk_of_a_text = float(
        trunk_cycles(shape, cut_layer, texts.token_sum[:1], texts.token_square_sum[:1], one)[0] / texts.samples[0]
    )
    all_texts = float(train_texts + test_texts)
    drawn = config.data.train_rows is not None or config.data.test_rows is not None
    return TrialCost(
        training_flops=rounds * a_round + (rounds + 1) * test_texts * a_text * _EVALUATION_SHARE,
        trunk_flops=all_texts * trunk_of_a_text,
        cache_bytes=all_texts * config.workload.tokens_per_sample * shape.hidden_size * 2.0,
        cache_key=(config.run.seed if drawn else 0, cut_layer),
        rank=rank,
    )


@dataclass(frozen=True)
class Speed:
    """Speed of this machine with an encoder of some size, on as many threads as a trial has.

    Attributes:
        training_flops_per_s: of a training step of the last layers.
        trunk_flops_per_s: of the frozen part.
        start_s: from starting a process to having imported everything.
        memory_bytes: largest resident memory of this process afterwards.
    """

    training_flops_per_s: float
    trunk_flops_per_s: float
    start_s: float
    memory_bytes: int


def calibrate(config: Config) -> Speed:
    """Train random weights of the encoder's size on random tokens for 20 seconds; no download is needed."""
    shape, tokens = encoder_shape(config), config.workload.tokens_per_sample
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import splitrank.federation.loop"], check=True)
    start_s = time.perf_counter() - started_s
    torch.set_num_threads(config.run.threads)
    encoder = _random_encoder(config, shape, tokens)
    method = method_of(config)
    adapted = attach(encoder, method)
    start = initial(adapted, trained_head(adapted, "full"))
    parameters = load(adapted, method.resize(start, 16, distribution="svd", seed=0, round=1))
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=1e-4, fused=True)
    ids = list(streams.generator(0, "calibration").integers(5, 900, (_BATCH, tokens), dtype=np.int32))
    lengths, labels = torch.full((_BATCH,), tokens), torch.zeros(_BATCH, dtype=torch.int64)
    trunk_s = _seconds(lambda: encoder.trunk(ids), CALIBRATION_S / 4)
    hidden = encoder.trunk(ids)

    def step() -> None:
        loss = functional.cross_entropy(adapted.logits(hidden, lengths), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step_s = _seconds(step, 3 * CALIBRATION_S / 4)
    one = with_values(
        config,
        {"federation.num_clients": 1, "client.samples": _BATCH, "federation.rounds": 1, "federation.local_epochs": 1,
         "federation.clients_per_round": None, "federation.min_clients": 1, "adapter.rank": 16,
         "data.test_rows": _BATCH},
    )  # fmt: skip
    cost = trial_cost(one)
    return Speed(
        training_flops_per_s=cost.training_flops / (1 + 2 * _EVALUATION_SHARE) / step_s,
        trunk_flops_per_s=cost.trunk_flops / 2 / trunk_s,
        start_s=start_s,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _seconds(call: Callable[[], object], budget_s: float) -> float:
    """Return the median time of a call that is repeated until the budget is used up [s]."""
    taken: list[float] = []
    until_s = time.perf_counter() + budget_s
    while time.perf_counter() < until_s or len(taken) < 3:
        started_s = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started_s)
    return float(np.median(taken))


@quiet_transformers()
def _random_encoder(config: Config, shape: EncoderShape, tokens: int) -> Encoder:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(995))]
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as temporary, torch.random.fork_rng(devices=[]):
        RobertaModel(
            RobertaConfig(
                vocab_size=len(vocabulary),
                hidden_size=shape.hidden_size,
                num_hidden_layers=shape.num_layers,
                num_attention_heads=shape.num_heads,
                intermediate_size=shape.intermediate_size,
                max_position_embeddings=tokens + 8,
                pad_token_id=0,
            ),
            add_pooling_layer=False,
        ).save_pretrained(temporary)
        (Path(temporary) / "vocab.txt").write_text("\n".join(vocabulary))
        BertTokenizer(str(Path(temporary) / "vocab.txt")).save_pretrained(temporary)
        return load_encoder(
            temporary,
            config.model.trained_layers,
            ["0", "1", "2", "3"],
            precision=resolve_precision(config.model.precision, cpu),
            device=cpu,
            max_length=tokens,
        )


def dry_run(experiments: Mapping[str, Sequence[Trial]], jobs: int) -> Iterator[str]:
    """Yield a table: for each experiment its trials, operations, cache, and hours on this machine with ``jobs``."""
    _LOG.info(f"Calibrating for {CALIBRATION_S:.0f} seconds.")
    configs = [trial.config for trials in experiments.values() for trial in trials]
    speed = calibrate(max(configs, key=lambda config: trial_cost(config).trunk_flops))
    yield "experiment   trials  texts trained       PFLOP    cache GB   hours here"
    stored: dict[tuple[int, int], float] = {}
    total_s = 0.0
    for name, trials in experiments.items():
        costs = [trial_cost(trial.config) for trial in trials]
        new = {cost.cache_key: cost for cost in costs if cost.cache_key not in stored}
        stored |= {key: cost.cache_bytes for key, cost in new.items()}
        training, trunk = sum(cost.training_flops for cost in costs), sum(cost.trunk_flops for cost in new.values())
        seconds = training / speed.training_flops_per_s + trunk / speed.trunk_flops_per_s + len(costs) * speed.start_s
        seconds /= jobs
        total_s += seconds
        texts = sum(_texts_trained(trial.config) for trial in trials)
        cache_gb = sum(cost.cache_bytes for cost in new.values()) / 1e9
        yield (
            f"{name:<10}  {len(trials):>7}  {texts:>13,}  {(training + trunk) / 1e15:>10,.3f}  {cache_gb:>10,.1f}  "
            f"{seconds / 3600:>11,.2f}"
        )
    cache_gb = sum(stored.values()) / 1e9
    yield (
        f"in all {total_s / 3600:,.1f} hours with {jobs} at a time on this machine; cache {cache_gb:,.1f} GB; "
        f"about {speed.memory_bytes / 1e9:.1f} GB of memory each"
    )
    yield (
        f"calibrated: {speed.training_flops_per_s / 1e9:,.0f} GFLOP/s in training, "
        f"{speed.trunk_flops_per_s / 1e9:,.0f} in the frozen part, {speed.start_s:.1f} s to start a process"
    )
    for name, trials in experiments.items():
        yield ""
        yield f"{name}: rank, where it is planned the mean of {DRAWS} draws (0: nobody can take part; -: no rank)"
        for trial in trials:
            if trial.config.run.seed == trials[0].config.run.seed:
                varied = [f"{key} = {value}" for key, value in trial.varied.items() if key != "run.seed"]
                rank = _rank_text(trial.config)
                yield f"  {rank:>6}  {', '.join([trial.baseline, *varied] if trial.baseline else varied)}"


def _rank_text(config: Config) -> str:
    if not METHOD_TRAITS[config.adapter.method].has_rank:
        return "-"
    return f"{config.adapter.rank or mean_planned_rank(config):.1f}"


def _texts_trained(config: Config) -> int:
    federation = config.federation
    texts = nominal_text_stats(config).samples.sum() * num_chosen(config) / federation.num_clients
    return int(texts) * federation.rounds * federation.local_epochs
