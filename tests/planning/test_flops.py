"""The FLOP count equals what torch's own counter sees in a step of the encoder that is trained."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from splitrank.learning import layer
from splitrank.learning.adapters import lora
from splitrank.learning.encoder import load_encoder
from splitrank.placement import target_maps
from splitrank.planning.flops import EncoderShape, training_flops, trunk_flops
from splitrank.planning.workload import KNOWN_SHAPES, flops_workload, trunk_cycles

SHAPE = EncoderShape(num_layers=4, hidden_size=8, intermediate_size=20, num_heads=2)
NUM_LABELS, BATCH, TOKENS, RANK = 3, 2, 5, 3


@pytest.fixture(autouse=True)
def no_filling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are filled up to round numbers, which the mathematics does not need."""
    monkeypatch.setattr(layer, "_ROW_BLOCK", 1)
    monkeypatch.setattr(layer, "_WIDTH_BLOCK", 1)


@functools.cache
def encoder_folder() -> Path:
    """A RoBERTa of these sizes with random weights."""
    folder = Path(tempfile.mkdtemp())
    sizes = {"num_hidden_layers": 4, "hidden_size": 8, "intermediate_size": 20, "num_attention_heads": 2}
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b"]
    config = transformers.RobertaConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)
    with torch.random.fork_rng(devices=[]):
        transformers.RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), pad_token="<pad>", unk_token="<unk>").save_pretrained(
        folder
    )
    return folder


def counted_step(trained_layers: list[int], targets: tuple[str, ...], head: str) -> int:
    """What torch counts in a step of the encoder that splitrank trains."""
    encoder = load_encoder(
        str(encoder_folder()), trained_layers, ["x", "y", "z"],
        precision=torch.float32, device=torch.device("cpu"), max_length=16,
    )  # fmt: skip
    peft_model = lora.attach(encoder, targets, scaling=2.0, dropout=0.0)
    adapter = lora.initial(peft_model, scaling=2.0, head=lora.trained_head(encoder, peft_model, head))
    lora.load(peft_model, lora.resize(adapter, RANK, seed=0, round=1))
    hidden = torch.randn(BATCH * TOKENS, SHAPE.hidden_size)
    # The counter does not know the product that adds to what is there.
    counts = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        encoder.logits(hidden, torch.full((BATCH,), TOKENS)).sum().backward()
    return counter.get_total_flops()


def per_sample(coefficients: np.ndarray) -> float:
    return float(coefficients @ [1, TOKENS, TOKENS**2])


@pytest.mark.parametrize("head", ["full", "out_proj", "frozen", "local"])
@pytest.mark.parametrize("targets", ["query-value", "attention", "all-linear"])
@pytest.mark.parametrize("trained_layers", [[3], [2, 3], [0, 1, 2, 3], [0], [1, 2], [0, 3]])
def test_count_equals_torch(trained_layers: list[int], targets: str, head: str) -> None:
    names = target_maps(targets)
    constant, per_rank = training_flops(SHAPE, trained_layers, names, head, NUM_LABELS)  # type: ignore[arg-type]
    assert BATCH * per_sample(constant + RANK * per_rank) == counted_step(trained_layers, names, head)


@pytest.mark.parametrize("name", SHAPE.maps())
@pytest.mark.parametrize("trained_layers", [[3], [1, 2]])
def test_count_equals_torch_for_a_single_target(trained_layers: list[int], name: str) -> None:
    constant, per_rank = training_flops(SHAPE, trained_layers, (name,), "full", NUM_LABELS)
    assert BATCH * per_sample(constant + RANK * per_rank) == counted_step(trained_layers, (name,), "full")


def test_trunk_equals_torch() -> None:
    encoder = load_encoder(
        str(encoder_folder()), [3], ["x", "y", "z"],
        precision=torch.float32, device=torch.device("cpu"), max_length=16,
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        encoder.trunk([np.full(TOKENS, 5, dtype=np.int32)] * BATCH)
    assert BATCH * per_sample(trunk_flops(SHAPE, 3)) == counter.get_total_flops()


def test_roberta_base_costs_3_5_gflop_per_sample_of_64_tokens() -> None:
    constant, per_rank = training_flops(KNOWN_SHAPES["roberta-base"], [9, 10, 11], ("query", "value"), "full", 4)
    flops = (constant + 8 * per_rank) @ [1, 64, 64**2]
    assert flops == pytest.approx(3.5e9, rel=0.02)


def test_workload_sums_over_real_lengths() -> None:
    """Two clients' cycles are the per-sample counts summed over their own texts, epochs and speed."""
    lengths = [np.array([3, 7, 11]), np.array([5])]
    arguments = {
        "head": "full",
        "num_labels": NUM_LABELS,
        "token_sum": np.array([x.sum() for x in lengths], float),
        "token_square_sum": np.array([(x**2).sum() for x in lengths], float),
        "samples": np.array([len(x) for x in lengths], float),
        "epochs": 2,
        "flops_per_cycle": np.array([4.0, 8.0]),
        "bits_per_parameter": 32,
        "head_parameters_sent": 99,
    }
    prepared = flops_workload(SHAPE, [1, 3], "query-value", **arguments)
    charged = flops_workload(SHAPE, [1, 3], "query-value", **arguments, trunk="every-round")
    constant, per_rank = training_flops(SHAPE, [1, 3], ("query", "value"), "full", NUM_LABELS)
    for i, client in enumerate(lengths):
        sample_flops = [(constant + RANK * per_rank) @ [1, n, n**2] for n in client]
        expected = 2 * sum(sample_flops) / arguments["flops_per_cycle"][i]
        assert prepared.cycles(RANK)[i] == pytest.approx(expected)
        trunk = sum(trunk_flops(SHAPE, 1) @ [1, n, n**2] for n in client) / arguments["flops_per_cycle"][i]
        assert (charged.cycles(RANK) - prepared.cycles(RANK))[i] == pytest.approx(trunk)
    sums = (arguments["token_sum"], arguments["token_square_sum"], arguments["flops_per_cycle"])
    assert trunk_cycles(SHAPE, 1, *sums) == pytest.approx(charged.cycles(1) - prepared.cycles(1))
    assert prepared.payload_bits(RANK) == pytest.approx(np.full(2, (2 * 32 * RANK + 99) * 32))
