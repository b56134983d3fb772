"""A run whose clients share one band by need: records tell each one's sub-band, and a resumed run has the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitrank import load_config, run
from splitrank.config import Config
from splitrank.errors import ConfigError
from splitrank.federation.plan_report import plan_lines, plan_report

TOTAL_HZ = 3e5
BAND = [f"radio.total_bandwidth_hz={TOTAL_HZ}", "planner.bandwidth=joint"]


def config_of(tiny_config: Path, *more: str) -> Config:
    return load_config(str(tiny_config), [*BAND, "federation.rounds=2", *more])


def test_records_tell_each_clients_sub_band(tiny_config: Path, tmp_path: Path) -> None:
    records = list(run(config_of(tiny_config), tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    for record, line in zip(records[1:], lines[1:], strict=True):
        assert len(record.trained) > 1
        assert all(list(client)[-1] == "bandwidth_hz" for client in line["clients"] if client["rank"])
        bands_hz = [client["bandwidth_hz"] for client in line["clients"] if client["rank"]]
        assert sum(bands_hz) == pytest.approx(TOTAL_HZ)
        assert len(set(bands_hz)) > 1
        for client in record.trained:
            sent_s = client.uplink_bits / client.uplink_bps
            assert client.uplink_s == pytest.approx(sent_s)
    again = list(run(config_of(tiny_config), tmp_path / "again"))
    assert [[client.bandwidth_hz for client in one.planned] for one in again] == [
        [client.bandwidth_hz for client in one.planned] for one in records
    ]


def test_without_it_records_are_what_they_were(tiny_config: Path, tmp_path: Path) -> None:
    equal = load_config(str(tiny_config), [BAND[0], "federation.rounds=1"])
    list(run(equal, tmp_path / "run"))
    assert "bandwidth_hz" not in (tmp_path / "run" / "rounds.jsonl").read_text()


def test_the_table_has_a_column_for_it() -> None:
    config = load_config("edge", ["radio.total_bandwidth_hz=1.08e6", "planner.bandwidth=joint"])
    report = plan_report(config, 1)
    bands_hz = [client["bandwidth_hz"] for client in report["clients"]]
    assert all(list(client)[-1] == "bandwidth_hz" for client in report["clients"])
    header, *rows = [line for line in plan_lines(report) if line.startswith("   ")][:4]
    assert header.split()[-3:] == ["kHz", "limited", "by"]
    assert [row.split()[-2] for row in rows] == [f"{hz / 1e3:,.1f}" for hz in bands_hz]
    assert sum(bands_hz) == pytest.approx(1.08e6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (BAND[1:], "planner.bandwidth must have an effect .* it is read where radio.total_bandwidth_hz is given"),
        ([*BAND, "planner.method=random-frequency"], 'it is read where planner.method is not "random-frequency"'),
        ([*BAND, "planner.where=client"], 'planner.where must be "server" for planner.bandwidth = "joint"'),
        ([*BAND, "workload.model=measured"], 'planner.bandwidth must be "equal" where machines and links are measured'),
    ],
)
def test_what_it_does_not_go_with(settings: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config("edge", settings)
