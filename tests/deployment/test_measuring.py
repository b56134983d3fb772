"""Promise: a client's machine and link are measured, and what cannot be measured is said rather than guessed."""

from __future__ import annotations

import numpy as np
import pytest

from splitrank import load_config, load_data, make_clients
from splitrank.federation.flower import machine
from splitrank.federation.flower.links import Link, measured_link, noise, probes
from splitrank.federation.flower.post import Reply

pytestmark = pytest.mark.extras


def replies(*after_s: float) -> list[Reply]:
    return [Reply({"kind": "echo"}, noise(0), seconds) for seconds in after_s]


def test_a_link_from_probes():
    # 0.5 s for a short message; 2 s and 8 s more for a million numbers of 32 bits.
    link, is_enough = measured_link(replies(3.0, 3.5, 6.0, 14.5), 1_000_000)
    assert (link.short_s, link.downlink_bps, link.uplink_bps) == (0.5, 16e6, 4e6)
    assert not is_enough
    assert measured_link(replies(3.0, 3.5, 8.0, 16.5), 1_000_000)[1]


def test_a_link_too_quick_to_measure_is_no_hindrance():
    link, is_enough = measured_link(replies(3.0, 4.0, 4.5, 5.0), 1000)
    assert not is_enough
    assert link.uplink_bps == link.downlink_bps == pytest.approx(3.2e7)


def test_two_measurements_agree_within_a_factor_of_two():
    link = Link(2e6, 3e6, 0.5)
    assert link.agrees_with(Link(1.1e6, 5.9e6, 9.0))
    assert not link.agrees_with(Link(1e5, 3e6, 0.5))
    assert not link.agrees_with(Link(2e6, 1e10, 0.5))


def test_probes_are_alike_to_nothing():
    (_, _, (_, down), (up, _)) = probes(1000)
    assert up["length"] == len(down) == 1000
    assert not np.array_equal(down, probes(1000)[2][1])


def test_the_estimate_runs():
    link = Link(uplink_bps=1e6, downlink_bps=2e6, short_s=1.0)
    before_s = link.overhead_s
    for _ in range(5):
        link.took(latency_s=20.0, uplink_bits=4e6, downlink_bits=4e6, compute_s=8.0)  # 4 + 2 + 8, and 6 beside
    assert link.overhead_s == 6.0 != before_s
    for latency_s in (24.0, 24.0, 24.0):
        link.took(latency_s=latency_s, uplink_bits=4e6, downlink_bits=4e6, compute_s=8.0)
    assert link.slack_s == pytest.approx(4.0)


def test_a_machine_from_a_message():
    told = machine.UNKNOWN_MACHINE.to_json()
    assert machine.machine_from(told) == machine.UNKNOWN_MACHINE
    for name, bad in (
        ("cores", 0),
        ("power_w", float("nan")),
        ("seconds_per_sample", "1"),
        ("clock", 3),
        ("cores", True),
    ):
        assert machine.machine_from({**told, name: bad}) is None
    assert machine.machine_from({**told, "more": 1}) is None
    assert machine.machine_from(None) is None


def test_seconds_per_sample_at_two_ranks(tiny_config):
    config = load_config(str(tiny_config))
    clients = make_clients(config, load_data(config))
    labels = clients.data.train_labels
    found = machine.measured_machine(clients.model, clients.train_outputs, clients.train_rows[1], labels, 1)
    clients.close()
    assert found.seconds_per_sample > 0
    assert found.seconds_per_sample_per_rank >= 0
    assert found.power_w == pytest.approx(found.capacitance * found.reference_frequency_hz**3)


def test_power_from_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "COUNTERS", tmp_path)
    assert machine.read_energy_j() is None
    for zone, microjoules in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 2_000_000), ("intel-rapl:0:0", 9)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(str(microjoules))
    assert machine.read_energy_j() == 5.0
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("?")
    assert machine.read_energy_j() is None


def test_the_clock_is_set_and_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    with machine.at_frequency(1.5e9) as is_set:
        assert not is_set
    for cpu in ("cpu0", "cpu1"):
        (tmp_path / cpu / "cpufreq").mkdir(parents=True)
        (tmp_path / cpu / "cpufreq" / "scaling_max_freq").write_text("3000000")
    (tmp_path / "cpu0" / "cpufreq" / "cpuinfo_max_freq").write_text("3200000")
    assert machine.full_frequency_hz() == 3.2e9
    with machine.at_frequency(1.5e9) as is_set:
        assert is_set
        assert (tmp_path / "cpu1" / "cpufreq" / "scaling_max_freq").read_text() == "1500000"
    assert (tmp_path / "cpu1" / "cpufreq" / "scaling_max_freq").read_text() == "3000000"
