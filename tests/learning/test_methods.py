"""Promises of every adapter method: what is loaded, computed, trained and read is what the adapter's tensors say."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from splitrank.learning.adapters.adapter import kind_of
from splitrank.learning.adapters.method import initial, load, read, trained_head
from splitrank.learning.adapters.methods import METHODS
from splitrank.traits import METHOD_TRAITS
from tests.conftest import TINY_FAMILIES
from tests.learning import oracle
from tests.learning.oracle import LENGTHS, adapt, begin, moved, random_ids, same_bits

RANKS = [1, 3, 8]
IDS = random_ids(64, LENGTHS)
COUNTS = torch.tensor(LENGTHS)

WITH_PEFT = [name for name in METHODS if METHOD_TRAITS[name].export == "peft"]

WITH_ALPHA = [name for name in WITH_PEFT if METHOD_TRAITS[name].has_rank]

every_method = pytest.mark.parametrize("name", METHODS)
every_method_of_peft = pytest.mark.parametrize("name", WITH_PEFT)
every_rank = pytest.mark.parametrize("rank", RANKS)
every_family = pytest.mark.parametrize("family", TINY_FAMILIES)


def rank_of(name: str, rank: int) -> int:
    return rank if METHOD_TRAITS[name].has_rank else 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@every_rank
@every_method
def test_load_and_read_are_the_identity(name, rank, precision, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model(), precision=precision), name)
    for adapter in [moved(begin(adapted, other), key=other) for other in (rank, 5, rank)]:  # whatever was there before
        load(adapted, adapter)
        again = read(adapted, adapter)
        assert same_bits(again.tensors, adapter.tensors)
        assert (again.rank, again.scaling) == (adapter.rank, adapter.scaling)
        assert {tensor.dtype for tensor in again.tensors.values()} == {torch.float32}


@every_rank
@every_method
def test_vectors_round_trip(name, rank, tiny_model):
    adapter = moved(begin(adapt(oracle.fresh(tiny_model()), name), rank))
    vector = adapter.to_vector()
    assert vector.shape == (sum(tensor.numel() for tensor in adapter.tensors.values()),)
    assert vector.dtype == torch.float32
    assert torch.equal(vector, torch.cat([adapter.tensors[key].flatten() for key in sorted(adapter.tensors)]))
    again = adapter.from_vector(vector)
    assert same_bits(again.tensors, adapter.tensors)
    assert (again.rank, again.scaling) == (adapter.rank, adapter.scaling)
    vector.zero_()
    assert same_bits(again.tensors, adapter.tensors)


@every_rank
@every_method
def test_shapes_at_a_rank_are_those_of_the_model(name, rank, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), name)
    first, other, wanted = initial(adapted, trained_head(adapted, "full")), begin(adapted, 5), begin(adapted, rank)
    parameters = load(adapted, wanted)
    for adapter in (first, other):
        shapes = adapter.shapes(rank_of(name, rank))
        assert shapes == {key: tuple(parameter.shape) for key, parameter in parameters.items()}
        assert list(shapes) == list(parameters)


@every_method
def test_names_say_the_kind_and_stand_in_training_order(name, tiny_model):
    """Clipping sums over gradients in this order: layer by layer as in the model, the head last."""
    adapted = adapt(oracle.fresh(tiny_model()), name)
    adapter = begin(adapted, 3)
    parameters = load(adapted, adapter)
    assert list(parameters) == list(adapter.tensors)
    assert adapter.kinds == METHOD_TRAITS[name].kinds | {"head"}
    own = {id(parameter): key for key, parameter in parameters.items()}
    in_model = [own[id(parameter)] for parameter in adapted.encoder.model.parameters() if id(parameter) in own]
    layers = [key.partition("/")[2].split(".")[3] for key in parameters if kind_of(key) != "head"]
    assert layers == sorted(layers)
    if name == "lora":
        assert list(parameters) == in_model
    paths = list(dict.fromkeys(key.partition("/")[2].rpartition(".")[0] for key in in_model))
    assert list(dict.fromkeys(key.partition("/")[2].rpartition(".")[0] for key in parameters)) == paths


@every_family
@every_method
def test_a_fresh_method_changes_nothing(name, family, tiny_model):
    """Neither at rank 0, which is round 0's state, nor at another; what was loaded before leaves no trace.

    A prefix without gates takes its share of the softmax as soon as it has tokens.
    """
    adapted = adapt(oracle.fresh(tiny_model(family)), name)
    first, fresh = initial(adapted, trained_head(adapted, "full")), begin(adapted, 3)
    assert first.rank == 0
    bare = oracle.fresh(tiny_model(family))
    hidden = bare.trunk(IDS)
    wanted = oracle.whole_model_logits(bare, first, {}, IDS)
    for adapter in (first, *[fresh] * (METHOD_TRAITS[name].contract != "once")):
        load(adapted, moved(fresh))
        load(adapted, adapter)
        oracle.assert_logits(adapted.logits(hidden, COUNTS), wanted)


@every_family
@every_method
def test_logits_and_gradients_equal_the_whole_models(name, family, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model(family)), name, scaling=1.3)
    adapter = moved(begin(adapted, 3))
    wanted, wanted_gradients = oracle.expected(oracle.fresh(tiny_model(family)), adapter, IDS)
    parameters = load(adapted, adapter)
    logits = adapted.logits(adapted.encoder.trunk(IDS), COUNTS)
    assert logits.dtype == torch.float32
    oracle.assert_logits(logits, wanted)
    oracle.assert_gradients(oracle.gradients(logits, parameters), wanted_gradients)


@pytest.mark.parametrize("rank", [1, 8])
@every_method
def test_logits_equal_the_whole_models_at_other_ranks(name, rank, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), name)
    adapter = moved(begin(adapted, rank))
    wanted, wanted_gradients = oracle.expected(oracle.fresh(tiny_model()), adapter, IDS)
    parameters = load(adapted, adapter)
    logits = adapted.logits(adapted.encoder.trunk(IDS), COUNTS)
    oracle.assert_logits(logits, wanted)
    oracle.assert_gradients(oracle.gradients(logits, parameters), wanted_gradients)


@every_method
def test_the_adapters_own_scaling_counts(name, tiny_model):
    """Not that of the settings, once the method is attached."""
    adapted = adapt(oracle.fresh(tiny_model()), name, scaling=2.0)
    adapter = moved(begin(adapted, 3))
    other = type(adapter)(adapter.rank, 0.7, adapter.tensors)
    wanted, _ = oracle.expected(oracle.fresh(tiny_model()), other, IDS)
    load(adapted, adapter)
    load(adapted, other)
    hidden = adapted.encoder.trunk(IDS)
    oracle.assert_logits(adapted.logits(hidden, COUNTS), wanted)
    assert read(adapted, other).scaling == 0.7
    oracle.assert_logits(adapted.logits(hidden, COUNTS), wanted)


@every_family
@every_method
def test_half_precision_stays_close(name, family, tiny_model):
    exact, half = (
        adapt(oracle.fresh(tiny_model(family), precision=precision), name)
        for precision in (torch.float32, torch.bfloat16)
    )
    adapter = moved(begin(exact, 3))
    logits = []
    for adapted in (exact, half):
        parameters = load(adapted, adapter)
        logits.append(adapted.logits(adapted.encoder.trunk(IDS), COUNTS))
        assert logits[-1].dtype == torch.float32
        assert all(gradient.isfinite().all() for gradient in oracle.gradients(logits[-1], parameters).values())
        assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert (logits[0] - logits[1]).abs().max() < 0.1 * logits[0].abs().max().clamp(min=1.0)
    assert not torch.equal(logits[0], logits[1])


@every_method
def test_exactly_what_is_loaded_is_trainable(name, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), name)
    for adapter in [begin(adapted, 3, policy) for policy in ("full", "out_proj", "frozen")]:
        parameters = load(adapted, adapter)
        trainable = {id(parameter) for parameter in adapted.encoder.model.parameters() if parameter.requires_grad}
        assert trainable == {id(parameter) for parameter in parameters.values()}
        found = oracle.gradients(adapted.logits(adapted.encoder.trunk(IDS), COUNTS), parameters)
        assert found.keys() == parameters.keys()


@every_method
def test_loading_copies(name, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), name)
    adapter = moved(begin(adapted, 2))
    before = {key: tensor.clone() for key, tensor in adapter.tensors.items()}
    parameters = load(adapted, adapter)
    taken = read(adapted, adapter)
    for parameter in parameters.values():
        parameter.data.add_(1.0)
    assert same_bits(adapter.tensors, before)
    assert same_bits(taken.tensors, before)


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert"])
@pytest.mark.parametrize(("policy", "count"), [("full", 4), ("out_proj", 2), ("frozen", 0), ("local", 4)])
@every_method
def test_head_policies(name, policy, count, family, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model(family)), name)
    head = trained_head(adapted, policy)
    assert len(head) == len(set(head)) == count
    assert all(key.startswith("head/") for key in head)
    if policy == "out_proj":
        last = {"roberta": "classifier.out_proj", "bert": "classifier", "distilbert": "classifier"}[family]
        assert head == [f"head/{last}.weight", f"head/{last}.bias"]
    shared = initial(adapted, [] if policy == "local" else head)
    assert list(shared.only("head")) == ([] if policy == "local" else head)
    personal = initial(adapted, head).only("head") if policy == "local" else {}
    parameters = load(adapted, adapted.method.resize(shared, 5, distribution="svd", seed=0, round=1), personal)
    assert [key for key in parameters if kind_of(key) == "head"] == head
    trainable = {id(parameter) for parameter in adapted.encoder.model.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in parameters.values()}
    assert len(trainable) == len(parameters)


@every_method
def test_personal_tensors_are_used_and_not_read_as_shared(name, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), name)
    start = begin(adapted, 3)
    whole = moved(start)
    shared = type(whole)(whole.rank, whole.scaling, {k: t for k, t in whole.tensors.items() if kind_of(k) != "head"})
    hidden = adapted.encoder.trunk(IDS)
    load(adapted, whole)
    together = adapted.logits(hidden, COUNTS)
    load(adapted, start)
    load(adapted, shared, whole.only("head"))
    assert torch.equal(adapted.logits(hidden, COUNTS), together)
    assert same_bits(read(adapted, shared).tensors, shared.tensors)


@every_method
def test_attaching_leaves_the_global_random_state_alone(name, tiny_model):
    before = torch.get_rng_state()
    adapt(oracle.load(tiny_model()), name)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", WITH_ALPHA)
def test_peft_says_the_loaded_rank_and_alpha(name, tiny_model):
    """The alpha from which PEFT makes the adapter's scaling, of the rank or of its root."""
    adapted = adapt(oracle.fresh(tiny_model()), name)
    for adapter in [begin(adapted, rank) for rank in (3, 7, 2)]:
        load(adapted, adapter)
        config = adapted.peft_model.peft_config["default"]
        assert config.r == adapter.rank
        divisor = adapter.rank**0.5 if config.use_rslora else adapter.rank
        assert config.lora_alpha / divisor == pytest.approx(adapter.scaling, rel=1e-15)


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
@every_method_of_peft
def test_pefts_own_forward_agrees(name, family, tiny_model):
    adapted = adapt(oracle.fresh(tiny_model(family)), name)
    parameters = load(adapted, moved(begin(adapted, 3)))
    batch = adapted.encoder.tokenizer.pad({"input_ids": [row.tolist() for row in IDS]}, return_tensors="pt")
    wanted = adapted.peft_model(**batch).logits
    logits = adapted.logits(adapted.encoder.trunk(IDS), COUNTS)
    oracle.assert_logits(logits, wanted)
    oracle.assert_gradients(oracle.gradients(logits, parameters), oracle.gradients(wanted, parameters))


@pytest.mark.parametrize(
    ("loaded", "into"),
    [
        (loaded, into)
        for loaded in METHODS
        for into in METHODS
        if METHOD_TRAITS[loaded].kinds != METHOD_TRAITS[into].kinds
    ],
)
def test_an_adapter_of_another_method_is_refused(loaded, into, tiny_model):
    """Part of it would be ignored, or part of the model kept from before."""
    adapter = moved(begin(adapt(oracle.fresh(tiny_model()), loaded), 3))
    with pytest.raises((KeyError, TypeError, ValueError)):
        load(adapt(oracle.fresh(tiny_model()), into), adapter)


def test_doras_magnitudes_start_as_row_norms(tiny_model):
    bare = oracle.fresh(tiny_model())
    pretrained = dict(bare.model.named_parameters())
    start = initial(adapt(oracle.fresh(tiny_model()), "dora"), [])
    magnitudes = start.of_kind("magnitude")
    assert magnitudes.keys() == start.of_kind("lora_A").keys()
    for path, magnitude in magnitudes.items():
        torch.testing.assert_close(magnitude, pretrained[f"{path}.weight"].norm(dim=1), rtol=1e-6, atol=0)


def test_dora_does_not_see_the_length_of_a_row(tiny_model):
    """Scaling row j of W + s·B·A leaves W' as it was: shown with rows scaled by a full-rank B·A."""
    adapted = adapt(oracle.fresh(tiny_model()), "dora", linears=("query",), scaling=1.0)
    pretrained = {path: p.detach().double() for path, p in oracle.fresh(tiny_model()).model.named_parameters()}
    start = begin(adapted, 32)
    by_rows = torch.linspace(0.5, 3.0, 32, dtype=torch.float64)
    scaled = {}
    for path in start.of_kind("lora_A"):
        weight = pretrained[f"{path}.weight"]
        scaled[f"lora_A/{path}"] = weight.float()  # B·A = (diag(c) − 1)·W
        scaled[f"lora_B/{path}"] = torch.diag(by_rows - 1.0).float()
    hidden = adapted.encoder.trunk(IDS)
    logits = []
    for adapter in (start, start.with_tensors(scaled)):
        load(adapted, adapter)
        logits.append(adapted.logits(hidden, COUNTS))
    oracle.assert_logits(logits[1], logits[0])


def test_dora_with_the_norm_as_magnitude_is_lora(tiny_model):
    dora, lora = adapt(oracle.fresh(tiny_model()), "dora"), adapt(oracle.fresh(tiny_model()), "lora")
    adapter = moved(begin(lora, 3))
    pretrained = {path: p.detach().double() for path, p in oracle.fresh(tiny_model()).model.named_parameters()}
    norms = {
        f"magnitude/{path}": (pretrained[f"{path}.weight"] + oracle.product(adapter, path)).norm(dim=1).float()
        for path in adapter.of_kind("lora_A")
    }
    load(lora, adapter)
    load(dora, adapter.with_tensors(norms))
    hidden = lora.encoder.trunk(IDS)
    oracle.assert_logits(dora.logits(hidden, COUNTS), lora.logits(hidden, COUNTS))


def test_magnitudes_matter(tiny_model):
    adapted = adapt(oracle.fresh(tiny_model()), "dora")
    adapter = moved(begin(adapted, 3))
    hidden = adapted.encoder.trunk(IDS)
    logits = []
    for factor in (1.0, 1.2):
        load(adapted, adapter.with_tensors({k: factor * m for k, m in adapter.only("magnitude").items()}))
        logits.append(adapted.logits(hidden, COUNTS))
    assert functional.l1_loss(*logits) > 1e-3


def test_the_paper_counts_parameters_as_peft_does():
    """129,960,968 in all, 124,648,708 + 593,668 + 36,864·128: roberta-base, 4 labels, r = 128, query and value."""
    import warnings

    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import RobertaConfig, RobertaForSequenceClassification

    shape = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=4)
    with torch.device("meta"):
        model = RobertaForSequenceClassification(shape)
        with warnings.catch_warnings(action="ignore"):
            wrapped = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=128))
    trainable, total = wrapped.get_nb_trainable_parameters()
    assert total == 129_960_968
    assert trainable == 593_668 + 36_864 * 128
