"""Schedulers that want to know: of every change of a server's load, and of the time."""

from __future__ import annotations

from typing import Any

import pytest
from director_world import (
    CLIENT,
    INIT,
    LOCAL_ROUTE,
    ONE,
    TWO,
    VIP,
    WEB,
    World,
    address,
    sctp,
)

from lvskit import (
    SCTP,
    TCP,
    UDP,
    Refusal,
    SchedulerBase,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    refuse,
)
from lvskit.testing import packets

DNS = ServiceKey.of(UDP, address(VIP), 53)


class First(SchedulerBase):
    """Chooses the first server that may be chosen, and wants to know nothing."""

    def schedule(self, flow: Any) -> Any:
        usable = (s for s in self.servers if s.weight and not s.overloaded)
        return next(usable, None)


class Curious(First):
    """Remembers what it was told: the server's last byte, its connections, its overload."""

    def __init__(self, servers: Any, options: Any = None) -> None:
        super().__init__(servers, options)
        self.heard: list[tuple[int, int, int, bool]] = []
        self.ticks: list[float] = []

    def load_changed(self, server: Any) -> None:
        load = server.activeconns, server.inactconns, server.overloaded
        self.heard.append((server.address[3], *load))

    def tick(self, now: float) -> None:
        self.ticks.append(now)

    def told(self) -> list[tuple[int, int, int, bool]]:
        heard, self.heard = self.heard, []
        return heard


class Lifelong(First):
    def __init__(self, servers: Any, options: Any = None) -> None:
        super().__init__(servers, options)
        self.heard: list[Any] = []

    def load_changed(self, server: Any) -> None:
        self.heard.append(server)


class Timely(First):
    def __init__(self, servers: Any, options: Any = None) -> None:
        super().__init__(servers, options)
        self.heard: list[Any] = []

    def tick(self, now: float) -> None:
        self.heard.append(now)


class Bare:
    """Has only what a scheduler must have."""

    def __init__(self, servers: Any, options: Any = None) -> None:
        self.servers = servers

    def schedule(self, flow: Any) -> Any:
        return self.servers[0]

    def server_added(self, server: Any) -> None: ...

    def server_removed(self, server: Any) -> None: ...

    def server_updated(self, server: Any) -> None: ...

    def close(self) -> None: ...


SCHEDULERS = {
    "curious": Curious,
    "first": First,
    "lifelong": Lifelong,
    "timely": Timely,
    "bare": Bare,
}


def curious(*servers: bytes, **arguments: Any) -> tuple[World, Curious]:
    world = World(schedulers=SCHEDULERS, **arguments)
    made = world.serve(WEB, *servers, scheduler="curious").scheduler
    assert isinstance(made, Curious)
    return world, made


# --- load_changed ---


def test_each_change_of_a_servers_connections_is_told() -> None:
    world, scheduler = curious(ONE)
    world.tcp("S")  # told once, in the state that its packet has led to
    assert scheduler.told() == [(11, 1, 0, False)]
    world.tcp("A", now=1.0)
    world.tcp("A", now=2.0)
    assert scheduler.told() == []
    world.tcp("F", now=3.0)
    assert scheduler.told() == [(11, 0, 1, False)]
    world.director.expire(123.0)
    assert scheduler.told() == [(11, 0, 0, False)]


def test_what_answers_change_is_told_too() -> None:
    world, scheduler = curious(ONE)
    world.routes[ONE] = LOCAL_ROUTE
    world.director.routes_changed()
    world.tcps("SA")
    scheduler.told()
    world.director.replied(packets.tcp(VIP, 80, CLIENT, 1024, "R"), 1.0)
    assert scheduler.told() == [(11, 0, 1, False)]


def test_the_server_that_has_changed_is_the_one_that_is_told() -> None:
    world, scheduler = curious(ONE, TWO)
    world.tcp("S", cport=1)
    world.director.edit_server(WEB, TWO, None, ServerSettings(weight=0))
    world.tcp("S", cport=2)
    assert scheduler.told() == [(12, 1, 0, False), (11, 1, 0, False)]
    world.director.expire(60.0)
    assert sorted(scheduler.told()) == [(11, 0, 0, False), (12, 0, 0, False)]


def test_overload_is_told_when_it_comes_and_when_it_goes() -> None:
    world, scheduler = curious(ONE)
    world.director.edit_server(WEB, ONE, None, ServerSettings(upper=2))
    world.tcp("S", cport=1)
    world.tcp("S", cport=2, now=1.0)
    assert [overloaded for *_, overloaded in scheduler.told()] == [False, True]
    world.director.expire(60.0)
    assert scheduler.told() == [(11, 1, 0, False)]


def test_what_shedding_and_dropping_change_is_told() -> None:
    world, scheduler = curious(ONE, size=1)
    world.tcp("S", cport=1)
    scheduler.told()
    world.tcp("S", cport=2)
    assert scheduler.told() == [(11, 0, 0, False), (11, 1, 0, False)]
    world.tune(drop_entry=3)
    world.director.expire(32.0)
    assert scheduler.told() == [(11, 0, 0, False)]


def test_of_a_server_that_is_not_in_the_sequence_nothing_is_told() -> None:
    world, scheduler = curious(ONE)
    world.tcps("SA")
    world.director.remove_server(WEB, ONE, None, 1.0)
    scheduler.told()
    world.director.replied(packets.tcp(VIP, 80, CLIENT, 1024, "R"), 1.0)
    world.director.expire(100.0)
    assert world.connections == []
    assert scheduler.told() == []


def test_each_service_tells_its_own_scheduler() -> None:
    world, scheduler = curious(ONE)
    other = world.serve(DNS, ONE, scheduler="curious").scheduler
    assert isinstance(other, Curious)
    world.receive(packets.udp(CLIENT, 1, VIP, 53))
    assert (scheduler.told(), other.told()) == ([], [(11, 0, 1, False)])


@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP])
def test_load_is_told_of_every_protocol(protocol: int) -> None:
    world = World(schedulers=SCHEDULERS)
    key = ServiceKey.of(protocol, address(VIP), 80)
    scheduler = world.serve(key, ONE, scheduler="curious").scheduler
    assert isinstance(scheduler, Curious)
    world.receive(
        {
            TCP: packets.tcp(CLIENT, 1, VIP, 80),
            UDP: packets.udp(CLIENT, 1, VIP, 80),
            SCTP: sctp(CLIENT, 1, VIP, 80, INIT),
        }[protocol]
    )
    assert scheduler.told() == [(11, int(protocol == TCP), int(protocol != TCP), False)]
    world.director.expire(300.0)
    assert scheduler.told()[-1] == (11, 0, 0, False)


def test_a_scheduler_sees_the_load_of_this_moment() -> None:
    """What has run out by now has been told before it is asked."""
    world, scheduler = curious(ONE)
    world.tcp("S", cport=1)
    scheduler.told()
    asked: list[Any] = []

    def schedule(flow: Any) -> Any:
        asked.extend(scheduler.told())
        assert scheduler.ticks[-1] == 60.0
        return scheduler.servers[0]

    scheduler.schedule = schedule  # type: ignore[method-assign]
    world.tcp("S", cport=2, now=60.0)
    assert asked == [(11, 0, 0, False)]


def test_a_connection_that_gives_way_still_counts_for_the_choice() -> None:
    """And until the new one does: its server may be overloaded by the two together."""
    world, scheduler = curious(ONE)
    world.tcps("SF")
    asked: list[Any] = []

    def schedule(flow: Any) -> Any:
        asked.append([(s.activeconns, s.inactconns) for s in scheduler.servers])
        return Curious.schedule(scheduler, flow)

    scheduler.schedule = schedule  # type: ignore[method-assign]
    scheduler.told()
    world.tcp("S", now=1.0)
    assert asked == [[(0, 1)]]
    assert scheduler.told() == [(11, 0, 1, False), (11, 1, 0, False)]
    world.director.edit_server(WEB, ONE, None, ServerSettings(upper=1))
    world.tcp("S", cport=2, now=2.0)
    world.tcps("F", cport=2, now=3.0)
    assert scheduler.servers[0].overloaded
    verdict = world.tcp("S", cport=2, now=4.0)
    assert verdict == refuse(packets.tcp(CLIENT, 2, VIP, 80), Refusal.PORT_UNREACHABLE)
    assert [c.flow.cport for c in world.connections] == [1024]


# --- tick ---


def test_the_time_is_told_every_two_seconds_before_what_follows() -> None:
    world, scheduler = curious(ONE, now=100.0)
    world.director.expire(101.999)
    assert scheduler.ticks == []
    world.director.expire(102.0)
    assert scheduler.ticks == [102.0]
    world.tcp("S", now=107.5)  # a new connection asks for the time as well
    assert scheduler.ticks == [102.0, 104.0, 106.0, 107.5]
    world.tcp("A", now=109.0)  # a known one does not
    assert scheduler.ticks == [102.0, 104.0, 106.0, 107.5]
    world.director.expire(110.0)
    assert scheduler.ticks == [102.0, 104.0, 106.0, 107.5, 108.0, 110.0]


def test_a_scheduler_that_follows_another_is_told_from_then_on() -> None:
    world, old = curious(ONE)
    world.director.expire(2.0)
    world.director.edit_service(WEB, ServiceSettings(scheduler="first"))
    world.director.expire(4.0)
    world.director.edit_service(WEB, ServiceSettings(scheduler="curious"))
    new = world.director.services.get(WEB).scheduler
    assert isinstance(new, Curious)
    world.director.expire(6.0)
    world.tcp("S", now=6.0)
    assert (old.ticks, new.ticks) == ([2.0], [6.0, 6.0])
    assert (old.told(), len(new.told())) == ([], 1)


# --- who is told ---


@pytest.mark.parametrize(
    ("name", "load", "time"),
    [("curious", True, True), ("lifelong", True, False), ("timely", False, True),
     ("first", False, False), ("bare", False, False), ("rr", False, False)],
)  # fmt: skip
def test_only_who_has_a_method_of_its_own_is_told(name: str, load: bool, time: bool) -> None:
    world = World(schedulers=SCHEDULERS)
    service = world.serve(WEB, ONE, scheduler=name)
    assert (service.load_changed is not None, service.tick is not None) == (load, time)
    world.tcp("S")
    world.director.expire(2.0)
    assert not world.faults
    if name == "lifelong":
        assert service.scheduler.heard == service.servers  # type: ignore[attr-defined]
    if name == "timely":
        assert service.scheduler.heard == [0.0, 2.0]  # type: ignore[attr-defined]


def test_one_that_raises_is_reported_and_changes_nothing() -> None:
    class Sulking(First):
        def load_changed(self, server: Any) -> None:
            raise RuntimeError("again")

        def tick(self, now: float) -> None:
            raise RuntimeError("already")

    world = World(schedulers={"sulking": Sulking})
    service = world.serve(WEB, ONE, scheduler="sulking")
    world.tcp("S")
    world.director.expire(2.0)
    assert [str(fault) for fault in world.faults] == [
        f"scheduler 'sulking' of TCP {VIP}:80: tick raised RuntimeError('already')",
        f"scheduler 'sulking' of TCP {VIP}:80: load_changed raised RuntimeError('again')",
        f"scheduler 'sulking' of TCP {VIP}:80: tick raised RuntimeError('already')",
    ]
    assert {fault.plugin for fault in world.faults} == {"sulking"}
    assert service.servers[0].activeconns == 1
    assert service.estimator.shown().conns == 1
