"""Every installed scheduler against its slow reference, by sequences that hypothesis invents.

Once in a director, whose servers' loads follow from connections that packets open and close: the
reference says beforehand where the next connection has to go. Once without, where loads are set by
hand and days pass.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvskit import (
    Director,
    PluginError,
    Reason,
    Reply,
    Route,
    SchedulerSpec,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
    UnknownPlugin,
    load_plugins,
)
from lvskit.records import build_options
from lvskit.testing import packets
from lvskit.testing.reference import CLIENT, REFERENCES, Pool

PLUGINS = load_plugins(strict=True)
FLAGS = [(), (1,), (2,), (1, 2)]
CASES = [
    pytest.param(name, flags, id="-".join([name, *map(str, flags)]))
    for name in REFERENCES
    for flags in (FLAGS if name in ("sh", "mh") else FLAGS[:1])
]
GREATEST = dict.fromkeys(REFERENCES, 2**31 - 1) | {"wrr": 300}
"""The greatest weights; the reference of wrr writes out its whole cycle, which takes long."""
MARK = 7
TICK_S = 2.0
PREFIX = {4: "192.168.1.{}", 6: "2001:db8::{}"}
CLIENTS = {4: "10.{}.0.9", 6: "2001:db8:{:x}::9"}
VIRTUAL = {4: "172.16.{}.1", 6: "2001:db8:ffff:{:x}::1"}


def installed(name: str) -> SchedulerSpec:
    """Return a scheduler's record; skip where its distribution is not installed."""
    try:
        return PLUGINS.scheduler(name)
    except UnknownPlugin:
        pytest.skip(f"no scheduler {name!r} is installed")


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


class Both:
    """A director with one service of the scheduler in question, and the scheduler's reference.

    The service goes by mark, so that clients can ask for many addresses, by TCP and by UDP.
    """

    def __init__(self, name: str, flags: tuple[int, ...], version: int) -> None:
        self.faults: list[PluginError] = []
        here = packed(PREFIX[version].format(175))
        self.director = Director(
            PLUGINS, lambda address: Route(here, 1500), report=self.faults.append
        )
        self.version = version
        self.key = ServiceKey.mark(MARK, version)
        self.settings = ServiceSettings(scheduler=name, flags=frozenset(flags))
        self.service = self.director.add_service(self.key, self.settings)
        self.flows: list[Any] = []
        self.now = 0.0
        self.next_tick = TICK_S
        self.reference = REFERENCES[name](self.service.servers, flags)

    # --- commands ---

    def server(self, number: int, weight: int, upper: int, lower: int) -> None:
        """Add a server, or edit it."""
        address = packed(PREFIX[self.version].format(number))
        weight = min(weight, GREATEST[self.settings.scheduler])
        wanted = ServerSettings(weight=weight, upper=upper, lower=min(lower, upper))
        for server in self.service.servers:
            if server.address == address:
                self.director.edit_server(self.key, address, None, wanted)
                self.reference.server_updated(server)
                return
        self.director.add_server(self.key, address, None, wanted)
        self.reference.server_added(self.service.servers[0])

    def remove(self, place: int) -> None:
        if self.service.servers:
            server = self.service.servers[place % len(self.service.servers)]
            self.director.remove_server(self.key, server.address, None, self.now)
            self.reference.server_removed(server)

    def replace(self) -> None:
        """Give the service another scheduler, and then a new one of the old kind."""
        name = self.settings.scheduler
        other = ServiceSettings(scheduler="rr" if name != "rr" else "wlc")
        installed(other.scheduler)
        self.director.edit_service(self.key, other)
        self.director.edit_service(self.key, self.settings)
        self.reference = REFERENCES[name](self.service.servers, self.settings.flags)
        self.reference.tick(self.now)

    # --- packets and time ---

    def open(
        self, client: int, cport: int, virtual: int, udp: bool, handshake: bool = False
    ) -> None:
        """Open a connection; it must go where the reference says."""
        virtual_address = VIRTUAL[self.version].format(virtual)
        ends = CLIENTS[self.version].format(client), cport, virtual_address, 80
        flow = packets.flow(*ends, protocol=17 if udp else 6)
        if flow in self.flows:
            return
        self.director.expire(self.now)  # the reference sees the connections of this moment
        chosen: Any = self.reference.schedule(flow)
        packet = packets.udp(*ends) if udp else packets.tcp(*ends)
        verdict = self.director.receive(packet, self.now, MARK)
        assert not self.faults
        if chosen is None:
            assert isinstance(verdict, Reply)
            assert verdict.reason is Reason.NO_SERVER
            return
        assert isinstance(verdict, Transmit)
        outer = slice(24, 40) if self.version == 6 else slice(16, 20)
        assert verdict.packet[outer] == chosen.address
        self.flows.append(flow)
        if handshake and not udp:
            self.go_on(-1, "A")

    def crowd(self, client: int, cport: int, virtual: int, count: int) -> None:
        """Open several connections at once; they stay."""
        for number in range(count):
            self.open(client + number % 3, cport + number, virtual, udp=False, handshake=True)

    def go_on(self, number: int, flags: str) -> None:
        """Let a packet come of a connection that there was, and may be still."""
        if self.flows:
            protocol, *ends = self.flows[number % len(self.flows)]
            packet = packets.tcp(*ends, flags) if protocol == 6 else packets.udp(*ends)
            self.director.receive(packet, self.now)  # without the mark: it opens no connection
            assert not self.faults

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.director.expire(self.now)
        while self.next_tick <= self.now:
            self.reference.tick(self.next_tick)
            self.next_tick += TICK_S
        assert not self.faults


PLACE = st.integers(0, 20)
WEIGHTS = st.sampled_from([0, 1, 1, 1, 2, 3, 4, 10, 100, 300, 2**31 - 1])
THRESHOLDS = st.sampled_from([0, 0, 0, 1, 2, 3, 4, 9])
WHO = st.integers(0, 250)
CPORT = st.integers(1024, 65000)
ADDRESS = st.integers(0, 5)
SERVER = st.tuples(st.just("server"), st.integers(11, 19), WEIGHTS, THRESHOLDS, THRESHOLDS)
STEPS = st.lists(
    st.one_of(
        SERVER,
        SERVER,
        st.tuples(st.just("open"), WHO, CPORT, ADDRESS, st.booleans(), st.booleans()),
        st.tuples(st.just("open"), WHO, CPORT, ADDRESS, st.booleans(), st.booleans()),
        st.tuples(st.just("open"), WHO, CPORT, ADDRESS, st.booleans(), st.booleans()),
        st.tuples(st.just("crowd"), WHO, CPORT, ADDRESS, st.integers(2, 9)),
        st.tuples(st.just("crowd"), WHO, CPORT, ADDRESS, st.integers(2, 9)),
        st.tuples(st.just("go_on"), PLACE, st.sampled_from(["A", "FA", "F", "R", "PA"])),
        st.tuples(st.just("go_on"), PLACE, st.sampled_from(["A", "FA", "F", "R", "PA"])),
        st.tuples(st.just("remove"), PLACE),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 1, 2, 11, 61, 121, 130, 301, 901])),
        st.just(("replace",)),
    ),
    min_size=5,
    max_size=40,
)


@pytest.mark.parametrize(("name", "flags"), CASES)
@settings(max_examples=50)
@given(first=st.lists(SERVER, min_size=1, max_size=6), steps=STEPS, version=st.sampled_from([4, 6]))
def test_in_a_director(
    name: str, flags: tuple[int, ...], first: list[Any], steps: list[Any], version: int
) -> None:
    installed(name)
    both = Both(name, flags, version)
    for what, *arguments in [*first, *steps]:
        getattr(both, what)(*arguments)


COUNTS = st.sampled_from([0, 0, 1, 2, 3, 4, 5, 9, 256, 257, 258, 514, 10**6])
# Sums of these are far from the ages at which entries of lblc and lblcr go: time is known to them
# to two seconds only.
WAITS_S = st.sampled_from([0, 2, 10, 120, 13 * 3600, 25 * 3600])


class Days:
    """A pool of a scheduler and its reference, and the time."""

    def __init__(self, name: str, flags: tuple[int, ...]) -> None:
        spec = installed(name)
        self.greatest = GREATEST[name]
        options = build_options(spec, {spec.flags[number - 1]: True for number in flags})
        self.pool = Pool(spec.factory, REFERENCES[name], options=[options, flags])
        self.now = 0.0

    def add(self, weight: int, active: int, inactive: int) -> None:
        self.pool.add(min(weight, self.greatest))
        self.pool.load(0, active, inactive)

    def restore(self, place: int, weight: int, same: bool) -> None:
        if removed := self.pool.removed:
            self.pool.restore(removed[place % len(removed)], min(weight, self.greatest), same)

    def edit(self, place: int, weight: int) -> None:
        self.change("edit", place, min(weight, self.greatest))

    def change(self, what: str, place: int, *arguments: Any) -> None:
        """Edit, load, overload or remove the server at a place."""
        if servers := self.pool.servers:
            getattr(self.pool, what)(place % len(servers), *arguments)

    def pick(self, client: int, cport: int, virtual: int) -> None:
        ends = CLIENTS[4].format(client), cport, VIRTUAL[4].format(virtual), 80
        self.pool.pick(packets.flow(*ends))

    def wait(self, seconds: int) -> None:
        for _ in range(0, seconds, int(TICK_S)):
            self.now += TICK_S
            self.pool.tick(self.now)


DAYS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), WEIGHTS, COUNTS, COUNTS),
        st.tuples(st.just("restore"), PLACE, WEIGHTS, st.booleans()),
        st.tuples(st.just("edit"), PLACE, WEIGHTS),
        st.tuples(st.just("change"), st.just("load"), PLACE, COUNTS, COUNTS),
        st.tuples(st.just("change"), st.just("load"), PLACE, COUNTS, COUNTS),
        st.tuples(st.just("change"), st.just("overload"), PLACE, st.booleans()),
        st.tuples(st.just("change"), st.just("remove"), PLACE),
        st.tuples(st.just("pick"), WHO, CPORT, ADDRESS),
        st.tuples(st.just("pick"), WHO, CPORT, ADDRESS),
        st.tuples(st.just("pick"), WHO, CPORT, ADDRESS),
        st.tuples(st.just("wait"), WAITS_S),
    ),
    min_size=10,
    max_size=60,
)


@pytest.mark.parametrize(("name", "flags"), CASES)
@settings(max_examples=50)
@given(steps=DAYS)
def test_by_itself(name: str, flags: tuple[int, ...], steps: list[Any]) -> None:
    days = Days(name, flags)
    for what, *arguments in steps:
        getattr(days, what)(*arguments)


@pytest.mark.parametrize("name", ["lblc", "lblcr"])
def test_with_more_addresses_than_are_remembered(name: str) -> None:
    """24,576 entries at most; of those not used for six minutes some go, bucket by bucket."""
    days = Days(name, ())
    days.pool.add()
    addresses = [(n * 0x9E3779B1 % 2**32).to_bytes(4, "big") for n in range(25_000)]
    for number, address in enumerate(addresses):
        if number == 12_500:
            days.wait(180)
        assert days.pool.pick(CLIENT._replace(vaddr=address)) == 0
    days.wait(240)
    days.pool.load(0, 0, 1)
    days.pool.add()
    forgotten = sum(days.pool.pick(CLIENT._replace(vaddr=address)) or 0 for address in addresses)
    assert 8192 + 424 <= forgotten < 9000


def test_every_scheduler_that_is_installed_has_a_reference() -> None:
    assert set(PLUGINS.schedulers) <= set(REFERENCES)
