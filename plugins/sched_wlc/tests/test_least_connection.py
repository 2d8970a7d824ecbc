"""wlc, lc, sed and nq against exact fractions, and against their own descriptions."""

from __future__ import annotations

from typing import Any

import lvskit_sched_wlc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_sched_wlc.lc import LeastConnection
from lvskit_sched_wlc.nq import NeverQueue
from lvskit_sched_wlc.sed import ShortestExpectedDelay
from lvskit_sched_wlc.wlc import WeightedLeastConnection

from lvskit import load_plugins
from lvskit.testing.reference import FractionLc, FractionNq, FractionSed, FractionWlc, Pool

PAIRS = [
    (WeightedLeastConnection, FractionWlc),
    (LeastConnection, FractionLc),
    (ShortestExpectedDelay, FractionSed),
    (NeverQueue, FractionNq),
]
PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 2, 3, 7, 100, 2**31 - 1])
COUNTS = st.sampled_from([0, 0, 1, 2, 3, 255, 256, 257, 258, 514, 10**6])
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
@given(st.lists(st.tuples(WEIGHTS, COUNTS, COUNTS), max_size=20), STEPS)
def test_choices_are_those_of_exact_fractions(
    pair: tuple[Any, Any], servers: list[tuple[int, int, int]], steps: list[Any]
) -> None:
    pool = Pool(*pair)
    for weight, active, inactive in servers:
        pool.add(weight)
        pool.load(0, active, inactive)
    for action, *arguments in [*steps, ("pick",)]:
        if action == "pick":
            chosen = pool.pick()
            assert (chosen is None) == all(s.weight == 0 or s.overloaded for s in pool.servers)
        elif action == "add":
            pool.add(*arguments)
        elif pool.servers:
            place, *rest = arguments
            getattr(pool, action)(place % len(pool.servers), *rest)


def pool_of(factory: Any, *servers: tuple[int, int, int]) -> Pool:
    """Return a pool of (weight, active, inactive), oldest server first."""
    pool = Pool(factory)
    for weight, active, inactive in servers:
        pool.add(weight)
        pool.load(0, active, inactive)
    return pool


@pytest.mark.parametrize("factory", [pair[0] for pair in PAIRS])
def test_the_newest_of_equals_is_chosen(factory: Any) -> None:
    assert pool_of(factory, (1, 0, 0), (1, 0, 0), (1, 0, 0)).pick() == 2
    assert pool_of(factory, (1, 2, 3), (1, 2, 3), (1, 2, 3)).pick() == 2
    assert pool_of(factory, (2**31 - 1, 4, 8), (2**31 - 1, 4, 8)).pick() == 1


@pytest.mark.parametrize("factory", [pair[0] for pair in PAIRS])
def test_the_quiesced_and_the_overloaded_are_not(factory: Any) -> None:
    pool = pool_of(factory, (1, 9, 9), (0, 0, 0), (5, 0, 0))
    pool.overload(0)
    assert pool.pick() == 0
    pool.overload(2)
    assert pool.pick() is None
    assert Pool(factory).pick() is None


def test_an_active_connection_weighs_as_much_as_257_inactive_ones() -> None:
    pool = pool_of(WeightedLeastConnection, (1, 1, 0), (1, 0, 257))
    assert pool.pick() == 1  # equal: the newest
    pool.load(0, 0, 258)
    assert pool.pick() == 0
    pool.load(0, 0, 256)
    assert pool.pick() == 1


def test_wlc_goes_by_weight_and_lc_does_not() -> None:
    servers = (3, 2, 0), (1, 1, 0)
    assert pool_of(WeightedLeastConnection, *servers).pick() == 0
    assert pool_of(LeastConnection, *servers).pick() == 1


def test_sed_counts_the_connection_to_come_and_only_active_ones() -> None:
    assert pool_of(ShortestExpectedDelay, (3, 1, 10**6), (1, 0, 0)).pick() == 0
    assert pool_of(ShortestExpectedDelay, (2, 1, 0), (1, 0, 0)).pick() == 1
    assert pool_of(WeightedLeastConnection, (3, 1, 10**6), (1, 0, 0)).pick() == 1


def test_nq_takes_an_idle_server_whatever_its_weight() -> None:
    assert pool_of(NeverQueue, (1, 0, 0), (100, 1, 0)).pick() == 0
    assert pool_of(NeverQueue, (1, 0, 0), (100, 0, 10**6)).pick() == 1
    assert pool_of(NeverQueue, (1, 1, 0), (100, 2, 0)).pick() == 1
    assert pool_of(NeverQueue, (2, 1, 0), (3, 2, 0)).pick() == 1  # equal: (1 + 1) / 2, (2 + 1) / 3


def test_fractions_that_differ_by_the_least_are_told_apart() -> None:
    assert pool_of(WeightedLeastConnection, (100, 0, 1), (99, 0, 1)).pick() == 0
    assert pool_of(WeightedLeastConnection, (99, 0, 1), (100, 0, 1)).pick() == 1


def test_nq_counts_the_connection_to_come_once() -> None:
    assert pool_of(NeverQueue, (2, 3, 0), (1, 1, 0)).pick() == 1  # equal: (3 + 1) / 2, (1 + 1) / 1


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_connections_that_come_and_go_leave_nothing_behind(pair: tuple[Any, Any]) -> None:
    pool = Pool(*pair)
    (scheduler, _) = pool.schedulers
    for _ in range(3):
        pool.add(1)
    pool.pick()
    for idle in (0, 1, 2):  # the least rank there is, beside others that come and go
        for count in range(40, 0, -1):
            for place in {0, 1, 2} - {idle}:
                pool.load(place, count, count)
                assert len(scheduler._heap) <= 4 * len(pool.servers)
            assert pool.pick() == 2 - idle
        for place in {0, 1, 2} - {idle}:
            pool.load(place, 0, 0)


@pytest.mark.parametrize("factory", [pair[0] for pair in PAIRS])
def test_only_servers_that_change_are_weighed(
    factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promise behind O(log n), for the part of it that would cost most."""
    weighed = []

    def load(self: Any, server: Any) -> int:
        weighed.append(server)
        return rule(self, server)

    rule = factory.load
    monkeypatch.setattr(factory, "load", load)
    pool = pool_of(factory, *[(1, 3, 3)] * 1000)
    assert pool.pick() == 999
    weighed.clear()
    pool.load(500, 2, 3)
    pool.load(700, 1, 3)
    pool.load(700, 2, 2)
    pool.load(0, 3, 4)
    assert pool.pick() in (299, 499)
    assert sorted(weighed, key=pool.servers.index) == [pool.servers[n] for n in (0, 500, 700, 700)]
    weighed.clear()
    assert pool.pick() in (299, 499)
    assert not weighed


@pytest.mark.parametrize("factory", [pair[0] for pair in PAIRS])
def test_being_told_more_than_once_or_for_nothing_changes_nothing(factory: Any) -> None:
    pool = pool_of(factory, (1, 4, 1), (1, 3, 2), (1, 2, 3), (1, 1, 4))
    (scheduler,) = pool.schedulers
    for server in [*pool.servers, *reversed(pool.servers)]:
        scheduler.load_changed(server)
        assert pool.pick() == 3
    gone = pool.servers[0]
    pool.remove(0)
    scheduler.load_changed(gone)  # its connections go on ending
    assert pool.pick() == 2
    scheduler.load_changed(gone)
    assert pool.pick() == 2


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_a_scheduler_that_comes_later_sees_what_is_there(pair: tuple[Any, Any]) -> None:
    """As after `-E` with another scheduler, while connections live."""
    pool = pool_of(pair[1], (2, 3, 1), (1, 3, 2), (3, 2, 3), (1, 1, 4), (0, 0, 0), (9, 1, 1))
    pool.overload(0)
    pool.schedulers.append(pair[0](pool.servers, None))
    pool.pick()


def test_records() -> None:
    specs = {spec.name: spec for spec in lvskit_sched_wlc.lvskit_register_schedulers()}
    assert sorted(specs) == ["lc", "nq", "sed", "wlc"]
    weighted = [name for name, spec in specs.items() if spec.traits.weighted]
    assert sorted(weighted) == ["nq", "sed", "wlc"]
    assert all(spec.summary and spec.options is None for spec in specs.values())
    installed = load_plugins()
    for name, spec in specs.items():
        assert installed.scheduler(name).factory is spec.factory
