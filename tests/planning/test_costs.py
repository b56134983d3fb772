"""Every method's cost is what really runs: torch's own counter sees as many operations, and numbers are parameters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from splitrank.config import AdapterTable
from splitrank.learning import layer
from splitrank.learning.adapters.adapter import kind_of
from splitrank.learning.adapters.merged import add_merged
from splitrank.learning.adapters.method import attach, initial, load, trained_head
from splitrank.learning.adapters.methods import make_method
from splitrank.placement import target_linears
from splitrank.planning.costs.cost import Count, TrainedPart, total
from splitrank.planning.costs.table import COSTS
from splitrank.planning.workload import KNOWN_SHAPES
from splitrank.traits import FACTORS, METHOD_TRAITS, RULE_TRAITS
from tests.planning.tiny import BATCH, NUM_LABELS, SHAPE, TOKENS, hugging_face_config, per_batch, tiny_encoder

RANK = 3
ROBERTA = KNOWN_SHAPES["roberta-base"]
PATHS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
OF_A_LAYER: dict[str, Callable[[str], bool]] = {
    "weight": lambda path: True,
    "bias": lambda path: path.endswith("bias"),
}
"""Kind → which of a trained layer's own parameters are of it."""
OWN_MODULES = {"scale", "bottleneck_up", "prefix"}
"""Kinds whose parameters stand in modules that the method puts into the layers."""


@pytest.fixture(autouse=True)
def no_filling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are filled up to round numbers, which the mathematics does not need."""
    monkeypatch.setattr(layer, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(layer, "_ROW_STEPS", 2**20)
    monkeypatch.setattr(layer, "_WIDTH_BLOCK", 1)


@dataclass(frozen=True)
class Trained:
    """A model, what runs of it above the cut, and its parameters by kind."""

    logits: Callable[[], torch.Tensor]
    parameters: dict[str, list[nn.Parameter]]


def as_it_is_trained(part: TrainedPart, rank: int, method: str) -> Trained:
    """The encoder that splitrank trains, with a method and the merged parts in it."""
    encoder = tiny_encoder(list(part.layers))
    adapted = attach(
        encoder, make_method(method, {"linears": part.linears, "scaling": 2.0, "dropout": 0.0, "gate": part.gate})
    )
    start = initial(adapted, trained_head(adapted, part.head))
    start = adapted.method.resize(start, rank, distribution="svd", seed=0, round=1)
    sizes = SHAPE.linears()
    for (index, name), merged in part.merged.items():
        (d, k), path = sizes[name], f"roberta.encoder.layer.{index}.{PATHS[name]}"
        rows = max(d, k) if merged is None else merged
        start = add_merged(start, {path: (torch.randn(rows, k), torch.randn(d, rows))})
    parameters: dict[str, list[nn.Parameter]] = {}
    for name, parameter in load(adapted, start).items():
        if kind_of(name) != "head":
            parameters.setdefault(kind_of(name), []).append(parameter)
    hidden, lengths = torch.randn(BATCH * TOKENS, SHAPE.hidden_size), torch.full((BATCH,), TOKENS)
    return Trained(lambda: adapted.logits(hidden, lengths), parameters)


def reference(part: TrainedPart, rank: int, method: str) -> Trained:
    """Hugging Face's own layers from the cut on, with PEFT's DoRA or some of the trained layers' own weights."""
    model = transformers.RobertaForSequenceClassification(hugging_face_config())
    model.requires_grad_(False)
    layers = model.roberta.encoder.layer
    if method == "dora":
        paths = "|".join(re.escape(PATHS[name]) for name in part.linears)
        get_peft_model(
            model,
            LoraConfig(
                r=rank,
                lora_alpha=2 * rank,
                lora_dropout=0.1 * part.has_dropout,
                use_dora=True,
                target_modules=rf".*\.layer\.({'|'.join(map(str, part.layers))})\.({paths})",
            ),
        )
        parameters = _by_kind(model, ("lora_A", "lora_B", "lora_magnitude_vector"))
        parameters["magnitude"] = parameters.pop("lora_magnitude_vector")
    else:
        named = [item for index in part.layers for item in layers[index].named_parameters()]
        parameters = {kind: [p for path, p in named if OF_A_LAYER[kind](path)] for kind in METHOD_TRAITS[method].kinds}
    model.classifier.dense.requires_grad_(part.head in ("full", "local"))
    model.classifier.out_proj.requires_grad_(part.head != "frozen")
    states = torch.randn(BATCH, TOKENS, SHAPE.hidden_size)

    def logits() -> torch.Tensor:
        hidden = states
        for index in range(part.cut_layer, SHAPE.num_layers):
            output = layers[index](hidden)
            hidden = output if isinstance(output, torch.Tensor) else output[0]
        return model.classifier(hidden)

    return Trained(logits, parameters)


def trained_of(part: TrainedPart, rank: int, method: str) -> Trained:
    """What runs for a method: splitrank's encoder, or without it a reference that needs none of our modules."""
    kinds = METHOD_TRAITS[method].kinds
    runs = as_it_is_trained if kinds == FACTORS or kinds & OWN_MODULES else reference
    return runs(part, rank, method)


def _by_kind(model: nn.Module, kinds: tuple[str, ...]) -> dict[str, list[nn.Parameter]]:
    named = list(model.named_parameters())
    return {kind: [parameter for name, parameter in named if f".{kind}.default." in name] for kind in kinds}


def counted_step(part: TrainedPart, method: str, rank: int = RANK) -> int:
    """What torch counts in a step that trains some of the kinds."""
    trained = trained_of(part, rank, method)
    for kind, parameters in trained.parameters.items():
        for parameter in parameters:
            parameter.requires_grad_(kind in part.kinds)
    # The counter does not know the product that adds to what is there.
    counts = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        trained.logits().sum().backward()
    return counter.get_total_flops()


def expected_step(part: TrainedPart, method: str, rank: int = RANK) -> float:
    flops = COSTS[method].flops(part)
    return per_batch(flops.sample + rank * flops.sample_per_rank) + flops.step + rank * flops.step_per_rank


def part_of(layers: list[int], targets: str | tuple[str, ...], head: str, kinds: set[str], **more: bool) -> TrainedPart:
    return TrainedPart(SHAPE, tuple(layers), target_linears(targets), head, NUM_LABELS, frozenset(kinds), **more)  # type: ignore[arg-type]


TRAINED = [
    ("lora", FACTORS),
    ("lora", {"lora_B"}),
    ("rslora", FACTORS),
    ("dora", FACTORS | {"magnitude"}),
    ("dora", {"lora_B", "magnitude"}),
    ("full", {"weight"}),
    ("bitfit", {"bias"}),
    ("ia3", {"scale"}),
    ("bottleneck", {"bottleneck_down", "bottleneck_up", "bottleneck_bias"}),
    ("bottleneck", {"bottleneck_up", "bottleneck_bias"}),
    ("bottleneck", {"bottleneck_down"}),
    ("prefix", {"prefix"}),
]
ON_LINEARS = [case for case in TRAINED if "target_modules" in METHOD_TRAITS[case[0]].settings]
IN_LAYERS = [case for case in TRAINED if case not in ON_LINEARS]
IDS = [f"{method}-{'+'.join(sorted(kinds))}" for method, kinds in ON_LINEARS]


@pytest.mark.parametrize("head", ["full", "out_proj", "frozen", "local"])
@pytest.mark.parametrize("layers", [[3], [2, 3], [0, 1, 2, 3], [0], [1, 2], [0, 3]], ids=str)
@pytest.mark.parametrize(
    ("method", "kinds", "targets"),
    [
        *((*case, targets) for case in ON_LINEARS for targets in ("query-value", "attention", "all-linear")),
        *((*case, "all-linear") for case in IN_LAYERS),
    ],
)
def test_operations_equal_torchs_count(
    method: str, kinds: set[str], targets: str, layers: list[int], head: str
) -> None:
    part = part_of(layers, targets, head, kinds)
    assert expected_step(part, method) == counted_step(part, method)


@pytest.mark.parametrize("name", SHAPE.linears())
@pytest.mark.parametrize("layers", [[3], [1, 2]], ids=str)
@pytest.mark.parametrize(("method", "kinds"), ON_LINEARS, ids=IDS)
def test_operations_equal_torchs_count_for_a_single_linear(
    method: str, kinds: set[str], layers: list[int], name: str
) -> None:
    part = part_of(layers, (name,), "full", kinds)
    assert expected_step(part, method) == counted_step(part, method)


@pytest.mark.parametrize("layers", [[3], [0, 2]], ids=str)
@pytest.mark.parametrize("targets", ["query-value", "all-linear", ("key",), ("output",)], ids=str)
@pytest.mark.parametrize(("method", "kinds"), [("lora", {"lora_A"}), ("dora", {"lora_A", "magnitude"})])
def test_operations_equal_torchs_count_where_a_turn_trains_A_alone(
    method: str, kinds: set[str], targets: str | tuple[str, ...], layers: list[int]
) -> None:
    part = part_of(layers, targets, "full", kinds)
    assert expected_step(part, method) == counted_step(part, method)


@pytest.mark.parametrize("merged", [4, None, {"query": 2, "key": None, "value": 4, "output": None}], ids=str)
@pytest.mark.parametrize("kinds", [FACTORS, {"lora_B"}], ids=["A+B", "B"])
@pytest.mark.parametrize("layers", [[3], [2, 3], [0], [0, 3]], ids=str)
@pytest.mark.parametrize("targets", ["query-value", "all-linear", ("key",), ("value",), ("output",)], ids=str)
def test_merged_parts_cost_what_torch_counts(
    targets: str | tuple[str, ...], layers: list[int], kinds: set[str], merged: int | dict[str, int | None] | None
) -> None:
    """Factors of rank 4, the largest of h × h, dense parts, and some of each."""
    part = part_of(layers, targets, "full", kinds)
    per_linear = merged if isinstance(merged, dict) else dict.fromkeys(SHAPE.linears(), merged)
    chosen = {(layer, name): per_linear[name] for layer in layers for name in part.linears if name in per_linear}
    with_merged = replace(part, merged=chosen)
    assert expected_step(with_merged, "lora") == counted_step(with_merged, "lora")
    assert not chosen or expected_step(with_merged, "lora") > expected_step(part, "lora")


@pytest.mark.parametrize("layers", [[3], [0, 2]], ids=str)
def test_dropout_makes_dora_multiply_with_the_frozen_matrix_again(layers: list[int]) -> None:
    part = part_of(layers, "all-linear", "full", FACTORS | {"magnitude"}, has_dropout=True)
    assert expected_step(part, "dora") == counted_step(part, "dora")


@pytest.mark.parametrize("layers", [[3], [2, 3], [0, 1, 2, 3], [0], [1, 2], [0, 3]], ids=str)
def test_gated_prefixes_cost_what_torch_counts(layers: list[int]) -> None:
    gated = part_of(layers, "all-linear", "full", {"prefix"}, gate=True)
    assert expected_step(gated, "prefix") == counted_step(gated, "prefix")
    trained = trained_of(gated, RANK, "prefix").parameters["prefix"]
    assert sum(p.numel() for p in trained) == COSTS["prefix"].numbers(gated)["prefix"].at(RANK)
    if layers == [3]:  # where the text's own weights depend on nothing that is trained
        assert expected_step(gated, "prefix") < expected_step(replace(gated, gate=False), "prefix")


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("targets", ["query-value", "all-linear"])
@pytest.mark.parametrize(("method", "kinds"), [case for case in TRAINED if case[1] == METHOD_TRAITS[case[0]].kinds])
def test_numbers_are_those_of_the_parameters(method: str, kinds: set[str], targets: str, rank: int) -> None:
    part = part_of([1, 3], targets, "full", kinds)
    trained = trained_of(part, rank, method)
    real = {kind: sum(parameter.numel() for parameter in some) for kind, some in trained.parameters.items()}
    assert {kind: count.at(rank) for kind, count in COSTS[method].numbers(part).items()} == real
    assert set(real) == METHOD_TRAITS[method].kinds


def test_every_method_has_a_cost_and_can_be_chosen() -> None:
    assert list(COSTS) == list(METHOD_TRAITS) == list(get_args(AdapterTable.model_fields["method"].annotation))


@pytest.mark.parametrize("method", COSTS)
def test_a_method_without_a_rank_costs_the_same_at_any(method: str) -> None:
    part = part_of([3], "all-linear", "full", set(METHOD_TRAITS[method].kinds))
    flops, numbers = COSTS[method].flops(part), total(COSTS[method].numbers(part).values())
    slopes = [*flops.sample_per_rank, flops.step_per_rank, numbers.per_rank]
    assert any(slopes) == METHOD_TRAITS[method].has_rank
    assert COSTS[method].rank_cap(part) == (8 if METHOD_TRAITS[method].has_rank else 1)


@pytest.mark.parametrize("method", COSTS)
@pytest.mark.parametrize("rule", RULE_TRAITS)
def test_training_less_never_costs_more(method: str, rule: str) -> None:
    kinds = METHOD_TRAITS[method].kinds
    turns = {RULE_TRAITS[rule].trained(kinds, turn) for turn in (0, 1)}
    for some, layers in itertools.product(turns, ([3], [0, 1, 2, 3])):
        all_, fewer = (part_of(layers, "all-linear", "full", set(chosen)) for chosen in (kinds, some))
        assert expected_step(fewer, method) <= expected_step(all_, method)


def roberta(method: str, targets: str, layers: int = 3) -> TrainedPart:
    kinds = METHOD_TRAITS[method].kinds
    return TrainedPart(ROBERTA, tuple(range(12 - layers, 12)), target_linears(targets), "full", 4, kinds)


def test_numbers_of_roberta_base() -> None:
    """The accounting of the paper's model: 9,216 and 41,472 per rank on three layers, 36,864 on all."""

    def per_rank(targets: str, layers: int = 3) -> Count:
        return total(COSTS["lora"].numbers(roberta("lora", targets, layers)).values())

    assert per_rank("query-value") == Count(0, 9_216)
    assert per_rank("attention") == Count(0, 18_432)
    assert per_rank("all-linear") == Count(0, 41_472)
    assert per_rank("query-value", 12) == Count(0, 36_864)
    assert COSTS["dora"].numbers(roberta("dora", "query-value"))["magnitude"] == Count(4_608)
    assert COSTS["dora"].numbers(roberta("dora", "all-linear"))["magnitude"] == Count(20_736)
    assert COSTS["full"].numbers(roberta("full", "query-value"))["weight"] == Count(3 * 7_087_872)
    assert COSTS["bitfit"].numbers(roberta("bitfit", "query-value"))["bias"] == Count(25_344)
    assert COSTS["ia3"].numbers(roberta("ia3", "query-value"))["scale"] == Count(13_824)
    bottleneck = total(COSTS["bottleneck"].numbers(roberta("bottleneck", "query-value")).values())
    assert bottleneck == Count(4_608, 9_216 + 6)
    prefix = roberta("prefix", "query-value")
    assert COSTS["prefix"].numbers(prefix)["prefix"] == Count(0, 4_608)
    assert COSTS["prefix"].numbers(replace(prefix, gate=True))["prefix"] == Count(0, 4_608 + 3)
    assert COSTS["rslora"].numbers(roberta("rslora", "query-value")) == COSTS["lora"].numbers(
        roberta("lora", "query-value")
    )


def test_roberta_base_costs_3_5_gflop_per_sample_of_64_tokens() -> None:
    flops = COSTS["lora"].flops(roberta("lora", "query-value"))
    assert (flops.sample + 8 * flops.sample_per_rank) @ [1, 64, 64**2] == pytest.approx(3.5e9, rel=0.02)
