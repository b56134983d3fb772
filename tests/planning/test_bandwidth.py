"""One band shared together with the rank: the optimum by brute force, and never below equal shares."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrank import load_config
from splitrank.federation.problems import plan_round, planned_problem
from splitrank.planning.bandwidth import at_bands
from splitrank.planning.bandwidth_per_client import MOST_CLIENTS_FOR_OPTIMUM
from splitrank.planning.least_bands import fits_together, min_band
from splitrank.planning.link import Band
from splitrank.planning.plan import Plan, make_plan, plan_json
from splitrank.planning.problem import Problem, energy_j, feasible, frequency_range_hz, subproblem
from splitrank.planning.solvers.exact import exact
from tests.planning.bands import (
    best_common_rank,
    best_utility,
    is_close_call,
    least_bands,
    most_participants,
    random_band_problem,
)
from tests.planning.problems import check_budgets, fixed, roomy

seeds = st.integers(0, 2**32 - 1)
deterministic = settings(derandomize=True, deadline=None, max_examples=25)


def joint(problem: Problem, **options: Any) -> Plan:
    return make_plan(problem, **{"bandwidth": "joint", **options})


def check(plan: Plan, problem: Problem) -> None:
    """Budgets hold at the rates of the sub-bands, which are within the band, and whoever takes part has one."""
    np.testing.assert_array_equal(np.isfinite(plan.bandwidth_hz), plan.participants)
    if plan.participants.any():
        assert problem.band is not None
        assert np.nansum(plan.bandwidth_hz) <= problem.band.total_hz * (1 + 1e-12)
        if all(np.all(cost.per_rank > 0) for cost in vars(problem.workload).values()):
            check_budgets(plan, at_bands(problem, plan.bandwidth_hz))
    assert np.all(plan.rank <= plan.max_rank)


# ---- the optimum


def check_common_rank(seed: int) -> str:
    num_clients = 1 + seed % 5
    problem = random_band_problem(seed, num_clients, may_be_free=seed % 7 == 0)
    assert problem.band is not None
    least_hz = least_bands(problem)
    if is_close_call(least_hz, problem):
        return "close call"
    together = joint(problem)
    best = best_common_rank(least_hz, problem.band.total_hz)
    assert together.largest_rank == best
    assert together.status == ("optimal" if best else "infeasible")
    check(together, problem)
    some = joint(problem, require_all=False)
    assert some.participants.sum() == most_participants(least_hz[0], problem.band.total_hz)
    check(some, problem)
    members = np.flatnonzero(some.participants)
    if len(members):
        assert some.largest_rank == best_common_rank(least_hz[:, members], problem.band.total_hz)
    if 0 < best < int(problem.rank_cap.min()):
        return "bound by the band"
    return "bound by the cap" if best else "infeasible"


def check_ranks_of_their_own(seed: int) -> str:
    problem = random_band_problem(seed, 1 + seed % 3, most_ranks=12)
    assert problem.band is not None
    least_hz = least_bands(problem)
    plan = joint(problem, rank_policy="per-client")
    check(plan, problem)
    best = best_utility(least_hz, problem.band.total_hz)
    slack, tight = (best_utility(least_hz, problem.band.total_hz * (1 + more)) for more in (1e-8, -1e-8))
    if slack != tight:
        return "close call"
    assert plan.status == ("optimal" if np.isfinite(best) else "infeasible")
    if plan.status == "infeasible":
        return "infeasible"
    assert np.log1p(plan.rank).sum() == pytest.approx(best, abs=1e-9)
    assert plan.gap == 0
    return "equal" if len(set(plan.rank)) == 1 else "unequal"


def test_the_common_rank_is_that_of_brute_force() -> None:
    found = [check_common_rank(seed) for seed in range(100)]
    assert found.count("bound by the band") >= 15
    assert found.count("close call") <= 2


def test_ranks_of_their_own_are_those_of_brute_force() -> None:
    found = [check_ranks_of_their_own(seed) for seed in range(100)]
    assert found.count("unequal") >= 15
    assert found.count("close call") <= 2


@pytest.mark.slow
def test_a_thousand_problems_more() -> None:
    for seed in range(100, 1100):
        check_common_rank(seed)
        check_ranks_of_their_own(seed)


def test_a_broadcast_runs_at_the_slowest_participants_rate() -> None:
    found = []
    for seed in range(60):
        problem = random_band_problem(seed, 1 + seed % 4, is_broadcast=True)
        assert problem.band is not None
        least_hz = least_bands(problem, np.full(problem.num_clients, problem.downlink_bps.min()))
        plan = joint(problem)
        check(plan, problem)
        assert plan.largest_rank == best_common_rank(least_hz, problem.band.total_hz) or is_close_call(
            least_hz, problem
        )
        some = joint(problem, require_all=False)
        check(some, problem)
        if some.participants.any():
            members = np.flatnonzero(some.participants)
            slowest_bps = problem.downlink_bps[members].min()
            down_s = problem.workload.downlink_bits(some.rank)[members] / slowest_bps
            np.testing.assert_allclose(some.downlink_s[members], down_s)
            alone = subproblem(problem, members)
            least_hz = least_bands(alone, np.full(len(members), slowest_bps))
            assert some.largest_rank == best_common_rank(least_hz, problem.band.total_hz)
        found.append((plan.status, int(some.participants.sum()) not in (0, problem.num_clients)))
    assert sum(status == "optimal" for status, _ in found) >= 10
    assert sum(some_sit_out for _, some_sit_out in found) >= 3


# ---- large fleets


def fleet(seed: int, num_clients: int, **options: Any) -> Problem:
    """Clients all of whom can take part."""
    problem = random_band_problem(seed, num_clients, **options)
    return subproblem(problem, np.flatnonzero(joint(problem, require_all=False).participants))


@pytest.mark.parametrize("seed", range(4))
def test_the_gap_of_a_large_fleet_is_true_and_small(seed: int) -> None:
    problem = fleet(seed, 150, most_ranks=20)
    assert problem.num_clients > MOST_CLIENTS_FOR_OPTIMUM
    plan = joint(problem, rank_policy="per-client")
    check(plan, problem)
    assert plan.status == "feasible"
    assert 0 <= plan.gap < 0.02
    equal = make_plan(problem, rank_policy="per-client", require_all=False)
    same = joint(problem, rank_policy="per-client", chosen=equal.participants)
    assert np.log1p(same.rank).sum() >= np.log1p(equal.rank).sum()


def test_a_large_fleet_whose_band_is_enough_for_all_is_optimal() -> None:
    num_clients = MOST_CLIENTS_FOR_OPTIMUM + 1
    band = Band(1e9 * num_clients, num_clients, np.full(num_clients, 3.0), np.full(num_clients, 3.0))
    rates = {"uplink_bps": 2e9, "downlink_bps": 2e9}
    plan = joint(roomy(num_clients, band=band, **rates), rank_policy="per-client")
    assert (plan.status, plan.gap, set(plan.rank)) == ("optimal", 0, {50})


@pytest.mark.parametrize("seed", range(4))
def test_the_gap_bounds_the_optimum(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = fleet(seed, 12, most_ranks=20)
    best = np.log1p(joint(problem, rank_policy="per-client").rank).sum()
    monkeypatch.setattr("splitrank.planning.bandwidth_per_client.MOST_CLIENTS_FOR_OPTIMUM", 0)
    plan = joint(problem, rank_policy="per-client")
    assert plan.status == "feasible" or np.log1p(plan.rank).sum() == best
    assert np.log1p(plan.rank).sum() * (1 - 1e-12) <= best <= np.log1p(plan.rank).sum() / (1 - plan.gap) * (1 + 1e-12)


# ---- beside equal shares


@given(seeds, st.integers(1, 12), st.booleans(), st.sampled_from([None, 1, 3, 20]))
@deterministic
def test_never_below_equal_shares(seed: int, num_clients: int, require_all: bool, edge_rank: int | None) -> None:
    """Also where equal shares meet an energy budget exactly."""
    problem = random_band_problem(seed, num_clients)
    if edge_rank is not None:
        low_hz, _ = frequency_range_hz(problem, edge_rank)
        edge_j = energy_j(problem, edge_rank, low_hz)
        fits = feasible(problem, edge_rank) & (edge_j > 0)
        problem = replace(problem, energy_budget_j=np.where(fits, edge_j, problem.energy_budget_j))
    equal = make_plan(problem, require_all=require_all)
    shared = joint(problem, require_all=require_all)
    check(shared, problem)
    assert not np.any(equal.participants & ~shared.participants)
    if np.array_equal(equal.participants, shared.participants):
        assert shared.largest_rank >= equal.largest_rank
    same = joint(problem, chosen=equal.participants, require_all=False)
    np.testing.assert_array_equal(same.participants, equal.participants)
    assert same.largest_rank >= equal.largest_rank


ROUNDED_UP = [num for num in range(2, 60) if math.fsum([1e6 / num] * num) > 1e6]
"""So many equal shares of 1 MHz are more than 1 MHz."""


@pytest.mark.parametrize("num_clients", [1, 3, 10, *ROUNDED_UP[:4]])
def test_equal_clients_have_equal_shares(num_clients: int) -> None:
    """The rank that only just fits at B_total/I fits, although I·(B_total/I) may be above B_total."""
    band = Band(1e6, num_clients, np.full(num_clients, 3.0), np.full(num_clients, 3.0))
    shares_hz = np.full(num_clients, band.share_hz)
    rates = {"uplink_bps": band.uplink_bps(shares_hz), "downlink_bps": band.downlink_bps(shares_hz)}
    problem = roomy(num_clients, band=band, **rates, latency_budget_s=60.0 * num_clients)
    low_hz, _ = frequency_range_hz(problem, 13)
    edge_j = energy_j(problem, 13, low_hz)
    while not np.all(feasible(problem := replace(problem, energy_budget_j=edge_j), 13)):
        edge_j = np.nextafter(edge_j, np.inf)
    equal, shared = make_plan(problem), joint(problem)
    assert equal.largest_rank == shared.largest_rank == 13
    np.testing.assert_allclose(shared.bandwidth_hz, shares_hz, rtol=1e-9)
    own = joint(problem, rank_policy="per-client")
    assert np.log1p(own.rank).sum() >= np.log1p(equal.rank).sum()


@given(seeds, st.integers(2, 12), st.sampled_from(["common", "per-client"]))
@deterministic
def test_the_order_of_the_clients_does_not_matter(seed: int, num_clients: int, rank_policy: str) -> None:
    problem = random_band_problem(seed, num_clients, most_ranks=20)
    order = np.random.default_rng(seed).permutation(num_clients)
    plan = joint(problem, require_all=False, rank_policy=rank_policy)
    other = joint(subproblem(problem, order), require_all=False, rank_policy=rank_policy)
    np.testing.assert_array_equal(other.participants, plan.participants[order])
    if rank_policy == "common":
        np.testing.assert_array_equal(other.rank, plan.rank[order])
        np.testing.assert_allclose(other.bandwidth_hz, plan.bandwidth_hz[order], rtol=1e-12)
    assert np.log1p(other.rank).sum() == pytest.approx(np.log1p(plan.rank).sum(), abs=1e-9)


@given(seeds, st.integers(1, 8), st.floats(1.0, 3.0))
@deterministic
def test_no_budget_is_a_hindrance(seed: int, num_clients: int, factor: float) -> None:
    problem = random_band_problem(seed, num_clients)
    assert problem.band is not None
    chosen = joint(problem, require_all=False).participants
    wide = problem.band.widened(factor)
    shares_hz = np.full(num_clients, wide.share_hz)
    looser = [
        replace(problem, latency_budget_s=problem.latency_budget_s * factor),
        replace(problem, energy_budget_j=problem.energy_budget_j * factor),
        replace(
            problem,
            band=wide,
            uplink_bps=wide.uplink_bps(shares_hz),
            downlink_bps=wide.downlink_bps(shares_hz),
        ),
    ]
    before = joint(problem, chosen=chosen, require_all=False).largest_rank
    assert all(joint(more, chosen=chosen).largest_rank >= before for more in looser)


def test_a_boundless_band_leaves_the_rates_of_full_power() -> None:
    """min_i r_i* at s_ul = SNR·B_eq/ln 2, to which the uplink's rate tends."""
    problem = fleet(5, 8)
    assert problem.band is not None
    wide = problem.band.widened(1e9)
    at_limit = replace(
        problem,
        band=None,
        uplink_bps=problem.band.uplink_snr * problem.band.share_hz / np.log(2),
        downlink_bps=problem.band.downlink_snr * problem.band.total_hz / np.log(2) / problem.num_clients,
    )
    # The server's power is spread over the band as well, so the downlink is compared at its own limit per hertz.
    shared = joint(replace(problem, band=replace(wide, downlink_snr=np.full(problem.num_clients, 1e9))))
    assert shared.largest_rank == exact(replace(at_limit, downlink_bps=1e30)).min()


# ---- the least sub-band


def test_the_least_sub_band_is_the_least() -> None:
    problem = random_band_problem(16, 200, may_be_free=True)
    for rank in (1, 5, 30):
        least_hz = min_band(problem, rank)
        finite = np.isfinite(least_hz)
        assert feasible(at_bands(problem, np.where(finite, least_hz, np.nan)), rank)[finite].all()
        some = finite & (least_hz > 0)
        below_hz = np.where(some, least_hz * (1 - 1e-9), np.nan)
        assert not feasible(at_bands(problem, below_hz), rank)[some].any()
        assert {np.inf, 0.0} < set(least_hz)
    ranks = np.array([[1], [5], [30]])
    np.testing.assert_array_equal(min_band(problem, ranks), [min_band(problem, int(rank)) for rank in ranks[:, 0]])


def test_a_fixed_rank_is_shared_out_too() -> None:
    problem = fleet(3, 6)
    rank = joint(problem).largest_rank
    plan = joint(fixed(problem, rank))
    assert plan.rank.tolist() == [rank] * problem.num_clients
    assert joint(fixed(problem, rank + 1)).status == "infeasible"
    assert fits_together(problem, rank)
    assert not fits_together(problem, rank + 1)


def test_who_cannot_take_part_lacks_band_or_what_no_band_gives() -> None:
    seen = set()
    for seed in range(40):
        problem = random_band_problem(seed, 6)
        plan = joint(problem, require_all=False)
        np.testing.assert_array_equal(plan.shortfalls.constraint == "", plan.participants)
        for client in plan_json(plan, problem)["clients"]:
            shortfall = client.get("shortfall")
            assert ("bandwidth_hz" in client) == (shortfall is None)
            if shortfall and shortfall["constraint"] == "bandwidth":
                assert shortfall["needed"] > shortfall["available"]
                assert shortfall["unit"] == "Hz"
            seen.add(shortfall and shortfall["constraint"])
    assert {"bandwidth", "energy", None} <= seen


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"^bandwidth must be 'equal' for a problem without a band, got 'joint'; give"):
        joint(roomy())
    with pytest.raises(ValueError, match=r"^bandwidth must be 'equal' where told_max_rank stays with the clients"):
        joint(random_band_problem(1, 2), told_max_rank=np.ones(2, np.int64))
    with pytest.raises(
        ValueError, match=r"^Problem\.band\.uplink_snr must have one number for each of 3 clients, got 2"
    ):
        roomy(3, band=Band(1e6, 3, np.ones(2), np.ones(2)))
    with pytest.raises(ValueError, match=r"^Problem\.band must be a Band, got 1000000\.0"):
        roomy(3, band=1e6)
    with pytest.raises(
        ValueError, match=r"^Band\.uplink_snr must be finite and >= 0.*\nBand\.total_hz .*\nBand\.num_sh"
    ):
        Band(0.0, 0, np.array([-1.0]), np.ones(1))


# ---- from settings

CELL_EDGE = ["radio.total_bandwidth_hz=1.08e6"]


def planned(seed: int, *settings: str) -> tuple[Problem, Plan]:
    config = load_config("edge", [f"run.seed={seed}", *CELL_EDGE, *settings])
    problem = planned_problem(config, 1, require_all=True)
    return problem, plan_round(config, problem, 1, require_all=True)


def test_the_cell_edge() -> None:
    """Mean common rank of 120 federations at T0 = 240 s: 24.3 with equal shares, 32.0 with shares by need."""
    means = [
        np.mean(
            [planned(seed, "budget.latency_s=240", f"planner.bandwidth={how}")[1].largest_rank for seed in range(120)]
        )
        for how in ("equal", "joint")
    ]
    assert means == pytest.approx([24.3, 32.0], abs=0.05)


@pytest.mark.parametrize("downlink", ["unicast", "broadcast"])
@pytest.mark.parametrize("noise", ["radio.noise_psd_dbm_hz=-174", "radio.noise_power_w=1e-14"])
def test_settings_give_equal_shares_the_rates_of_the_band(downlink: str, noise: str) -> None:
    for seed in range(5):
        options = (f"radio.downlink={downlink}", noise, "federation.num_clients=5")
        equal, equal_plan = planned(seed, *options)
        problem, plan = planned(seed, *options, "planner.bandwidth=joint")
        assert problem.band is not None
        at_shares = at_bands(problem, np.full(5, problem.band.share_hz))
        np.testing.assert_array_equal(at_shares.uplink_bps, equal.uplink_bps)
        np.testing.assert_allclose(at_shares.downlink_bps, equal.downlink_bps, rtol=1e-14)
        assert plan.largest_rank >= equal_plan.largest_rank
        written = json.loads(json.dumps(plan_json(plan, problem)))
        if plan.status == "optimal":
            shown = [client["uplink_bps"] for client in written["clients"]]
            np.testing.assert_array_equal(shown, problem.band.uplink_bps(plan.bandwidth_hz))
            assert list(written["clients"][0])[-1] == "bandwidth_hz"


def test_the_servers_power_is_spread_over_the_band() -> None:
    problem, _ = planned(1, "radio.downlink_power_w=[0.1, 0.3, 0.2]", "planner.bandwidth=joint")
    same, _ = planned(1, "radio.downlink_power_w=0.2", "planner.bandwidth=joint")
    np.testing.assert_allclose(problem.downlink_bps, same.downlink_bps)


def test_the_chosen_share_the_band() -> None:
    options = ("federation.num_clients=8", "federation.clients_per_round=3", "radio.noise_power_w=1e-14")
    _, plan = planned(2, *options, "planner.bandwidth=joint")
    _, equal = planned(2, *options)
    assert plan.chosen is not None
    assert equal.chosen is not None
    np.testing.assert_array_equal(plan.chosen, equal.chosen)
    np.testing.assert_array_equal(np.isfinite(plan.bandwidth_hz), plan.chosen)
    assert np.nansum(plan.bandwidth_hz) == pytest.approx(1.08e6)
    assert plan.largest_rank >= equal.largest_rank
