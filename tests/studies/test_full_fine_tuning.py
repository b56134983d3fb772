"""Promises of the baseline: Hugging Face's own full fine-tuning, averaged by samples, on a run's texts and batches."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from splitrank import load_config, load_data, make_clients, run, run_round
from splitrank.config import Config, flatten, read_toml, to_toml, with_values
from splitrank.errors import InputError, RunError
from splitrank.federation.in_process import InProcessClients
from splitrank.federation.resume import resumed_config
from splitrank.federation.state import State
from splitrank.files import write_atomically
from splitrank.learning.client import Update
from splitrank.learning.trunk import TrunkOutputs
from splitrank.studies import cost
from splitrank.studies.execution import is_finished, pending_trials
from splitrank.studies.report import write_report
from splitrank.studies.results import table_of, trial_line, write_table
from splitrank.studies.run_reader import read_run
from splitrank.studies.study import run_sweep
from splitrank.studies.sweep import FULL_FINE_TUNING, Trial, make_trials
from splitrank.studies.trial import run_trial
from tests.records import equal_records, records_of
from tests.studies.written_runs import Elements, chart_data

FP32 = "model.precision=fp32"
ONE_LAYER = 4 * (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32) + 2 * 2 * 32
HEAD = (32 * 32 + 32) + (32 * 4 + 4)


@pytest.fixture
def full_config(tiny_config) -> Callable[..., Config]:
    """A function from overrides to the settings of the baseline, on the tests' tiny encoder."""

    def make(*overrides: str) -> Config:
        return with_values(load_config(str(tiny_config), [FP32, *overrides]), FULL_FINE_TUNING)

    return make


@pytest.fixture
def tuning(full_config):
    """A function from overrides to the baseline's clients."""
    opened = []

    def make(*overrides: str) -> InProcessClients:
        config = full_config(*overrides)
        opened.append(make_clients(config, load_data(config)))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def by_path(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items()}


def trained(clients: InProcessClients, state: State, client: int, round: int = 1) -> Update:
    """What a client makes of an untrained state in a round."""
    start = clients.model.method.resize(state.adapter, 1, distribution="svd", seed=0, round=round)
    return clients.train_client(client, start, State(round - 1, 0, state.adapter))


def plain_model(folder: Path, start: Mapping[str, Tensor]) -> torch.nn.Module:
    """Hugging Face's whole model with given layers and head, all else frozen."""
    sizes = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    if "distilbert" not in folder.name:
        sizes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=4, **sizes)
    missing, unexpected = model.load_state_dict(start, strict=False)
    assert not unexpected
    assert missing
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in start)
    return model.train()


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "mpnet"])
def test_equals_hugging_faces_whole_model_trained_by_a_plain_loop(family, tuning, tiny_model):
    clients = tuning(
        f"model.name={tiny_model(family)}",
        "federation.num_clients=1",
        "federation.local_epochs=2",
        "train.batch_size=192",
        "train.learning_rate=1e-3",
        "train.weight_decay=0.1",
    )
    state = clients.initial_state()
    start = by_path(state.adapter.tensors)
    update = trained(clients, state, 0)

    data = clients.data
    model = plain_model(tiny_model(family), start)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model(family)))
    encoded = tokenizer(list(data.train_texts), padding=True, truncation=True, max_length=32, return_tensors="pt")
    encoded = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    losses = []
    for _ in range(2):
        loss = functional.cross_entropy(model(**encoded).logits, torch.from_numpy(data.train_labels))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())

    expected = model.state_dict()
    for path, tensor in by_path(update.adapter.tensors).items():
        # A key's bias has no effect on a softmax: its gradient is rounding alone, which AdamW blows up.
        if not path.endswith(("key.bias", "k_lin.bias", "attn.k.bias")):
            torch.testing.assert_close(tensor, expected[path], rtol=0, atol=1e-5)
            assert (tensor - start[path]).abs().max() > 1e-3
    assert update.train_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_trained_is_every_weight_of_the_trained_layers_and_the_head_and_nothing_else(tuning):
    clients = tuning("model.trained_layers=middle:2")
    model = clients.model.encoder.model
    names = {name for name, _ in model.named_parameters()}
    of_layers = ("roberta.encoder.layer.2.", "roberta.encoder.layer.3.")
    expected = {name for name in names if name.startswith((*of_layers, "classifier."))}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert set(by_path(trained(clients, clients.initial_state(), 0).adapter.tensors)) == expected
    after = model.state_dict()
    assert {name for name in names if not torch.equal(before[name], after[name])} == expected


def test_the_head_policy_is_the_runs(tuning):
    heads = {
        policy: set(by_path(tuning(f"model.head={policy}").initial_state().adapter.only("head")))
        for policy in ("full", "out_proj", "frozen", "local")
    }
    assert len(heads["full"]) == 4
    assert heads["out_proj"] == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert heads["frozen"] == heads["local"] == set()
    local = tuning("model.head=local").initial_state().local
    assert {client: set(by_path(head)) for client, head in local.items()} == dict.fromkeys(range(3), heads["full"])


def test_the_average_is_weighted_by_samples(tuning):
    clients = tuning("data.train_rows=20", "train.learning_rate=0.01")
    assert clients.num_samples == [7, 7, 6]
    start = clients.initial_state()
    state, record = run_round(start, clients)
    alone = [trained(clients, start, client) for client in range(3)]
    for name, tensor in state.adapter.tensors.items():
        assert tensor.dtype == torch.float32
        shares = [one.adapter.tensors[name].double() * one.num_samples / 20 for one in alone]
        torch.testing.assert_close(tensor.double(), sum(shares), rtol=0, atol=1e-7)
    assert [client.train_loss for client in record.clients] == [one.train_loss for one in alone]
    assert [client.samples for client in record.clients] == [7, 7, 6]


def test_clients_start_from_the_same_weights_with_fresh_moments(tuning):
    clients = tuning()
    state = clients.initial_state()
    first = trained(clients, state, 1).adapter.tensors
    trained(clients, state, 0)
    again = trained(clients, state, 1).adapter.tensors
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    other_round = trained(clients, state, 1, round=2).adapter.tensors
    assert not all(torch.equal(tensor, other_round[name]) for name, tensor in first.items())


def test_the_schedule_spans_the_run(tuning):
    def moved(schedule: str) -> float:
        clients = tuning(f"train.schedule={schedule}")
        state = clients.initial_state()
        end = trained(clients, state, 0, round=4).adapter.tensors
        return sum(float((tensor - state.adapter.tensors[name]).norm()) for name, tensor in end.items())

    assert moved("linear") < 0.5 * moved("constant")


def test_no_global_randomness(tuning):
    clients = tuning("train.dropout=0.2")
    state = clients.initial_state()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trained(clients, state, 0).adapter.tensors
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again = trained(clients, state, 0).adapter.tensors
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_divergence_is_a_clear_error(tuning):
    clients = tuning("train.learning_rate=1e30", "train.max_grad_norm=1e30")
    with pytest.raises(RunError, match=r"client 0 in round 1 must be finite.*train\.learning_rate below"):
        run_round(clients.initial_state(), clients)


def test_round_zero_and_batches_are_those_of_a_lora_run(full_config, tiny_config, tmp_path, monkeypatch):
    """Same texts, head and metrics before training, and then the same texts in the same steps."""
    read, seen = TrunkOutputs.read, []

    def watched(self, rows):
        seen.append((len(self.lengths), list(rows)))
        return read(self, rows)

    monkeypatch.setattr(TrunkOutputs, "read", watched)
    settings = ["federation.rounds=2", "federation.local_epochs=2"]
    expected = list(run(load_config(str(tiny_config), [FP32, "adapter.rank=2", *settings]), tmp_path / "lora"))
    assert not any(client.dropped for record in expected[1:] for client in record.clients)
    by_lora = seen.copy()
    seen.clear()
    records = list(run(full_config(*settings), tmp_path / "full"))
    assert seen == by_lora
    assert records[0].accuracy == expected[0].accuracy
    assert records[0].macro_f1 == expected[0].macro_f1
    assert records[0].worst_client_accuracy == expected[0].worst_client_accuracy
    assert records[0].loss == pytest.approx(expected[0].loss, rel=1e-5)
    samples = [[client.samples for client in told[0].clients] for told in (records, expected)]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_records_and_folder(precision, full_config, tmp_path):
    config = full_config(f"model.precision={precision}", "train.learning_rate=2e-3")
    records = list(run(config, tmp_path / "one"))
    assert [record.round for record in records] == [0, 1, 2, 3, 4]
    assert records[-1].accuracy > records[0].accuracy + 0.15
    bits = 32.0 * (3 * ONE_LAYER + HEAD)
    for record in records_of(tmp_path / "one")[1:]:
        assert (record["rank"], record["status"], record["factor_averaging_error"]) == (1, "optimal", None)
        for client in record["clients"]:
            assert (client["rank"], client["max_rank"]) == (1, 1)
            assert client["uplink_bits"] == client["downlink_bits"] == bits
            assert client["frequency_hz"] == client["frequency_range_hz"][1]
            assert client["energy_budget_j"] is None
            assert client["latency_s"] > client["uplink_s"] > 0
            assert client["energy_j"] > 0
            assert client["dropped"] is False
    written = read_run(tmp_path / "one")
    assert written.config.model.precision == precision
    assert written.baseline is None
    # Its own settings reproduce it.
    list(run(load_config(str(tmp_path / "one" / "config.toml")), tmp_path / "two"))
    assert equal_records(tmp_path / "two") == equal_records(tmp_path / "one")


def test_it_resumes_to_the_same_bits(full_config, tmp_path):
    config = full_config()
    list(run(config, tmp_path / "whole"))
    list(islice(run(config, tmp_path / "broken"), 3))
    list(run(resumed_config(tmp_path / "broken", None, []), tmp_path / "broken", resume=True))
    assert equal_records(tmp_path / "broken") == equal_records(tmp_path / "whole")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
    # A round further than was asked for at first.
    more = resumed_config(tmp_path / "broken", None, ["federation.rounds=5"])
    assert [record.round for record in run(more, tmp_path / "broken", resume=True)] == [5]


# A base that names all sorts of settings without effect on full fine-tuning.
LORA_ONLY = {
    "ranks and linears": """
        adapter.target_modules = "all-linear"
        adapter.scaling = 3.0
        adapter.dropout = 0.1
        adapter.rank = 4
        workload.bits_per_parameter = 64.0
        workload.count_head = true
        planner.frequency_policy = "least-energy"
    """,
    "random frequency": """
        planner.method = "random-frequency"
        planner.random_range = "full"
        planner.max_rank = 16
    """,
    "a rank for each client": """
        federation.aggregation = "flexlora"
        planner.rank_policy = "per-client"
        planner.max_rank = 16
        planner.latency_margin = 0.1
    """,
    "another method": """
        adapter.method = "dora"
        workload.model = "flops"
        workload.trunk = "every-round"
        client.flops_per_cycle = 16
    """,
    "measured": """
        workload.model = "measured"
        client.seconds_per_sample = 1e-4
        client.seconds_per_sample_per_rank = 1e-6
        client.reference_frequency_hz = 1e8
    """,
}


def full_trials(base: Path, extra: str, seeds: list[int]) -> list[Trial]:
    base.write_text(base.read_text() + "\n".join(line.strip() for line in extra.splitlines()))
    return make_trials(
        str(base), [{"federation.rounds": 2}], [{"train.learning_rate": 1e-3}], seeds, "full-fine-tuning"
    )


@pytest.fixture
def dotted_config(tiny_config, tmp_path) -> Path:
    """The tiny settings as dotted keys, so that more can be written below them."""
    path = tmp_path / "base.toml"
    flat = flatten(read_toml(tiny_config))
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in flat.items()))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {one}' for key, one in value.items())} }}"
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize("extra", LORA_ONLY.values(), ids=LORA_ONLY)
def test_a_base_may_name_settings_that_have_no_effect_on_it(extra, dotted_config, tmp_path):
    (trial,) = full_trials(dotted_config, extra, [0])
    assert trial.config.adapter.rank is None
    assert trial.config == load_config(str(settings_file(trial, tmp_path)))
    assert is_prepared_twice(trial, tmp_path / "members")


def settings_file(trial: Trial, folder: Path) -> Path:
    write_atomically(folder / "own.toml", to_toml(trial.config))
    return folder / "own.toml"


def is_prepared_twice(trial: Trial, folder: Path) -> bool:
    """Whether a trial that ran is taken for finished, and its run for one with its settings."""
    assert pending_trials([trial], folder) == [trial]
    run_trial(folder / f"{trial.name}.toml", folder / trial.name)
    return pending_trials([trial], folder) == [] and is_finished(trial, folder / trial.name)


@pytest.mark.slow
def test_a_sweep_keeps_the_baseline_and_a_run_alone_gives_its_line(dotted_config, tmp_path, small_pages):
    full = full_trials(dotted_config, LORA_ONLY["ranks and linears"], [0, 1])
    lora = make_trials(str(dotted_config), [{"federation.rounds": 2}], [{}], [0, 1])
    both, out = [*lora, *full], tmp_path / "out"
    said = list(run_sweep(both, out, "both", jobs=2, ray_address=None))
    assert len(said) == 4
    with (out / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["baseline"] for line in lines] == ["", "", "full-fine-tuning", "full-fine-tuning"]
    assert [line["member"] for line in lines[2:]] == [
        f"full-fine-tuning,learning_rate=0.001,seed={seed}" for seed in (0, 1)
    ]
    for line in lines[2:]:
        assert (line["mean_rank"], line["mean_max_rank"], line["client_rounds_missed"]) == ("1.0", "1.0", "0")
        assert float(line["uplink_bits"]) == 2 * 3 * 32 * (3 * ONE_LAYER + HEAD)
        assert float(line["latency_s"]) > 0
        assert float(line["energy_j"]) > 0
        assert line["factor_averaging_error"] == ""

    alone = tmp_path / "alone"
    list(run(load_config(str(out / "members" / f"{full[1].name}.toml")), alone))
    write_table(table_of([full[1]], [read_run(alone)]), tmp_path / "alone-results")
    with (tmp_path / "alone-results.csv").open(newline="") as file:
        (again,) = csv.DictReader(file)
    assert {key: lines[3][key] for key in again} == again
    assert trial_line(full[1], read_run(alone)) == trial_line(full[1], read_run(out / "members" / full[1].name))

    # The report draws it beside the others.
    page = (out / "report.html").read_text(encoding="utf-8")
    names = [trace["name"] for trace in chart_data(page)["accuracy"]]
    assert len(names) == 2
    assert "full" in names[1]
    rows = Elements(page).table("What was reached")
    assert rows[1]["mean rank"] == ("no rank", None)
    assert rows[1]["adapter.method"][0] == "full"
    assert rows[1]["budget.energy_j"][0] == "no limit"


@pytest.mark.slow
def test_a_dry_run_counts_it_and_shows_no_rank(dotted_config, monkeypatch):
    monkeypatch.setattr(cost, "CALIBRATION_S", 0.1)
    lora = make_trials(str(dotted_config), [], [{"adapter.rank": 2}], [0])
    full = full_trials(dotted_config, "adapter.rank = 4\n", [0])
    told = list(cost.dry_run({"placement": [*lora, *full]}, jobs=1))
    assert told[1].split()[:2] == ["placement", "2"]
    assert [line.split()[0] for line in told[-2:]] == ["2.0", "-"]
    assert "full-fine-tuning" in told[-1]
    assert cost.trial_cost(full[0].config).rank == 1
    assert cost.trial_cost(full[0].config).training_flops > 0
    assert list(cost.dry_run({"placement": full}, jobs=1))[-1].split()[0] == "-"


def test_a_report_of_it_alone_has_no_rank_and_no_limits(full_config, tmp_path, small_pages):
    list(run(full_config(), tmp_path / "full"))
    write_report([read_run(tmp_path / "full")], tmp_path / "report.html", "full")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not {"rank", "binding", "averaging", "truncation"} & set(chart_data(page))
    assert not any("budget" in trace["name"] for trace in chart_data(page)["energy"])
    assert chart_data(page)["latency"][0]["text"][1].endswith(" s; no limit")
    assert "a whole transformers model, in model/" in page
    (row,) = Elements(page).table("What was reached")
    assert row["mean rank"] == ("no rank", None)


def test_folder_of_another_run_is_refused(full_config, tmp_path):
    config = full_config("federation.rounds=1")
    rounds = run(config, tmp_path / "out")
    next(rounds)
    rounds.close()
    with pytest.raises(InputError, match="must be a new or empty folder"):
        next(run(config, tmp_path / "out"))
