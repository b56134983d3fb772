"""Promises of what comes through Flower: nothing that is not an honest update touches the model, and each refusal says
what is wrong."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch

from splitrank import load_config, load_data, make_clients
from splitrank.federation import wire
from splitrank.federation.clients import NoUpdate
from splitrank.federation.in_process import InProcessClients
from splitrank.federation.state import State
from splitrank.learning.adapters.adapter import Adapter, to_vector
from splitrank.learning.aggregation.rules import RULES
from splitrank.learning.client import Update

pytestmark = pytest.mark.extras

ROUND, TURN, CLIENT = 3, 2, 1


@pytest.fixture(scope="module")
def clients(tiny_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages")
    (folder / "tiny.toml").write_text(tiny_settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "xdg-cache"))
        config = load_config(str(folder / "tiny.toml"))
        made = make_clients(config, load_data(config))
    yield made
    made.close()


@pytest.fixture(scope="module")
def start(clients) -> State:
    """What a client is sent in round 3, at rank 4."""
    adapter = clients.initial_state().adapter
    return State(ROUND - 1, TURN, at_rank(clients, adapter, 4))


def at_rank(clients: InProcessClients, adapter: Adapter, rank: int) -> Adapter:
    return clients.model.method.resize(adapter, rank, distribution="svd", seed=0, round=ROUND)


@pytest.fixture(scope="module")
def honest(clients, start) -> tuple[dict, np.ndarray]:
    """A client's honest answer."""
    update = clients.train_client(CLIENT, start.adapter, start)
    header = {"kind": "update", "client": CLIENT, "round": ROUND, "samples": update.num_samples}
    header |= wire.header(update.adapter.tensors, TURN)
    return {**header, "train_loss": update.train_loss}, update.adapter.to_vector().numpy()


def checked(clients: InProcessClients, start: State, header: dict, floats: np.ndarray | None) -> Update | NoUpdate:
    """What becomes of an answer after it has gone through Flower's records."""
    from splitrank.federation.flower.checks import check_update
    from splitrank.federation.flower.messenger import Reply
    from splitrank.federation.flower.payload import PayloadError, pack, unpack

    try:
        reply = Reply(*unpack(pack(header, floats)), 1.0) if floats is not None else Reply(header, None, 1.0)
    except PayloadError as error:
        reply = Reply({"kind": "failure", "reason": str(error)}, None, 1.0)
    num_samples, training = clients.num_samples[CLIENT], clients.model.local_training
    return check_update(
        reply,
        start.adapter,
        clients.rule,
        client=CLIENT,
        round=ROUND,
        turn=TURN,
        num_samples=num_samples,
        training=training,
    )


def test_an_honest_update_passes(clients, start, honest):
    header, floats = honest
    update = checked(clients, start, header, floats)
    assert isinstance(update, Update)
    assert (update.num_samples, update.train_loss) == (header["samples"], header["train_loss"])
    assert torch.equal(update.adapter.to_vector(), torch.from_numpy(floats))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "echo"}, "an update was asked for, got 'echo'"),
        ({"kind": None}, "an update was asked for, got None"),
        ({"kind": ["x"] * 10_000}, "an update was asked for, got ['x', 'x'"),
        ({"client": 0}, "client must be 1, got 0"),
        ({"round": ROUND - 1}, "round must be 3, got 2"),
        ({"samples": 0}, "samples must be 1 to the 64 registered, got 0"),
        ({"samples": 65}, "samples must be 1 to the 64 registered, got 65"),
        ({"samples": True}, "samples must be 1 to the 64 registered, got True"),
        ({"samples": 8.0}, "samples must be 1 to the 64 registered, got 8.0"),
        ({"samples": None}, "samples must be 1 to the 64 registered, got None"),
        ({"train_loss": float("nan")}, "train_loss must be a finite number, got nan"),
        ({"train_loss": float("inf")}, "train_loss must be a finite number, got inf"),
        ({"train_loss": "0.3"}, "train_loss must be a finite number, got '0.3'"),
        ({"train_loss": None}, "train_loss must be a finite number, got None"),
        ({"train_loss": 10**400}, "header must be JSON, its whole numbers of 64 bits at most"),
        ({"train_loss": "x" * 2_000_000}, "header must be a text of at most a million characters"),
        ({"protocol": 1}, "protocol must be 3, got 1; install the same splitrank on every machine"),
        ({"codec": "int8"}, "codec must be 'float32', got 'int8'"),
        ({"turn": TURN + 1}, "turn must be 2, got 3"),
        ({"tensors": []}, "tensors must have ['head/classifier.dense.bias', [32]], got None"),
        ({"tensors": [["head/classifier.dense.bias", [10**9]]]}, "got ['head/classifier.dense.bias', [1000000000]]"),
        ({"tensors": None}, "got None"),
        ({"kind": "failure", "reason": "out of memory"}, "out of memory"),
        ({"kind": "failure", "reason": "x" * 10_000}, "xxx"),
        ({"kind": "failure"}, "no reason given"),
    ],
)
def test_a_wrong_header_is_rejected(clients, start, honest, changes, reason):
    header, floats = honest
    missed = checked(clients, start, {**header, **changes}, floats)
    assert isinstance(missed, NoUpdate)
    assert reason in missed.reason
    assert len(missed.reason) <= 1000


def another_rank(start: State) -> np.ndarray:
    return np.zeros(sum(np.prod(shape) for shape in start.adapter.shapes(5).values()), np.float32)


def one_is(value: float):
    def spoil(start: State, floats: np.ndarray) -> np.ndarray:
        spoilt = floats.copy()
        spoilt[7] = value
        return spoilt

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda start, floats: None, "an update was asked for, got 'update'"),
        (lambda start, floats: floats[:-1], "an adapter of this rank must have"),
        (lambda start, floats: np.zeros(0, np.float32), "an adapter of this rank must have"),
        (lambda start, floats: another_rank(start), "an adapter of this rank must have"),
        (one_is(np.nan), "an update must be finite, got NaN or infinity"),
        (one_is(-np.inf), "an update must be finite, got NaN or infinity"),
        (one_is(1e4), "an update may move by"),
        (one_is(3e38), "an update may move by"),
        (lambda start, floats: -100 * floats, "an update may move by"),
    ],
)
def test_a_wrong_array_is_rejected(clients, start, honest, spoil, reason):
    header, floats = honest
    missed = checked(clients, start, header, spoil(start, floats))
    assert isinstance(missed, NoUpdate)
    assert reason in missed.reason


def test_no_honest_client_reaches_the_bound(clients, start):
    """Not even one whose loss pulls every number the same way at every step, without clipping or decay to slow it."""
    from splitrank.federation.flower.checks import norm_bound

    training = clients.model.local_training
    bound = norm_bound(start.adapter.to_vector(), clients.num_samples[CLIENT], training)
    vector = torch.nn.Parameter(start.adapter.to_vector())
    before = vector.detach().clone()
    optimizer = torch.optim.AdamW([vector], lr=training.learning_rate, weight_decay=training.weight_decay)
    for _ in range(-(-clients.num_samples[CLIENT] // training.batch_size) * training.local_epochs):
        vector.grad = -torch.ones_like(vector)
        optimizer.step()
    moved = float((vector.detach() - before).norm())
    assert 0.1 * bound < moved < bound


@pytest.mark.parametrize("rule", ["fedavg", "ffa"])
def test_of_a_thousand_honest_updates_none_is_rejected_and_one_of_ten_times_the_bound_is(rule, clients, start):
    from splitrank.federation.flower.checks import check_update, norm_bound
    from splitrank.federation.flower.messenger import Reply

    training, samples, rule = clients.model.local_training, clients.num_samples[CLIENT], RULES[rule]
    sent = wire.uplink(start.adapter, rule, CLIENT, TURN)
    before = to_vector(sent)
    honest = {"kind": "update", "client": CLIENT, "round": ROUND, "samples": samples, "train_loss": 1.0}
    honest |= wire.header(sent, TURN)

    def check(vector: torch.Tensor) -> Update | NoUpdate:
        return check_update(
            Reply(honest, vector.numpy(), 1.0), start.adapter, rule,
            client=CLIENT, round=ROUND, turn=TURN, num_samples=samples, training=training,
        )  # fmt: skip

    draws = torch.Generator().manual_seed(0)
    many = torch.nn.Parameter(
        before.repeat(1000, 1)
    )  # AdamW goes number by number, so a thousand clients are one tensor
    optimizer = torch.optim.AdamW([many], lr=training.learning_rate, weight_decay=training.weight_decay)
    pull = torch.randn(many.shape, generator=draws)
    for _ in range(-(-samples // training.batch_size) * training.local_epochs):
        many.grad = pull + torch.randn(many.shape, generator=draws)
        optimizer.step()
    assert all(isinstance(check(vector), Update) for vector in many.detach())
    bound = norm_bound(before, samples, training)
    direction = pull[0] / pull[0].norm()
    assert isinstance(check(before + 0.99 * bound * direction), Update)
    assert isinstance(check(before + 10 * bound * direction), NoUpdate)


@pytest.mark.parametrize("rank", [-1, 33, 10**9, 10**18, 1.5, True, "8", None])
def test_a_server_cannot_ask_for_a_rank_beyond_the_models(rank, clients, tiny_settings, tmp_path):
    """The worker refuses before it makes anything of that size."""
    from splitrank.config import plain_values
    from splitrank.federation.flower.worker import Worker

    worker = Worker(None)
    request = {
        "kind": "train", "settings": plain_values(clients.config), "labels": clients.data.label_names, "client": 0,
        "trunk_sha256": clients.model.encoder.trunk_digest, "run": "f" * 32, "round": 1, "rank": rank, "measure": False,
        "frequency_hz": None, "planned_s": None, "stop_after_s": 60.0, "personal_round": 0, **wire.header({}, 0),
    }  # fmt: skip
    header, floats = worker.answer(request, np.zeros(3, np.float32))
    worker.close()
    assert len(floats) == 0
    assert header["reason"].startswith("rank must be 0 to 32, got"), header


def test_payload_comes_back():
    from splitrank.federation.flower.payload import pack, unpack

    header = {"kind": "train", "round": 3, "nested": {"a": [1, None, True, "ü"]}, "least": -(2**63)}
    floats = np.array([1.5, -0.0, np.nan], dtype=np.float32)
    came, array = unpack(pack(header, floats))
    assert came == header
    assert array.tobytes() == floats.tobytes()
    assert unpack(pack(header))[1].shape == (0,)


def refusal(content) -> str:
    from splitrank.federation.flower.payload import PayloadError, unpack

    with pytest.raises(PayloadError) as error:
        unpack(content)
    return str(error.value)


def test_other_records_are_refused():
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    from splitrank.federation.flower.payload import pack

    whole = pack({"kind": "train"})
    header, floats = whole["header"], whole["floats"]
    for content in ({}, {"header": header}, {"header": header, "floats": floats, "more": MetricRecord({"loss": 1.0})}):
        assert "must hold the records header and floats" in refusal(RecordDict(content))
    for wrong in (floats, MetricRecord({"json": 1}), ConfigRecord({}), ConfigRecord({"json": b"{}"})):
        assert "header must be a text" in refusal(RecordDict({"header": wrong, "floats": floats}))
    for wrong in (header, ArrayRecord([np.zeros(3, np.float32)]), ArrayRecord({})):
        assert "one array called floats" in refusal(RecordDict({"header": header, "floats": wrong}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be JSON"),
        ("{'kind': 1}", "must be JSON"),
        ('{"kind": ' + "[" * 100_000, "must be JSON"),
        ('{"samples": ' + "9" * 30 + "}", "of 64 bits at most"),
        ('{"samples": ' + "9" * 10_000 + "}", "of 64 bits at most"),
        ("[1, 2]", "must be a JSON object, got list"),
        ("null", "must be a JSON object, got NoneType"),
        (json.dumps({"kind": "x" * 1_000_000}), "at most a million characters"),
    ],
)
def test_other_headers_are_refused(text, reason):
    from flwr.app import ConfigRecord, RecordDict

    from splitrank.federation.flower.payload import pack

    floats = pack({})["floats"]
    assert reason in refusal(RecordDict({"header": ConfigRecord({"json": text}), "floats": floats}))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, array)
    return stream.getvalue()


def claiming(shape: str) -> bytes:
    """Bytes whose own header claims another shape than they have, in the same number of characters."""
    whole = npy(np.zeros(3, np.float32))
    return whole.replace(b"(3,), }" + b" " * (len(shape) - 1), f"({shape},), }}".encode())


THREE = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("dtype", "shape", "stype", "data", "reason"),
    [
        ("float64", (3,), "numpy.ndarray", npy(np.zeros(3)), "must be flat and of float32, got float64"),
        ("float32", (3, 1), "numpy.ndarray", npy(THREE.reshape(3, 1)), "must be flat and of float32"),
        ("float32", (), "numpy.ndarray", npy(np.float32(1)), "must be flat and of float32"),
        ("float32", (3,), "numpy.ndarray", npy(np.zeros(3)), "not what its description says"),
        ("float32", (3,), "numpy.ndarray", npy(THREE.reshape(3, 1)), "not what its description says"),
        ("float32", (4,), "numpy.ndarray", npy(THREE), "not what its description says"),
        ("float32", (3,), "numpy.ndarray", npz(THREE), "not what its description says"),
        ("float32", (3,), "numpy.ndarray", npz(THREE)[:40], "cannot be read"),
        ("float32", (3,), "numpy.ndarray", npy(np.array([{}, 1, 2], dtype=object)), "cannot be read"),
        ("float32", (3,), "numpy.ndarray", npy(THREE)[:-1], "cannot be read"),
        ("float32", (3,), "numpy.ndarray", claiming("9" * 14), "cannot be read"),
        ("float32", (3,), "numpy.ndarray", claiming("9" * 30), "cannot be read"),
        ("float32", (3,), "numpy.ndarray", b"", "cannot be read"),
        ("float32", (3,), "pickle", b"cos\nsystem\n(S'true'\ntR.", "cannot be read"),
    ],
)
def test_other_arrays_are_refused(dtype, shape, stype, data, reason):
    from flwr.app import Array, ArrayRecord, RecordDict

    from splitrank.federation.flower.payload import pack

    array = Array(dtype=dtype, shape=shape, stype=stype, data=data)
    header = pack({})["header"]
    assert reason in refusal(RecordDict({"header": header, "floats": ArrayRecord({"floats": array})}))
