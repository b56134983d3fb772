"""Promise: every adapter method works under every rule that takes it, with a common rank or one for each client.

It trains in one process and through Flower's messages to the same record, resumes to the same bits, is exported and
predicts from its export what it was evaluated at, sends what is counted, and is drawn in the report.
"""

from __future__ import annotations

import itertools
from itertools import islice

import numpy as np
import pytest
import torch

from splitrank import Config, load_config, load_data, make_clients, predict, run
from splitrank.errors import InputError
from splitrank.federation import wire
from splitrank.federation.export_forms import export_folder
from splitrank.federation.partitions import partition_of, shares_to_test_on
from splitrank.federation.slices import with_slices
from splitrank.learning.aggregation.distribute import distribute
from splitrank.studies.report import write_report
from splitrank.studies.run_reader import read_run
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS
from tests.records import equal_records, records_of

ROUNDS = 3
COMMON = ["model.precision=fp32", f"federation.rounds={ROUNDS}", "train.learning_rate=5e-3"]
OF_METHOD = {
    "lora": [],
    "rslora": [],
    # Clocks and sizes so small that budgets bind where operations are counted as they are.
    "dora": ['workload.model="flops"', "client.flops_per_cycle=4.0"],
    "full": ['workload.model="flops"', "budget.latency_s=inf", "budget.energy_j=inf", "train.learning_rate=1e-3"],
    "bitfit": ['workload.model="flops"', "budget.latency_s=inf", "budget.energy_j=inf", "train.learning_rate=0.02"],
    "ia3": ['workload.model="flops"', "budget.latency_s=inf", "budget.energy_j=inf", "train.learning_rate=0.05"],
    "bottleneck": ['workload.model="flops"', "client.flops_per_cycle=4.0"],
    "prefix": ['workload.model="flops"', "client.flops_per_cycle=4.0"],
}
OF_RULE = {"trimmed-mean": ["federation.trimmed-mean.fraction=0.34"]}  # one of three clients at each end


def cases():
    for (method, traits), (rule, rule_traits) in itertools.product(METHOD_TRAITS.items(), RULE_TRAITS.items()):
        if rule_traits.takes(traits.kinds):
            if "prunes" not in rule_traits.tags:
                yield method, rule, "common"
            if traits.has_rank and "unequal_ranks" in rule_traits.tags:
                yield method, rule, "per-client"


def is_quick(method, rule, policy):
    """Return whether a case is run by default: all methods under fedavg, all rules with LoRA, the newer ones once."""
    wanted = "per-client" if "unequal_ranks" in RULE_TRAITS[rule].tags else "common"
    return rule == "fedavg" or (method == "lora" and (rule in ("ffa", "flexlora") or policy == wanted))


def parametrized(cases):
    params = [
        pytest.param(*case, id="-".join(case), marks=[] if is_quick(*case) else pytest.mark.slow) for case in cases
    ]
    return pytest.mark.parametrize(("method", "rule", "policy"), params)


every_case = parametrized(cases())
every_shared_case = parametrized(case for case in cases() if not RULE_TRAITS[case[1]].personal)


@pytest.fixture
def config_of(tiny_config):
    """A function from a case and further settings to its settings."""

    def make(method: str, rule: str, policy: str, *more: str) -> Config:
        own = [
            f'adapter.method="{method}"',
            f'federation.aggregation="{rule}"',
            *OF_METHOD[method],
            *OF_RULE.get(rule, []),
        ]
        if "needs_fixed_rank" in RULE_TRAITS[rule].tags:
            own.append("adapter.rank=2")
        if "slices" in RULE_TRAITS[rule].tags and method == "dora":  # an epoch more
            own.append("client.flops_per_cycle=" + {"common": "8.0", "per-client": "7.5"}[policy])
        ranks = ['planner.rank_policy="per-client"'] if policy == "per-client" else []
        return load_config(str(tiny_config), [*COMMON, *own, *ranks, *more])

    return make


def weights(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}


def share_predicted(folder, config) -> float:
    """Return the share of the test texts that an export classifies rightly; each client's share by its own model."""
    data = load_data(config)
    exports = sorted(folder.glob("*/client-*"))
    rows_of = {folder: np.arange(len(data.test_labels))}
    if exports:
        rows_of = dict(zip(exports, shares_to_test_on(config, data, partition_of(config, data)), strict=True))
    hits = 0
    for export, rows in rows_of.items():
        found = predict(export, [data.test_texts[row] for row in rows])
        hits += sum(
            data.label_names[data.test_labels[row]] == told.label for row, told in zip(rows, found, strict=True)
        )
    return hits / len(data.test_labels)


@every_case
def test_in_one_process(method, rule, policy, config_of, tmp_path):
    config = config_of(method, rule, policy)
    records = list(run(config, tmp_path / "run"))
    assert records[-1].accuracy > records[0].accuracy
    ranks = {client.rank for record in records[1:] for client in record.clients}
    assert records[1].status == "optimal"
    assert (ranks != {1}) == METHOD_TRAITS[method].has_rank
    if policy == "per-client":
        assert any(len({client.rank for client in record.clients}) > 1 for record in records[1:])
    else:
        assert all(len({client.rank for client in record.clients}) == 1 for record in records[1:])

    # What is exported predicts what was evaluated, by plain PEFT or transformers.
    assert share_predicted(tmp_path / "run", config) == pytest.approx(records[-1].accuracy)
    # A run broken off goes on to the same bits.
    list(islice(run(config, tmp_path / "broken"), ROUNDS))
    list(run(config, tmp_path / "broken", resume=True))
    assert equal_records(tmp_path / "broken") == equal_records(tmp_path / "run")
    export = export_folder(config)
    assert weights(tmp_path / "broken" / export) == weights(tmp_path / "run" / export) != {}

    write_report([read_run(tmp_path / "run")], tmp_path / "report.html", "run")
    page = (tmp_path / "report.html").read_text()
    assert f"{export_folder(config)}/" in page[: page.index("<script")] + page[page.rindex("</script") :]


@every_case
def test_sent_is_counted(method, rule, policy, config_of):
    """Numbers on the wire, up and down, are those the planner counts with 32 bits each, in even and odd turns."""
    config = config_of(method, rule, policy, 'workload.model="flops"')
    clients = make_clients(config, load_data(config))
    state = clients.initial_state()
    ranks = {client: client + 2 if METHOD_TRAITS[method].has_rank else 1 for client in range(3)}
    if policy == "common":
        ranks = dict.fromkeys(ranks, max(ranks.values()))
    for turn in (0, 1):
        workload = clients.problem(type(state)(turn, turn, state.adapter)).workload
        starts = distribute(
            state.adapter, ranks, clients.model.method, clients.rule, keeps_largest=True, seed=0, round=1
        )
        for client, start in starts.of.items():
            down = sum(tensor.numel() for tensor in wire.downlink(start, clients.rule).values())
            own = clients.rule
            if own.choose is not None:
                own = with_slices(own, {path: range(ranks[client]) for path in start.of_kind("lora_A")})
            up = sum(tensor.numel() for tensor in wire.uplink(start, own, client, turn).values())
            assert 32.0 * down == workload.downlink_bits(ranks[client])[client]
            assert 32.0 * up == workload.uplink_bits(ranks[client])[client]
    clients.close()


@pytest.mark.extras
@every_shared_case
def test_through_flowers_messages(method, rule, policy, config_of, tmp_path):
    from tests.flower_in_process import flower

    config = config_of(method, rule, policy)
    with flower() as (connect, messengers):
        list(run(config, tmp_path / "flower", connect=connect))
    sent = messengers[0].sent
    list(run(config, tmp_path / "run"))
    assert equal_records(tmp_path / "flower") == equal_records(tmp_path / "run")
    export = export_folder(config)
    assert weights(tmp_path / "flower" / export) == weights(tmp_path / "run" / export)

    # What went over the wire is what the record says, where it counts 32 bits a number.
    if config.workload.model == "flops":
        updates = {
            (header["round"], header["client"]): (32 * down, 32 * up)
            for header, down, _, up in sent
            if header["kind"] == "train"
        }
        for record in records_of(tmp_path / "flower")[1:]:
            for client in record["clients"]:
                bits = client["downlink_bits"], client["uplink_bits"]
                assert updates[record["round"], client["client"]] == bits


PERSONAL = [
    ("lora", "fedavg", ['model.head="local"'], {"head"}),
    ("lora", "fedsa", [], {"lora_B", "head"}),
    pytest.param("rslora", "fedsa", [], {"lora_B", "head"}, marks=pytest.mark.slow),
    pytest.param("dora", "fedsa", ['model.head="out_proj"'], {"lora_B", "head"}, marks=pytest.mark.slow),
]


@pytest.mark.extras
@pytest.mark.parametrize(("method", "rule", "more", "kinds"), PERSONAL)
def test_what_is_personal_never_leaves_its_client_through_flower(method, rule, more, kinds, config_of, tmp_path):
    from tests.flower_in_process import flower

    config = config_of(method, rule, "common", *more)
    with flower() as (connect, messengers):
        list(islice(run(config, tmp_path / "flower", connect=connect), ROUNDS))
        # A worker that was started again, and a server that goes on after its last checkpoint, find what they need.
        list(run(config, tmp_path / "flower", resume=True, connect=connect))
    headers = [header for one in messengers for asked, _, told, _ in one.sent for header in (asked, told)]
    names = [name for header in headers for name, _ in header.get("tensors", [])]
    assert {name.partition("/")[0] for name in names} == METHOD_TRAITS[method].kinds - kinds
    # The server's export is the shared part, and cannot predict.
    assert (tmp_path / "flower" / "adapter" / "adapter_model.safetensors").is_file()
    with pytest.raises(InputError, match="must have a trained head, got a run whose heads stayed on the clients"):
        list(predict(tmp_path / "flower", ["market"]))
    list(run(config, tmp_path / "run"))
    ours, theirs = equal_records(tmp_path / "flower"), equal_records(tmp_path / "run")
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop("macro_f1") is None
        other.pop("macro_f1")
        assert mine.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-12)
        assert mine == other


@pytest.mark.extras
def test_a_part_whose_update_was_missed_is_kept(tmp_path, monkeypatch):
    """The server names the last round that it took, however many it missed since, or the one before."""
    from splitrank.federation.flower.personal import PersonalStore

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    store = PersonalStore.of("e" * 32, 0)
    digests = {round: store.write(round, {"head/x": torch.tensor([round])}, started_from=round - 1) for round in (1, 2)}
    for missed in (3, 4, 5):
        digests[missed] = store.write(missed, {"head/x": torch.tensor([missed])}, started_from=2)
    for round in (1, 2, 5):
        assert store.read(round, digests[round])["head/x"] == round
    assert store.read(4, digests[4]) is None
    assert store.read(2, digests[1]) is None  # another part than the server knows
    digests[2] = store.write(2, {"head/x": torch.tensor([20])}, started_from=1)  # a server that went back
    assert store.read(2, digests[2])["head/x"] == 20
    assert store.read(1, digests[1])["head/x"] == 1
    for folder in (store.folder, *list(store.folder.parents)[:3]):
        assert folder == tmp_path or folder.stat().st_mode & 0o777 == 0o700 or folder == tmp_path / "splitrank"


@pytest.mark.extras
def test_a_run_goes_on_where_nobody_can_tell_how_well_it_does(config_of, tmp_path):
    from splitrank.federation.flower.payload import NO_FLOATS
    from tests.flower_in_process import Messenger, flower

    class Mute(Messenger):
        def answer(self, node, header, floats=NO_FLOATS):
            reply = super().answer(node, header, floats)
            return reply if header["kind"] != "evaluate" else type(reply)({"kind": "failure"}, None, 1.0)

    config = config_of("lora", "fedavg", "common", 'model.head="local"', "federation.target_accuracy=0.9")
    with flower(Mute) as (connect, _):
        list(islice(run(config, tmp_path / "run", connect=connect), 2))
        list(run(config, tmp_path / "run", resume=True, connect=connect))
    records = records_of(tmp_path / "run")
    assert [record["accuracy"] for record in records] == [None] * (ROUNDS + 1)
    write_report([read_run(tmp_path / "run")], tmp_path / "report.html", "run")


@pytest.mark.extras
def test_a_client_that_lost_its_part_starts_it_afresh_and_the_record_says_so(config_of, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    from splitrank.federation.flower.personal import PersonalStore
    from tests.flower_in_process import flower

    config = config_of("lora", "fedavg", "common", 'model.head="local"')
    with flower() as (connect, _):
        rounds = run(config, tmp_path / "flower", connect=connect)
        records = list(islice(rounds, 2))
        store = PersonalStore.of("0" * 32, 1)
        assert [oct(file.stat().st_mode & 0o777) for file in store.folder.iterdir()] == ["0o600"]
        for file in store.folder.iterdir():
            file.write_bytes(b"damaged")
        records += list(rounds)
    told = [(record.round, client) for record in records for client in record.planned]
    lost = {(round, client.client) for round, client in told if client.personal_lost}
    assert lost == {(2, 1)}
    assert len(list(store.folder.iterdir())) == 3
