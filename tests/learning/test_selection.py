"""Promises of selections: what is selected is trained, sent and put back, nothing else moves; and of local terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splitrank.learning.adapters.adapter import kind_of
from splitrank.learning.adapters.method import LocalTerms
from splitrank.learning.adapters.methods import METHODS
from splitrank.learning.adapters.selection import NOTHING, by_kind, selected, selected_shapes, with_selected
from splitrank.learning.aggregation.rules import RULES
from splitrank.learning.client import TrainingConfig, train_client
from splitrank.traits import METHOD_TRAITS
from tests.learning.oracle import moved, same_bits
from tests.learning.test_client import DEFAULTS, LABELS, setting, task  # noqa: F401


def two_slices(name, tensor, client, turn):
    """Columns 0 and 2 of B, rows 0 and 2 of A, nothing of the head."""
    return {"lora_B": (slice(None), [0, 2]), "lora_A": [0, 2]}.get(kind_of(name), NOTHING)


def by_mask(name, tensor, client, turn):
    return (torch.arange(tensor.numel()).view(tensor.shape) % 3) == client


def alternating(name, tensor, client, turn):
    return None if kind_of(name) == ("lora_B", "lora_A")[turn % 2] else NOTHING


def head_only(name, tensor, client, turn):
    return None if kind_of(name) == "head" else NOTHING


SELECTIONS = [two_slices, by_mask, alternating, head_only, *(by_kind(rule.traits) for rule in RULES.values())]
every_selection = pytest.mark.parametrize("select", SELECTIONS)


def is_selected(name, tensor, select, client, turn) -> torch.Tensor:
    """Return where a tensor is selected, from the definition of an index."""
    mask = torch.zeros(tensor.shape, dtype=torch.bool)
    index = select(name, tensor, client, turn)
    mask[... if index is None else index] = True
    return mask


def after_training(setting, select, *, name="lora", client=0, turn=0, terms=(), start=None, **changes):  # noqa: F811
    adapted, texts, first = setting(name)
    start = start or moved(first)
    asked = task(start, select=select, client=client, turn=turn, terms=terms)
    update = train_client(adapted, asked, texts, np.arange(10), LABELS, TrainingConfig(**{**DEFAULTS, **changes}))
    return start, update.adapter


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@every_selection
def test_only_the_selected_numbers_move(select, weight_decay, turn, setting):  # noqa: F811
    start, after = after_training(setting, select, client=1, turn=turn, weight_decay=weight_decay)
    for name, tensor in start.tensors.items():
        mask = is_selected(name, tensor, select, 1, turn)
        assert torch.equal(after.tensors[name][~mask], tensor[~mask]), name
        assert (after.tensors[name][mask] != tensor[mask]).all(), name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_under_a_selection(name, setting):  # noqa: F811
    start, after = after_training(setting, by_mask, name=name, client=2, weight_decay=0.1)
    for key, tensor in start.tensors.items():
        mask = is_selected(key, tensor, by_mask, 2, 0)
        assert torch.equal(after.tensors[key][~mask], tensor[~mask]), key
        assert (after.tensors[key][mask] != tensor[mask]).float().mean() > 0.9, key


@pytest.mark.parametrize("index", [NOTHING, [], slice(2, 2)], ids=["nothing", "no-rows", "empty-slice"])
def test_an_index_of_no_number_trains_nothing(index, setting):  # noqa: F811
    def heads(name, tensor, client, turn):
        return None if kind_of(name) == "head" else index

    start, after = after_training(setting, heads, weight_decay=0.5)
    assert same_bits(after.only("lora_A", "lora_B"), start.only("lora_A", "lora_B"))
    assert not same_bits(after.only("head"), start.only("head"))


def test_a_selection_does_not_outlive_its_round(setting):  # noqa: F811
    adapted, texts, first = setting()
    arguments = (texts, np.arange(10), LABELS, TrainingConfig(**DEFAULTS))
    alone = train_client(adapted, task(first), *arguments).adapter
    train_client(adapted, task(first, select=head_only), *arguments)
    train_client(adapted, task(first, select=two_slices), *arguments)
    assert same_bits(train_client(adapted, task(first), *arguments).adapter.tensors, alone.tensors)


def test_clipping_sees_the_selected_gradients_alone(setting):  # noqa: F811
    """Numbers that are not trained must not make the others' steps shorter."""
    steps = []

    def note(parameters):
        for name, parameter in parameters.items():
            mask = is_selected(name, parameter, two_slices, 0, 0)
            assert not parameter.grad[~mask].any(), name
            assert parameter.grad[mask].all(), name
        steps.append(list(parameters))

    start, _ = after_training(setting, two_slices, terms=[LocalTerms(after_backward=note)])
    assert steps == 3 * [list(start.only("lora_A", "lora_B"))]


@every_selection
@pytest.mark.parametrize("turn", [0, 1])
def test_selecting_and_putting_back_are_inverse(select, turn, setting):  # noqa: F811
    _, _, first = setting()
    start, trained = moved(first), moved(first, key=2)
    parts = selected(trained.tensors, select, 1, turn)
    assert selected_shapes(trained.tensors, select, 1, turn) == {key: tuple(part.shape) for key, part in parts.items()}
    before = {name: tensor.clone() for name, tensor in start.tensors.items()}
    whole = with_selected(start.tensors, parts, select, 1, turn)
    assert same_bits(start.tensors, before)
    assert list(whole) == list(start.tensors)
    for name, tensor in start.tensors.items():
        mask = is_selected(name, tensor, select, 1, turn)
        assert torch.equal(whole[name], torch.where(mask, trained.tensors[name], tensor))
    assert same_bits(selected(whole, select, 1, turn), parts)


TOGETHER = [(rule, name) for rule in RULES for name in METHODS if RULES[rule].traits.takes(METHOD_TRAITS[name].kinds)]


MADE_BY_THE_SERVER = {"fedsvd": {"lora_A"}}


@pytest.mark.parametrize(("rule", "name"), TOGETHER)
def test_what_is_sent_is_what_the_traits_say(rule, name, setting):  # noqa: F811
    rule, (_, _, adapter) = RULES[rule], setting(name)
    for turn in range(3):
        sent = selected(adapter.tensors, rule.select, 0, turn)
        trained = rule.traits.trained(adapter.kinds, turn)
        assert {kind_of(key) for key in sent} == trained
        for kind in adapter.kinds:
            numbers = sum(tensor.numel() for tensor in adapter.only(kind).values())
            assert sum(t.numel() for key, t in sent.items() if kind_of(key) == kind) == numbers * (kind in trained)
        assert not trained & rule.traits.from_seed
    turns = rule.traits.trained(adapter.kinds, 0) | rule.traits.trained(adapter.kinds, 1)
    assert turns | rule.traits.drawn(adapter.kinds) | MADE_BY_THE_SERVER.get(rule.name, set()) == adapter.kinds


def test_a_penalty_pulls_towards_the_start(setting):  # noqa: F811
    """μ/2·‖θ − θ⁰‖², part of the loss and so seen by clipping; the reported loss is without it."""

    def proximal(strength):
        def penalty(parameters, start):
            apart = [(parameters[name] - start.tensors[name]).square().sum() for name in start.tensors]
            return 0.5 * strength * torch.stack(apart).sum()

        return [LocalTerms(penalty=penalty)]

    def length(strength):
        start, after = after_training(
            setting, lambda *_: None, terms=proximal(strength), local_epochs=4, learning_rate=3e-3
        )
        return (after.to_vector() - start.to_vector()).norm().item()

    free, loose, tight = length(0.0), length(1.0), length(100.0)
    assert tight < loose < free
    assert tight < 0.5 * free
    assert free == after_length(setting)


def after_length(setting) -> float:  # noqa: F811
    start, after = after_training(setting, lambda *_: None, local_epochs=4, learning_rate=3e-3)
    return (after.to_vector() - start.to_vector()).norm().item()


def test_after_backward_comes_before_clipping(setting):  # noqa: F811
    """Order of a step: backward, after_backward, clip, step. Gradients made huge there are clipped afterwards."""
    seen = []

    def note(parameters):
        seen.append(torch.nn.utils.get_total_norm([p.grad for p in parameters.values()]).item())

    def blow_up(parameters):
        for parameter in parameters.values():
            parameter.grad.mul_(1e6)

    start, plain = after_training(setting, lambda *_: None, terms=[LocalTerms(after_backward=note)], max_grad_norm=1e-4)
    _, blown = after_training(setting, lambda *_: None, terms=[LocalTerms(after_backward=blow_up)], max_grad_norm=1e-4)
    assert len(seen) == 3
    assert min(seen) > 1e-2
    torch.testing.assert_close(plain.to_vector(), blown.to_vector(), rtol=1e-3, atol=1e-5)
    _, stopped = after_training(
        setting,
        lambda *_: None,
        terms=[LocalTerms(after_backward=lambda parameters: [p.grad.zero_() for p in parameters.values()])],
    )
    assert same_bits(stopped.tensors, start.tensors)
