"""The FLOP count equals what torch's own counter sees in a hand-written step of the trained part."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank.placement import target_maps
from splitrank.planning.flops import EncoderShape, training_flops, trunk_flops
from splitrank.planning.workload import KNOWN_SHAPES, flops_workload, trunk_cycles

torch = pytest.importorskip("torch")
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

SHAPE = EncoderShape(num_layers=4, hidden_size=8, intermediate_size=20)
NUM_LABELS, BATCH, TOKENS, RANK = 3, 2, 5, 3


class Map(torch.nn.Module):
    """A frozen linear map, with an adapter if it is a target."""

    def __init__(self, d: int, k: int, adapted: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(d, k), requires_grad=False)
        self.lora_A = torch.nn.Parameter(torch.randn(RANK, k)) if adapted else None
        self.lora_B = torch.nn.Parameter(torch.randn(d, RANK)) if adapted else None

    def forward(self, x):  # type: ignore[no-untyped-def]
        y = x @ self.weight.T
        return y if self.lora_A is None else y + x @ self.lora_A.T @ self.lora_B.T


class Layer(torch.nn.Module):
    """A one-head post-norm encoder layer; a last layer computes only what the first token needs."""

    def __init__(self, targets: tuple[str, ...], last: bool) -> None:
        super().__init__()
        self.maps = torch.nn.ModuleDict({name: Map(d, k, name in targets) for name, (d, k) in SHAPE.maps().items()})
        self.last = last

    def forward(self, x):  # type: ignore[no-untyped-def]
        rows = x[:, :1] if self.last else x
        query, key, value = self.maps["query"](rows), self.maps["key"](x), self.maps["value"](x)
        context = torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
        attended = torch.nn.functional.layer_norm(rows + self.maps["attention_output"](context), [SHAPE.hidden_size])
        inner = torch.nn.functional.gelu(self.maps["intermediate"](attended))
        return torch.nn.functional.layer_norm(attended + self.maps["output"](inner), [SHAPE.hidden_size])


def counted_step(trained_layers: list[int], targets: tuple[str, ...], head: str) -> int:
    cut, last = min(trained_layers), SHAPE.num_layers - 1
    layers = [Layer(targets if i in trained_layers else (), i == last) for i in range(cut, SHAPE.num_layers)]
    dense = torch.nn.Linear(SHAPE.hidden_size, SHAPE.hidden_size).requires_grad_(head in ("full", "local"))
    out_proj = torch.nn.Linear(SHAPE.hidden_size, NUM_LABELS).requires_grad_(head != "frozen")
    x = torch.randn(BATCH, TOKENS, SHAPE.hidden_size)
    with FlopCounterMode(display=False) as counter:
        for layer in layers:
            x = layer(x)
        out_proj(torch.tanh(dense(x[:, 0]))).sum().backward()
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
    layers = [Layer((), last=False) for _ in range(3)]
    x = torch.randn(BATCH, TOKENS, SHAPE.hidden_size)
    with FlopCounterMode(display=False) as counter:
        for layer in layers:
            x = layer(x)
    assert BATCH * per_sample(trunk_flops(SHAPE, 3)) == counter.get_total_flops()


def test_roberta_base_costs_3_8_gflop_per_sample_of_64_tokens() -> None:
    constant, per_rank = training_flops(KNOWN_SHAPES["roberta-base"], [9, 10, 11], ("query", "value"), "full", 4)
    flops = (constant + 8 * per_rank) @ [1, 64, 64**2]
    assert flops == pytest.approx(3.8e9, rel=0.02)


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
