"""The rings of rr and wrr say what they would choose."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_sched_rr.rr import RoundRobin
from lvskit_sched_rr.wrr import WeightedRoundRobin

from lvskit import Ring
from lvskit.testing.reference import Pool
from lvskit.testing.rings import CLIENT, check_ring

PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 2, 3, 4, 6, 10])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("picks"), st.integers(1, 9)),
        st.tuples(st.just("add"), WEIGHTS),
        st.tuples(st.just("remove"), PLACE),
        st.tuples(st.just("edit"), PLACE, WEIGHTS),
        st.tuples(st.just("overload"), PLACE, st.booleans()),
    ),
    max_size=30,
)


@pytest.mark.parametrize("factory", [RoundRobin, WeightedRoundRobin])
@given(weights=st.lists(WEIGHTS, max_size=6), steps=STEPS)
def test_a_ring_has_all_choices_in_order(factory: Any, weights: list[int], steps: Any) -> None:
    pool = Pool(factory)
    for weight in weights:
        pool.add(weight)
    for action, *arguments in [*steps, ("picks", 100)]:
        if action == "picks":
            usable = any(s.weight and not s.overloaded for s in pool.servers)
            count = arguments[0] * usable
            assert check_ring(pool.schedulers[0], pool.service, [CLIENT] * count) == count
        elif action == "add":
            pool.add(*arguments)
        elif pool.servers:
            place, *rest = arguments
            getattr(pool, action)(place % len(pool.servers), *rest)


@pytest.mark.parametrize("factory", [RoundRobin, WeightedRoundRobin])
def test_to_ask_for_a_ring_takes_no_turn(factory: Any) -> None:
    pool = Pool(factory)
    for weight in (2, 1, 1):
        pool.add(weight)
    (scheduler,) = pool.schedulers
    first, again = (scheduler.ring(pool.service) for _ in range(2))
    assert first == again
    assert first.servers[0] is scheduler.schedule(CLIENT)


def test_a_cycle_that_is_too_long_is_none() -> None:
    pool = Pool(WeightedRoundRobin)
    pool.add(Ring.LONGEST)
    assert pool.schedulers[0].ring(pool.service) is not None  # one turn each
    pool.add(1)
    assert pool.schedulers[0].ring(pool.service) is None


@pytest.mark.parametrize("factory", [RoundRobin, WeightedRoundRobin])
def test_nobody_to_choose_is_no_ring(factory: Any) -> None:
    pool = Pool(factory)
    assert pool.schedulers[0].ring(pool.service) is None
    pool.add(0)
    assert pool.schedulers[0].ring(pool.service) is None
