"""Promises of every selection: so many of those who can, the same for the same key, and its own rule."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrank import streams
from splitrank.config import FederationTable
from splitrank.planning.plan import make_plan
from splitrank.planning.selection import SELECTIONS, Candidates, choose, next_in_turn
from tests.planning.problems import random_problem, roomy

every_selection = pytest.mark.parametrize("name", SELECTIONS)


def candidates(
    able: list[bool] | np.ndarray, round: int = 1, seed: int = 0, last: object = None, next_client: int = 0
) -> Candidates:
    number = len(able)
    return Candidates(
        round=round,
        able=np.array(able, dtype=bool),
        max_rank=np.random.default_rng(seed).integers(1, 9, number) * np.array(able),
        drawn=streams.uniform_per_client(seed, "selection", round, number),
        last_chosen=np.zeros(number) if last is None else np.array(last, dtype=float),
        next_client=next_client,
    )


def test_the_tables_keys_are_the_settings_values():
    assert list(SELECTIONS) == list(get_args(FederationTable.model_fields["selection"].annotation))


@every_selection
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 35), st.integers(0, 99), st.integers(0, 29))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_as_many_as_wanted_of_those_who_can(name, able, most, seed, next_client):
    known = candidates(able, seed=seed, next_client=next_client % len(able))
    choice = choose(name, known, most)
    assert choice.chosen.sum() == min(most, sum(able))
    assert not (choice.chosen & ~known.able).any()
    assert [bool(reason) for reason in choice.reasons] == able
    assert choose(name, known, most).chosen.tolist() == choice.chosen.tolist()


@every_selection
def test_everybody_is_chosen_where_all_are_wanted(name):
    able = [True, False, True, True]
    assert choose(name, candidates(able), 4).chosen.tolist() == able


def test_random_draws_anew_in_every_round_and_all_alike():
    rounds = [choose("random", candidates([True] * 10, round), 3).chosen for round in range(1, 2001)]
    times = np.sum(rounds, axis=0)
    assert abs(times - 600).max() < 4 * np.sqrt(2000 * 0.3 * 0.7)
    assert rounds[0].tolist() != rounds[1].tolist()
    # A client's draw does not depend on who else can take part, nor on how many there are.
    few, many = candidates([True] * 10), candidates([True] * 20)
    assert few.drawn.tolist() == many.drawn[:10].tolist()


def test_round_robin_goes_round_over_those_who_can():
    next_client, seen = 0, []
    able = np.array([True, True, False, True, True])
    for round in range(1, 5):
        chosen = choose("round-robin", candidates(able, round, next_client=next_client), 3).chosen
        next_client = next_in_turn(chosen, next_client)
        seen.append(np.flatnonzero(chosen).tolist())
    assert seen == [[0, 1, 3], [0, 1, 4], [0, 3, 4], [1, 3, 4]]
    assert next_in_turn(np.zeros(5, dtype=bool), 2) == 2


def test_largest_rank_takes_those_who_can_do_most_and_draws_among_equals():
    known = replace(candidates([True] * 5 + [False]), max_rank=np.array([3, 7, 3, 9, 3, 0]))
    chosen = choose("largest-rank", known, 3).chosen
    assert chosen[[3, 1]].all()
    third = {
        int(np.flatnonzero(choose("largest-rank", replace(known, drawn=drawn), 3).chosen[[0, 2, 4]])[0])
        for drawn in np.random.default_rng(0).random((40, 6))
    }
    assert third == {0, 1, 2}


@given(
    num_clients=st.integers(1, 9), wanted=st.integers(1, 9), share=st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=80)
def test_fair_lets_nobody_wait_longer_than_its_turn(num_clients, wanted, share, seed):
    """At most ⌈I/K⌉ − 1 rounds in which it could, whoever else comes and goes."""
    draws = np.random.default_rng(seed)
    last, waited = np.zeros(num_clients), np.zeros(num_clients, dtype=int)
    for round in range(1, 60):
        able = draws.random(num_clients) < share
        chosen = choose("fair", candidates(able, round, seed, last), wanted).chosen
        last[chosen] = round
        waited = np.where(chosen, 0, waited + able)
        assert waited.max() <= -(-num_clients // wanted) - 1


def test_reasons_say_what_it_went_by():
    known = replace(
        candidates([True, True, False], 5, last=[0, 3, 2], next_client=1), max_rank=np.array([4, 6, 0]),
        drawn=np.array([0.25, 0.5, 0.1]),
    )  # fmt: skip
    told = {name: choose(name, known, 1).reasons for name in SELECTIONS}
    assert told == {
        "random": ("drew 0.250000", "drew 0.500000", ""),
        "round-robin": ("2 from the turn", "0 from the turn", ""),
        "largest-rank": ("could do rank 4", "could do rank 6", ""),
        "fair": ("never chosen before", "last chosen in round 3", ""),
    }


# ---- the plan of the chosen


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_is_that_of_the_chosen_alone(seed):
    from splitrank.planning.problem import subproblem

    problem = random_problem(seed, 12)
    everybody = make_plan(problem, require_all=False)
    chosen = everybody.participants & (np.random.default_rng(seed).random(12) < 0.6)
    plan = make_plan(problem, require_all=False, chosen=chosen)
    assert plan.participants.tolist() == chosen.tolist()
    assert plan.max_rank.tolist() == everybody.max_rank.tolist()
    if not chosen.any():
        return
    alone = make_plan(subproblem(problem, np.flatnonzero(chosen)))
    assert plan.common_rank == alone.common_rank
    for field in ("rank", "frequency_hz", "latency_s", "energy_j"):
        assert getattr(plan, field)[chosen].tolist() == getattr(alone, field).tolist()
    assert not plan.rank[~chosen].any()
    assert np.isnan(plan.energy_j[~chosen]).all()


def test_all_chosen_is_the_plan_of_all():
    problem = random_problem(3, 9)
    plan = make_plan(problem, require_all=False)
    same = make_plan(problem, require_all=False, chosen=np.ones(9, dtype=bool))
    for field in fields(plan):
        if field.name not in ("chosen", "shortfalls"):
            np.testing.assert_array_equal(getattr(plan, field.name), getattr(same, field.name))


def test_only_who_is_asked_can_make_a_plan_infeasible():
    one_dead = roomy(3, energy_budget_j=np.array([1e6, 0.5, 1e6]))
    assert make_plan(one_dead, chosen=np.array([True, False, True])).status == "optimal"
    assert make_plan(one_dead, chosen=np.array([True, True, False])).status == "infeasible"
    with pytest.raises(ValueError, match=r"chosen must have shape \(3,\)"):
        make_plan(one_dead, chosen=np.ones(2, dtype=bool))
