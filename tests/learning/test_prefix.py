"""Promises of prefix tuning beside those of every method: PEFT's as the oracle, gates, and what permutes."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model

from splitrank.learning.adapters.method import initial, load, read, trained_head
from splitrank.learning.forward import packed_logits, reference_logits
from tests.conftest import TINY_FAMILIES
from tests.learning import oracle
from tests.learning.oracle import LENGTHS, adapt, begin, moved, random_ids, same_bits

IDS = random_ids(64, LENGTHS)
COUNTS = torch.tensor(LENGTHS)
STEPS, LEARNING_RATE = 20, 1e-2

every_family = pytest.mark.parametrize("family", TINY_FAMILIES)
with_and_without_gates = pytest.mark.parametrize("gate", [False, True], ids=["joint", "gated"])


def logits_of(adapted, adapter):
    load(adapted, adapter)
    return adapted.logits(adapted.encoder.trunk(IDS), COUNTS)


@with_and_without_gates
@pytest.mark.parametrize("place", ["last:3", [1, 4]])
@every_family
def test_each_of_the_trained_layers_has_keys_values_and_gates(family, place, gate, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model(family), place), "prefix", gate=gate)
    parameters = load(adapted, begin(adapted, 5))
    found = {name: tuple(p.shape) for name, p in parameters.items() if name.startswith("prefix/")}
    ends = {"key": (5, 32), "value": (5, 32), **({"gate": (5,)} if gate else {})}
    assert list(found.values()) == len(adapted.encoder.trained_layers) * list(ends.values())
    assert [name.rpartition(".")[2] for name in found] == len(adapted.encoder.trained_layers) * list(ends)


@with_and_without_gates
@pytest.mark.parametrize("held", [False, True])
def test_the_packed_pass_refuses_it(held, gate, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), "prefix", gate=gate)
    load(adapted, begin(adapted, 2))
    hidden = adapted.encoder.trunk(IDS)
    assert adapted.forward is reference_logits
    if held:
        adapted.encoder.cast_and_fuse_qkv(range(adapted.encoder.cut_layer, adapted.encoder.num_layers))
    with pytest.raises(TypeError, match="packed"):
        packed_logits(adapted.encoder, hidden, COUNTS)


@with_and_without_gates
@every_family
def test_no_tokens_are_the_base_model(family, gate, tiny_model):
    """To the bit; MPNet alone divides its scores where we multiply them."""
    adapted = adapt(oracle.fresh(tiny_model(family)), "prefix", gate=gate)
    first = initial(adapted, trained_head(adapted, "full"))
    assert first.rank == 0
    load(adapted, moved(begin(adapted, 3)))
    logits = logits_of(adapted, first)
    assert same_bits(read(adapted, first).tensors, first.tensors)
    bare = oracle.fresh(tiny_model(family))
    wanted = reference_logits(bare, bare.trunk(IDS), COUNTS)
    oracle.assert_logits(logits, wanted, tolerance=1e-6)
    assert family == "mpnet" or torch.equal(logits, wanted)


@every_family
def test_closed_gates_change_nothing_and_open_ones_are_the_oracles(family, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model(family)), "prefix", gate=True)
    fresh = begin(adapted, 4)
    bare = oracle.fresh(tiny_model(family))
    oracle.assert_logits(logits_of(adapted, fresh), reference_logits(bare, bare.trunk(IDS), COUNTS), tolerance=1e-6)
    adapter = moved(fresh, size=0.5)
    wanted, wanted_gradients = oracle.expected(oracle.fresh(tiny_model(family)), adapter, IDS)
    parameters = load(adapted, adapter)
    logits = adapted.logits(adapted.encoder.trunk(IDS), COUNTS)
    oracle.assert_logits(logits, wanted)
    oracle.assert_gradients(oracle.gradients(logits, parameters), wanted_gradients)


def test_without_gates_a_fresh_prefix_changes_the_model(tiny_model):
    """Which is why the run has the base model's accuracy in round 0 alone."""
    adapted = adapt(oracle.fresh(tiny_model()), "prefix")
    first, fresh = initial(adapted, trained_head(adapted, "full")), begin(adapted, 3)
    no_values = {name: 0 * tensor for name, tensor in fresh.tensors.items() if name.endswith(".value")}
    base = logits_of(adapted, first)
    for adapter in (fresh, fresh.with_tensors(no_values)):  # it takes its share of the softmax even if it adds nothing
        assert (logits_of(adapted, adapter) - base).abs().max() > 1e-4


@with_and_without_gates
def test_the_order_of_tokens_changes_nothing(gate, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), "prefix", gate=gate)
    adapter, order = moved(begin(adapted, 4), size=0.5), torch.tensor([2, 0, 3, 1])
    permuted = {name: tensor[order] for name, tensor in adapter.only("prefix").items()}
    keys = {name: tensor for name, tensor in permuted.items() if name.endswith(".key")}
    logits = [logits_of(adapted, one) for one in (adapter, adapter.with_tensors(permuted), adapter.with_tensors(keys))]
    oracle.assert_logits(logits[1], logits[0], tolerance=2e-6)
    assert (logits[2] - logits[0]).abs().max() > 1e-4


@with_and_without_gates
@every_family
def test_padding_is_not_attended_to(family, gate, tiny_model):
    """A text has the same scores alone and in a batch with longer ones."""
    adapted = adapt(oracle.fresh(tiny_model(family)), "prefix", gate=gate)
    together = logits_of(adapted, moved(begin(adapted, 3), size=0.5))
    for index, ids in enumerate(IDS):
        alone = adapted.logits(adapted.encoder.trunk([ids]), COUNTS[index : index + 1])
        oracle.assert_logits(together[index : index + 1], alone)


@with_and_without_gates
@every_family
def test_the_whole_model_with_its_own_mask_and_positions_has_the_same_scores(family, gate, tiny_model):
    """As `predict` runs it; MPNet's relative positions then come beside the mask."""
    adapted = adapt(oracle.fresh(tiny_model(family)), "prefix", gate=gate)
    if family == "mpnet":
        adapted.encoder.model.mpnet.encoder.relative_attention_bias.weight.data.mul_(20.0)
    logits = logits_of(adapted, moved(begin(adapted, 3), size=0.5))
    batch = adapted.encoder.tokenizer.pad({"input_ids": [row.tolist() for row in IDS]}, return_tensors="pt")
    oracle.assert_logits(adapted.encoder.model(**batch).logits, logits)


def test_a_prefix_keeps_its_length(tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), "prefix")
    adapter = begin(adapted, 3)
    assert begin(adapted, 3, seed=0, round=7).rank == 3
    assert same_bits(begin(adapted, 3, round=7).tensors, adapter.tensors)
    assert not same_bits(begin(adapted, 3, seed=1).tensors, adapter.tensors)
    for rank in (2, 4):
        with pytest.raises(ValueError, match=f"must keep its 3 tokens for the whole run, got {rank}"):
            adapted.method.resize(adapter, rank, distribution="svd", seed=0, round=2)


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_pefts_own_prefix_tuning_trains_alike(family, tiny_model):
    """In all layers, fresh and after 20 steps. PEFT moves the text's positions by p, so all positions are made one."""
    encoders = []
    for _ in range(2):
        encoder = oracle.fresh(tiny_model(family), "all")
        embeddings = encoder.model.get_submodule(encoder.family.embeddings).position_embeddings.weight
        embeddings.data[:] = embeddings[5].clone()
        encoders.append(encoder)
    ours, bare = encoders
    adapted, p = adapt(ours, "prefix"), 4
    adapter = begin(adapted, p)
    parameters = load(adapted, adapter)
    hidden = ours.trunk(IDS)

    bare.model.requires_grad_(True)  # or PEFT would freeze the head
    config = PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=p)
    with warnings.catch_warnings(action="ignore"):
        theirs = get_peft_model(bare.model, config)
    theirs.eval()
    table = theirs.prompt_encoder["default"].embedding.weight  # (p, layers · (key, value) · h)
    prefix = [tensor for name, tensor in adapter.tensors.items() if name.startswith("prefix/")]
    table.data.copy_(torch.cat(prefix, dim=1))
    names = [name.removeprefix("head/") for name in parameters if name.startswith("head/")]
    theirs_by_name = dict(theirs.named_parameters())
    head = []
    for name in names:
        (found,) = [
            p
            for path, p in theirs_by_name.items()
            if path.replace(".modules_to_save.default", "").removeprefix("base_model.") == name
            and ".original_module" not in path
        ]
        found.data.copy_(parameters[f"head/{name}"])
        head.append(found.requires_grad_())
    batch = bare.tokenizer.pad({"input_ids": [row.tolist() for row in IDS]}, return_tensors="pt")

    def both():
        with warnings.catch_warnings(action="ignore"):
            return adapted.logits(hidden, COUNTS), theirs(**batch).logits

    oracle.assert_logits(*both())
    ours_step, theirs_step = (
        torch.optim.AdamW(some, lr=LEARNING_RATE) for some in (list(parameters.values()), [table, *head])
    )
    losses = []
    for _ in range(STEPS):
        losses.append([oracle.loss_of(logits) for logits in both()])
        for step, loss in zip((ours_step, theirs_step), losses[-1], strict=True):
            step.zero_grad()
            loss.backward()
            step.step()
    assert losses[-1][0] < 0.9 * losses[0][0]
    oracle.assert_logits(*both(), tolerance=1e-4)
    found = torch.cat([p for name, p in parameters.items() if name.startswith("prefix/")], dim=1)
    assert (found - torch.cat(prefix, dim=1)).abs().max() > 0.01
    torch.testing.assert_close(found, table, rtol=0, atol=1e-3)
