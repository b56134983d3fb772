"""Promises of run.tracking: the same numbers as the records, each round once, and nothing else about a run changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from splitrank import Config, load_config, run
from splitrank.errors import InputError, RunError
from splitrank.federation.resume import resumed_config
from splitrank.federation.run_folder import read_records
from splitrank.federation.tracking import scalars, tracked
from splitrank.records import ClientRecord, PreparationRecord, RoundRecord
from tests.records import equal_records

# Read once when MLflow is imported: no test may try the network.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

# SQLAlchemy 2.1 on MLflow 3.17: theirs to mend.
of_mlflow = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")


def run_all(config_file: Path, out: Path, *overrides: str) -> list[RoundRecord]:
    return list(rounds_of(load_config(str(config_file), overrides), out))


def rounds_of(config: Config, out: Path, *, resume: bool = False) -> Iterator[RoundRecord]:
    return tracked(run(config, out, resume=resume), config.run.tracking, out)


def in_tensorboard(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Every value that TensorBoard would show, by tag and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    values: dict[tuple[str, int], list[float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            values.setdefault((tag, event.step), []).append(event.value)
    return values


def expected(folder: Path, precision: type = float) -> dict[tuple[str, int], list[float]]:
    return {
        (name, record.round): [float(precision(value))]
        for record in read_records(folder)
        for name, value in scalars(record).items()
    }


def mlflow_runs(uri: str) -> list:
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("splitrank")
    return client.search_runs([experiment.experiment_id]) if experiment else []


def in_mlflow(uri: str, run_id: str) -> dict[tuple[str, int], list[float]]:
    """Every value that MLflow keeps of a run, by metric and step."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    values: dict[tuple[str, int], list[float]] = {}
    for name in client.get_run(run_id).data.metrics:
        for metric in client.get_metric_history(run_id, name):
            values.setdefault((name, metric.step), []).append(metric.value)
    return values


def test_scalars_of_a_round():
    plan = dict.fromkeys(("frequency_hz", "uplink_bps", "downlink_bps", "compute_s", "uplink_s", "downlink_s"), 1.0)
    client = ClientRecord(
        **plan,
        **{"client": 0, "rank": 8, "max_rank": 9, "frequency_range_hz": [1.0, 1.0], "binding": "energy"},
        **{"latency_s": 2.0, "energy_j": 3.0, "uplink_bits": 5.0, "downlink_bits": 7.0, "train_loss": 1.0},
        **{"samples": 4, "energy_budget_j": None, "dropped": False},
    )
    slow = replace(client, latency_s=4.0)
    absent = replace(client, dropped=True, latency_s=None, energy_j=None)
    record = RoundRecord(3, "optimal", 8, 0.5, 1.25, 0.25, 0.125, 1e-3, [client, slow, absent])
    assert scalars(record) == {
        "rank": 8,
        "accuracy": 0.5,
        "loss": 1.25,
        "macro_f1": 0.25,
        "worst_client_accuracy": 0.125,
        "factor_averaging_error": 1e-3,
        "worst_latency_s": 4.0,
        "total_energy_j": 6.0,
        "uplink_bits": 10.0,
        "downlink_bits": 14.0,
    }
    before_training = RoundRecord(0, None, 0, 0.5, float("nan"), 0.25, 0.125, None, [PreparationRecord(0, 4, 1.0)])
    assert set(scalars(before_training)) == {"rank", "accuracy", "macro_f1", "worst_client_accuracy"}


@pytest.mark.extras
def test_tensorboard_shows_the_records(tiny_config, tmp_path):
    run_all(tiny_config, tmp_path / "tracked", 'run.tracking="tensorboard"')
    shown = in_tensorboard(tmp_path / "tracked")
    assert shown == expected(tmp_path / "tracked", np.float32)  # what TensorBoard keeps
    assert shown["worst_latency_s", 1][0] > 0

    run_all(tiny_config, tmp_path / "plain")
    assert equal_records(tmp_path / "tracked") == equal_records(tmp_path / "plain")
    assert {path.name for path in (tmp_path / "tracked").iterdir()} == {
        *(path.name for path in (tmp_path / "plain").iterdir()),
        "tensorboard",
    }


@pytest.mark.extras
def test_a_resumed_run_shows_every_round_once(tiny_config, tmp_path):
    out = tmp_path / "run"
    config = load_config(str(tiny_config), ["run.tracking=tensorboard"])
    rounds = rounds_of(config, out)
    for _ in range(3):  # rounds 0 to 2
        next(rounds)
    rounds.close()
    # As after a crash between logging a round and its checkpoint: round 2 is done, and logged, again.
    shutil.rmtree(sorted((out / "checkpoint").iterdir())[-1])
    config = resumed_config(out, None, ["federation.rounds=5"])
    assert [record.round for record in rounds_of(config, out, resume=True)] == [2, 3, 4, 5]
    assert in_tensorboard(out) == expected(out, np.float32)
    assert len(read_records(out)) == 6


@pytest.mark.extras
@of_mlflow
def test_mlflow_keeps_the_records_in_the_run_folder(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "run"
    config = load_config(str(tiny_config), ["run.tracking=mlflow"])
    rounds = rounds_of(config, out)
    for _ in range(3):  # rounds 0 to 2
        next(rounds)
    rounds.close()
    uri = f"sqlite:///{out / 'mlflow' / 'mlflow.db'}"
    [tracked_run] = mlflow_runs(uri)
    assert tracked_run.info.status == "KILLED"
    # As after a crash between logging a round and its checkpoint.
    shutil.rmtree(sorted((out / "checkpoint").iterdir())[-1])
    assert [record.round for record in rounds_of(config, out, resume=True)] == [2, 3, 4]

    [tracked_run] = mlflow_runs(uri)
    assert tracked_run.info.status == "FINISHED"
    assert tracked_run.info.run_name == "run"
    assert in_mlflow(uri, tracked_run.info.run_id) == expected(out)
    parameters = tracked_run.data.params
    assert parameters["federation.rounds"] == "4"
    assert parameters["client.max_frequency_hz"] == "{'uniform': [100000000.0, 200000000.0]}"
    assert not (tmp_path / "mlruns").exists()
    assert not (tmp_path / "mlflow.db").exists()

    run_all(tiny_config, tmp_path / "plain")
    assert equal_records(out) == equal_records(tmp_path / "plain")


@pytest.mark.extras
@of_mlflow
def test_mlflow_goes_where_its_environment_says(tiny_config, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        run_all(tiny_config, tmp_path / name, "run.tracking=mlflow", "federation.rounds=1")
    runs = {tracked_run.info.run_name: tracked_run.info.run_id for tracked_run in mlflow_runs(uri)}
    assert set(runs) == {"first", "second"}
    assert in_mlflow(uri, runs["second"]) == expected(tmp_path / "second")
    assert [path.name for path in (tmp_path / "second" / "mlflow").iterdir()] == ["run_id"]


@pytest.mark.extras
@of_mlflow
def test_an_mlflow_that_refuses_leaves_a_run_that_resumes(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-store://somewhere")
    with pytest.raises(RunError, match=r"MLflow must take the numbers of round 0.*--resume"):
        run_all(tiny_config, tmp_path / "run", "run.tracking=mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    config = resumed_config(tmp_path / "run", None, [])
    assert [record.round for record in rounds_of(config, tmp_path / "run", resume=True)] == [1, 2, 3, 4]
    uri = f"sqlite:///{tmp_path / 'run' / 'mlflow' / 'mlflow.db'}"
    [tracked_run] = mlflow_runs(uri)
    assert in_mlflow(uri, tracked_run.info.run_id) == expected(tmp_path / "run")  # round 0 was made up for


@pytest.mark.parametrize(("tracking", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_package_is_named_before_anything_is_done(tracking, module, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'run.tracking = "{tracking}".*pip install "splitrank\[tracking\]"'):
        run_all(tiny_config, tmp_path / "run", f"run.tracking={tracking}")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "xdg-cache").exists()


@pytest.mark.extras
def test_nothing_is_written_before_the_first_record(tmp_path):
    assert list(tracked((record for record in ()), "tensorboard", tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracking_is_refused(tiny_config):
    with pytest.raises(InputError, match=r"run\.tracking must be one of"):
        load_config(str(tiny_config), ["run.tracking=wandb"])


def test_tracking_stays_as_it_was_when_a_run_is_resumed(tiny_config, tmp_path):
    run_all(tiny_config, tmp_path / "run", "federation.rounds=1")
    with pytest.raises(InputError, match=r"run.tracking must be the same"):
        resumed_config(tmp_path / "run", None, ["run.tracking=tensorboard"])


def test_a_run_without_tracking_imports_neither(tiny_config, tmp_path):
    code = f"""
import sys
sys.argv = ["splitrank", "run", {str(tiny_config)!r}, "--out", {str(tmp_path / "run")!r}]
from splitrank.cli import app
try:
    app()
except SystemExit as end:
    assert not end.code
print("LOADED:", *sorted({{"tensorboard", "mlflow"}} & set(sys.modules)))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1].split() == ["LOADED:"]
