"""Promises: the packed pass equals the reference, and honours all that is in the model or refuses it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from peft import IA3Config, LoraConfig, TaskType, get_peft_model
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from torch import nn

from splitrank.learning.adapters.bitfit import BitFit
from splitrank.learning.adapters.dora import Dora
from splitrank.learning.adapters.lora import Lora
from splitrank.learning.adapters.merged import add_merged
from splitrank.learning.adapters.method import NO_TERMS, attach, load
from splitrank.learning.adapters.methods import METHODS
from splitrank.learning.forward import is_packable, packed_logits, reference_logits
from splitrank.traits import MethodTraits
from tests.conftest import TINY_FAMILIES
from tests.learning import oracle
from tests.learning.oracle import LENGTHS, adapt, begin, moved, noise, random_ids
from tests.learning.test_encoder import Halving

IDS = random_ids(64, LENGTHS)
COUNTS = torch.tensor(LENGTHS)


@dataclass(frozen=True)
class Fixed:
    """A method of the tests' own, without a rank."""

    name: ClassVar[str] = "own"
    traits: ClassVar[MethodTraits] = MethodTraits(frozenset({"own"}), "fixed", "model")
    terms: ClassVar = NO_TERMS

    def attach(self, encoder):
        return None

    def parameters(self, encoder, rank, scaling):
        raise NotImplementedError

    def scaling_at(self, rank):
        return 1.0

    def resize(self, adapter, rank, **key):
        return type(adapter)(1, 1.0, adapter.tensors)


class Ia3(Fixed):
    """PEFT's IA3: vectors that scale keys, values and the inner activations."""

    def attach(self, encoder):
        config = IA3Config(
            task_type=TaskType.SEQ_CLS,
            target_modules=r".*layer\.[345]\.(attention\.self\.(key|value)|output\.dense)",
            feedforward_modules=r".*layer\.[345]\.output\.dense",
            modules_to_save=["classifier"],
        )
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            return get_peft_model(encoder.model, config)

    def parameters(self, encoder, rank, scaling):
        modules = encoder.model.named_modules()
        return {f"scale/{path}": m.ia3_l["default"] for path, m in modules if isinstance(m, IA3Layer)}


class OneBias(BitFit):
    """One linear's bias alone."""

    def parameters(self, encoder, rank, scaling):
        found = super().parameters(encoder, rank, scaling)
        return {name: parameter for name, parameter in found.items() if name.endswith("4.intermediate.dense.bias")}


class Norms(Fixed):
    """Layer norms of the trained layers."""

    def parameters(self, encoder, rank, scaling):
        layers = encoder.model.get_submodule(encoder.family.layers)
        return {
            f"norm/{encoder.family.layers}.{index}.{path}": parameter
            for index in encoder.trained_layers
            for path, parameter in layers[index].named_parameters()
            if "LayerNorm" in path
        }


class ClaimsToBePlain(Lora):
    """DoRA that trains LoRA's factors alone and says that it is LoRA."""

    def attach(self, encoder):
        return Dora(self.linears, self.scaling).attach(encoder)


class Unused(Fixed):
    """A parameter that stands in a trained layer and that nothing reads."""

    def attach(self, encoder):
        encoder.model.get_submodule(encoder.family.layers)[4].register_parameter("unused", nn.Parameter(torch.ones(3)))

    def parameters(self, encoder, rank, scaling):
        return {"own/unused": encoder.model.get_submodule(encoder.family.layers)[4].unused}


class Hooked(Fixed):
    """A parameter that a hook adds after a linear, which the model's own forward pass obeys."""

    def attach(self, encoder):
        linear = encoder.model.get_submodule(encoder.family.layers)[4].output.dense
        added = nn.Parameter(torch.zeros(32))
        linear.register_forward_hook(lambda module, inputs, output: output + added)
        encoder.model.own_added = added

    def parameters(self, encoder, rank, scaling):
        return {"own/added": encoder.model.own_added}


class Bottleneck(Fixed):
    """A small network after a linear, wrapped around it."""

    def attach(self, encoder):
        output = encoder.model.get_submodule(encoder.family.layers)[4].output
        output.dense = nn.Sequential(output.dense, nn.Linear(32, 32))

    def parameters(self, encoder, rank, scaling):
        inner = encoder.model.get_submodule(encoder.family.layers)[4].output.dense[1]
        return {f"bottleneck/{name}": parameter for name, parameter in inner.named_parameters()}


class BelowTheCut(Fixed):
    """A parameter of the trunk, whose output is cached."""

    def parameters(self, encoder, rank, scaling):
        return {"own/trunk": encoder.model.get_submodule(encoder.family.layers)[0].output.dense.bias}


class DoraWithoutItsMagnitude(Dora):
    """A mutant: lists magnitudes that its layers do not use."""

    def attach(self, encoder):
        peft_model = Lora(self.linears, self.scaling).attach(encoder)
        for module in encoder.model.modules():
            if isinstance(module, LoraLayer):
                module.lora_magnitude_vector["default"] = nn.Module()
                module.lora_magnitude_vector["default"].weight = nn.Parameter(torch.ones(module.out_features))
        return peft_model


def both(adapted, parameters, hidden):
    """Return logits and gradients of the packed and of the reference pass."""
    found = []
    for forward in (packed_logits, reference_logits):
        logits = forward(adapted.encoder, hidden, COUNTS)
        found.append((logits, oracle.gradients(logits, parameters)))
    return found


def own_adapter(adapted, size=0.1):
    return moved(begin(adapted, 1), size=size)


def peft_logits(adapted):
    batch = adapted.encoder.tokenizer.pad({"input_ids": IDS}, return_tensors="pt")
    return (adapted.peft_model or adapted.encoder.model)(**batch).logits


@pytest.mark.parametrize("place", ["last:3", [1, 4]])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_packed_equals_reference(family, place, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model(family), place))
    assert adapted.forward is packed_logits
    parameters = load(adapted, moved(begin(adapted, 3)))
    (packed, packed_gradients), (reference, reference_gradients) = both(adapted, parameters, adapted.encoder.trunk(IDS))
    oracle.assert_logits(packed, reference)
    oracle.assert_gradients(packed_gradients, reference_gradients)


def test_packed_equals_reference_in_half_precision(tiny_model):
    adapted = adapt(oracle.fresh(tiny_model(), precision=torch.bfloat16))
    parameters = load(adapted, moved(begin(adapted, 3)))
    (packed, _), (reference, _) = both(adapted, parameters, adapted.encoder.trunk(IDS))
    assert packed.dtype == reference.dtype == torch.float32
    assert (packed - reference).abs().max() < 0.1


@pytest.mark.parametrize("lengths", [[16] * 8, [9], [32, 31, 3], [2, 31]])
@pytest.mark.parametrize("name", METHODS)
def test_batches_with_and_without_padding(name, lengths, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), name)
    load(adapted, moved(begin(adapted, 3)))
    ids = random_ids(64, lengths)
    batch = adapted.encoder.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    wanted = adapted.encoder.model(**batch).logits
    oracle.assert_logits(adapted.logits(adapted.encoder.trunk(ids), torch.tensor(lengths)), wanted)


@pytest.mark.parametrize(
    "method", [Ia3(), BitFit(), OneBias(), Norms(), ClaimsToBePlain(("query", "key", "value"), 2.0)]
)
def test_what_packing_would_ignore_is_run_by_the_model(method, tiny_model):
    adapted = attach(oracle.fresh(tiny_model()), method)
    parameters = load(adapted, own_adapter(adapted))
    if isinstance(method, ClaimsToBePlain):  # its frozen magnitudes are part of the model, too
        for name, parameter in adapted.encoder.model.named_parameters():
            if "magnitude" in name:
                parameter.data.mul_(1.3)
    logits, wanted = adapted.logits(adapted.encoder.trunk(IDS), COUNTS), peft_logits(adapted)
    oracle.assert_logits(logits, wanted)
    found = oracle.gradients(logits, parameters)
    for name, gradient in oracle.gradients(wanted, parameters).items():
        if not name.endswith("key.bias"):  # no loss depends on it
            assert (found[name] - gradient).norm() / gradient.norm() < 1e-5, name


@pytest.mark.parametrize("method", [Unused(), BelowTheCut(), DoraWithoutItsMagnitude(("query", "value"), 2.0)])
def test_a_parameter_that_nothing_uses_is_refused(method, tiny_model):
    with pytest.raises(TypeError, match=f"must use all that {method.name} trains, but ignores"):
        attach(oracle.fresh(tiny_model()), method)


def test_a_hook_with_a_parameter_is_obeyed_or_refused(tiny_model):
    try:
        adapted = attach(oracle.fresh(tiny_model()), Hooked())
    except TypeError:
        return
    load(adapted, own_adapter(adapted))
    oracle.assert_logits(adapted.logits(adapted.encoder.trunk(IDS), COUNTS), peft_logits(adapted))


def test_a_hook_without_a_parameter_is_obeyed_or_refused(tiny_model):
    encoder = oracle.fresh(tiny_model())
    linear = encoder.model.get_submodule(encoder.family.layers)[4].output.dense
    linear.register_forward_hook(lambda module, inputs, output: 1.5 * output)
    try:
        adapted = adapt(encoder, linears=("query",))
        logits = adapted.logits(encoder.trunk(IDS), COUNTS)
    except TypeError:
        return
    oracle.assert_logits(logits, peft_logits(adapted))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(
    "method",
    [Dora(("query", "value"), 2.0), Dora(("output",), 2.0), Ia3(), BitFit(), ClaimsToBePlain(("key",), 2.0)],
    ids=["dora", "dora-output", "ia3", "bitfit", "claims-to-be-plain"],
)
def test_the_packed_pass_refuses_what_it_would_ignore(method, held, tiny_model):
    encoder = oracle.fresh(tiny_model())
    hidden = encoder.trunk(IDS)
    adapted = attach(encoder, method)
    assert adapted.forward is reference_logits
    parameters = load(adapted, own_adapter(adapted))
    assert not is_packable(encoder, list(parameters.values()))
    if held and not isinstance(method, BitFit):  # whose biases it would take away
        encoder.cast_and_fuse_qkv(range(encoder.cut_layer, encoder.num_layers))
    with pytest.raises(TypeError):
        packed_logits(encoder, hidden, COUNTS)


@pytest.mark.parametrize("linear", ["query", "key", "value", "attention_output", "intermediate", "output"])
def test_the_packed_pass_refuses_a_bias_that_is_trained_later(linear, tiny_model):
    """Query, key and value are fused when they are frozen; any of the six is looked at again."""
    adapted = adapt(oracle.fresh(tiny_model()))
    load(adapted, begin(adapted, 3))
    hidden = adapted.encoder.trunk(IDS)
    for layer in (3, 5):
        module = adapted.encoder.model.get_submodule(f"roberta.encoder.layer.{layer}")
        bias = module.get_submodule(adapted.encoder.family.linears[linear]).base_layer.bias
        bias.requires_grad_()
        with pytest.raises(TypeError):
            packed_logits(adapted.encoder, hidden, COUNTS)
        bias.requires_grad_(False)
    packed_logits(adapted.encoder, hidden, COUNTS)


def with_merged_part(tiny_model, family="roberta", *, dropout=0.0, **options):
    """Return an adapted encoder with a second, frozen LoRA adapter beside the trained one, both active."""
    adapted = adapt(oracle.fresh(tiny_model(family)), linears=("query", "key", "value", "output"), dropout=dropout)
    config = LoraConfig(
        r=5, lora_alpha=5 * 0.6, target_modules=adapted.peft_model.peft_config["default"].target_modules, **options
    )
    with warnings.catch_warnings(action="ignore"):
        adapted.peft_model.add_adapter("merged", config)
    parameters = load(adapted, moved(begin(adapted, 3)))
    for path, layer in adapted.encoder.model.named_modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(["default", "merged"])
            for part in (layer.lora_A, layer.lora_B):
                part["merged"].weight.requires_grad_(False)
                part["merged"].weight.data = 0.1 * noise(f"{path}", part["merged"].weight.shape)
    return adapted, parameters


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_merged_parts_are_used_and_stay_frozen(family, tiny_model):
    adapted, parameters = with_merged_part(tiny_model, family)
    trainable = {id(parameter) for parameter in adapted.encoder.model.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in parameters.values()}
    hidden = adapted.encoder.trunk(IDS)
    (packed, packed_gradients), (reference, reference_gradients) = both(adapted, parameters, hidden)
    wanted = peft_logits(adapted)
    wanted_gradients = oracle.gradients(wanted, parameters)
    for logits, found in ((packed, packed_gradients), (reference, reference_gradients)):
        oracle.assert_logits(logits, wanted)
        oracle.assert_gradients(found, wanted_gradients)
    plain = adapt(oracle.fresh(tiny_model(family)), linears=("query", "key", "value", "output"))
    load(plain, moved(begin(plain, 3)))
    assert (plain.logits(hidden, COUNTS) - packed).abs().max() > 1e-3


@pytest.mark.parametrize("rows", [7, 60], ids=["factors", "dense"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_merged_parts_as_they_are_loaded(family, rows, tiny_model):
    """Every pass gives what PEFT does, and what one adapter with all directions gives."""
    adapted = adapt(oracle.fresh(tiny_model(family)))
    adapter = moved(begin(adapted, 3))
    parts = {}
    for path, a in adapter.of_kind("lora_A").items():
        d, k = len(adapter.tensors[f"lora_B/{path}"]), a.shape[1]
        parts[path] = 0.1 * noise(f"a{path}", (rows, k)), 0.1 * noise(f"b{path}", (d, rows))
    with_parts = add_merged(adapter, parts)
    assert set(with_parts.kinds) - adapter.kinds == ({"merged_W"} if rows == 60 else {"merged_A", "merged_B"})
    parameters = load(adapted, with_parts)
    (packed, packed_gradients), (reference, _) = both(adapted, parameters, adapted.encoder.trunk(IDS))
    wanted = peft_logits(adapted)
    oracle.assert_logits(reference, wanted)
    oracle.assert_logits(packed, wanted)
    oracle.assert_gradients(packed_gradients, oracle.gradients(wanted, parameters))
    # As if the products had been in the trained adapter all along.
    factors = {}
    for path, (a, b) in parts.items():
        factors[f"lora_A/{path}"] = torch.cat([adapter.tensors[f"lora_A/{path}"], a])
        factors[f"lora_B/{path}"] = torch.cat([adapter.tensors[f"lora_B/{path}"], b / adapter.scaling], dim=1)
    load(adapted, replace(adapter.with_tensors(factors), rank=3 + rows))
    oracle.assert_logits(adapted.logits(adapted.encoder.trunk(IDS), COUNTS), wanted)


def test_dropout_before_the_trained_adapter_leaves_merged_parts_alone(tiny_model):
    """A merged part is as constant as the weight beside it; PEFT gives each adapter a dropout of its own."""
    adapted, parameters = with_merged_part(tiny_model)
    for layer in adapted.encoder.model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout["default"] = Halving(0.5)
    adapted.encoder.model.train()
    wanted = peft_logits(adapted)
    (packed, packed_gradients), (reference, _) = both(adapted, parameters, adapted.encoder.trunk(IDS))
    oracle.assert_logits(reference, wanted)
    oracle.assert_logits(packed, wanted)
    oracle.assert_gradients(packed_gradients, oracle.gradients(wanted, parameters))


def test_a_merged_part_that_is_a_variant_is_refused(tiny_model):
    adapted, _ = with_merged_part(tiny_model, use_dora=True)
    with pytest.raises(TypeError):
        packed_logits(adapted.encoder, adapted.encoder.trunk(IDS), COUNTS)


def test_disabled_and_folded_adapters_are_refused(tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()))
    load(adapted, moved(begin(adapted, 3)))
    hidden = adapted.encoder.trunk(IDS)
    with adapted.peft_model.disable_adapter(), pytest.raises(TypeError):
        packed_logits(adapted.encoder, hidden, COUNTS)
    adapted.peft_model.merge_adapter()
    with pytest.raises(TypeError):
        packed_logits(adapted.encoder, hidden, COUNTS)
