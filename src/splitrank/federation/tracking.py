"""A run's numbers in TensorBoard or MLflow as well. The run folder stays the record; neither is imported unasked."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from splitrank.config import flatten, read_toml
from splitrank.errors import InputError, RunError
from splitrank.federation.run_folder import read_records
from splitrank.files import write_atomically
from splitrank.records import RoundRecord, finite

Tracking = Literal["none", "tensorboard", "mlflow"]
Log = Callable[[RoundRecord], None]


def tracked(rounds: Generator[RoundRecord], tracking: Tracking, out: Path) -> Iterator[RoundRecord]:
    """Yield the records of a run, each once its numbers are in TensorBoard or MLflow, too.

    What is on record of earlier rounds of a resumed run is logged first where it is missing, and never doubled.
    Nothing is written before the first record.

    Args:
        rounds: the run.
        tracking: where to; with ``"none"`` the records pass as they are.
        out: the run folder; TensorBoard's files go to ``out/tensorboard``, MLflow's to ``out/mlflow`` unless
            MLflow's own setting (MLFLOW_TRACKING_URI) names another place.

    Raises:
        InputError: the package is not installed; before anything is done.
        RunError: MLflow takes no numbers; the run can be resumed.
    """
    if tracking == "none":
        yield from rounds
        return
    with _tensorboard(out) if tracking == "tensorboard" else _mlflow(out) as log, closing(rounds):
        is_first = True
        for record in rounds:
            for one in read_records(out) if is_first else [record]:
                log(one)
            is_first = False
            yield record


def scalars(record: RoundRecord) -> dict[str, float]:
    """Return the numbers of a round that are logged, without those that it has not, such as costs before training."""
    trained = record.trained
    numbers: dict[str, float | None] = {
        name: getattr(record, name)
        for name in ("rank", "accuracy", "loss", "macro_f1", "worst_client_accuracy", "factor_averaging_error")
    }
    if trained:
        latencies_s, energies_j = ([getattr(client, name) for client in trained] for name in ("latency_s", "energy_j"))
        numbers |= {
            "worst_latency_s": None if None in latencies_s else max(latencies_s),
            "total_energy_j": None if None in energies_j else sum(energies_j),
            "uplink_bits": sum(client.uplink_bits for client in trained),
            "downlink_bits": sum(client.downlink_bits for client in trained),
        }
    return {name: float(value) for name, value in finite(numbers).items() if value is not None}


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f'run.tracking = "{package}" needs the package {package}, which is not installed; '
            'run: pip install "splitrank[tracking]"'
        ) from None


@contextmanager
def _tensorboard(out: Path) -> Iterator[Log]:
    tensorboard = _imported("torch.utils.tensorboard", "tensorboard")
    writer = None
    with ExitStack() as held:

        def log(record: RoundRecord) -> None:
            nonlocal writer
            if writer is None:
                # What an interrupted run had logged is hidden: all of it is logged anew.
                writer = tensorboard.SummaryWriter(str(out / "tensorboard"), purge_step=record.round)
                held.callback(writer.close)
            for name, value in scalars(record).items():
                writer.add_scalar(name, value, record.round)
            writer.flush()

        yield log


@contextmanager
def _mlflow(out: Path) -> Iterator[Log]:
    mlflow = _imported("mlflow", "mlflow")
    run: _MlflowRun | None = None

    def log(record: RoundRecord) -> None:
        nonlocal run
        try:
            run = run or _MlflowRun(mlflow, out)
            run.log(record)
        except mlflow.MlflowException as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"MLflow must take the numbers of round {record.round}, got: {reason}; when that is mended, "
                f"go on with: splitrank run --resume --out {out}"
            ) from None

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    except (KeyboardInterrupt, GeneratorExit):
        status = "KILLED"
        raise
    finally:
        if run is not None:
            with suppress(mlflow.MlflowException):  # the numbers are there; why the run ended matters more
                run.client.set_terminated(run.run_id, status)


class _MlflowRun:
    """One run in MLflow, found again by the id that its folder keeps."""

    def __init__(self, mlflow: Any, out: Path) -> None:
        self._mlflow = mlflow
        folder = out.resolve() / "mlflow"
        folder.mkdir(exist_ok=True)
        is_elsewhere = mlflow.is_tracking_uri_set()
        self.client = mlflow.MlflowClient(None if is_elsewhere else f"sqlite:///{folder / 'mlflow.db'}")
        id_file = folder / "run_id"
        self.run_id = id_file.read_text().strip() if id_file.exists() else ""
        self._last_round = -1
        if not (self.run_id and self._resume()):
            artifacts = None if is_elsewhere else (folder / "artifacts").as_uri()
            self.run_id = self._start(out, artifacts)
            write_atomically(id_file, self.run_id + "\n")

    def log(self, record: RoundRecord) -> None:
        if record.round <= self._last_round:  # logged before an interruption; a resumed round has the same numbers
            return
        now_ms = int(time.time() * 1000)
        metrics = [
            self._mlflow.entities.Metric(name, value, now_ms, record.round) for name, value in scalars(record).items()
        ]
        self.client.log_batch(self.run_id, metrics=metrics)

    def _resume(self) -> bool:
        """Go on with the run of before; False if this MLflow does not know it."""
        try:
            self.client.update_run(self.run_id, status="RUNNING")
            history = self.client.get_metric_history(self.run_id, "accuracy")
        except self._mlflow.MlflowException:
            return False
        self._last_round = max((metric.step for metric in history), default=-1)
        return True

    def _start(self, out: Path, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "splitrank")
        if self.client.get_experiment_by_name(name) is None:
            with suppress(self._mlflow.MlflowException):  # another run was quicker
                self.client.create_experiment(name, artifact_location=artifacts)
        experiment = self.client.get_experiment_by_name(name)
        run_id: str = self.client.create_run(experiment.experiment_id, run_name=out.resolve().name).info.run_id
        settings = flatten(read_toml(out / "config.toml"))
        parameters = [self._mlflow.entities.Param(key, str(value)) for key, value in settings.items()]
        self.client.log_batch(run_id, params=parameters)
        return run_id
