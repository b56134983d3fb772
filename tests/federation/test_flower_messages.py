"""Promises of what comes through Flower: nothing that is not an honest update touches the model, and each refusal says
what is wrong."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch

from splitrank import load_config, load_data, make_clients
from splitrank.federation.in_process import InProcessClients
from splitrank.federation.rounds import Missed, State
from splitrank.learning.adapters import lora
from splitrank.learning.client import Update

pytestmark = pytest.mark.extras

ROUND, CLIENT = 3, 1


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
    state = clients.initial_state()
    return State(ROUND - 1, lora.resize(state.adapter, 4, seed=0, round=ROUND), {})


@pytest.fixture(scope="module")
def honest(clients, start) -> tuple[dict, np.ndarray]:
    """A client's honest answer."""
    update = clients.train_client(CLIENT, start, ROUND)
    header = {"kind": "update", "client": CLIENT, "round": ROUND, "samples": update.num_samples}
    return {**header, "train_loss": update.train_loss}, lora.to_flat(update.adapter).numpy()


def checked(clients: InProcessClients, start: State, header: dict, floats: np.ndarray | None) -> Update | Missed:
    """What becomes of an answer after it has gone through Flower's records."""
    from splitrank.federation.flower.checks import checked_update
    from splitrank.federation.flower.payload import PayloadError, pack, unpack
    from splitrank.federation.flower.post import Reply

    try:
        reply = Reply(*unpack(pack(header, floats)), 1.0) if floats is not None else Reply(header, None, 1.0)
    except PayloadError as error:
        reply = Reply({"kind": "failure", "reason": str(error)}, None, 1.0)
    num_samples, training = clients.num_samples[CLIENT], clients.model.local_training
    return checked_update(reply, start.adapter, client=CLIENT, round=ROUND, num_samples=num_samples, training=training)


def test_an_honest_update_passes(clients, start, honest):
    header, floats = honest
    update = checked(clients, start, header, floats)
    assert isinstance(update, Update)
    assert (update.num_samples, update.train_loss) == (header["samples"], header["train_loss"])
    assert torch.equal(lora.to_flat(update.adapter), torch.from_numpy(floats))


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
        ({"kind": "failure", "reason": "out of memory"}, "out of memory"),
        ({"kind": "failure", "reason": "x" * 10_000}, "xxx"),
        ({"kind": "failure"}, "no reason given"),
    ],
)
def test_a_wrong_header_is_rejected(clients, start, honest, changes, reason):
    header, floats = honest
    missed = checked(clients, start, {**header, **changes}, floats)
    assert isinstance(missed, Missed)
    assert reason in missed.reason
    assert len(missed.reason) <= 1000


def another_rank(start: State) -> np.ndarray:
    return lora.to_flat(lora.resize(start.adapter, 5, seed=0, round=ROUND)).numpy()


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
        (lambda start, floats: floats[:-1], "an update at rank 4 must have"),
        (lambda start, floats: np.zeros(0, np.float32), "an update at rank 4 must have"),
        (lambda start, floats: another_rank(start), "an update at rank 4 must have"),
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
    assert isinstance(missed, Missed)
    assert reason in missed.reason


def test_no_honest_client_reaches_the_bound(clients, start):
    """Not even one whose loss pulls every number the same way at every step, without clipping or decay to slow it."""
    from splitrank.federation.flower.checks import norm_bound

    training = clients.model.local_training
    bound = norm_bound(start.adapter, clients.num_samples[CLIENT], training)
    vector = torch.nn.Parameter(lora.to_flat(start.adapter))
    before = vector.detach().clone()
    optimizer = torch.optim.AdamW([vector], lr=training.learning_rate, weight_decay=training.weight_decay)
    for _ in range(-(-clients.num_samples[CLIENT] // training.batch_size) * training.local_epochs):
        vector.grad = -torch.ones_like(vector)
        optimizer.step()
    moved = float((vector.detach() - before).norm())
    assert 0.1 * bound < moved < bound


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
