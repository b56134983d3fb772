"""Promises of the pull towards a round's start: a term of the loss, whose gradient is μ·(w − w_start)."""

from __future__ import annotations

import pytest
import torch

from splitrank.learning.adapters.method import LocalTerms
from splitrank.learning.updates.proximal import ProximalPenalty
from tests.learning.oracle import moved, same_bits
from tests.learning.test_client import setting  # noqa: F401
from tests.learning.test_selection import after_training, two_slices


def everything(name, tensor, client, turn):
    return None


def pulled(weight):
    return [LocalTerms(penalty=ProximalPenalty(weight))]


@pytest.mark.parametrize("weight", [1e-3, 0.7, 30.0])
def test_its_value_and_its_gradient(weight, setting):  # noqa: F811
    _, _, first = setting()
    start, other = moved(first), moved(first, key=2)
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in other.tensors.items()}
    parameters["head/own"] = torch.nn.Parameter(torch.ones(3))  # stays on the client
    term = ProximalPenalty(weight)(parameters, start)
    apart = other.to_vector().double() - start.to_vector().double()
    assert float(term.detach()) == pytest.approx(weight / 2 * float(apart @ apart), rel=1e-5)
    term.backward()
    assert parameters.pop("head/own").grad is None
    for name, parameter in parameters.items():
        wanted = weight * (other.tensors[name] - start.tensors[name])
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-7 * weight)


def test_nothing_is_pulled_where_nothing_shared_is_trained(setting):  # noqa: F811
    _, _, first = setting()
    own = {"head/own": torch.nn.Parameter(torch.ones(3))}
    assert float(ProximalPenalty(1.0)(own, first)) == 0.0


def test_the_pull_is_in_the_gradient_that_is_clipped(setting):  # noqa: F811
    """The same as adding μ·(w − w_start) by hand before clipping; AdamW's own decay has no part in it."""
    start = moved(setting()[2])

    def by_hand(parameters):
        for name, parameter in parameters.items():
            parameter.grad += 5.0 * (parameter.detach() - start.tensors[name])

    hand = [LocalTerms(after_backward=by_hand)]
    for limit in (1e-3, 1e6):
        settings = {"start": start, "local_epochs": 3, "max_grad_norm": limit, "weight_decay": 0.1}
        _, ours = after_training(setting, everything, terms=pulled(5.0), **settings)
        _, theirs = after_training(setting, everything, terms=hand, **settings)
        _, plain = after_training(setting, everything, **settings)
        apart = (ours.to_vector() - plain.to_vector()).norm()
        assert (ours.to_vector() - theirs.to_vector()).norm() < 1e-2 * apart


def test_a_huge_pull_holds_every_number_within_three_steps(setting):  # noqa: F811
    """AdamW's first step moves by the learning rate whatever the gradient; from there on the pull leads back."""
    start, after = after_training(
        setting, everything, terms=pulled(1e6), local_epochs=30, learning_rate=1e-2, num_rounds=1
    )
    _, free = after_training(setting, everything, local_epochs=30, learning_rate=1e-2, num_rounds=1)
    assert (after.to_vector() - start.to_vector()).abs().max() <= 3 * 1e-2
    assert (free.to_vector() - start.to_vector()).abs().max() > 5 * 1e-2


def test_what_is_not_trained_stays(setting):  # noqa: F811
    start, after = after_training(setting, two_slices, terms=pulled(1.0), weight_decay=0.5)
    assert same_bits(after.only("head"), start.only("head"))
    for name, tensor in start.only("lora_A").items():
        assert torch.equal(after.tensors[name][1], tensor[1])
        assert (after.tensors[name][[0, 2]] != tensor[[0, 2]]).all()
