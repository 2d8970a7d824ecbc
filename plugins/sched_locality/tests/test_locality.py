"""lblc and lblcr against references that look through everything, and their descriptions."""

from __future__ import annotations

from functools import partial
from typing import Any

import lvskit_sched_locality
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_sched_locality.cache import LocalityOptions
from lvskit_sched_locality.lblc import LocalityLeastConnection
from lvskit_sched_locality.lblcr import ReplicatedLocality

from lvskit import ConfigError, Director, ServiceKey, ServiceSettings, load_plugins
from lvskit.testing.reference import CLIENT, Pool, ServerByAddress, ServerSetByAddress

PAIRS = [
    (LocalityLeastConnection, ServerByAddress),
    (ReplicatedLocality, ServerSetByAddress),
]
PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 2, 3, 10])
COUNTS = st.sampled_from([0, 0, 1, 2, 3, 4, 5, 11, 256, 257])
VIPS = st.integers(1, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), VIPS),
        st.tuples(st.just("ask"), VIPS),
        st.tuples(st.just("ask"), VIPS),
        st.tuples(st.just("wait"), st.sampled_from([2, 30, 1790, 4000])),
        st.tuples(st.just("add"), WEIGHTS),
        st.tuples(st.just("readd"), WEIGHTS, st.booleans()),
        st.tuples(st.just("remove"), PLACE),
        st.tuples(st.just("edit"), PLACE, WEIGHTS),
        st.tuples(st.just("overload"), PLACE, st.booleans()),
        st.tuples(st.just("load"), PLACE, COUNTS, COUNTS),
        st.tuples(st.just("load"), PLACE, COUNTS, COUNTS),
    ),
    max_size=60,
)


class Servers(Pool):
    """A pool that is asked for several virtual addresses, and whose servers come back."""

    def __init__(self, *factories: Any, start: float = 1e5) -> None:
        super().__init__(*factories)
        self.now = start

    def ask(self, vip: int) -> int | None:
        return self.pick(CLIENT._replace(vaddr=bytes([172, 16, 0, vip])))

    def wait(self, seconds: int) -> None:
        """Let time pass in the director's ticks."""
        for _ in range(0, seconds, 2):
            self.now += 2
            self.tick(self.now)

    def readd(self, weight: int, same: bool = True) -> None:
        """Add a server that was removed again: as itself, or as a new one in its place."""
        if self.removed:
            self.restore(self.removed[-1], weight, same)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
@given(
    st.sampled_from([0, 60, 3600]),
    st.lists(st.tuples(WEIGHTS, COUNTS, COUNTS), max_size=5),
    st.booleans(),
    STEPS,
)
def test_choices_are_those_of_looking_through_everything(
    pair: tuple[Any, Any],
    expiration_s: int,
    servers: list[tuple[int, int, int]],
    ticked: bool,
    steps: list[Any],
) -> None:
    fast, slow = pair
    pool = Servers(
        lambda servers, _: fast(servers, LocalityOptions(expiration_s)),
        partial(slow, expiration_s=expiration_s),
    )
    if ticked:
        pool.tick(pool.now)
    for weight, active, inactive in servers:
        pool.add(weight)
        pool.load(0, active, inactive)
    for action, *arguments in [*steps, ("ask", 1)]:
        if action in ("ask", "add", "readd", "wait"):
            getattr(pool, action)(*arguments)
        elif pool.servers:
            place, *rest = arguments
            getattr(pool, action)(place % len(pool.servers), *rest)


def pool_of(factory: Any, *servers: tuple[int, int], expiration_s: int = 86400) -> Servers:
    """Return a pool of (weight, active), oldest server first; its clock has ticked."""
    pool = Servers(lambda servers, _: factory(servers, LocalityOptions(expiration_s)))
    pool.tick(pool.now)
    for weight, active in servers:
        pool.add(weight)
        pool.load(0, active)
    return pool


FACTORIES = pytest.mark.parametrize("factory", [pair[0] for pair in PAIRS])


@FACTORIES
def test_options_are_optional(factory: Any) -> None:
    pool = Servers(factory)
    pool.add()
    assert pool.ask(1) == 0


@FACTORIES
def test_a_new_address_gets_the_least_loaded_server(factory: Any) -> None:
    assert pool_of(factory, (1, 0), (1, 0)).ask(1) == 1  # of equals, the newest
    assert pool_of(factory, (1, 1), (1, 1)).ask(1) == 1
    assert pool_of(factory, (3, 2), (1, 1)).ask(1) == 0
    pool = pool_of(factory, (1, 1), (1, 0))
    pool.load(0, 0, 257)
    assert pool.ask(1) == 1
    pool.load(0, 0, 258)
    assert pool.ask(2) == 0


@FACTORIES
def test_the_address_keeps_it_while_it_can_carry_the_load(factory: Any) -> None:
    pool = pool_of(factory, (2, 0), (2, 0))
    assert pool.ask(1) == 1
    pool.load(0, 2, 10**6)
    assert pool.ask(1) == 1  # two active connections are no more than it weighs
    pool.load(0, 3)
    pool.load(1, 1)
    assert pool.ask(1) == 1  # and a server with one of two is not half idle
    pool.load(1, 0)
    assert pool.ask(1) == 0
    pool.load(0, 2)
    assert pool.ask(2) == 0


@FACTORIES
def test_half_idle_is_below_half_the_weight(factory: Any) -> None:
    pool = pool_of(factory, (5, 3), (1, 0))
    assert pool.ask(1) == 1
    pool.load(0, 2)
    assert pool.ask(1) == 1
    pool.load(1, 2)  # two of five are, three are not
    assert pool.ask(1) == 0


@FACTORIES
def test_a_quiesced_or_removed_server_loses_its_addresses(factory: Any) -> None:
    pool = pool_of(factory, (1, 0), (1, 0))
    assert pool.ask(1) == 1
    pool.edit(0, 0)
    assert pool.ask(1) == 0
    pool.edit(0, 1)
    pool.load(0, 0)
    pool.remove(1)
    assert pool.ask(1) == 1
    pool.remove(0)
    assert pool.ask(1) is None


@FACTORIES
@pytest.mark.parametrize("same", [True, False])
def test_a_removed_server_returns_to_its_addresses(factory: Any, same: bool) -> None:
    pool = pool_of(factory, (1, 0), (1, 0))
    assert pool.ask(1) == 1
    pool.remove(0)
    pool.readd(1, same)
    pool.load(0, 1)  # it is more loaded, so only memory speaks for it
    assert pool.ask(2) == 0
    assert pool.ask(1) == 1


@FACTORIES
def test_nobody_is_chosen_where_nobody_may_be(factory: Any) -> None:
    pool = pool_of(factory)
    assert pool.ask(1) is None
    pool.add(0)
    assert pool.ask(1) is None
    pool.add(1)
    pool.overload(0)
    assert pool.ask(1) is None
    pool.overload(0, False)
    assert pool.ask(1) == 1


def test_lblc_keeps_an_address_with_a_server_over_its_threshold() -> None:
    """As the kernel does; a new address passes it by."""
    pool = pool_of(LocalityLeastConnection, (1, 0), (1, 0))
    assert pool.ask(1) == 1
    pool.overload(0)
    assert pool.ask(1) == 1
    assert pool.ask(2) == 0


def test_lblc_moves_an_address_for_good() -> None:
    pool = pool_of(LocalityLeastConnection, (1, 0), (1, 0))
    assert pool.ask(1) == 1
    pool.load(0, 2)
    assert pool.ask(1) == 0
    pool.load(0, 0)
    pool.load(1, 1)
    assert pool.ask(1) == 0


def test_lblcr_adds_a_server_to_the_set_and_uses_the_less_loaded() -> None:
    pool = pool_of(ReplicatedLocality, (1, 0), (1, 0), (1, 0))
    assert pool.ask(1) == 2
    pool.load(0, 2)
    assert pool.ask(1) == 1
    pool.load(0, 0)  # the first one of the set is idle again
    pool.load(1, 1)
    pool.load(2, 0)
    assert pool.ask(1) == 2
    pool.load(0, 1)
    assert pool.ask(1) == 1  # of equals, the one that joined last
    pool.overload(1)
    assert pool.ask(1) == 2
    pool.overload(0)
    assert pool.ask(1) == 0


def grown(expiration_s: int = 100) -> Servers:
    """Return a pool whose address 1 has the set 1, 2, in that order."""
    pool = pool_of(ReplicatedLocality, (1, 0), (1, 0), (1, 0), expiration_s=expiration_s)
    assert pool.ask(1) == 2
    pool.load(0, 2)
    assert pool.ask(1) == 1
    pool.load(0, 1)
    pool.load(1, 0)
    return pool


def test_lblcr_takes_the_most_loaded_out_of_a_set_that_has_not_changed_for_long() -> None:
    pool = grown()
    pool.wait(100)
    assert pool.ask(1) == 1
    pool.load(0, 0)
    pool.load(1, 1)
    assert pool.ask(1) == 2  # not before the time is over
    pool.load(0, 1)
    pool.load(1, 0)
    pool.wait(2)
    assert pool.ask(1) == 1
    pool.load(0, 0)
    pool.load(1, 1)
    assert pool.ask(1) == 1  # 2 has left


def test_lblcr_may_choose_the_server_that_leaves() -> None:
    pool = grown()
    pool.load(0, 0)
    pool.load(1, 0)
    pool.wait(102)
    assert pool.ask(1) == 1  # of equals the first is both the least and the most loaded
    assert pool.ask(1) == 2
    pool.load(1, 0)
    pool.load(0, 1)
    pool.wait(1000)
    assert pool.ask(1) == 2  # the last one stays


def test_lblcr_waits_anew_after_a_server_has_joined() -> None:
    pool = grown()
    pool.wait(60)
    pool.load(0, 2)
    pool.load(1, 2)
    assert pool.ask(1) == 0  # now all three are in the set
    pool.wait(100)
    assert pool.ask(1) == 0
    pool.load(0, 0)
    assert pool.ask(1) == 0
    pool.load(2, 1)
    assert pool.ask(1) == 2  # so 2 is still there


def test_lblcr_waits_anew_after_a_server_has_left() -> None:
    pool = grown()
    pool.load(0, 2)
    pool.load(1, 2)
    assert pool.ask(1) == 0
    pool.load(1, 3)
    pool.wait(102)
    assert pool.ask(1) == 0  # 1 leaves
    pool.wait(100)
    assert pool.ask(1) == 0
    pool.load(0, 0)
    pool.load(2, 1)
    assert pool.ask(1) == 2
    pool.load(0, 2)
    pool.load(2, 0)
    pool.wait(2)
    assert pool.ask(1) == 0  # 2 leaves, 100 seconds after 1
    pool.load(0, 0)
    pool.load(2, 1)
    assert pool.ask(1) == 0


def test_lblcr_lets_a_removed_server_leave_the_set_and_never_a_quiesced_one() -> None:
    pool = grown()
    pool.remove(0)
    pool.wait(102)
    assert pool.ask(1) == 1
    pool.readd(1)
    pool.load(0, 0)
    pool.load(1, 1)
    assert pool.ask(1) == 1  # 2 had left, being the most loaded
    pool = grown()
    pool.edit(0, 0)
    pool.wait(102)
    assert pool.ask(1) == 1
    pool.edit(0, 1)
    assert pool.ask(1) == 2  # 1 left in its place


@FACTORIES
def test_an_address_that_was_not_used_for_long_is_forgotten_within_half_an_hour(
    factory: Any,
) -> None:
    pool = pool_of(factory, (9, 0), (9, 0), expiration_s=600)
    assert pool.ask(1) == pool.ask(2) == 1
    pool.load(0, 1)
    pool.wait(1190)
    assert pool.ask(1) == 1
    pool.wait(10)
    assert pool.ask(2) == 1
    pool.wait(598)
    assert pool.ask(2) == 1
    pool.wait(2)  # half an hour: 1 was used 610 seconds ago
    assert pool.ask(2) == 1
    assert pool.ask(1) == 0


@FACTORIES
def test_the_clock_may_start_late_and_at_any_time(factory: Any) -> None:
    pool = Servers(lambda servers, _: factory(servers, LocalityOptions(600)), start=10**9)
    for _ in range(2):
        pool.add(9)
    assert pool.ask(1) == 1
    pool.load(0, 1)
    pool.wait(1800)
    assert pool.ask(1) == 1
    pool.wait(2)
    assert pool.ask(1) == 1
    pool.wait(3600)
    assert pool.ask(1) == 0


@FACTORIES
def test_what_was_asked_for_before_the_first_tick_is_as_old_as_that(factory: Any) -> None:
    for age, home in ((1800, 0), (1802, 1)):
        pool = Servers(lambda servers, _, age=age: factory(servers, LocalityOptions(age)))
        for _ in range(2):
            pool.add(9)
        assert pool.ask(1) == 1
        pool.load(0, 1)
        pool.tick(5.0)
        pool.tick(1805.0)
        assert pool.ask(1) == home


@FACTORIES
def test_a_clock_that_leaps_is_as_good_as_one_that_ticks(factory: Any) -> None:
    pool = pool_of(factory, (9, 0), (9, 0), expiration_s=600)
    assert pool.ask(1) == 1
    pool.load(0, 1)
    pool.tick(pool.now + 7200)
    assert pool.ask(1) == 0


def test_records() -> None:
    specs = {spec.name: spec for spec in lvskit_sched_locality.lvskit_register_schedulers()}
    assert sorted(specs) == ["lblc", "lblcr"]
    assert all(spec.summary and spec.option_names == ("expiration_s",) for spec in specs.values())
    assert LocalityOptions().expiration_s == 24 * 60 * 60
    assert all(spec.traits.total and not spec.traits.flow_consistent for spec in specs.values())
    installed = load_plugins()
    for name, spec in specs.items():
        assert installed.scheduler(name).factory is spec.factory


@pytest.mark.parametrize("name", ["lblc", "lblcr"])
def test_an_expiration_that_cannot_be_is_refused(name: str) -> None:
    director = Director(load_plugins(), lambda address: None)
    key = ServiceKey.mark(1)
    with pytest.raises(ConfigError, match=r"FWM 1: expiration_s -1; allowed: 0 or more seconds"):
        director.add_service(key, ServiceSettings(scheduler=name, options={"expiration_s": -1}))
    director.add_service(key, ServiceSettings(scheduler=name, options={"expiration_s": 0}))
