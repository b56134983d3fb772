"""Promise: a run of splitrank 0.1.0 still opens in `report` and `predict`; resuming one is refused by name.

The folder in fixtures was written by 0.1.0 on the tests' tiny encoder and texts, two rounds, with a baseline beside it;
paths are filled in here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from splitrank import predict, run
from splitrank.errors import InputError
from splitrank.federation.resume import resumed_config
from splitrank.studies.report import write_report
from splitrank.studies.run_reader import read_run

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-0.1.0"


@pytest.fixture
def old(tmp_path, tiny_model, tiny_texts) -> Path:
    folder = tmp_path / "old"
    shutil.copytree(FIXTURE, folder)
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".toml", ".md"):
            text = file.read_text()
            paths = {"@MODEL@": tiny_model(), "@TEXTS@": tiny_texts, "@FOLDER@": folder}
            for placeholder, path in paths.items():
                text = text.replace(placeholder, str(path))
            file.write_text(text)
    return folder


def test_its_predictions_are_the_same(old):
    expected = [json.loads(line) for line in (old / "predictions.jsonl").read_text().splitlines()]
    found = list(predict(old / "run", [line["text"] for line in expected]))
    assert [prediction.label for prediction in found] == [line["label"] for line in expected]
    probabilities = [line["probability"] for line in expected]
    assert [prediction.probability for prediction in found] == pytest.approx(probabilities, abs=1e-6)


def test_its_report_is_drawn_with_its_baseline(old):
    runs = [read_run(old / "run"), read_run(old / "baseline")]
    write_report(runs, old / "report.html", "old")
    page = (old / "report.html").read_text()
    assert "full fine-tuning" in page
    assert runs[0].rounds["rank"].tolist() == [0, 4, 8]


def test_resuming_it_is_refused_by_name_and_loses_nothing(old):
    before = {file: file.read_bytes() for file in (old / "run").rglob("*") if file.is_file()}
    config = resumed_config(old / "run", None, ["federation.rounds=3"])
    with pytest.raises(InputError, match=r"got checkpoints of format 1 instead of 2; start a new run"):
        list(run(config, old / "run", resume=True))
    assert {file: file.read_bytes() for file in before} == before


def test_resuming_its_baseline_is_refused_by_name(old):
    config = resumed_config(old / "baseline", None, ["federation.rounds=3"])
    with pytest.raises(InputError, match=r"got .* of full fine-tuning by splitrank 0\.1\.0"):
        list(run(config, old / "baseline", resume=True))
