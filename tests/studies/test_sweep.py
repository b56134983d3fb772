"""Promise: a sweep runs what its file says, goes on where it stopped, and its lines are those of single runs."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from splitrank.config import load_config
from splitrank.errors import ConfigError, InputError, RunError
from splitrank.files import try_lock
from splitrank.studies import execution
from splitrank.studies.execution import Outcome, is_finished, pending_trials
from splitrank.studies.results import trial_line
from splitrank.studies.run_reader import read_run
from splitrank.studies.study import run_sweep
from splitrank.studies.sweep import Trial, read_sweep, trial_name
from splitrank.studies.trial import run_trial


def sweep_file(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def test_a_grid_is_every_combination_with_seeds_fastest(tmp_path):
    trials = read_sweep(
        sweep_file(
            tmp_path,
            """
            seeds = [3, 4]
            [set]
            federation.rounds = 2
            [grid]
            adapter.rank = [1, 2]
            train.learning_rate = [1e-4]
            """,
        )
    )
    assert [trial.name for trial in trials] == [
        f"rank={rank},learning_rate=0.0001,seed={seed}" for rank in (1, 2) for seed in (3, 4)
    ]
    assert [(trial.config.adapter.rank, trial.config.run.seed) for trial in trials] == [
        (1, 3), (1, 4), (2, 3), (2, 4)
    ]  # fmt: skip
    assert {trial.config.federation.rounds for trial in trials} == {2}


def test_a_list_is_one_trial_each_and_layers_replace_each_other(tmp_path):
    trials = read_sweep(
        sweep_file(
            tmp_path,
            """
            base = "edge"
            [set]
            data.path = "elsewhere"
            [[list]]
            adapter.rank = 4
            [[list]]
            client.max_frequency_hz = { uniform = [1e9, 2e9] }
            """,
        )
    )
    assert [trial.config.adapter.rank for trial in trials] == [4, None]
    assert Path(trials[0].config.data.path).is_absolute()
    assert trials[0].config.data.name is None
    assert len({trial.name for trial in trials}) == 2


def test_threads_do_not_depend_on_the_machine(tmp_path):
    (trial,) = read_sweep(sweep_file(tmp_path, "seeds = [0]"))
    assert trial.config.run.threads == 1
    (trial,) = read_sweep(sweep_file(tmp_path, "seeds = [0]\n[set]\nrun.threads = 2"))
    assert trial.config.run.threads == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must vary something"),
        ("[grid]", "must vary something"),
        ("seeds = []", "seeds .* must be a list of whole numbers"),
        ("seeds = 3", "seeds .* must be a list of whole numbers"),
        ("[grid]\nadapter.rank = []", "grid.adapter.rank .* at least one value"),
        ("[grid]\nadapter.rank = 4", "grid.adapter.rank .* at least one value"),
        ("[grid]\nadapter.rnk = [4]", "adapter.rnk must be a known key.*did you mean adapter.rank"),
        ("[grid]\nadaptor.rank = [4]", "known key|at least one value"),
        ("[grid]\nadapter.rank = [4, 4]", "must differ, got rank=4 twice"),
        ("[grid]\nadapter.rank = [0]", "adapter.rank must be a whole number"),
        ("[grid]\nadapter.rank = [1]\n[[list]]\nadapter.rank = 2", "got both"),
        ("[grid]\nadapter.rank = [1]\nfoo = 1\n[bar]\nx = 1", "must hold base, seeds|known key|at least one value"),
        ("seeds = [0]\n[set]\nrun.seed = 3", "run.seed must be either varied or the same for all, got both"),
        ("[set]\nadapter.rank = 3\n[grid]\nadapter.rank = [1]", "adapter.rank must be either varied or the same"),
        ("seeds = [0]\n[grid]\nrun.seed = [3]", "must vary run.seed once"),
        ("rank = [1]", "must hold base, seeds, .* got rank"),
        ("base = 3\nseeds = [0]", "base in .* must be a preset or a TOML file, got 3"),
        ('base = "ofline"\nseeds = [0]', "did you mean offline"),
        ("set = 3\nseeds = [0]", "set in .* must be a table"),
        ("seeds = [0", "syntax error"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        read_sweep(sweep_file(tmp_path, text))


def test_a_rule_that_every_trial_breaks_is_told_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        read_sweep(sweep_file(tmp_path, "seeds = [0, 1, 2]\n[set]\nfederation.rounds = 0"))
    assert len(error.value.problems) == 1


def test_names_can_be_folders():
    assert trial_name({"model.trained_layers": [1, 2], "data.path": "a/b c"}).startswith("trained_layers=_1,2_")
    assert "/" not in trial_name({"data.path": "a/b"})
    assert trial_name({"data.path": "a/b"}) != trial_name({"data.path": "a_b"})
    assert len(trial_name({"data.text": ["x" * 500]})) < 200
    assert trial_name({"client.samples": 1, "data.samples": 2}) == "client.samples=1,data.samples=2"


def lines_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_sweep_runs_goes_on_and_repeats(tiny_sweep, tmp_path):
    """Two jobs and one give the same table, a trial run alone its line, and what is finished is not run again."""
    trials = read_sweep(tiny_sweep)
    two, one = tmp_path / "two", tmp_path / "one"
    said = list(run_sweep(trials, two, "tiny", jobs=2, ray_address=None))
    assert len(said) == 2
    assert (two / "report.html").is_file()
    assert [line["member"] for line in lines_of(two)] == [trial.name for trial in trials]
    assert pd.read_parquet(two / "results.parquet")["accuracy"].tolist() == [
        float(line["accuracy"]) for line in lines_of(two)
    ]

    # broken off in mid-sweep: one trial not begun, one with a round missing
    shutil.copytree(two, one)
    shutil.rmtree(one / "members" / trials[0].name)
    broken = one / "members" / trials[1].name
    shutil.rmtree(broken / "adapter")
    shutil.rmtree(broken / "checkpoint" / "round-000002")
    assert pending_trials(trials, one / "members") == trials
    assert len(list(run_sweep(trials, one, "tiny", jobs=1, ray_address=None))) == 2
    assert (one / "results.csv").read_bytes() == (two / "results.csv").read_bytes()
    assert list(run_sweep(trials, one, "tiny", jobs=1, ray_address=None)) == []

    alone = tmp_path / "alone"
    run_trial(two / "members" / f"{trials[1].name}.toml", alone)
    again = trial_line(trials[1], read_run(alone))
    assert {key: str(value) for key, value in again.items()} == lines_of(two)[1]


@pytest.mark.slow
def test_a_trial_that_fails_stops_no_other(tiny_sweep, tmp_path):
    """Exit code 1 and the list at the end; the same command later runs the failed one alone."""
    trials = read_sweep(tiny_sweep)
    out = tmp_path / "out"
    (out / "members").mkdir(parents=True)
    (out / "members" / trials[0].name).write_text("a file where the run folder should be")
    command = [sys.executable, "-m", "splitrank", "sweep", str(tiny_sweep), "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Error: 1 of 2 trials failed" in ended.stderr
    assert f"Error: {trials[0].name}: " in ended.stderr
    assert ended.stdout.count("%") == 1
    assert [line["member"] for line in lines_of(out)] == [trials[1].name]
    assert is_finished(trials[1], out / "members" / trials[1].name)
    (out / "members" / trials[0].name).unlink()
    assert len(list(run_sweep(trials, out, "tiny", jobs=2, ray_address=None))) == 1
    assert len(lines_of(out)) == 2


def failing(codes: dict[str, list[int]], started: list[str]) -> Callable[..., Outcome]:
    """A stand-in for a trial's process that ends with the codes listed for it, one after the other."""

    def run(trial: Trial, folder: Path, processes: list) -> Outcome:
        started.append(trial.name)
        code = codes.get(trial.name, [0]).pop(0)
        return Outcome(trial, code, 0.0, "said")

    return run


def test_a_crash_is_tried_again_alone_and_bad_input_is_not(tiny_sweep, tmp_path, monkeypatch):
    trials = read_sweep(tiny_sweep)
    started: list[str] = []
    first, second = (trial.name for trial in trials)
    codes = {first: [-9, 0], second: [2]}
    monkeypatch.setattr(execution, "_run_here", failing(codes, started))
    ended = {o.trial.name: o.exit_code for o in execution.run_trials(trials, tmp_path, 2, None)}
    assert ended == {first: 0, second: 2}
    assert sorted(started) == sorted([first, first, second])
    assert started[-1] == first


def test_a_folder_of_another_sweep_is_refused(tiny_sweep, tmp_path):
    trials = read_sweep(tiny_sweep)
    pending_trials(trials, tmp_path / "members")
    tiny_sweep.write_text(tiny_sweep.read_text().replace("rounds = 2", "rounds = 3"))
    with pytest.raises(InputError, match=r"--out must be a folder of this very sweep.*other settings"):
        pending_trials(read_sweep(tiny_sweep), tmp_path / "members")


def test_trials_can_be_run_by_hand(tiny_sweep, tmp_path):
    trials = read_sweep(tiny_sweep)
    pending_trials(trials, tmp_path / "members")
    for trial in trials:
        assert load_config(str(tmp_path / "members" / f"{trial.name}.toml")) == trial.config


def finished_folder(trials: list[Trial], out: Path) -> Path:
    """Run folders as trials leave them, run in this process."""
    pending_trials(trials, out / "members")
    for trial in trials:
        run_trial(out / "members" / f"{trial.name}.toml", out / "members" / trial.name)
    return out


def test_what_is_not_this_sweeps_is_never_taken_for_finished(tiny_sweep, tmp_path):
    trials = read_sweep(tiny_sweep)
    out = finished_folder(trials, tmp_path / "out")
    folder = out / "members"
    assert pending_trials(trials, folder) == []

    rounds = folder / trials[0].name / "rounds.jsonl"
    whole = rounds.read_text()
    for damaged in ("\n".join(whole.splitlines()[1:]) + "\n", whole + whole.splitlines()[-1] + "\n",
                    whole.replace('"macro_f1"', '"macro"')):  # fmt: skip
        rounds.write_text(damaged)
        assert pending_trials(trials, folder) == [trials[0]]
    rounds.write_text(whole)

    # the same rows of the same place, as two ranks of one seed read them
    manifest = folder / trials[0].name / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(RunError, match="The texts must be the same for all trials, but they changed between"):
        list(run_sweep(trials, out, "tiny", jobs=1, ray_address=None))

    config = folder / trials[0].name / "config.toml"
    config.write_text(config.read_text().replace("learning_rate = ", "learning_rate = 1"))
    with pytest.raises(InputError, match=r"must hold a run with the trial's settings: train.learning_rate"):
        pending_trials(trials, folder)


def test_folders_of_something_else_are_refused(tiny_sweep, tmp_path):
    trials = read_sweep(tiny_sweep)
    pending_trials(trials, tmp_path / "out" / "members")
    with pytest.raises(InputError, match="which it does not name"):
        pending_trials(read_sweep(sweep_file(tmp_path, "seeds = [7]")), tmp_path / "out" / "members")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    with pytest.raises(InputError, match="which is one run"):
        pending_trials(trials, tmp_path / "run" / "members")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file is in the way"):
        pending_trials(trials, tmp_path / "file" / "members")


def test_two_sweeps_do_not_share_a_folder(tiny_sweep, tmp_path):
    trials = read_sweep(tiny_sweep)
    pending_trials(trials, tmp_path / "members")
    lock = try_lock(tmp_path / ".lock")
    with lock, pytest.raises(InputError, match="another process runs trials in it"):
        list(run_sweep(trials, tmp_path, "tiny", jobs=1, ray_address=None))


def test_too_many_trials_are_refused_before_they_are_made(tmp_path):
    values = list(range(1, 1001))
    with pytest.raises(InputError, match="at most 10,000 combinations"):
        read_sweep(sweep_file(tmp_path, f"[grid]\nadapter.rank = {values}\nclient.samples = {values}"))
