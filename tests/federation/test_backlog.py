"""Promise: of merged parts every client is sent what it lacks, which is counted, and trains on no others.

In one process and through Flower's messages the records and the bits are the same, with a client that is away, after a
break, and where merged parts grow, become dense or are rewritten.
"""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from splitrank import load_config, load_data, make_clients, run
from splitrank.config import plain_values
from splitrank.errors import InputError
from splitrank.federation import wire
from splitrank.federation.backlog import held_rows, merged_parts, note_received, still_held
from splitrank.federation.clients import NoUpdate
from splitrank.federation.state import State
from splitrank.learning.adapters.adapter import to_vector
from splitrank.learning.adapters.merged import add_merged, rows_until
from splitrank.learning.client import Update
from splitrank.traits import MERGED_KINDS
from tests.federation.merging_rules import PUT_ASIDE, RESIDUAL, REWRITES, Absent, of_rule
from tests.records import equal_records

SETTINGS = [
    "model.precision=fp32", 'workload.model="flops"', "client.flops_per_cycle=4.0", "planner.max_rank=3",
    "budget.energy_j=1",
]  # fmt: skip
EVERYTHING = 'adapter.target_modules="all-linear"'


def learnt(records: list[dict]) -> list:
    """What a client that plans for itself does not keep private."""
    names = ("client", "rank", "uplink_bits", "downlink_bits", "train_loss", "dropped")
    return [[record["loss"], *([one.get(name) for name in names] for one in record["clients"])] for record in records]


def checkpoint(folder) -> bytes:
    newest = sorted((folder / "checkpoint").glob("round-*"))[-1]
    return (newest / "state.safetensors").read_bytes()


def down(records: list[dict], client: int) -> list[float]:
    return [record["clients"][client]["downlink_bits"] for record in records[1:]]


def absent(rule, away):
    return lambda config: Absent(of_rule(rule)(config), away)


def posts_of_absent(away):
    from tests.flower_in_process import Messenger

    class AwayPost(Messenger):
        def nodes(self):
            upcoming = 1 + max((header["round"] for header, *_ in self.sent if header["kind"] == "train"), default=0)
            return [node for node in super().nodes() if node != 1 or upcoming not in away]

    return AwayPost


def test_who_was_away_is_sent_the_backlog_once(tiny_config, tmp_path):
    """Rank 3 on six linears of 32 × 32: everybody lacks three rows a round, client 1 nine after two rounds away."""
    config = load_config(str(tiny_config), [*SETTINGS, "federation.rounds=5"])
    list(run(config, tmp_path / "run", connect=absent(PUT_ASIDE, {2, 3})))
    records = equal_records(tmp_path / "run")
    assert {record["rank"] for record in records[1:]} == {3}
    once, row = down(records, 0)[0], 6 * (32 + 32) * 32
    assert down(records, 0) == [once, *4 * [once + 3 * row]]
    assert down(records, 1) == [once, 0.0, 0.0, once + 9 * row, once + 3 * row]


def test_what_becomes_dense_or_is_rewritten_is_sent_whole(tiny_config, tmp_path):
    config = load_config(str(tiny_config), [*SETTINGS, "federation.rounds=4"])
    list(run(config, tmp_path / "rewrites", connect=absent(REWRITES, {3})))
    records = equal_records(tmp_path / "rewrites")
    once, row = down(records, 0)[0], 6 * (32 + 32) * 32
    assert down(records, 0) == [once, *3 * [once + 3 * row]]
    assert down(records, 1) == [once, once + 3 * row, 0.0, once + 3 * row]
    # Three clients' differences of rank 3: nine rows, then 18, which are more than a dense part's 32 · 32 numbers.
    list(run(config, tmp_path / "residual", connect=of_rule(RESIDUAL)))
    found, dense = down(equal_records(tmp_path / "residual"), 0), 6 * 32 * 32 * 32
    assert found == [once, once + 9 * row, once + dense, once + dense]


@pytest.mark.parametrize("rule", [PUT_ASIDE, RESIDUAL, REWRITES], ids=lambda rule: rule.name)
def test_a_broken_run_goes_on_to_the_same_bits(rule, tiny_config, tmp_path):
    config = load_config(str(tiny_config), [*SETTINGS, "federation.rounds=4"])
    connect = absent(rule, {2})
    list(run(config, tmp_path / "run", connect=connect))
    list(islice(run(config, tmp_path / "broken", connect=connect), 3))
    list(run(config, tmp_path / "broken", resume=True, connect=connect))
    assert equal_records(tmp_path / "broken") == equal_records(tmp_path / "run")
    assert checkpoint(tmp_path / "broken") == checkpoint(tmp_path / "run")


@pytest.mark.extras
@pytest.mark.parametrize(
    ("rule", "more"),
    [
        (PUT_ASIDE, [EVERYTHING]),
        (RESIDUAL, [EVERYTHING]),
        (REWRITES, []),
        (PUT_ASIDE, ['planner.where="client"']),
        (RESIDUAL, ["planner.max_rank=20", "budget.energy_j=0.12"]),  # ranks of 16, 14, 17: rounds that merge the rest
    ],
    ids=["appends", "turns-dense", "rewrites", "clients-plan", "ranks-fall"],
)
def test_through_flowers_messages(rule, more, tiny_config, tmp_path):
    from tests.flower_in_process import flower

    config = load_config(str(tiny_config), [*SETTINGS, "federation.rounds=4", *more])
    list(run(config, tmp_path / "run", connect=absent(rule, {2})))
    expected = equal_records(tmp_path / "run")
    with flower(posts_of_absent({2}), rule) as (connect, messengers):
        list(run(config, tmp_path / "flower", connect=connect))
        found = equal_records(tmp_path / "flower")
        assert learnt(found) == learnt(expected)
        assert found == expected or config.planner.where == "client"
        assert checkpoint(tmp_path / "flower") == checkpoint(tmp_path / "run")
        # Server and workers are started anew in between; the workers find their merged parts on disk.
        list(islice(run(config, tmp_path / "broken", connect=connect), 3))
        list(run(config, tmp_path / "broken", resume=True, connect=connect))
    assert equal_records(tmp_path / "broken") == found
    assert checkpoint(tmp_path / "broken") == checkpoint(tmp_path / "run")
    assert not any(client.get("missed") for record in expected for client in record["clients"])
    assert expected[2]["clients"][1]["dropped"]

    sent = {
        (header["round"], header["client"]): (32.0 * floats, 32.0 * back)
        for header, floats, _, back in messengers[0].sent
        if header["kind"] == "train"
    }
    for record in expected[1:]:
        for client in record["clients"]:
            key = record["round"], client["client"]
            assert sent.get(key, (0.0, 0.0)) == (client["downlink_bits"], client["uplink_bits"])


@pytest.mark.extras
@pytest.mark.parametrize("damage", ["lost", "altered", "shortened"])
def test_who_lost_its_merged_parts_misses_a_round_and_is_sent_all(damage, tiny_config, tmp_path):
    from safetensors.torch import load_file, save_file

    from splitrank.federation.flower.personal import PersonalStore
    from tests.flower_in_process import flower

    config = load_config(str(tiny_config), [*SETTINGS, "federation.rounds=5"])
    with flower(rule=PUT_ASIDE) as (connect, _):
        rounds = run(config, tmp_path / "run", connect=connect)
        list(islice(rounds, 4))  # up to round 3, for which rows 0 to 5 were sent
        file = PersonalStore.of("0" * 32, 1).folder / "merged.safetensors"
        assert oct(file.stat().st_mode & 0o777) == "0o600"
        tensors = load_file(file)
        name = min(tensors)
        tensors[name] = tensors[name] + 1e-6 if damage == "altered" else tensors[name][:, :3]
        file.unlink() if damage == "lost" else save_file({n: t.contiguous() for n, t in tensors.items()}, file)
        list(rounds)
    records = equal_records(tmp_path / "run")
    told = [record["clients"][1].get("missed") for record in records[1:]]
    lost = "the merged parts of earlier rounds are lost here; they must be sent again, whole"
    assert told == [None, None, None, lost, None]
    once, row = down(records, 0)[0], 6 * (32 + 32) * 32
    assert down(records, 0) == [once, *4 * [once + 3 * row]]
    assert down(records, 1) == [once, *3 * [once + 3 * row], once + 12 * row]


@pytest.mark.extras
def test_clients_with_heads_of_their_own_evaluate_with_merged_parts(tiny_config, tmp_path):
    from tests.flower_in_process import flower

    config = load_config(str(tiny_config), [*SETTINGS, "federation.rounds=3", 'model.head="local"'])
    list(run(config, tmp_path / "run", connect=of_rule(PUT_ASIDE)))
    with flower(rule=PUT_ASIDE) as (connect, _):
        list(run(config, tmp_path / "flower", connect=connect))
    for ours, theirs in zip(*map(equal_records, (tmp_path / "flower", tmp_path / "run")), strict=True):
        assert ours["accuracy"] == theirs["accuracy"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-12)
        assert ours["clients"] == theirs["clients"]


PATH = "roberta.encoder.layer.3.attention.self.query"
PARTS = [[PATH, 3, 0]]


@pytest.fixture(scope="module")
def asked(tiny_settings, tmp_path_factory):
    """A function from changes of a request with merged parts to a worker's answer."""
    from splitrank.federation.flower.worker import Worker

    folder = tmp_path_factory.mktemp("hostile")
    (folder / "tiny.toml").write_text(tiny_settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "xdg-cache"))
        patch.setenv("XDG_DATA_HOME", str(folder / "xdg-data"))
        config = load_config(str(folder / "tiny.toml"), ["adapter.rank=2"])
        clients = of_rule(PUT_ASIDE)(config)
        worker = Worker(None, PUT_ASIDE)
        start = clients.model.method.resize(clients.initial_state().adapter, 2, distribution="svd", seed=0, round=1)
        start = add_merged(start, {PATH: (torch.ones(3, 32), torch.ones(32, 3))})
        common = {
            "kind": "train", "settings": plain_values(clients.config), "labels": clients.data.label_names, "client": 0,
            "trunk_sha256": clients.model.encoder.trunk_digest, "run": "e" * 32, "round": 1, "rank": 2,
            "measure": False, "frequency_hz": None, "planned_s": None, "stop_after_s": 60.0, "personal_round": 0,
            "merged_sha256": wire.merged_digest(start),
        }  # fmt: skip

        def ask(changes, spoil=lambda vector: vector):
            sent = wire.downlink(start, PUT_ASIDE)
            header = {**common, **wire.header(sent, 0), **wire.merged_header(start), **changes}
            return worker.answer(header, spoil(to_vector(sent)).numpy())[0]

        yield ask
        worker.close()
        clients.close()


@pytest.mark.extras
def test_an_honest_request_is_answered_with_what_the_client_holds(asked):
    answer = asked({})
    assert answer["kind"] == "update", answer
    assert len(answer["merged_sha256"]) == 64
    assert not any(name.startswith("merged") for name, _ in answer["tensors"])


@pytest.mark.extras
@pytest.mark.parametrize(
    ("merged", "got"),
    [
        ([["roberta.encoder.layer.0.attention.self.query", 3, 0]], "layer.0"),  # below the cut
        ([["roberta.encoder.layer.3.attention.self.key", 3, 0]], "self.key"),  # no adapter there
        ([["classifier.dense", 3, 0]], "classifier.dense"),
        ([["../../etc/passwd", 3, 0]], "passwd"),
        (PARTS + PARTS, "[["),
        ([[PATH, 17, 0]], "17"),  # 32 · 32 / 64 = 16
        ([[PATH, 10**9, 0]], "1000000000"),
        ([[PATH, 0, 0]], "0, 0"),
        ([[PATH, -3, 0]], "-3"),
        ([[PATH, True, 0]], "True"),
        ([[PATH, 3.0, 0]], "3.0"),
        ([[PATH, "3", 0]], "'3'"),
        ([[PATH, 3, 4]], "3, 4"),
        ([[PATH, 3, -1]], "-1"),
        ([[PATH, 3, True]], "True"),
        ([[PATH, 3, None]], "None"),
        ([[PATH, None, 5]], "None, 5"),  # a dense part is sent whole or not at all
        ([[PATH, 3]], "3]"),
        ([[PATH, 3, 0, 0]], "0, 0]"),
        ([[[PATH], 3, 0]], "[["),
        (["merged"], "'merged'"),
        ({"a": 1}, "{'a': 1}"),
        ("merged", "'merged'"),
        (7, "7"),
    ],
)
def test_other_merged_parts_than_the_models_are_refused(merged, got, asked):
    answer = asked({"merged": merged})
    assert answer["kind"] == "failure"
    assert answer["reason"].startswith("merged must name linears with adapters, each once, with a rank of at most")
    assert got[:20] in answer["reason"] or len(answer["reason"]) > 150
    assert "merged_lost" not in answer
    answer = asked(
        {"merged": merged, "kind": "max-rank", "link": {"uplink_bps": 1, "downlink_bps": 1, "overhead_s": 0}}
    )
    assert answer["reason"].startswith("merged must name linears with adapters")


@pytest.mark.extras
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"merged": []}, "tensors must have"),  # numbers of parts that were not told of
        ({"merged": [[PATH, 2, 0]]}, f"tensors must have ['merged_A/{PATH}', [2, 32]]"[:40]),
        ({"merged": [[PATH, None, 0]]}, "tensors must have ['merged_W/"),
        ({"merged": [[PATH, 3, 1]]}, "tensors must have"),
        ({"merged_sha256": "0" * 64}, "the merged parts of earlier rounds are lost here"),
        ({"merged_sha256": None}, "the merged parts of earlier rounds are lost here"),
        ({"run": "../elsewhere"}, "run must be 32 hexadecimal digits"),
    ],
)
def test_numbers_that_are_not_those_told_of_are_refused(changes, reason, asked):
    assert asked(changes)["reason"].startswith(reason)


@pytest.mark.extras
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_merged_parts_must_be_finite(value, asked):
    def spoil(vector):
        vector[-1] = value  # the last name is a merged one
        return vector

    assert asked({}, spoil)["reason"] == "a start must be finite, got NaN or infinity"
    assert "must have" in asked({}, lambda vector: vector[:-1])["reason"]


def test_a_rule_must_say_that_it_merges(tiny_config):
    from dataclasses import replace

    config = load_config(str(tiny_config), SETTINGS)
    silent = replace(PUT_ASIDE, traits=replace(PUT_ASIDE.traits, tags=frozenset()))
    clients = make_clients(config, load_data(config), rule=silent)
    adapter = add_merged(clients.initial_state().adapter, {PATH: (torch.ones(3, 32), torch.ones(32, 3))})
    with pytest.raises(InputError, match='merged must be left out for the rule put-aside, whose tags lack "merges"'):
        clients.train_client(0, adapter, State(0, 0, adapter))
    clients.close()


@pytest.mark.extras
def test_an_update_that_does_not_acknowledge_is_rejected(tiny_config):
    from splitrank.federation.flower.checks import check_update
    from splitrank.federation.flower.messenger import Reply

    config = load_config(str(tiny_config), SETTINGS)
    clients = of_rule(PUT_ASIDE)(config)
    start = add_merged(clients.initial_state().adapter, {PATH: (torch.ones(3, 32), torch.ones(32, 3))})
    sent = wire.uplink(start, PUT_ASIDE, 0, 0)
    header = {"kind": "update", "client": 0, "round": 1, "samples": 1, "train_loss": 1.0, **wire.header(sent, 0)}
    key = {"client": 0, "round": 1, "turn": 0, "num_samples": 64, "training": clients.model.local_training}

    def check(**more) -> Update | NoUpdate:
        return check_update(Reply({**header, **more}, to_vector(sent).numpy(), 1.0), start, PUT_ASIDE, **key)

    assert isinstance(check(merged_sha256=wire.merged_digest(start)), Update)
    for digest in (None, "0" * 64, 7):
        missed = check(merged_sha256=digest)
        assert isinstance(missed, NoUpdate)
        assert missed.reason.startswith("rejected: merged_sha256 must be that of the merged parts sent, got")
        assert not missed.lost_merged
    clients.close()


def test_the_ledger_follows_what_clients_acknowledge(tiny_config):
    """Who answered has all rows, who lost them none, and rewritten rows nobody."""
    clients = of_rule(PUT_ASIDE)(load_config(str(tiny_config), SETTINGS))
    family, initial = clients.model.encoder.family, clients.initial_state()
    clients.close()
    part = torch.randn(3, 32), torch.randn(32, 3)
    state = State(1, 1, add_merged(initial.adapter, {PATH: part}))
    assert held_rows(state, 0) == {}
    assert merged_parts(initial, family).ranks == {}
    assert merged_parts(state, family).ranks == {(3, "query"): 3}
    assert list(merged_parts(state, family).lacking) == [3 * 64]
    update = Update(state.adapter, 0.0, 1, {})
    assert note_received(initial, {0: update}, 3).ledger == {}  # nothing is merged, nothing noted
    noted = note_received(state, {0: update, 1: update, 2: NoUpdate("late")}, 3)
    assert [held_rows(noted, client)[PATH] for client in range(3)] == [3, 3, 0]
    assert list(merged_parts(noted, family).lacking) == [0, 0, 3 * 64]
    assert list(noted.ledger) == ["merged_rows"]

    longer = add_merged(state.adapter, {PATH: part})
    grown = State(2, 2, longer, ledger=still_held(noted, longer))
    assert list(merged_parts(grown, family).lacking) == [3 * 64, 3 * 64, 6 * 64]
    lost = note_received(grown, {0: NoUpdate("gone", lost_merged=True), 1: NoUpdate("late")}, 3)
    assert list(merged_parts(lost, family).lacking) == [6 * 64, 3 * 64, 6 * 64]
    elsewhere = add_merged(initial.adapter, {PATH: (part[0] + 1, part[1])})
    assert not still_held(noted, elsewhere)["merged_rows"].any()
    dense = add_merged(longer, {PATH: (torch.randn(20, 32), torch.randn(32, 20))})
    whole = State(3, 3, dense, ledger=still_held(grown, dense))
    assert list(merged_parts(whole, family).lacking) == 3 * [32 * 32]
    assert merged_parts(whole, family).ranks == {(3, "query"): None}
    same = note_received(whole, {0: update}, 3)
    assert list(merged_parts(State(4, 4, dense, ledger=still_held(same, dense)), family).lacking) == [0, 1024, 1024]


@pytest.mark.parametrize("held", [0, 2, 5])
def test_rows_that_are_held_and_rows_that_are_sent_are_the_whole(held, tiny_config):
    clients = of_rule(PUT_ASIDE)(load_config(str(tiny_config), SETTINGS))
    clients.close()
    model, like = clients.model, clients.model.initial_shared
    start = model.method.resize(like, 2, distribution="svd", seed=0, round=1)
    start = add_merged(start, {PATH: (torch.randn(5, 32), torch.randn(32, 5))})
    rows = {PATH: held}
    sent = wire.downlink(start, PUT_ASIDE, rows)
    assert sum(tensor.numel() for name, tensor in sent.items() if name.startswith("merged")) == (5 - held) * 64
    told = wire.header(sent, 0) | wire.merged_header(start, rows)
    kept = {name: rows_until(start.tensors, name, held) for name in start.only(*MERGED_KINDS)} if held else {}

    def received(kept):
        return wire.received_start(told, to_vector(sent), like, 2, 0, model.method, PUT_ASIDE, 0, 1, kept=kept)

    found = received(kept)
    assert found.tensors.keys() == start.tensors.keys()
    assert all(torch.equal(tensor, start.tensors[name]) for name, tensor in found.tensors.items())
    assert wire.merged_digest(found) == wire.merged_digest(start)
    if held:
        with pytest.raises(wire.LostMergedError):
            received({name: tensor[:1] if name.startswith("merged_A") else tensor for name, tensor in kept.items()})
        with pytest.raises(wire.LostMergedError):
            received({})
