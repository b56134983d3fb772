"""Promises of the baseline: Hugging Face's own full fine-tuning, averaged by samples, on a run's texts and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from splitrank import load_config, run
from splitrank.errors import InputError, RunError
from splitrank.files import try_lock
from splitrank.learning.trunk import TrunkOutputs
from splitrank.studies import member
from splitrank.studies.full_fine_tuning import prepare, run_full_fine_tuning, run_round
from splitrank.studies.recorded import read_run

FP32 = "model.precision=fp32"


@pytest.fixture
def tuning(tiny_config):
    """A function from overrides to the prepared baseline."""
    opened = []

    def make(*overrides: str):
        opened.append(prepare(load_config(str(tiny_config), [FP32, *overrides])))
        return opened[-1]

    yield make
    for each in opened:
        each.clients.close()


def without_wall(folder):
    return [{key: value for key, value in record.items() if "wall" not in key} for record in read_run(folder).records]


def plain_model(folder, start):
    """Hugging Face's whole model with a given head and layers, all else frozen."""
    model = AutoModelForSequenceClassification.from_pretrained(
        str(folder), num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    missing, unexpected = model.load_state_dict(start, strict=False)
    assert not unexpected
    assert missing
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in start)
    return model.train()


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_equals_hugging_faces_whole_model_trained_by_a_plain_loop(family, tuning, tiny_model):
    baseline = tuning(
        f"model.name={tiny_model(family)}",
        "federation.num_clients=1",
        "federation.local_epochs=2",
        "train.batch_size=192",
        "train.learning_rate=1e-3",
        "train.weight_decay=0.1",
    )
    start = baseline.weights()
    trained, train_loss = baseline.train(0, start, round=1)

    data = baseline.clients.data
    model = plain_model(tiny_model(family), start)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model(family)))
    encoded = tokenizer(list(data.train_texts), padding=True, truncation=True, max_length=32, return_tensors="pt")
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
    for path, tensor in trained.items():
        # A key's bias has no effect on a softmax: its gradient is rounding alone, which AdamW blows up.
        if not path.endswith("key.bias"):
            torch.testing.assert_close(tensor, expected[path], rtol=0, atol=1e-5)
            assert (tensor - start[path]).abs().max() > 1e-3
    assert train_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_trained_is_every_weight_of_the_trained_layers_and_the_head_and_nothing_else(tuning):
    baseline = tuning("model.trained_layers=middle:2")
    names = {name for name, _ in baseline.encoder.model.named_parameters()}
    expected = {
        name
        for name in names
        if name.startswith(("roberta.encoder.layer.2.", "roberta.encoder.layer.3.", "classifier."))
    }
    before = {name: tensor.clone() for name, tensor in baseline.encoder.model.state_dict().items()}
    trained, _ = baseline.train(0, baseline.weights(), round=1)
    assert set(trained) == expected
    after = baseline.encoder.model.state_dict()
    assert {name for name in names if not torch.equal(before[name], after[name])} == expected


def test_the_head_policy_is_the_runs(tuning):
    heads = {
        policy: {path for path in tuning(f"model.head={policy}").parameters if path.startswith("classifier.")}
        for policy in ("full", "out_proj", "frozen")
    }
    assert len(heads["full"]) == 4
    assert heads["out_proj"] == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert heads["frozen"] == set()


def test_the_average_is_weighted_by_samples(tuning):
    baseline = tuning("data.train_rows=20", "train.learning_rate=0.01")
    num_samples = baseline.clients.num_samples
    assert num_samples == [7, 7, 6]
    start = baseline.weights()
    averaged, record = run_round(baseline, start, 1)
    alone = [baseline.train(client, start, 1) for client in range(3)]
    for path, tensor in averaged.items():
        assert tensor.dtype == torch.float32
        stacked = [weights[path].double() * share / 20 for (weights, _), share in zip(alone, num_samples, strict=True)]
        torch.testing.assert_close(tensor.double(), sum(stacked), rtol=0, atol=1e-7)
    assert [client["train_loss"] for client in record.clients] == [loss for _, loss in alone]
    assert [client["samples"] for client in record.clients] == num_samples


def test_clients_start_from_the_same_weights_with_fresh_moments(tuning):
    baseline = tuning()
    start = baseline.weights()
    first, _ = baseline.train(1, start, 1)
    baseline.train(0, start, 1)
    again, _ = baseline.train(1, start, 1)
    assert all(torch.equal(tensor, again[path]) for path, tensor in first.items())
    other_round, _ = baseline.train(1, start, 2)
    assert not all(torch.equal(tensor, other_round[path]) for path, tensor in first.items())


def test_round_zero_and_batches_are_those_of_a_run(tiny_config, tmp_path, monkeypatch):
    """Same texts, head and judges before training, and then the same texts in the same steps."""
    config = load_config(str(tiny_config), [FP32, "federation.rounds=2", "federation.local_epochs=2", "adapter.rank=2"])
    read, seen = TrunkOutputs.read, []

    def watched(self, rows):
        seen.append((len(self.lengths), list(rows)))
        return read(self, rows)

    monkeypatch.setattr(TrunkOutputs, "read", watched)
    expected = list(run(config, tmp_path / "run"))
    assert not any(client["dropped"] for record in expected[1:] for client in record.clients)
    by_run = seen.copy()
    seen.clear()
    records = list(run_full_fine_tuning(config, tmp_path / "baseline"))
    assert seen == by_run
    assert records[0].accuracy == expected[0].accuracy
    assert records[0].macro_f1 == expected[0].macro_f1
    assert records[0].worst_client_accuracy == expected[0].worst_client_accuracy
    assert records[0].loss == pytest.approx(expected[0].loss, rel=1e-5)
    assert records[0].clients == expected[0].clients


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_records_and_folder(precision, tiny_config, tmp_path):
    config = load_config(str(tiny_config), [f"model.precision={precision}", "train.learning_rate=2e-3"])
    records = list(run_full_fine_tuning(config, tmp_path / "one"))
    assert [record.round for record in records] == [0, 1, 2, 3, 4]
    assert records[-1].accuracy > records[0].accuracy + 0.15
    one_layer = 4 * (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32) + 2 * 2 * 32
    head = (32 * 32 + 32) + (32 * 4 + 4)
    for record in records[1:]:
        assert (record.rank, record.status, record.factor_averaging_error) == (0, None, None)
        for index, client in enumerate(record.clients):
            assert client.pop("train_loss") > 0
            bits = 32.0 * (3 * one_layer + head)
            assert client == {
                "client": index, "samples": 64, "uplink_bits": bits, "downlink_bits": bits, "dropped": False,
            }  # fmt: skip

    recorded = read_run(tmp_path / "one")
    assert recorded.config.model.precision == precision
    assert recorded.manifest["baseline"] == "full fine-tuning"
    assert recorded.manifest["data"]["labels"] == [f"class-{i}" for i in range(4)]
    assert {"source", "sha256"} <= set(recorded.manifest["data"])
    assert recorded.manifest["versions"]["torch"] == torch.__version__
    # Its own settings reproduce it.
    list(run_full_fine_tuning(load_config(str(tmp_path / "one" / "config.toml")), tmp_path / "two"))
    assert without_wall(tmp_path / "two") == without_wall(tmp_path / "one")
    assert all(record["wall_s"] > 0 for record in recorded.records)


def test_no_global_randomness(tuning):
    baseline = tuning("train.dropout=0.2")
    start = baseline.weights()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = baseline.train(0, start, 1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, _ = baseline.train(0, start, 1)
    assert all(torch.equal(tensor, again[path]) for path, tensor in first.items())
    without, _ = tuning().train(0, start, 1)
    assert not all(torch.equal(tensor, without[path]) for path, tensor in first.items())


def test_the_schedule_spans_the_run(tuning):
    def moved(schedule: str) -> float:
        baseline = tuning(f"train.schedule={schedule}")
        start = baseline.weights()
        trained, _ = baseline.train(0, start, round=4)
        return sum(float((tensor - start[path]).norm()) for path, tensor in trained.items())

    assert moved("linear") < 0.5 * moved("constant")


def test_target_accuracy_stops_early(tiny_config, tmp_path):
    config = load_config(str(tiny_config), ["federation.target_accuracy=0.3", "federation.rounds=50"])
    records = list(run_full_fine_tuning(config, tmp_path / "out"))
    assert records[-1].accuracy >= 0.3
    assert all(record.accuracy < 0.3 for record in records[:-1])
    assert len(records) < 51


@pytest.mark.parametrize("family", ["distilbert", "mpnet"])
def test_other_families_are_refused_before_any_work(family, tiny_config, tiny_model, tmp_path):
    config = load_config(str(tiny_config), [f"model.name={tiny_model(family)}"])
    with pytest.raises(InputError, match=rf"model\.name must be of a family .*\(roberta.*\), got .* '{family}'"):
        next(run_full_fine_tuning(config, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "xdg-cache").exists()


def test_local_heads_are_refused(tiny_config, tmp_path):
    with pytest.raises(InputError, match=r'model\.head must be "full", "out_proj" or "frozen"'):
        next(run_full_fine_tuning(load_config(str(tiny_config), ["model.head=local"]), tmp_path / "out"))


def test_a_started_folder_is_refused(tiny_config, tmp_path):
    config = load_config(str(tiny_config), ["federation.rounds=1"])
    rounds = run_full_fine_tuning(config, tmp_path / "out")
    next(rounds)
    rounds.close()
    with pytest.raises(InputError, match="must be a new or empty folder"):
        next(run_full_fine_tuning(config, tmp_path / "out"))


def test_divergence_is_a_clear_error(tuning):
    baseline = tuning()
    start = baseline.weights()
    start["classifier.out_proj.bias"].fill_(float("nan"))
    with pytest.raises(RunError, match=r"client 2 in round 1 must be finite.*train\.learning_rate below 0\.005"):
        baseline.train(2, start, 1)


def test_as_a_member_it_begins_anew_and_ends_with_the_codes_of_a_run(tiny_config, tmp_path, capsys, monkeypatch):
    def ended(settings, folder) -> int:
        monkeypatch.setattr("sys.argv", ["member", str(settings), str(folder), "full-fine-tuning"])
        try:
            member.main()
        except SystemExit as end:
            return int(end.code)
        return 0

    out = tmp_path / "out"
    assert ended(tiny_config, out) == 0
    first = without_wall(out)
    assert ended(tiny_config, out) == 0
    assert without_wall(out) == first
    lock = try_lock(out / ".lock")
    with lock:
        assert ended(tiny_config, out) == 2
    assert "must not be in use" in capsys.readouterr().err
    assert without_wall(out) == first
    assert ended("nonsense", tmp_path / "other") == 2

    def diverges(*_):
        raise RunError("diverged")

    monkeypatch.setattr("splitrank.studies.full_fine_tuning.run_round", diverges)
    assert ended(tiny_config, tmp_path / "third") == 1
    assert capsys.readouterr().err.endswith("Error: diverged\n")


def test_no_run_is_resumed_in_its_folder(tiny_config, tmp_path):
    """A run would put its own rounds in the place of the baseline's."""
    config = load_config(str(tiny_config), [FP32, "federation.rounds=1"])
    records = list(run_full_fine_tuning(config, tmp_path / "run"))
    with pytest.raises(InputError, match=r"--resume needs the folder of a run, got .* of full fine-tuning"):
        list(run(config, tmp_path / "run", resume=True))
    assert len(read_run(tmp_path / "run").records) == len(records)
