"""Round robin against a ring that is turned, and against its own description."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lvskit_sched_rr.rr import RoundRobin

from lvskit.testing.reference import Pool, RotationRoundRobin

PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 2, 100])
STEPS = st.lists(
    st.one_of(
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
def test_rr_is_a_ring_that_is_turned(weights: list[int], steps: list[Any]) -> None:
    pool = Pool(RoundRobin, RotationRoundRobin)
    for weight in weights:
        pool.add(weight)
    play(pool, steps)


@given(st.lists(WEIGHTS, min_size=1, max_size=6), st.integers(0, 10), STEPS)
def test_rr_may_be_made_for_servers_that_are_there(
    weights: list[int], picks: int, steps: list[Any]
) -> None:
    """As when a service is edited to use it."""
    pool = Pool()
    for weight in weights:
        pool.add(weight)
    pool.schedulers = [made(pool.servers, None) for made in (RoundRobin, RotationRoundRobin)]
    play(pool, [("pick",)] * picks + steps)


def rr(*weights: int) -> Pool:
    pool = Pool(RoundRobin)
    for weight in weights:
        pool.add(weight)
    return pool


def picks(pool: Pool, count: int) -> list[int | None]:
    return [pool.pick() for _ in range(count)]


def test_the_newest_server_comes_first() -> None:
    assert picks(rr(1, 1, 1), 7) == [2, 1, 0, 2, 1, 0, 2]


def test_weights_do_not_matter_except_0() -> None:
    assert picks(rr(100, 0, 1), 4) == [2, 0, 2, 0]


def test_a_new_server_waits_for_its_turn() -> None:
    pool = rr(1, 1)
    assert picks(pool, 1) == [1]
    pool.add()
    assert picks(pool, 4) == [0, 2, 1, 0]


def test_after_a_removed_server_its_successor_is_next() -> None:
    pool = rr(1, 1, 1, 1)
    assert picks(pool, 2) == [3, 2]
    pool.remove(1)
    assert picks(pool, 3) == [1, 0, 3]


def test_after_the_first_server_was_chosen_and_removed_the_new_first_is_next() -> None:
    pool = rr(1, 1, 1)
    assert picks(pool, 1) == [2]
    pool.remove(0)
    assert picks(pool, 2) == [1, 0]


def test_a_server_that_joins_after_that_is_the_new_first() -> None:
    pool = rr(1, 1, 1)
    assert picks(pool, 1) == [2]
    pool.remove(0)
    pool.add()
    assert picks(pool, 4) == [3, 1, 0, 3]


def test_nobody_is_chosen_where_nobody_may_be() -> None:
    pool = rr()
    assert pool.pick() is None
    pool = rr(1, 0)
    pool.overload(1)
    assert picks(pool, 2) == [None, None]
    pool.overload(1, False)
    assert pool.pick() == 0
    pool.remove(1)
    pool.remove(0)
    assert pool.pick() is None
    pool.add()
    assert pool.pick() == 2
