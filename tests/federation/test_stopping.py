"""Promises of ``federation.patience``: a run that gains no more stops, says so, and goes on when it is asked to."""

from __future__ import annotations

import math

import pytest

from splitrank import load_config, run
from splitrank.config import to_toml
from splitrank.errors import ConfigError
from splitrank.federation.resume import resumed_config
from splitrank.federation.stopping import stop_reason
from splitrank.studies.execution import is_finished
from splitrank.studies.sweep import Trial
from tests.federation.test_run import adapter_bytes, run_all
from tests.records import equal_records

# Too small to change any prediction: the accuracy of round 0 stays the best.
STILL = ["train.learning_rate=1e-12", "federation.rounds=6"]
NAN = math.nan


@pytest.mark.parametrize(
    ("settings", "accuracies", "stops"),
    [
        ([], [0.5] * 100, False),
        (["federation.patience=2"], [0.5], False),
        (["federation.patience=2"], [0.5, 0.4], False),
        (["federation.patience=2"], [0.5, 0.4, 0.4], True),
        (["federation.patience=2"], [0.5, 0.4, 0.5], True),  # as good as the best has not risen above it
        (["federation.patience=2"], [0.5, 0.4, 0.6, 0.6], False),
        (["federation.patience=2"], [0.5, 0.4, 0.6, 0.6, 0.1], True),
        (["federation.patience=2"], [0.5, 0.6, 0.4, 0.5], True),  # better than the last, not than the best
        (["federation.patience=2"], [0.5, NAN, NAN, NAN, 0.4], False),  # nobody could tell whether it rose
        (["federation.patience=2"], [NAN, NAN, NAN, NAN], False),
        (["federation.patience=2"], [NAN, 0.5, NAN, 0.5, 0.5], True),
        (["federation.target_accuracy=0.6"], [0.5, 0.6], True),
        (["federation.target_accuracy=0.6"], [0.7, 0.5], False),
        (["federation.target_accuracy=0.6", "federation.patience=1"], [0.5, 0.5], True),
    ],
)
def test_when_a_run_stops(settings, accuracies, stops):
    assert (stop_reason(load_config("offline", settings), accuracies) is not None) is stops


def test_a_run_without_gain_stops_says_so_and_goes_on_when_asked(tiny_config, tmp_path, caplog):
    caplog.set_level("INFO", "splitrank")
    out = tmp_path / "run"
    records = run_all(tiny_config, out, *STILL, "federation.patience=2")
    assert [record.round for record in records] == [0, 1, 2]
    sentence = (
        f"The test accuracy has not risen above the {100 * records[0].accuracy:.1f} % of round 0 for "
        "federation.patience = 2 rounds; the run is finished, and its result is that of round 2. To go on, resume it "
        "with a larger federation.patience."
    )
    assert caplog.messages.count(sentence) == 1
    assert (out / "adapter").is_dir()
    trial = Trial("run", {}, load_config(str(out / "config.toml")))
    assert is_finished(trial, out)

    def resumed(*overrides: str) -> list[int]:
        config = resumed_config(out, None, list(overrides))
        return [record.round for record in run(config, out, resume=True)]

    assert resumed() == []
    assert caplog.messages.count(sentence) == 2
    assert resumed("federation.rounds=7") == []  # its patience is as it was
    with pytest.raises(ConfigError, match=r"federation\.patience must be the same or more .*: 2 in .*, got 1"):
        resumed("federation.patience=1")
    assert resumed("federation.patience=4") == [3, 4]
    # Left out, it has no end but the last round; the result is what a run without it leaves.
    text = (out / "config.toml").read_text()
    assert "patience = 4" in text
    endless = tmp_path / "endless.toml"
    endless.write_text(text.replace("patience = 4\n", ""))
    config = resumed_config(out, load_config(str(endless)), [])
    assert [record.round for record in run(config, out, resume=True)] == [5, 6, 7]
    run_all(tiny_config, tmp_path / "whole", *STILL, "federation.rounds=7")
    assert equal_records(out) == equal_records(tmp_path / "whole")
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")


def test_patience_counts_from_before_an_interruption(tiny_config, tmp_path):
    out = tmp_path / "run"
    running = run(load_config(str(tiny_config), [*STILL, "federation.patience=3"]), out)
    for _ in range(3):
        next(running)
    running.close()
    assert [record.round for record in run(resumed_config(out, None, []), out, resume=True)] == [3]


def test_a_run_cannot_be_made_impatient(tiny_config, tmp_path):
    run_all(tiny_config, tmp_path / "run", "federation.rounds=1")
    with pytest.raises(ConfigError, match=r"federation\.patience must be the same or more"):
        resumed_config(tmp_path / "run", None, ["federation.patience=3"])


def test_settings_at_their_default_but_for_the_rounds_go_on(tiny_config, tmp_path):
    """A table of which only the number of rounds was given is no other table when they are the default's."""
    run_all(tiny_config, tmp_path / "run", "federation.rounds=1")
    config = resumed_config(tmp_path / "run", None, ["federation.rounds=10"])
    assert "num_clients = 3" in to_toml(config)
    assert next(run(config, tmp_path / "run", resume=True)).round == 2


@pytest.mark.extras
@pytest.mark.parametrize("head", ["full", "local"])
def test_through_flower_too(head, tiny_config, tmp_path):
    """Where heads are local by the accuracy that the clients tell."""
    from tests.flower_in_process import flower

    settings = [*STILL, "federation.patience=2", f'model.head="{head}"', 'workload.model="flops"']
    with flower() as (connect, _):
        records = list(run(load_config(str(tiny_config), settings), tmp_path / "run", connect=connect))
        assert [record.round for record in records] == [0, 1, 2]
        config = resumed_config(tmp_path / "run", None, ["federation.patience=3"])
        more = list(run(config, tmp_path / "run", resume=True, connect=connect))
    assert [record.round for record in more] == [3]
