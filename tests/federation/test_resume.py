"""Promise: a run that was broken off, however, goes on to the same bits; what must not change is noticed."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from splitrank import RoundRecord, load_config, run
from splitrank.errors import ConfigError, InputError
from splitrank.federation.resume import resumed_config
from tests.federation.test_run import adapter_bytes, run_all
from tests.records import equal_records

RUN = "import sys; from splitrank.cli import app; sys.argv = ['splitrank', *sys.argv[1:]]; app()"


def start_run(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, "run", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Who starts the tests in the background has Ctrl-C ignored, and so would the run.
    return subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def go_on(out: Path) -> list[RoundRecord]:
    """Resume a run as its folder says."""
    return list(run(resumed_config(out, None, []), out, resume=True))


@pytest.mark.slow
@pytest.mark.parametrize(("attempt", "head"), [(0, "full"), (1, "local")])
def test_killed_and_resumed_equals_uninterrupted(attempt, head, tiny_config, tmp_path):
    """SIGKILL at a random moment after the first line appears, as often as it takes to finish."""
    settings = ["federation.rounds=8", f"model.head={head}", "train.dropout=0.1"]
    options = [word for setting in settings for word in ("--set", setting)]
    whole = tmp_path / "whole"
    run_all(tiny_config, whole, *settings)
    broken = tmp_path / "broken"
    draws = random.Random(attempt)
    starts = kills = 0
    while not (broken / "adapter").exists():
        resume = ["--resume"] if (broken / "config.toml").exists() else []
        process = start_run(*([] if resume else [tiny_config]), "--out", broken, *resume, *([] if resume else options))
        if starts < 2:
            process.stdout.readline()  # rounds are being done
            time.sleep(draws.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            starts += 1
        _, err = process.communicate()
        assert process.returncode in (0, -9), err
        kills += process.returncode == -9
    assert kills >= 1
    assert equal_records(broken) == equal_records(whole)
    files = ["adapter"] if head == "full" else [f"adapter/client-{i}" for i in range(3)]
    for file in files:
        path = Path(file) / "adapter_model.safetensors"
        assert (broken / path).read_bytes() == (whole / path).read_bytes()


def test_ctrl_c_leaves_a_resumable_folder(tiny_config, tmp_path):
    out = tmp_path / "run"
    process = start_run(tiny_config, "--out", out, "--set", "federation.rounds=500")
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert f"splitrank run --resume --out {out}" in errors
    assert "Traceback" not in errors
    config = resumed_config(out, None, [])
    done = len(equal_records(out)) - 1
    resumed = run(config, out, resume=True)
    assert next(resumed).round in (done, done + 1)
    resumed.close()


def interrupted(config_file: Path, out: Path, rounds: int = 3) -> None:
    running = run(load_config(str(config_file)), out)
    for _ in range(rounds):
        next(running)
    running.close()


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(tiny_config, tmp_path, caplog):
    whole, before = tmp_path / "whole", tmp_path / "before"
    run_all(tiny_config, whole)
    interrupted(tiny_config, before)
    damages = {
        "cut": lambda content: content[: len(content) // 2],
        "changed": lambda content: (
            content.replace(b'"scaling": 2.0', b'"scaling": 4.0')
            if content.startswith(b"{")
            else content[:-4] + b"\x01\x02\x03\x04"
        ),
        "gone": None,
    }
    for file, (name, damage) in product(("state.safetensors", "state.json"), damages.items()):
        out = tmp_path / f"{file}-{name}"
        shutil.copytree(before, out)
        newest = sorted((out / "checkpoint").iterdir())[-1] / file
        content = newest.read_bytes()
        newest.unlink()
        if damage is not None:
            assert damage(content) != content
            newest.write_bytes(damage(content))
        caplog.clear()
        go_on(out)
        assert str(newest) in caplog.text
        assert "falling back" in caplog.text
        assert equal_records(out) == equal_records(whole)
        assert adapter_bytes(out) == adapter_bytes(whole)


def test_no_whole_checkpoint_is_an_error_that_names_the_files(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    for file in (out / "checkpoint").glob("*/state.json"):
        file.write_text("{")
    before = (out / "rounds.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"round-000002/state\.json.*round-000001/state\.json"):
        go_on(out)
    assert (out / "rounds.jsonl").read_bytes() == before


def test_altered_records_are_noticed(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    path = out / "rounds.jsonl"
    path.write_text(path.read_text().replace('"round": 0', '"round": 7'))
    with pytest.raises(InputError, match=r"rounds\.jsonl is truncated or was changed"):
        go_on(out)


def test_only_more_may_change_on_resume(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    resumed = resumed_config
    assert resumed(out, None, ["federation.rounds=9"]).federation.rounds == 9
    assert resumed(out, load_config(str(tiny_config)), []).run.threads == 1
    for change in ("federation.rounds=2", "train.learning_rate=1e-3", "run.seed=1", "budget.energy_j=1"):
        key = change.split("=")[0]
        for asked in (resumed, lambda out, _, sets: resumed(out, load_config(str(tiny_config), sets), [])):
            with pytest.raises(ConfigError, match=rf"{key} must be the same"):
                asked(out, None, [change])


def test_changed_texts_are_noticed_on_resume(tiny_config, tiny_texts, tmp_path):
    texts = shutil.copytree(tiny_texts, tmp_path / "texts")
    config = load_config(str(tiny_config), [f"data.path={texts}"])
    running = run(config, tmp_path / "run")
    next(running)
    running.close()
    with (texts / "train.csv").open("a") as file:
        file.write("one more,class-1\n")
    with pytest.raises(InputError, match="texts must be those"):
        go_on(tmp_path / "run")


def test_altered_settings_are_noticed(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    path = out / "config.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.005", "learning_rate = 0.004"))
    with pytest.raises(InputError, match=r"config\.toml was changed"):
        go_on(out)


def test_a_linear_schedule_spans_its_rounds(tiny_config, tmp_path):
    out = tmp_path / "run"
    run_all(tiny_config, out, "train.schedule=linear", "federation.rounds=1")
    with pytest.raises(ConfigError, match=r"federation\.rounds must be the same, since a linear train\.schedule"):
        resumed_config(out, None, ["federation.rounds=2"])


def test_relative_paths_resume(tiny_config, tiny_texts, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.chdir(tiny_texts.parent)
    asked = load_config(str(tiny_config), [f"data.path={tiny_texts.name}"])
    running = run(asked, out)
    next(running)
    running.close()
    assert resumed_config(out, asked, []).data.path == str(tiny_texts)


def test_killed_before_the_settings_were_written_starts_anew(tiny_config, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    (out / ".lock").write_text("1")
    assert len(run_all(tiny_config, out, "federation.rounds=1")) == 2


def test_leftovers_of_killed_processes_go(tiny_config, tmp_path):
    out = tmp_path / "run"
    interrupted(tiny_config, out)
    (out / "checkpoint" / ".round-000003.abc").mkdir()
    (out / ".adapter.abc").mkdir()
    go_on(out)
    assert not list(out.glob(".adapter.*"))
    assert not list((out / "checkpoint").glob(".*"))


def test_nobody_at_first_then_somebody_and_resumed_in_between(tiny_config, tmp_path):
    """One client whose budget is met in some rounds only."""
    settings = ["budget.energy_j=0.1016", "adapter.dropout=0.2", "federation.rounds=8", "federation.num_clients=1"]
    whole = run_all(tiny_config, tmp_path / "whole", *settings)
    statuses = [record.status for record in whole[1:]]
    assert {"infeasible", "optimal"} <= set(statuses), statuses
    broken = tmp_path / "broken"
    config = load_config(str(tiny_config), settings)
    for index in range(1, 9):
        resume = index > 1
        running = run(resumed_config(broken, None, []) if resume else config, broken, resume=resume)
        for _ in range(1 if resume else 2):
            next(running)
        running.close()
    list(run(resumed_config(broken, None, []), broken, resume=True))
    assert equal_records(broken) == equal_records(tmp_path / "whole")


def test_recorded_rounds_without_checkpoints_are_not_thrown_away(tiny_config, tmp_path):
    run_all(tiny_config, tmp_path / "run", "federation.rounds=2")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    before = (tmp_path / "run" / "rounds.jsonl").read_bytes()
    with pytest.raises(InputError, match="must hold the checkpoints of the rounds"):
        go_on(tmp_path / "run")
    assert (tmp_path / "run" / "rounds.jsonl").read_bytes() == before
