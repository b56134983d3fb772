"""Promises of a report of many runs or clients: means with their range, names that tell apart, what is refused."""

from __future__ import annotations

import json

import pytest

from splitrank.errors import InputError
from splitrank.studies.report import check_same_experiment, read_runs, write_report
from splitrank.studies.run_reader import read_run
from tests.studies.written_runs import (
    Elements,
    all_traces,
    chart_data,
    make_run,
    records,
    report_of,
    round_record,
)

pytestmark = pytest.mark.usefixtures("small_pages")


def test_runs_that_differ_in_the_seed_are_a_mean_with_its_range(tmp_path):
    folders = []
    for rank in (2, 4):
        for seed in range(3):
            lines = records(2 + seed)
            for line in lines:
                line["accuracy"] = 0.1 * seed + 0.01 * line["round"] + 0.001 * rank
            name = tmp_path / f"rank={rank},seed={seed}"
            folders.append(make_run(name, lines, f"adapter.rank={rank}", f"run.seed={seed}"))
    page = report_of(tmp_path, *folders)
    two, four = chart_data(page)["accuracy"]
    assert two["name"] == "rank=2 (3 runs)"
    assert two["x"] == [0, 1, 2, 3, 4]
    assert two["y"] == pytest.approx([0.102, 0.112, 0.122, 0.182, 0.242])
    assert four["y"][0] == pytest.approx(0.104)
    row = Elements(page).table("Accuracy")[2]
    assert json.loads(row["rank=2 (3 runs): lowest"][1]) == pytest.approx(0.022)
    assert json.loads(row["rank=2 (3 runs): highest"][1]) == pytest.approx(0.222)
    assert "band from the lowest to the highest" in page
    assert len(Elements(page).table("Every run by itself")) == 6
    (band, _) = [trace for trace in all_traces(page, "accuracy") if trace.get("fill") == "toself"]
    assert band["y"][2] == pytest.approx(0.022)
    assert band["y"][-4] == pytest.approx(0.222)


def test_a_group_is_named_by_what_sets_it_apart(tmp_path):
    """And by no setting that only follows from another one, such as the range of random draws."""
    folders = [
        make_run(tmp_path / f"{method}-{energy}-{seed}", records(1), f"planner.method={method}",
                 f"budget.energy_j={energy}", f"run.seed={seed}")
        for method in ("exact", "random-frequency") for energy in (4, 8) for seed in (0, 1)
    ]  # fmt: skip
    names = [trace["name"] for trace in chart_data(report_of(tmp_path, *folders))["rank"]]
    assert names == [
        "energy_j=4,method=exact (2 runs)",
        "energy_j=8,method=exact (2 runs)",
        "energy_j=4,method=random-frequency (2 runs)",
        "energy_j=8,method=random-frequency (2 runs)",
    ]


def test_groups_of_planned_and_fixed_rank_are_told_apart(tmp_path):
    folders = [
        make_run(tmp_path / f"{number}-{seed}", records(1), *overrides, f"run.seed={seed}")
        for number, overrides in enumerate(([], ["adapter.rank=4"]))
        for seed in (0, 1)
    ]
    names = [trace["name"] for trace in chart_data(report_of(tmp_path, *folders))["rank"]]
    assert names == ["max_rank=128 (2 runs)", "rank=4 (2 runs)"]
    only = [trace["name"] for trace in chart_data(report_of(tmp_path, *folders[:2]))["rank"]]
    assert only == ["all (2 runs)"]


def test_a_baseline_is_not_averaged_with_the_run_of_the_same_settings(tmp_path):
    lora = make_run(tmp_path / "lora", records(2))
    lines = records(2)
    for line in lines[1:]:
        for client in line["clients"]:
            for key in ("latency_s", "energy_j", "binding", "energy_budget_j"):
                del client[key]
    full = make_run(tmp_path / "full", lines, "run.seed=1", manifest={"baseline": "full fine-tuning"})
    page = report_of(tmp_path, lora, full)
    assert [trace["name"] for trace in chart_data(page)["accuracy"]] == ["lora", "full"]
    rows = Elements(page).table("What was reached")
    assert [row["baseline"][0] for row in rows] == ["–", "full fine-tuning"]
    assert rows[1]["energy of all clients"] == ("–", None)


def test_many_clients_are_a_mean_with_its_range(tmp_path):
    lines = records(2, num_clients=50)
    page = report_of(tmp_path, make_run(tmp_path / "a", lines, "federation.num_clients=50"))
    band, mean, budget = all_traces(page, "latency")
    times = [client["latency_s"] for client in lines[1]["clients"]]
    assert mean["y"][1] == pytest.approx(sum(times) / 50)
    assert {min(times), max(times)} <= set(band["y"])
    assert budget["name"] == "budget"


def test_more_runs_than_colours(tmp_path):
    folders = [make_run(tmp_path / f"r{n}", records(1), f"train.learning_rate={n}e-4") for n in range(1, 13)]
    traces = chart_data(report_of(tmp_path, *folders))["accuracy"]
    looks = [(trace["line"]["color"], trace["marker"]["symbol"]) for trace in traces]
    assert len(set(looks)) == 12


def test_a_sweep_stands_for_its_runs_in_natural_order(tmp_path):
    for rank in (16, 4, 1):
        make_run(tmp_path / "sweep" / "members" / f"rank={rank}", records(1), f"adapter.rank={rank}")
    (tmp_path / "sweep" / "members" / "rank=1.log").write_text("noise")
    (tmp_path / "sweep" / "members" / ".hidden").mkdir()
    runs, unreadable = read_runs([tmp_path / "sweep"])
    assert [run.name for run in runs] == ["rank=1", "rank=4", "rank=16"]
    assert unreadable == []


def test_what_cannot_be_read_is_named_and_the_rest_drawn(tmp_path):
    good = make_run(tmp_path / "good", records(1))
    torn = make_run(tmp_path / "torn", records(1))
    (torn / "rounds.jsonl").write_text('{"round": 0, "acc')
    odd = make_run(tmp_path / "odd", [round_record(0, []) | {"round": "first"}])
    bad = make_run(tmp_path / "bad", records(1))
    (bad / "config.toml").write_text("[federation]\nrounds = -1\nnum_clients = 0\n")
    runs, unreadable = read_runs([good, tmp_path / "missing", torn, odd, bad, good])
    assert [run.name for run in runs] == ["good"]
    assert len(unreadable) == 4
    for folder, sentence in zip(("missing", "torn", "odd", "bad"), unreadable, strict=True):
        assert folder in sentence
        assert "\n" not in sentence


def test_runs_of_one_name_keep_apart(tmp_path):
    page = report_of(
        tmp_path,
        make_run(tmp_path / "a" / "run", records(1)),
        make_run(tmp_path / "b" / "run", records(1), "adapter.rank=4"),
        make_run(tmp_path / "b" / "a" / "run", records(1), "adapter.rank=8"),
        make_run(tmp_path / "b" / "other", records(1), "adapter.rank=2"),
    )
    assert [trace["name"] for trace in chart_data(page)["rank"]] == ["a/run", "b/run", "b/a/run", "other"]


def test_other_data_or_classes_are_refused(tmp_path):
    one = make_run(tmp_path / "one", records(1))
    other = make_run(tmp_path / "other", records(1), source="news")
    classes = make_run(tmp_path / "classes", records(1), labels=["good", "so-so", "bad"])
    with pytest.raises(InputError, match=r"same data, got reviews of 2026 in .*one but news in .*other"):
        check_same_experiment(read_runs([one, other])[0])
    with pytest.raises(InputError, match=r'same classes, .*"so-so".* in .*classes'):
        check_same_experiment(read_runs([one, classes])[0])
    check_same_experiment(read_runs([one])[0])


def test_other_rows_of_the_same_texts_are_the_same_experiment(tmp_path):
    """A sweep over seeds draws other rows; they may be laid over each other, and the page names no seed."""
    drawn = [
        make_run(tmp_path / f"seed-{seed}", records(1), source=f"news of 2026; 100 of 900 training rows by seed {seed}")
        for seed in (0, 1)
    ]
    assert "Data: news of 2026; 2 classes" in report_of(tmp_path, *drawn)


def test_nothing_to_report_and_a_folder_in_the_way(tmp_path):
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "out.html", "Report")
    runs, _ = read_runs([make_run(tmp_path / "a", records(1))])
    with pytest.raises(InputError, match=r"must be a file, got the folder .* try .*report\.html"):
        write_report(runs, tmp_path / "a", "Report")


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    runs, _ = read_runs([make_run(tmp_path / "a", records(1))])
    out = tmp_path / "new" / "report.html"
    write_report(runs, out, "Report")
    before = out.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(runs, out, "Another")
    assert out.read_bytes() == before
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_members_that_have_not_begun_are_left_out_and_said(tmp_path, caplog):
    caplog.set_level("INFO", "splitrank")
    make_run(tmp_path / "sweep" / "members" / "begun", records(1))
    (tmp_path / "sweep" / "members" / "waiting").mkdir()
    runs, unreadable = read_runs([tmp_path / "sweep"])
    assert [run.name for run in runs] == ["begun"]
    assert unreadable == []
    assert "waiting has no round yet" in caplog.text


def test_a_run_is_read_into_frames_with_gaps_for_what_is_no_number(tmp_path):
    lines = records(2)
    lines[1]["clients"][0].update(energy_j=True, latency_s="10", binding=3, client=None)
    lines[1]["clients"].append("nobody")
    lines[2]["clients"][1]["missed"] = "a line separator \u2028 in a reason"
    lines[2]["diagnostics"] = {"truncation_error": 0.25}
    run = read_run(make_run(tmp_path / "a", lines))
    assert run.rounds["loss"].tolist() == [line["loss"] for line in lines]
    assert run.rounds["truncation_error"].fillna(-1).tolist() == [-1, -1, 0.25]
    assert run.clients.index.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    first = run.clients.loc[1].iloc[0]
    assert first[["energy_j", "latency_s", "binding"]].isna().all()
    assert first["client"] == -1
    assert run.clients.loc[2, "energy_j"].tolist() == [entry["energy_j"] for entry in lines[2]["clients"]]
    assert run.clients.dtypes[["client", "dropped", "energy_j"]].tolist() == [int, bool, float]
