"""Promise: cached and uncached forward passes agree with Hugging Face's own, logits and gradients, for every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch.nn import functional

from splitrank.errors import ConfigError, InputError
from splitrank.learning.adapters.method import AdaptedEncoder, load
from splitrank.learning.encoder import Encoder
from splitrank.learning.forward import packed_logits
from splitrank.learning.trunk import trunk_outputs
from splitrank.placement import LINEARS
from tests.conftest import TINY_FAMILIES
from tests.learning import oracle
from tests.learning.oracle import adapt, begin, moved, random_ids

PLACES = ["last:3", "first:3", "middle:3", "all"]


def assert_same_as_hugging_face(
    encoder: Encoder, ids: list[np.ndarray], linears: tuple[str, ...], tolerance: float = 1e-5
) -> None:
    """Compare our uncached and cached passes with the PEFT-wrapped Hugging Face model itself."""
    assert_same_as_peft(adapt(encoder, linears=linears), ids, tolerance)


def assert_same_as_peft(adapted: AdaptedEncoder, ids: list[np.ndarray], tolerance: float = 1e-5) -> None:
    assert adapted.forward is packed_logits
    encoder = adapted.encoder
    parameters = load(adapted, moved(begin(adapted, 3)))
    batch = encoder.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    expected = adapted.peft_model(**batch).logits
    expected_gradients = oracle.gradients(expected, parameters)
    assert all(gradient.norm() > 0 for gradient in expected_gradients.values())

    cached = trunk_outputs(encoder, ids, limit_bytes=10**9, what="texts")
    cached_hidden, lengths = cached.read(range(len(ids)))
    cached.close()
    for hidden in (encoder.trunk(ids), cached_hidden):
        logits = adapted.logits(hidden, lengths)
        oracle.assert_logits(logits, expected)
        oracle.assert_gradients(oracle.gradients(logits, parameters), expected_gradients, tolerance)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_forward_and_gradients_equal_hugging_face(family, place, tiny_model):
    encoder = oracle.load(tiny_model(family), place)
    assert_same_as_hugging_face(encoder, random_ids(64, [5, 17, 9, 30, 2, 12]), LINEARS)


class Halving(torch.nn.Dropout):
    """A dropout whose draws are known."""

    def forward(self, states):
        return states * torch.linspace(0.2, 0.8, states.shape[-1]) if self.training else states


@pytest.mark.parametrize("place", ["last:3", "middle:3"])
@pytest.mark.parametrize("linears", [LINEARS, ("query", "value"), ("key",)])
def test_dropout_before_adapters_equals_hugging_face(linears, place, tiny_model):
    """Then a linear's LoRA reads other states than its frozen matrix."""
    adapted = adapt(oracle.load(tiny_model("roberta"), place), linears=linears)
    for layer in adapted.encoder.model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout["default"] = Halving(0.5)
    adapted.encoder.model.train()
    assert_same_as_peft(adapted, random_ids(64, [5, 17, 9]))


@pytest.mark.parametrize("lengths", [[16] * 8, [20] * 32, [9] * 3, [9], [32, 31, 3, 30, 32], [2, 31]])
def test_batches_with_and_without_padding(lengths, tiny_model):
    """Rows that are the grid itself, rows that fill their blocks but not the grid, rows with filling, one text."""
    assert_same_as_hugging_face(oracle.load(tiny_model("roberta")), random_ids(64, lengths), LINEARS)


def test_gaps_between_trained_layers(tiny_model):
    encoder = oracle.load(tiny_model("roberta"), [1, 4])
    assert encoder.cut_layer == 1
    assert_same_as_hugging_face(encoder, random_ids(64, [5, 17, 9]), ("query", "value"))


@pytest.mark.real
@pytest.mark.parametrize("place", PLACES)
def test_minilm_equals_hugging_face(place):
    encoder = oracle.load("minilm", place, max_length=128)
    ids = random_ids(encoder.model.config.vocab_size, [7, 64, 128, 21, 3])
    assert_same_as_hugging_face(encoder, ids, LINEARS, tolerance=1e-4)  # float32 through six wide layers and 128 tokens


def test_dropout_is_off_unless_asked_for(tiny_model):
    ids, lengths = random_ids(64, [9, 12]), torch.tensor([9, 12])
    for dropout, repeats in ((0.0, True), (0.3, False)):
        encoder = oracle.load(tiny_model("bert"), dropout=dropout)
        adapted, hidden = adapt(encoder), encoder.trunk(ids)
        encoder.model.train()
        first, second = adapted.logits(hidden, lengths), adapted.logits(hidden, lengths)
        assert torch.equal(first, second) is repeats


def test_new_heads_come_from_the_seed(tiny_model):
    first, same, other = (oracle.load(tiny_model("roberta"), seed=seed).model.classifier for seed in (1, 1, 2))
    assert torch.equal(first.dense.weight, same.dense.weight)
    assert not torch.equal(first.dense.weight, other.dense.weight)
    assert not first.out_proj.bias.any()


def test_loading_leaves_the_global_random_state_alone(tiny_model):
    before = torch.get_rng_state()
    oracle.load(tiny_model("roberta"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_trunk_keeps_its_precision_where_norms_do_not(tiny_model, monkeypatch):
    """CUDA's autocast gives float32 out of every layer norm."""
    encoder = oracle.load(tiny_model("roberta"), precision=torch.bfloat16)
    plain = functional.layer_norm
    monkeypatch.setattr(functional, "layer_norm", lambda x, *rest: plain(x.float(), *rest))
    hidden = encoder.trunk(random_ids(64, [9, 12]))
    assert hidden.dtype == torch.bfloat16


def test_half_precision_stays_close(tiny_model):
    ids, lengths = random_ids(64, [9, 12, 20]), torch.tensor([9, 12, 20])
    exact, half = (
        adapt(oracle.load(tiny_model("roberta"), precision=precision)) for precision in (torch.float32, torch.bfloat16)
    )
    hidden = half.encoder.trunk(ids)
    assert hidden.dtype == torch.bfloat16
    difference = half.logits(hidden, lengths) - exact.logits(exact.encoder.trunk(ids), lengths)
    assert difference.abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trained_layers": "last:7"}, "model.trained_layers must be at most 6 layers"),
        ({"trained_layers": [0, 6]}, "from 0 to 5"),
        ({"max_length": 64}, "model.max_length must be at most 63"),
    ],
)
def test_what_the_model_does_not_have(options, message, tiny_model):
    with pytest.raises(ConfigError, match=message):
        oracle.load(tiny_model("roberta"), **options)


def test_other_families_are_refused_with_the_list(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match=r"roberta, xlm-roberta, camembert, bert, mpnet, distilbert.*gpt2"):
        oracle.load(tmp_path)


def test_no_network_names_what_works_without():
    with pytest.raises(InputError, match="offline preset"):
        oracle.load("nobody/has-this-model")


def test_weights_without_an_encoder_are_refused(tiny_model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model("roberta"), tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layer.2." not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="whole encoder"):
        oracle.load(folder)
