"""Operations and bits, against the figures of the paper and of the published models."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank.planning.workload import (
    KNOWN_SHAPES,
    adapter_parameters_per_rank,
    head_parameters,
    map_shapes,
    measured_workload,
    paper_workload,
)

ROBERTA = KNOWN_SHAPES["roberta-base"]


def test_parameter_counts_of_roberta_base() -> None:
    assert adapter_parameters_per_rank(map_shapes(ROBERTA, "query-value"), 3) == 9_216
    assert adapter_parameters_per_rank(map_shapes(ROBERTA, "attention"), 3) == 18_432
    assert adapter_parameters_per_rank(map_shapes(ROBERTA, "all-linear"), 3) == 41_472
    assert adapter_parameters_per_rank(map_shapes(ROBERTA, "query-value"), 12) == 36_864
    assert head_parameters(768, 4, "full") == 593_668
    assert head_parameters(768, 4, "out_proj") == 3_076
    assert head_parameters(768, 4, "frozen") == head_parameters(768, 4, "local") == 0


def test_paper_shares_of_the_whole_model() -> None:
    """PEFT prints 129,960,968 parameters for r = 128 on all layers; with the head, 0.48 % to 1.40 % on three."""
    assert 124_648_708 + 593_668 + 36_864 * 128 == 129_960_968
    shares = [(9_216 * r + 593_668) / (124_648_708 + 9_216 * r) for r in (1, 128)]
    assert shares == pytest.approx([0.0048, 0.0140], abs=1e-4)


def test_paper_workload_is_equations_2_and_5() -> None:
    """Σ(2r-1)dk operations per sample, Σr(d+k) parameters, written out map by map."""
    samples = np.array([100.0, 7.0])
    maps = [(768, 768), (3072, 768)]
    work = paper_workload(maps, 3, samples, 2, 256, 10)
    for rank in (1, 2, 128):
        operations = sum((2 * rank - 1) * d * k for _ in range(3) for d, k in maps)
        parameters = sum(rank * (d + k) for _ in range(3) for d, k in maps)
        np.testing.assert_allclose(work.cycles(rank), operations * samples * 2)
        np.testing.assert_allclose(work.payload_bits(rank), np.full(2, (parameters + 10) * 256.0))


def test_measured_workload_takes_the_measured_time_at_the_reference_clock() -> None:
    work = measured_workload(
        np.array([0.01, 0.02]),
        np.array([0.0, 1e-4]),
        np.array([1e9, 2e9]),
        samples=np.array([100.0, 200.0]),
        epochs=3,
        parameters_per_rank=9_216,
        bits_per_parameter=32,
        head_parameters_sent=4,
    )
    seconds = work.cycles(8) / np.array([1e9, 2e9])
    np.testing.assert_allclose(seconds, [0.01 * 300, (0.02 + 8e-4) * 600])
    np.testing.assert_allclose(work.payload_bits(8), np.full(2, (9_216 * 8 + 4) * 32.0))


def test_shapes_of_chosen_maps() -> None:
    assert map_shapes(ROBERTA, ["intermediate", "output"]) == [(3072, 768), (768, 3072)]


def test_known_shapes() -> None:
    assert KNOWN_SHAPES["microsoft/mpnet-base"] == ROBERTA
    assert KNOWN_SHAPES["distilroberta-base"].num_layers == 6
    assert KNOWN_SHAPES["FacebookAI/xlm-roberta-large"].hidden_size == 1024
    assert KNOWN_SHAPES["minilm"].intermediate_size == 1536
