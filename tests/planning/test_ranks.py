"""Promises of ranks: common or each client's own, between floor and ceiling, planned or told by the clients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrank.planning.plan import make_plan, plan_json
from splitrank.planning.problem import subproblem
from splitrank.planning.solvers.exact import exact
from tests.planning.problems import check_budgets, fixed, random_problem, roomy

seeds = st.integers(0, 2**32 - 1)
deterministic = settings(derandomize=True, deadline=None, max_examples=60)


@pytest.mark.parametrize("policy", ["least-energy", "least-latency"])
@given(seed=seeds)
@deterministic
def test_with_ranks_of_their_own_every_client_is_planned_as_if_alone(policy: Any, seed: int) -> None:
    problem = random_problem(seed, 20)
    options: Any = {"method": "exact", "frequency_policy": policy, "rank_policy": "per-client", "require_all": False}
    together = make_plan(problem, **options)
    arrays = {name: value for name, value in vars(together).items() if isinstance(value, np.ndarray)}
    for client in range(problem.num_clients):
        alone = make_plan(subproblem(problem, np.array([client])), **options)
        for name, value in arrays.items():
            np.testing.assert_array_equal(getattr(alone, name)[0], value[client], err_msg=name)
    assert together.largest_rank == together.max_rank.max()


def test_one_weak_client_lowers_the_common_rank_and_not_the_others_own() -> None:
    problem = roomy(3, max_frequency_hz=np.array([1e9, 1e7, 1e9]), rank_cap=np.array([50, 50, 20]))
    common, own = (
        make_plan(problem, method="exact", frequency_policy="least-energy", rank_policy=rank_policy)  # type: ignore[arg-type]
        for rank_policy in ("common", "per-client")
    )
    np.testing.assert_array_equal(common.rank, [9, 9, 9])
    np.testing.assert_array_equal(own.rank, [50, 9, 20])
    assert (common.common_rank, own.common_rank, own.largest_rank) == (9, None, 50)
    assert plan_json(own, problem)["rank"] is None
    assert [client["rank"] for client in plan_json(own, problem)["clients"]] == [50, 9, 20]
    assert plan_json(common, problem)["rank"] == 9


@given(seed=seeds, floor=st.integers(1, 30), above=st.integers(0, 30))
@deterministic
def test_ranks_stay_between_floor_and_ceiling(seed: int, floor: int, above: int) -> None:
    problem = random_problem(seed, 40)
    limited = replace(problem, rank_floor=floor, rank_ceiling=floor + above)
    for rank_policy in ("common", "per-client"):
        options: Any = {"method": "exact", "frequency_policy": "least-energy", "rank_policy": rank_policy}
        plan = make_plan(limited, require_all=False, **options)
        np.testing.assert_array_equal(plan.max_rank, exact(problem))  # floor and ceiling are no constraints of P1
        np.testing.assert_array_equal(plan.participants, plan.max_rank >= floor)
        ranks = plan.rank[plan.participants]
        assert np.all((ranks >= floor) & (ranks <= floor + above) & (ranks <= plan.max_rank[plan.participants]))
        if plan.largest_rank:
            check_budgets(plan, limited)


@pytest.mark.parametrize("rank_policy", ["common", "per-client"])
@given(seed=seeds, rank=st.none() | st.integers(1, 20))
@deterministic
def test_told_max_ranks_give_the_same_ranks_and_keep_the_rest_private(
    rank_policy: Any, seed: int, rank: int | None
) -> None:
    problem = fixed(random_problem(seed, 30), rank)
    options: Any = {"frequency_policy": "least-energy", "rank_policy": rank_policy, "require_all": False}
    planned = make_plan(problem, method="exact", **options)
    told = make_plan(problem, method="exact", told_max_rank=exact(problem), **options)
    for name in ("rank", "participants", "max_rank", "uplink_s", "downlink_s"):
        np.testing.assert_array_equal(getattr(told, name), getattr(planned, name))
    assert told.status == planned.status
    for name in ("frequency_hz", "frequency_low_hz", "frequency_high_hz", "compute_s", "latency_s", "energy_j"):
        assert np.all(np.isnan(getattr(told, name)))
    assert set(told.binding) == {"private"}
    assert set(told.shortfalls.constraint) == {""}
