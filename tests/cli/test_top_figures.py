"""What two readings say together, for a real director and whatever happens between them."""

from __future__ import annotations

import doctest
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvskit import Director, load_plugins
from lvskit.cli.top import figures as module
from lvskit.cli.top import words
from lvskit.cli.top.figures import Count, Figures, Rates, compare
from lvskit.config.status import DatapathStatus, Status
from lvskit.control.api import Control
from lvskit.control.datapaths import MemoryDatapath, MemoryOptions
from lvskit.testing.packets import tcp, udp
from lvskit.types import Transmit

PLUGINS = load_plugins()
VIP = "192.168.1.176"
DNS, NTP = {"udp": f"{VIP}:53"}, {"udp": f"{VIP}:123"}
SERVERS = ("192.168.1.181", "192.168.1.182")
QUIET = Rates(0, 0, 0, 0, 0)


class World:
    """A director with a clock of its own, and traffic."""

    def __init__(self) -> None:
        self.now = 100.0
        self.datapath = DatapathStatus("memory", {}, {})
        self.lost: dict[str, int] = {}
        self.size = 64
        self.start()

    def start(self) -> None:
        route = MemoryDatapath(MemoryOptions(addresses=["192.168.1.175"])).routes
        self.director = Director(PLUGINS, route, size=self.size, now=self.now)
        self.control = Control(
            self.director,
            PLUGINS,
            lambda: self.now,
            lost=lambda: self.lost,
            datapath=lambda: self.datapath,
        )

    def call(self, method: str, **params: Any) -> Any:
        return self.control.call(method, params)

    def add(self, service: dict[str, Any], *servers: str, **more: Any) -> None:
        self.call("add_service", service={**service, "scheduler": "rr"})
        for address in servers:
            self.call("add_server", service=service, server={"address": address, **more})

    def send(self, port: int, clients: range, size: int = 72) -> int:
        """Send a datagram from each client; return how many were forwarded."""
        packets = [udp("10.0.0.1", client, VIP, port, payload=bytes(size)) for client in clients]
        verdicts = [self.director.receive(packet, self.now) for packet in packets]
        return sum(isinstance(verdict, Transmit) for verdict in verdicts)

    def read(self) -> Status:
        return msgspec.convert(self.call("status"), Status)


@pytest.fixture
def world() -> World:
    return World()


def test_rates_are_what_passed_by_the_time_between(world: World) -> None:
    world.add(DNS, *SERVERS)
    first = world.read()
    world.send(53, range(1000, 1010))
    world.send(53, range(1000, 1004))
    world.now += 2.5
    told = compare(first, world.read())
    assert told.interval_s == 2.5
    assert told.rates == Rates(4.0, 5.6, 0.0, 560.0, 0.0)
    (service,) = told.services
    assert (service.name, service.scheduler) == ("udp 192.168.1.176:53", "rr")
    assert (service.weight, service.active, service.inactive) == (2, 0, 10)
    assert service.rates == told.rates
    assert [server.address for server in service.servers] == [f"{s}:53" for s in SERVERS[::-1]]
    assert [server.rates for server in service.servers] == [Rates(2.0, 2.8, 0.0, 280.0, 0.0)] * 2


def test_a_first_reading_has_the_directors_averages(world: World) -> None:
    world.add(DNS, *SERVERS)
    world.send(53, range(1000, 1040))
    world.now += 2
    reading = world.read()
    told = compare(None, reading)
    assert told.interval_s is None
    assert told.rates.conns == reading.rates.conns == 5  # a quarter of 20
    assert told.services[0].rates.inpkts == 5
    assert told.table.shed == Count(0, None)


def test_a_moment_has_no_rates_of_its_own(world: World) -> None:
    world.add(DNS, *SERVERS)
    first = world.read()
    world.send(53, range(1000, 1010))
    again = world.read()
    assert compare(first, again) == compare(None, again)


def test_zeroing_changes_no_rate(world: World) -> None:
    world.add(DNS, *SERVERS)
    world.send(53, range(1000, 1010))
    first = world.read()
    world.send(53, range(1010, 1012))
    world.call("zero")
    world.send(53, range(1012, 1014))
    world.now += 1
    assert compare(first, world.read()).services[0].rates.conns == 4


def test_a_server_that_leaves_takes_its_line_and_no_packet(world: World) -> None:
    world.add(DNS, *SERVERS)
    first = world.read()
    world.send(53, range(1000, 1010))
    world.call("delete_server", service=DNS, server={"address": SERVERS[0]})
    world.now += 1
    (service,) = compare(first, world.read()).services
    assert service.rates.conns == 10
    assert [server.rates.conns for server in service.servers] == [5]


def test_services_come_and_go(world: World) -> None:
    world.add(DNS, *SERVERS)
    first = world.read()
    world.send(53, range(1000, 1010))
    world.call("delete_service", service=DNS)
    world.add(NTP, *SERVERS)
    world.send(123, range(1000, 1002))
    world.now += 1
    told = compare(first, world.read())
    assert told.rates.conns == 12
    (service,) = told.services
    assert service.name == "udp 192.168.1.176:123"
    assert service.rates == QUIET  # nothing to compare, and not folded yet


def test_a_service_that_counts_anew_has_the_averages(world: World) -> None:
    world.add(DNS, *SERVERS)
    world.send(53, range(1000, 1010))
    first = world.read()
    world.call("delete_service", service=DNS)
    world.add(DNS, "192.168.1.183")
    world.send(53, range(2000, 2001))
    world.now += 1
    (service,) = compare(first, world.read()).services
    assert service.rates == QUIET


def test_a_daemon_that_has_started_again_is_not_compared(world: World) -> None:
    world.add(DNS, *SERVERS)
    first = world.read()
    world.now += 1
    world.start()
    world.now += 1
    told = compare(first, world.read())
    assert (told.uptime_s, told.interval_s) == (1.0, None)


def test_states_of_servers(world: World) -> None:
    world.add(DNS)
    several = (("192.168.1.181", {}), ("192.168.1.182", {"weight": 0}))
    several += (("192.168.1.183", {"upper_threshold": 1}), ("192.168.1.184", {"weight": 0}))
    for address, more in several:
        world.call("add_server", service=DNS, server={"address": address, **more})
    world.call("add_server", service=DNS, server={"address": "[2001:db8::1]"})
    world.send(53, range(1000, 1009))
    (service,) = compare(None, world.read()).services
    states = {server.address: server.state for server in service.servers}
    assert states == {
        "192.168.1.181:53": "",
        "192.168.1.182:53": "quiesced",
        "192.168.1.183:53": "overloaded",
        "192.168.1.184:53": "quiesced",
        "[2001:db8::1]:53": "unreachable",
    }


def test_counts_of_the_table(world: World) -> None:
    world.size = 8
    world.start()
    web = {"tcp": f"{VIP}:80"}
    world.add(web, *SERVERS)
    first = world.read()
    for client in range(1000, 1012):
        world.director.receive(tcp("10.0.0.1", client, VIP, 80), world.now)
    world.now += 2
    table = compare(first, world.read()).table
    assert (table.size, table.entries, table.half_open) == (8, 8, 8)
    assert table.shed == Count(4, 2.0)
    assert table.refused == table.dropped_entries == table.dropped_packets == Count(0, 0.0)


def test_counts_of_the_datapath(world: World) -> None:
    world.datapath = DatapathStatus("xdp", {"mode": "native"}, {"misses": 10, "placed": 5})
    world.lost = {"ring_full": 1}
    first = world.read()
    world.now += 2
    world.datapath = DatapathStatus(
        "xdp", {"mode": "native"}, {"misses": 30, "placed": 2, "new": 9}
    )
    world.lost = {"ring_full": 4}
    told = compare(first, world.read()).datapath
    assert (told.name, told.facts) == ("xdp", {"mode": "native"})
    assert told.figures == {
        "misses": Count(30, 10.0),
        "placed": Count(2, None),
        "new": Count(9, None),
    }
    assert told.lost == {"ring_full": Count(4, 1.5)}


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ({"tcp": "[2001:db8::176]:80"}, "tcp [2001:db8::176]:80"),
        ({"sctp": f"{VIP}:2905"}, f"sctp {VIP}:2905"),
        ({"fwmark": 7}, "fwmark 7"),
        ({"fwmark": 7, "ipv6": True}, "fwmark 7 (IPv6)"),
    ],
)
def test_names(world: World, service: dict[str, Any], name: str) -> None:
    world.add(service)
    assert [each.name for each in compare(None, world.read()).services] == [name]


PORTS = {53: DNS, 123: NTP}
port, server = st.sampled_from(sorted(PORTS)), st.sampled_from(SERVERS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), port, st.integers(1, 6)),
        st.tuples(st.sampled_from(("delete_server", "add_server")), port, server),
        st.tuples(st.sampled_from(("delete_service", "add_service")), port, st.none()),
        st.tuples(st.just("zero"), st.none(), st.none()),
        st.tuples(st.just("wait"), st.sampled_from((0.0, 0.25, 1.0, 2.0, 130.0)), st.none()),
        st.tuples(st.just("read"), st.none(), st.none()),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_happens_what_passed_is_what_is_told(steps: list[tuple[Any, Any, Any]]) -> None:
    """What the director forwarded, counted here, is the rate by the time; nothing is negative."""
    world = World()
    for service in PORTS.values():
        world.add(service, *SERVERS)
    there, changed = set(PORTS), set()
    before, passed, client = world.read(), Counter(), 1024
    for step, what, more in [*steps, ("wait", 1.0, None), ("read", None, None)]:
        if step == "wait":
            world.now += what
        elif step == "zero":
            world.call("zero")
        elif step == "send":
            passed[what] += world.send(what, range(client, client + more))
            client += more
        elif step == "read":
            now = world.read()
            told = compare(before, now)
            check(told, passed, changed, there, world.now - before.now)
            if told.interval_s is not None:
                before, passed = now, Counter()
                changed = set(PORTS) - there
        else:
            apply(world, there, step, what, more)
            changed |= {what} - there


def apply(world: World, there: set[int], step: str, port: int, server: str | None) -> None:
    """Do what can be done; `there` are the services that there are."""
    service = PORTS[port]
    if (port in there) == (step == "add_service"):
        return
    if step == "add_service":
        world.add(service, *SERVERS)
        there.add(port)
        return
    if step == "delete_service":
        world.call(step, service=service)
        there.discard(port)
        return
    listed = world.call("config")["service"]
    of_service = next(each for each in listed if each.get("udp") == service["udp"])
    here = [each["address"] for each in of_service.get("server", ())]
    if (f"{server}:{port}" in here) == (step == "delete_server"):
        world.call(step, service=service, server={"address": server})


def check(
    told: Figures, passed: Counter[int], changed: set[int], there: set[int], seconds: float
) -> None:
    """Hold what is told against what passed, where `changed` are not the services of before."""
    assert told.interval_s == (seconds or None)
    assert {service.name for service in told.services} == {f"udp {VIP}:{port}" for port in there}
    for row in (told, *told.services, *(s for each in told.services for s in each.servers)):
        assert min(msgspec.structs.astuple(row.rates)) >= 0
    if told.interval_s is None:
        return
    assert told.rates.inpkts * seconds == pytest.approx(sum(passed.values()))
    assert told.rates.inbytes * seconds == pytest.approx(100 * sum(passed.values()))
    for service in told.services:
        port = int(service.name.rpartition(":")[2])
        if port not in changed:
            assert service.rates.inpkts * seconds == pytest.approx(passed[port])


def test_examples() -> None:
    for each in (words, module):
        assert doctest.testmod(each).failed == 0
