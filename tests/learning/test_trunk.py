"""Promises of the trunk cache: computed once, shared, whole or absent, within its limit."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from splitrank.errors import InputError
from splitrank.learning import trunk
from splitrank.learning.encoder import drop_trunk
from splitrank.learning.layer import grid_width, num_rows
from splitrank.learning.trunk import cache_folder, clear_cache, length_batches, list_cache, trunk_outputs
from tests.learning.oracle import adapt, load, random_ids

LIMIT = 10**9


def cached_keys() -> set[str]:
    return {entry.key for entry in list_cache()}


def outputs(encoder, ids, limit_bytes=LIMIT):
    return trunk_outputs(encoder, ids, limit_bytes=limit_bytes, what="texts")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_reading_gives_what_was_computed(precision, tiny_model):
    encoder = load(tiny_model("roberta"), precision=precision)
    ids = random_ids(64, [4, 9, 31, 9, 2])
    cached = outputs(encoder, ids)
    assert cached.built
    assert cached.lengths.tolist() == [4, 9, 31, 9, 2]
    rows = [3, 0, 2]
    hidden, lengths = cached.read(rows)
    cached.close()
    expected = encoder.trunk([ids[row] for row in rows])
    assert hidden.dtype == precision
    assert lengths.tolist() == [9, 4, 31]
    assert hidden.shape == expected.shape == (128, 32)
    torch.testing.assert_close(hidden[:44], expected[:44], rtol=2e-2, atol=2e-2 if precision != torch.float32 else 1e-5)
    assert not hidden[44:].any()


def test_a_second_time_nothing_is_computed(tiny_model, monkeypatch):
    ids = random_ids(64, [4, 9, 31])
    first = outputs(load(tiny_model("roberta")), ids)
    monkeypatch.setattr(trunk, "_build", lambda *_: pytest.fail("computed twice"))
    again = outputs(load(tiny_model("roberta")), ids)
    assert not again.built
    assert torch.equal(first.read([0, 2])[0], again.read([0, 2])[0])
    first.close()
    again.close()


def test_equal_texts_are_stored_once(tiny_model):
    encoder = load(tiny_model("roberta"))
    ids = random_ids(64, [8, 5])
    cached = outputs(encoder, [ids[0], ids[1], ids[0]])
    hidden, _ = cached.read([0, 2])
    cached.close()
    assert torch.equal(hidden[:8], hidden[8:16])
    (entry,) = list_cache()
    assert entry.about["texts"] == 2
    assert (cache_folder() / "trunk" / entry.key / "hidden_states.bin").stat().st_size == 13 * 32 * 4


def test_the_key_knows_everything_that_matters(tiny_model):
    ids = random_ids(64, [6, 7])
    variants = [
        (load(tiny_model("roberta")), ids),
        (load(tiny_model("roberta"), precision=torch.bfloat16), ids),
        (load(tiny_model("roberta"), "last:2"), ids),
        (load(tiny_model("bert")), ids),
        (load(tiny_model("roberta")), [row[:5] for row in ids]),
        (load(tiny_model("roberta")), ids[::-1]),
    ]
    changed = load(tiny_model("roberta"))
    with torch.no_grad():
        changed.model.roberta.encoder.layer[0].output.dense.bias.add_(1e-3)
    for encoder, texts in [*variants, (changed, ids)]:
        outputs(encoder, texts).close()
    assert len(cached_keys()) == 7
    # What lies above the cut does not matter.
    above = load(tiny_model("roberta"), seed=5)
    with torch.no_grad():
        above.model.roberta.encoder.layer[3].output.dense.bias.add_(1e-3)
    outputs(above, ids).close()
    assert len(cached_keys()) == 7


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_output_is_computed_again(damage, tiny_model):
    encoder, ids = load(tiny_model("roberta")), random_ids(64, [6, 7])
    cached = outputs(encoder, ids)
    before = cached.read([0, 1])[0]
    cached.close()
    (entry,) = list_cache()
    data = cache_folder() / "trunk" / entry.key / "hidden_states.bin"
    data.unlink() if damage == "remove" else os.truncate(data, 10)
    again = outputs(encoder, ids)
    assert again.built
    assert torch.equal(again.read([0, 1])[0], before)
    again.close()


def test_the_longest_unused_go_first(tiny_model):
    encoder = load(tiny_model("roberta"))
    sets = [random_ids(64, [length]) for length in (20, 21, 22)]
    keys = []
    for index, ids in enumerate(sets[:2]):
        outputs(encoder, ids).close()
        (new,) = cached_keys() - set(keys)
        keys.append(new)
        used = time.time() - 100 + index
        os.utime(cache_folder() / "trunk" / new / "about.json", (used, used))
    outputs(encoder, sets[0]).close()  # used again: now the other one is older
    outputs(encoder, sets[2], limit_bytes=(20 + 22) * 32 * 4 + 500).close()
    assert keys[0] in cached_keys()
    assert keys[1] not in cached_keys()


def test_what_is_in_use_stays(tiny_model):
    encoder = load(tiny_model("roberta"))
    held = outputs(encoder, random_ids(64, [20]))
    assert clear_cache() == (0, 1)
    with pytest.raises(InputError, match="beside what is in use"):
        outputs(encoder, random_ids(64, [21]), limit_bytes=21 * 32 * 4 + 100)
    outputs(encoder, random_ids(64, [21]), limit_bytes=(20 + 21) * 32 * 4 + 500).close()
    assert held.read([0])[0].shape == (128, 32)
    held.close()
    freed, kept = clear_cache()
    assert freed > 0
    assert kept == 0
    assert list_cache() == []


def test_a_limit_below_the_need_is_an_error(tiny_model):
    encoder = load(tiny_model("roberta"))
    with pytest.raises(InputError, match=r"run\.cache_limit_gb must be at least"):
        outputs(encoder, random_ids(64, [20]), limit_bytes=100)
    assert list(cache_folder().glob("trunk/*")) == []


def test_a_full_disk_leaves_nothing(tiny_model, monkeypatch):
    encoder = load(tiny_model("roberta"))
    ids = random_ids(64, [20, 21])

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", no_space)
        with pytest.raises(InputError, match=r"GB free for the trunk cache.*splitrank cache clear.*XDG_CACHE_HOME"):
            outputs(encoder, ids)
    assert list(cache_folder().glob("trunk/*")) == []
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(InputError, match="GB free"):
            outputs(encoder, ids)
    outputs(encoder, ids).close()


def _build_in_process(folder: str, cache: str, queue) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    cached = outputs(load(folder), random_ids(64, [4, 9, 31, 12] * 20))
    queue.put((cached.built, cached.read(range(80))[0].sum().item()))
    cached.close()


@pytest.mark.slow
def test_two_processes_want_the_same(tiny_model, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (str(tiny_model("roberta")), str(tmp_path / "shared-cache"), queue)
    processes = [context.Process(target=_build_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(built for built, _ in results) == [False, True]
    assert results[0][1] == results[1][1]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from splitrank.learning import encoder as module
from tests.learning.test_trunk import load, outputs, random_ids
pass_trunk = module.Encoder.trunk
def killing(self, ids):
    os.kill(os.getpid(), signal.SIGKILL)
module.Encoder.trunk = killing
outputs(load({folder!r}), random_ids(64, [4, 9]))
"""


def test_a_killed_build_leaves_nothing_that_counts(tiny_model):
    root = Path(__file__).parents[2]
    code = KILLED.format(root=str(root), folder=str(tiny_model("roberta")))
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == -9
    assert list_cache() == []
    cached = outputs(load(tiny_model("roberta")), random_ids(64, [4, 9]))
    assert cached.built
    cached.close()
    assert all(not path.name.startswith(".") for path in cache_folder().glob("trunk/*"))


def test_length_batches_cover_all_within_the_budget():
    lengths = np.array([5, 100, 7, 7, 30, 2, 64])
    batches = list(length_batches(lengths, 64))
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= 64


def test_evaluation_has_few_shapes():
    """oneDNN compiles products for each shape, and keeps them."""
    lengths = np.minimum(128, np.random.default_rng(0).geometric(1 / 45, 20_000) + 2)
    batches = list(length_batches(lengths, 8192))
    assert len(batches) > 100
    grids = {(len(batch), grid_width(int(lengths[batch].max()))) for batch in batches[:-1]}
    assert len(grids) <= 128 / 16
    assert len({num_rows(torch.from_numpy(lengths[batch])) for batch in batches}) <= 16


@pytest.mark.parametrize("needed", [1, 2, 127, 128, 129, 1000, 1024, 1025, 1537, 2048, 2049, 3000, 8191, 8192, 8193])
def test_rows_are_filled_up_by_at_most_an_eighth(needed):
    """A batch of texts of one token has a grid of 16 places each, hence a row of filling."""
    rows = num_rows(torch.ones(needed - 1, dtype=torch.int64)) if needed > 1 else num_rows(torch.tensor([1]))
    assert rows >= needed
    assert rows - needed < max(128, needed / 8)
    assert rows % 128 == 0


def test_dropping_the_trunk_changes_no_score(tiny_model):
    encoder = load(tiny_model("roberta"))
    cached = outputs(encoder, random_ids(64, [4, 9, 31]))
    digest = encoder.trunk_digest
    adapted = adapt(encoder)
    expected = adapted.logits(*cached.read([0, 1, 2]))
    drop_trunk(encoder)
    assert encoder.trunk_digest == digest
    assert torch.equal(adapted.logits(*cached.read([0, 1, 2])), expected)
    cached.close()
    layers = encoder.model.get_submodule(encoder.family.layers)
    assert sum(parameter.numel() for parameter in layers[: encoder.cut_layer].parameters()) == 0
    assert all(parameter.numel() for parameter in layers[encoder.cut_layer].parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has mapped")
def test_no_weight_is_read_from_its_file_any_more(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("roberta"), tmp_path / "model")
    encoder = load(folder)
    assert str(folder) in Path("/proc/self/maps").read_text()
    adapt(encoder)
    assert str(folder) not in Path("/proc/self/maps").read_text()
