"""Operations and bits, against the figures of the paper and of the published models."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank.planning.costs.cost import Count, Flops
from splitrank.planning.workload import (
    KNOWN_SHAPES,
    Payload,
    TrainingAmount,
    flops_workload,
    head_numbers,
    measured_workload,
    paper_workload,
)

ROBERTA = KNOWN_SHAPES["roberta-base"]


def sent(per_rank: int, head: int, bits: float) -> Payload:
    """The same up and down."""
    count = Count(head, per_rank)
    return Payload(count, count, bits)


def test_numbers_of_the_head_of_roberta_base() -> None:
    assert head_numbers(768, 4, "full") == 593_668
    assert head_numbers(768, 4, "out_proj") == 3_076
    assert head_numbers(768, 4, "frozen") == head_numbers(768, 4, "local") == 0


def test_paper_shares_of_the_whole_model() -> None:
    """PEFT prints 129,960,968 parameters for r = 128 on all layers; with the head, 0.48 % to 1.40 % on three."""
    assert 124_648_708 + 593_668 + 36_864 * 128 == 129_960_968
    shares = [(9_216 * r + 593_668) / (124_648_708 + 9_216 * r) for r in (1, 128)]
    assert shares == pytest.approx([0.0048, 0.0140], abs=1e-4)


def test_paper_workload_is_equations_2_and_5() -> None:
    """Σ(2r-1)dk operations per sample, Σr(d+k) parameters, written out linear by linear."""
    samples = np.array([100.0, 7.0])
    sizes = [(768, 768), (3072, 768)]
    work = paper_workload(sizes, 3, samples, 2, sent(3 * sum(d + k for d, k in sizes), 10, 256))
    for rank in (1, 2, 128):
        operations = sum((2 * rank - 1) * d * k for _ in range(3) for d, k in sizes)
        parameters = sum(rank * (d + k) for _ in range(3) for d, k in sizes)
        np.testing.assert_allclose(work.cycles(rank), operations * samples * 2)
        for bits in (work.uplink_bits, work.downlink_bits):
            np.testing.assert_allclose(bits(rank), np.full(2, (parameters + 10) * 256.0))


def test_flops_are_summed_over_real_lengths_and_steps() -> None:
    """Two clients' cycles are the per-sample counts over their own texts, and the per-step counts, at their speeds."""
    lengths = [np.array([3.0, 7.0, 11.0]), np.array([5.0])]
    flops = Flops(np.array([5.0, 2.0, 1.0]), np.array([1.0, 0.5, 0.0]), step=40.0, step_per_rank=4.0)
    amount = TrainingAmount(
        samples=np.array([3.0, 1.0]),
        token_sum=np.array([x.sum() for x in lengths]),
        token_square_sum=np.array([(x**2).sum() for x in lengths]),
        epochs=2,
        batch_size=2,
    )
    np.testing.assert_array_equal(amount.steps, [4, 2])  # two epochs of two batches, the second of one text; of one
    speed, trunk = np.array([4.0, 8.0]), np.array([7.0, 9.0])
    payload = Payload(Count(99, 10), Count(99, 30), 32)
    prepared = flops_workload(flops, amount, payload, flops_per_cycle=speed)
    charged = flops_workload(flops, amount, payload, flops_per_cycle=speed, trunk_cycles_every_round=trunk)
    for rank in (1, 6):
        for i, client in enumerate(lengths):
            a_sample = [(flops.sample + rank * flops.sample_per_rank) @ [1, n, n**2] for n in client]
            expected = (2 * sum(a_sample) + amount.steps[i] * (40 + 4 * rank)) / speed[i]
            assert prepared.cycles(rank)[i] == pytest.approx(expected)
        np.testing.assert_allclose(charged.cycles(rank) - prepared.cycles(rank), trunk)
        np.testing.assert_array_equal(prepared.uplink_bits(rank), np.full(2, (10 * rank + 99) * 32))
        np.testing.assert_array_equal(prepared.downlink_bits(rank), np.full(2, (30 * rank + 99) * 32))


def test_a_cost_takes_one_rank_or_one_for_each_client() -> None:
    work = paper_workload([(8, 8)], 1, np.array([1.0, 1.0]), 1, sent(16, 0, 1))
    np.testing.assert_array_equal(work.uplink_bits(np.array([1, 4])), [16, 64])
    np.testing.assert_array_equal(work.cycles(np.array([1, 4])), [work.cycles(1)[0], work.cycles(4)[1]])


def test_measured_workload_takes_the_measured_time_at_the_reference_clock() -> None:
    work = measured_workload(
        np.array([0.01, 0.02]),
        np.array([0.0, 1e-4]),
        np.array([1e9, 2e9]),
        np.array([100.0, 200.0]),
        3,
        sent(9_216, 4, 32),
    )
    seconds = work.cycles(8) / np.array([1e9, 2e9])
    np.testing.assert_allclose(seconds, [0.01 * 300, (0.02 + 8e-4) * 600])
    np.testing.assert_allclose(work.uplink_bits(8), np.full(2, (9_216 * 8 + 4) * 32.0))


def test_known_shapes() -> None:
    assert KNOWN_SHAPES["microsoft/mpnet-base"] == ROBERTA
    assert KNOWN_SHAPES["distilroberta-base"].num_layers == 6
    assert KNOWN_SHAPES["FacebookAI/xlm-roberta-large"].hidden_size == 1024
    assert KNOWN_SHAPES["minilm"].intermediate_size == 1536
