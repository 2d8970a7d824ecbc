"""Weighted round robin against the written-out cycle of turns, and against recorded ones."""

from __future__ import annotations

from math import gcd
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_sched_rr.wrr import WeightedRoundRobin

from lvskit.testing.reference import CycleWeightedRoundRobin, Pool

PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 2, 3, 4, 6, 10])
STEPS = st.lists(
    st.one_of(
        st.just(("pick",)),
        st.just(("pick",)),
        st.just(("pick",)),
        st.tuples(st.just("add"), WEIGHTS),
        st.tuples(st.just("remove"), PLACE),
        st.tuples(st.just("edit"), PLACE, WEIGHTS),
        st.tuples(st.just("overload"), PLACE, st.booleans()),
        st.tuples(st.just("all"), st.booleans()),
    ),
    max_size=60,
)


def play(pool: Pool, steps: list[Any]) -> None:
    """Do what hypothesis came up with; `Pool.pick` compares the schedulers."""
    for action, *arguments in steps:
        if action == "pick":
            chosen = pool.pick()
            assert (chosen is None) == all(s.weight == 0 or s.overloaded for s in pool.servers)
        elif action == "add":
            pool.add(*arguments)
        elif action == "all":
            for place in range(len(pool.servers)):
                pool.overload(place, *arguments)
        elif pool.servers:
            place, *rest = arguments
            getattr(pool, action)(place % len(pool.servers), *rest)


@given(st.lists(WEIGHTS, max_size=6), STEPS)
def test_wrr_walks_over_the_cycle_of_turns(weights: list[int], steps: list[Any]) -> None:
    pool = Pool(WeightedRoundRobin, CycleWeightedRoundRobin)
    for weight in weights:
        pool.add(weight)
    play(pool, steps)


@given(st.lists(WEIGHTS, min_size=1, max_size=6), STEPS)
def test_wrr_may_be_made_for_servers_that_are_there(weights: list[int], steps: list[Any]) -> None:
    pool = Pool()
    for weight in weights:
        pool.add(weight)
    made = (WeightedRoundRobin, CycleWeightedRoundRobin)
    pool.schedulers = [factory(pool.servers, None) for factory in made]
    play(pool, steps)


def wrr(*weights: int) -> Pool:
    """Return a pool with these weights in the order of the list, so numbered from the end."""
    pool = Pool()
    for weight in reversed(weights):
        pool.add(weight)
    pool.schedulers = [WeightedRoundRobin(pool.servers)]
    return pool


def picks(pool: Pool, count: int) -> list[int | None]:
    """Return which are chosen, numbered by their place in the list."""
    last = len(pool.servers) - 1
    found = [pool.pick() for _ in range(count)]
    return [None if number is None else last - number for number in found]


@pytest.mark.parametrize(
    ("weights", "cycle"),
    [
        ((4, 3, 2), [0, 0, 1, 0, 1, 2, 0, 1, 2]),
        ((5, 1, 1), [0, 0, 0, 0, 0, 1, 2]),
        ((10, 20, 30), [2, 1, 2, 0, 1, 2]),
        ((1, 1, 1), [0, 1, 2]),
        ((7,), [0]),
        ((0, 2, 0, 4), [3, 1, 3]),
    ],
)
def test_cycles_that_the_kernel_makes(weights: list[int], cycle: list[int]) -> None:
    """From the documentation of ip_vs: bursts, the heavy servers' surplus first."""
    assert picks(wrr(*weights), 3 * len(cycle)) == cycle * 3


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any))
def test_a_cycle_is_shared_exactly_by_weight(weights: list[int]) -> None:
    pool, step = wrr(*weights), gcd(*weights)
    for _ in range(3):
        cycle = picks(pool, sum(weights) // step)
        assert [cycle.count(place) for place in range(len(weights))] == [w // step for w in weights]


def test_a_search_from_the_middle_of_the_last_pass_comes_round() -> None:
    """The kernel's rule for giving up: not before every server was tried with any weight."""
    pool = wrr(3, 1)
    assert picks(pool, 3) == [0, 0, 0]
    pool.overload(0)
    assert picks(pool, 3) == [1, 1, 1]
    pool.overload(1)
    assert picks(pool, 2) == [None, None]
    pool.overload(0, False)
    assert picks(pool, 3) == [0, 0, 0]
    pool.overload(0)
    assert picks(pool, 1) == [None]
    pool.overload(0, False)
    pool.overload(1, False)
    assert picks(pool, 5) == [1, 0, 0, 0, 1]  # the search ended where it had begun: after 0


def test_a_heavier_server_that_joins_waits_for_the_next_cycle() -> None:
    """The kernel goes on in the pass that it was in, with the threshold of the lighter ones."""
    pool = Pool(WeightedRoundRobin)
    for weight in (2, 3, 4):
        pool.add(weight)
    assert picks(pool, 14) == [0, 1, 2, 0, 0, 1, 0, 1, 2, 0, 1, 2, 0, 0]


def test_an_edit_begins_again_at_the_head_in_the_same_pass() -> None:
    pool = wrr(4, 4, 4)
    assert picks(pool, 1) == [0]
    pool.edit(1, 2)
    assert picks(pool, 6) == [0, 1, 2, 0, 2, 0]


def test_a_search_does_not_walk_through_two_thousand_million_passes() -> None:
    """The greatest weight there can be, on a server that may not be used."""
    pool = wrr(2**31 - 1, 3, 2**31 - 1)
    pool.overload(0)
    pool.overload(2)
    assert picks(pool, 4) == [1, 1, 1, 1]
    pool.overload(1)
    assert picks(pool, 2) == [None, None]
    pool.overload(0, False)
    assert picks(pool, 3) == [0, 0, 0]


def test_passes_are_skipped_down_to_the_heaviest_usable_server_and_no_further() -> None:
    pool = wrr(9, 3, 2)
    pool.overload(0)
    assert picks(pool, 10) == [1, 1, 2, 1, 2] * 2


def test_a_skipped_pass_ends_where_a_walked_one_would() -> None:
    """The edit keeps the pass: with weights 8, 4, 2 the thresholds are 7, 5, 3, 1."""
    pool = wrr(8, 4, 2)
    pool.overload(0)
    assert picks(pool, 1) == [1]
    pool.edit(2, 2)
    pool.overload(0, False)
    assert picks(pool, 5) == [0, 1, 0, 1, 2]


def test_a_search_in_vain_from_the_middle_of_an_early_pass_begins_again_at_the_head() -> None:
    pool = wrr(4, 3, 4)
    assert picks(pool, 1) == [0]
    for place in range(3):
        pool.overload(place)
    assert picks(pool, 1) == [None]
    for place in range(3):
        pool.overload(place, False)
    assert picks(pool, 5) == [0, 2, 0, 1, 2]


def test_nobody_is_chosen_where_nobody_may_be() -> None:
    assert Pool(WeightedRoundRobin).pick() is None
    assert picks(wrr(0, 0), 2) == [None, None]
    pool = wrr(2, 2)
    pool.overload(0)
    pool.overload(1)
    assert picks(pool, 2) == [None, None]
    pool.overload(1, False)
    assert picks(pool, 2) == [1, 1]
