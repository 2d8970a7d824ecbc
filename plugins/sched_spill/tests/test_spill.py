"""fo and ovf against their references, and against their own descriptions."""

from __future__ import annotations

from typing import Any

import lvskit_sched_spill
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_sched_spill.fo import FailOver
from lvskit_sched_spill.ovf import Overflow

from lvskit import load_plugins
from lvskit.testing.reference import Pool, Strongest, StrongestWithRoom

PAIRS = [(FailOver, Strongest), (Overflow, StrongestWithRoom)]
PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 2, 3, 100, 2**31 - 1])
COUNTS = st.sampled_from([0, 0, 1, 2, 3, 4, 99, 100, 101])
STEPS = st.lists(
    st.one_of(
        st.just(("pick",)),
        st.just(("pick",)),
        st.tuples(st.just("add"), WEIGHTS),
        st.tuples(st.just("remove"), PLACE),
        st.tuples(st.just("edit"), PLACE, WEIGHTS),
        st.tuples(st.just("overload"), PLACE, st.booleans()),
        st.tuples(st.just("load"), PLACE, COUNTS, COUNTS),
        st.tuples(st.just("load"), PLACE, COUNTS, COUNTS),
    ),
    max_size=50,
)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
@given(st.lists(st.tuples(WEIGHTS, COUNTS, COUNTS), max_size=5), STEPS)
def test_choices_are_those_of_the_references(
    pair: tuple[Any, Any], servers: list[tuple[int, int, int]], steps: list[Any]
) -> None:
    pool = Pool(*pair)
    for weight, active, inactive in servers:
        pool.add(weight)
        pool.load(0, active, inactive)
    for action, *arguments in [*steps, ("pick",)]:
        if action in ("pick", "add"):
            getattr(pool, action)(*arguments)
        elif pool.servers:
            place, *rest = arguments
            getattr(pool, action)(place % len(pool.servers), *rest)


def pool_of(factory: Any, *servers: tuple[int, int]) -> Pool:
    """Return a pool of (weight, active), oldest server first."""
    pool = Pool(factory)
    for weight, active in servers:
        pool.add(weight)
        pool.load(0, active)
    return pool


@pytest.mark.parametrize("factory", [FailOver, Overflow])
def test_the_heaviest_is_chosen_and_of_equals_the_newest(factory: Any) -> None:
    assert pool_of(factory, (1, 0), (3, 0), (2, 0)).pick() == 1
    assert pool_of(factory, (3, 0), (3, 0), (2, 0)).pick() == 1
    assert pool_of(factory, (2**31 - 1, 5), (1, 0)).pick() == 0


@pytest.mark.parametrize("factory", [FailOver, Overflow])
def test_the_quiesced_and_the_overloaded_are_not(factory: Any) -> None:
    pool = pool_of(factory, (1, 0), (0, 0), (5, 0))
    pool.overload(0)
    assert pool.pick() == 0
    pool.overload(2)
    assert pool.pick() is None
    assert Pool(factory).pick() is None


def test_fo_comes_back_when_the_heaviest_does() -> None:
    pool = pool_of(FailOver, (1, 0), (2, 10**6))
    assert pool.pick() == 1
    pool.edit(0, 0)
    assert pool.pick() == 0
    pool.edit(0, 2)
    assert pool.pick() == 1
    pool.remove(0)
    assert pool.pick() == 0


def test_ovf_gives_a_server_one_more_than_it_weighs() -> None:
    pool = pool_of(Overflow, (1, 0), (2, 0))
    order = []
    for _ in range(5):
        number = pool.pick()
        order.append(number)
        for place, server in enumerate(pool.servers):
            if number is not None and place == 1 - number:
                pool.load(place, server.activeconns + 1)
    assert order == [1, 1, 1, 0, 0]
    assert pool.pick() is None


def test_ovf_counts_active_connections_alone() -> None:
    pool = pool_of(Overflow, (1, 0), (2, 0))
    pool.load(0, 2, 10**6)
    assert pool.pick() == 1
    pool.load(0, 3, 0)
    assert pool.pick() == 0


def test_a_full_server_of_weight_0_is_not_chosen_either() -> None:
    assert pool_of(Overflow, (0, 0)).pick() is None
    assert pool_of(FailOver, (0, 0)).pick() is None


def test_records() -> None:
    specs = {spec.name: spec for spec in lvskit_sched_spill.lvskit_register_schedulers()}
    assert sorted(specs) == ["fo", "ovf"]
    assert [specs[name].traits.total for name in ("fo", "ovf")] == [True, False]
    assert [specs[name].traits.flow_consistent for name in ("fo", "ovf")] == [True, False]
    assert all(spec.summary and spec.options is None for spec in specs.values())
    installed = load_plugins()
    for name, spec in specs.items():
        assert installed.scheduler(name).factory is spec.factory
