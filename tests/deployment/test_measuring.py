"""Promise: a client's machine and link are measured, and what cannot be measured is said rather than guessed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from splitrank import load_config, load_data, make_clients
from splitrank.federation.flower import device_profile
from splitrank.federation.flower.links import Link, ProbeResult, estimate_link, noise, probes
from splitrank.federation.flower.messenger import Reply
from splitrank.federation.problems import Measured, measured_problem
from splitrank.federation.texts import TextStats
from splitrank.planning.problem import energy_j

pytestmark = pytest.mark.extras


def replies(*after_s: float) -> list[Reply]:
    return [Reply({"kind": "echo"}, noise(0), seconds) for seconds in after_s]


def test_a_link_from_probes():
    # 0.5 s for a short message; 2 s and 8 s more for a million numbers of 32 bits.
    link, is_enough = estimate_link(replies(3.0, 3.5, 6.0, 14.5), 1_000_000, math.inf)
    assert (link.short_s, link.downlink_bps, link.uplink_bps) == (0.5, 16e6, 4e6)
    assert not is_enough
    assert estimate_link(replies(3.0, 3.5, 8.0, 16.5), 1_000_000, math.inf)[1]


def test_a_short_probe_that_was_held_up_does_not_count():
    link, _ = estimate_link(replies(3.0, 9.0, 11.5, 20.0), 1_000_000, 0.5)
    assert (link.short_s, link.downlink_bps, link.uplink_bps) == (0.5, 16e6, 4e6)


def test_a_link_too_quick_to_measure_is_no_hindrance():
    link, is_enough = estimate_link(replies(3.0, 4.0, 4.5, 5.0), 1000, math.inf)
    assert not is_enough
    assert link.uplink_bps == link.downlink_bps == pytest.approx(3.2e7)


def test_two_measurements_agree_within_a_factor_of_two():
    link = ProbeResult(2e6, 3e6, 0.5)
    assert link.agrees_with(ProbeResult(1.1e6, 5.9e6, 9.0))
    assert not link.agrees_with(ProbeResult(1e5, 3e6, 0.5))
    assert not link.agrees_with(ProbeResult(2e6, 1e10, 0.5))


def test_probes_are_alike_to_nothing():
    (_, _, (_, down), (up, _)) = probes(1000)
    assert up["length"] == len(down) == 1000
    assert not np.array_equal(down, probes(1000)[2][1])


def run_rounds(link: Link, up_bps: float, down_bps: float, beside_s: float, bits: float = 32e6) -> None:
    """Ten rounds on a link as it really is, Flower's waiting straying by a second and a half."""
    for stray_s in np.linspace(-1.5, 1.5, 10):
        link.observe(bits / up_bps + bits / down_bps + beside_s + stray_s + 8.0, bits, bits, compute_s=8.0)


def test_an_estimate_that_is_right_stays():
    link = Link(ProbeResult(uplink_bps=2e6, downlink_bps=4e6, short_s=0.5))
    assert (link.uplink_bps, link.downlink_bps, link.overhead_s) == pytest.approx((2e6, 4e6, 3.0))
    assert link.slack_s == 4.0
    run_rounds(link, 2e6, 4e6, 3.0)
    assert (link.uplink_bps, link.downlink_bps, link.overhead_s) == pytest.approx((2e6, 4e6, 3.0))
    assert link.slack_s == pytest.approx(1.5, abs=0.3)


@pytest.mark.parametrize("factor", [0.3, 0.5, 2.0, 3.0])
def test_rates_run_with_the_link(factor):
    """A link that has become slower or quicker than the probes measured, seen at one size, is right at another."""
    link = Link(ProbeResult(uplink_bps=2e6, downlink_bps=4e6, short_s=0.5))
    run_rounds(link, factor * 2e6, factor * 4e6, 3.0)
    assert link.uplink_bps == pytest.approx(factor * 2e6, rel=0.12)
    assert link.downlink_bps == pytest.approx(factor * 4e6, rel=0.12)
    assert link.overhead_s == pytest.approx(3.0, abs=1.0)


def test_on_a_quick_link_the_overhead_runs():
    link = Link(ProbeResult(short_s=0.5))
    run_rounds(link, 1e10, 1e10, 6.0)
    assert link.overhead_s == pytest.approx(6.0, abs=0.4)
    assert link.uplink_bps == pytest.approx(1e10, rel=0.1)


def test_straying_widens_the_slack():
    link = Link(ProbeResult(uplink_bps=2e6, downlink_bps=4e6, short_s=0.5))
    for late_s in (0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 9.0, 0.0, 0.0, 9.0):
        link.observe(24.0 + 3.0 + late_s + 8.0, 32e6, 32e6, compute_s=8.0)
    assert 5.0 < link.slack_s < 9.0


def test_a_machine_from_a_message():
    told = device_profile.UNKNOWN_DEVICE.to_json()
    assert device_profile.profile_from(told) == device_profile.UNKNOWN_DEVICE
    for name, bad in (
        ("cores", 0),
        ("power_w", float("nan")),
        ("seconds_per_sample", "1"),
        ("clock", 3),
        ("cores", True),
    ):
        assert device_profile.profile_from({**told, name: bad}) is None
    assert device_profile.profile_from({**told, "more": 1}) is None
    assert device_profile.profile_from(None) is None


def test_seconds_per_sample_at_two_ranks(tiny_config):
    config = load_config(str(tiny_config))
    clients = make_clients(config, load_data(config))
    labels = clients.data.train_labels
    found = device_profile.profile_device(
        clients.model, clients.rule, clients.train_outputs, clients.train_rows[1], labels, 1
    )
    clients.close()
    assert found.seconds_per_sample > 0
    assert found.seconds_per_sample_per_rank >= 0
    assert found.power_w == pytest.approx(found.capacitance * found.reference_frequency_hz**3)


def test_a_machines_speed_runs_with_the_rounds():
    """Timed while it was busy, a machine is soon planned as quick as it is; a single slow round changes little."""
    told = replace(device_profile.UNKNOWN_DEVICE, seconds_per_sample=0.02, seconds_per_sample_per_rank=1e-4)
    estimate = device_profile.DeviceEstimate(told)
    assert estimate.machine == told
    for full_clock_s in (4.0, 4.0, 40.0):  # 200 texts at rank 200 were planned as 8 s
        estimate.observe(full_clock_s, rank=200, num_samples=200)
    now = estimate.machine
    assert (now.seconds_per_sample, now.seconds_per_sample_per_rank) == pytest.approx((0.01, 5e-5))
    assert replace(now, seconds_per_sample=0.02, seconds_per_sample_per_rank=1e-4) == told
    for _ in range(10):
        estimate.observe(16.0, rank=200, num_samples=200)
    assert estimate.machine.seconds_per_sample == pytest.approx(0.04)


@pytest.mark.parametrize("clock", ["throttled", "cpufreq"])
def test_a_machine_that_rests_spends_its_full_clocks_energy(tiny_config, clock):
    """The energy planned at half the clock: a quarter where the clock is set, all of it where the machine rests."""
    config = load_config(str(tiny_config), ["budget.energy_j=1e6"])
    told = replace(device_profile.UNKNOWN_DEVICE, clock=clock, seconds_per_sample=0.1, power_w=8.0, capacitance=8e-27)
    everybody = np.ones(config.federation.num_clients)
    names = ("seconds_per_sample", "seconds_per_sample_per_rank", "reference_frequency_hz", "capacitance")
    measured = Measured(
        **{name: everybody * getattr(told, name) for name in names},
        throttled=np.full(len(everybody), told.is_throttled),
        uplink_bps=everybody * 1e10,
        downlink_bps=everybody * 1e10,
        overhead_s=0 * everybody,
        latency_margin=0.0,
    )
    clients = make_clients(config, load_data(config))
    problem = measured_problem(config, clients.model.shape, TextStats(*3 * [everybody * 100]), measured)
    clients.close()
    circuit_j = problem.circuit_energy_j
    seconds = 100 * 0.1 * config.federation.local_epochs
    full_j = energy_j(problem, 1, 1e9 * everybody) - circuit_j
    half_j = energy_j(problem, 1, 5e8 * everybody) - circuit_j
    assert full_j == pytest.approx(8.0 * seconds, rel=1e-3)
    assert half_j == pytest.approx(full_j if clock == "throttled" else full_j / 4, rel=1e-3)


def test_power_from_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(device_profile, "COUNTERS", tmp_path)
    assert device_profile.read_energy_j() is None
    for zone, microjoules in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 2_000_000), ("intel-rapl:0:0", 9)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(str(microjoules))
    assert device_profile.read_energy_j() == 5.0
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("?")
    assert device_profile.read_energy_j() is None


def test_the_clock_is_set_and_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(device_profile, "CPUS", tmp_path)
    with device_profile.at_frequency(1.5e9) as is_set:
        assert not is_set
    for cpu in ("cpu0", "cpu1"):
        (tmp_path / cpu / "cpufreq").mkdir(parents=True)
        (tmp_path / cpu / "cpufreq" / "scaling_max_freq").write_text("3000000")
    (tmp_path / "cpu0" / "cpufreq" / "cpuinfo_max_freq").write_text("3200000")
    assert device_profile.full_frequency_hz() == 3.2e9
    with device_profile.at_frequency(1.5e9) as is_set:
        assert is_set
        assert (tmp_path / "cpu1" / "cpufreq" / "scaling_max_freq").read_text() == "1500000"
    assert (tmp_path / "cpu1" / "cpufreq" / "scaling_max_freq").read_text() == "3000000"
