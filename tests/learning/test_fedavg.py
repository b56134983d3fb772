"""Promises: averages are weighted by samples and independent of order; the error of averaging factors is exact."""

from __future__ import annotations

import pytest
import torch

from splitrank.learning.adapters.lora import Adapter
from splitrank.learning.aggregation.fedavg import factor_averaging_error, fedavg

WEIGHTS = [3, 1, 4]


def clients(count: int = 3, rank: int = 4) -> list[Adapter]:
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        Adapter(
            rank,
            2.0,
            {"a": draw(rank, 6), "b": draw(rank, 5)},
            {"a": draw(9, rank), "b": draw(7, rank)},
            {"h": draw(3)},
        )
        for _ in range(count)
    ]


def test_weighted_mean_of_every_tensor():
    adapters = clients()
    mean = fedavg(adapters, WEIGHTS)
    for name, tensor in mean.tensors().items():
        expected = sum(n * adapter.tensors()[name].double() for n, adapter in zip(WEIGHTS, adapters, strict=True)) / 8
        torch.testing.assert_close(tensor, expected.float(), rtol=1e-6, atol=1e-7)
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("count", [3, 3000])
def test_equal_adapters_stay_as_they_are(count):
    """Thousands of float32 additions would not end where they should."""
    (adapter,) = clients(1)
    mean = fedavg([adapter] * count, [1] * count)
    for name, tensor in mean.tensors().items():
        torch.testing.assert_close(tensor, adapter.tensors()[name], rtol=1e-7, atol=0)


def test_who_comes_first_does_not_matter():
    adapters = clients()
    forwards, backwards = fedavg(adapters, WEIGHTS), fedavg(adapters[::-1], WEIGHTS[::-1])
    for name, tensor in forwards.tensors().items():
        torch.testing.assert_close(tensor, backwards.tensors()[name], rtol=1e-6, atol=1e-7)


def test_factor_averaging_error_by_dense_products():
    adapters = clients()
    mean = fedavg(adapters, WEIGHTS)
    difference = norm = 0.0
    for path in ("a", "b"):
        dense = sum(
            n * adapter.lora_B[path].double() @ adapter.lora_A[path].double()
            for n, adapter in zip(WEIGHTS, adapters, strict=True)
        ) / sum(WEIGHTS)
        difference += (mean.lora_B[path].double() @ mean.lora_A[path].double() - dense).square().sum()
        norm += dense.square().sum()
    assert factor_averaging_error(adapters, WEIGHTS, fedavg(adapters, WEIGHTS)) == pytest.approx(
        float((difference / norm).sqrt()), rel=1e-9
    )


def test_no_error_where_factors_agree():
    shared_a = clients(1)[0].lora_A
    adapters = [Adapter(4, 2.0, shared_a, adapter.lora_B) for adapter in clients()]
    assert factor_averaging_error(adapters, WEIGHTS, fedavg(adapters, WEIGHTS)) < 1e-7
    assert factor_averaging_error(clients(1), [5], fedavg(clients(1), [5])) == 0.0


def test_no_error_where_nothing_was_learnt():
    adapters = [
        Adapter(4, 2.0, adapter.lora_A, {"a": torch.zeros(9, 4), "b": torch.zeros(7, 4)}) for adapter in clients()
    ]
    assert factor_averaging_error(adapters, WEIGHTS, fedavg(adapters, WEIGHTS)) == 0.0
