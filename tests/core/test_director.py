"""The pipeline, case by case; what operators tell it; and plugins that misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lvskit
from lvskit import (
    DELIVER,
    NOT_OURS,
    TCP,
    UDP,
    ConfigError,
    Deliver,
    Director,
    Drop,
    ForwarderSpec,
    PluginError,
    Reason,
    Refusal,
    Reply,
    Route,
    SchedulerBase,
    SchedulerSpec,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
    UnknownPlugin,
    Verdict,
    load_plugins,
    refuse,
)
from lvskit.core.connection import Connection, Template
from lvskit.core.service import RealServer, VirtualService
from lvskit.errors import (
    NotUnicast,
    OutOfRange,
    ServerExists,
    ServerNotFound,
    ServiceExists,
    ServiceNotFound,
)
from lvskit.plugins import Source
from lvskit.testing import packets
from lvskit.testing.packets import address

# What plugins see of them.
Seen = lvskit.Connection
Server = lvskit.RealServer
Service = lvskit.VirtualService

VIP, VIP6 = "192.168.1.176", "2001:db8::176"
HERE = address("192.168.1.175")
CLIENT, CLIENT6 = "10.0.0.1", "2001:db8:1::1"
ONE, TWO = address("192.168.1.11"), address("192.168.1.12")
ROUTE = Route(HERE, 1500)
WEB = ServiceKey.of(TCP, address(VIP), 80)
DNS = ServiceKey.of(UDP, address(VIP), 53)
PLAIN = ServiceSettings(scheduler="rr")
SERVER = ServerSettings()


class World:
    """A director, the routes of its host, and all that plugins heard and were accused of."""

    def __init__(self, plugin: object = None, **arguments: Any) -> None:
        self.routes: dict[bytes, Route | None] = {}
        self.faults: list[PluginError] = []
        self.plugins = load_plugins()
        if plugin is not None:
            self.plugins.add(plugin, Source("test", "lvskit-test", "1"))
        self.director = Director(
            self.plugins,
            lambda target: self.routes.get(target, ROUTE),
            report=self.faults.append,
            **arguments,
        )

    def serve(self, key: ServiceKey = WEB, *servers: bytes, **settings: Any) -> VirtualService:
        service = self.director.add_service(key, ServiceSettings(**{"scheduler": "rr"} | settings))
        for server in servers:
            self.director.add_server(key, server, None, SERVER)
        return service

    def send(self, flags: str = "S", cport: int = 1024, now: float = 0.0, **more: Any) -> Verdict:
        return self.director.receive(packets.tcp(CLIENT, cport, VIP, 80, flags, **more), now)

    @property
    def connections(self) -> list[Connection]:
        return [e for e in self.director.table if isinstance(e, Connection)]


# --- whose packet it is ---


def test_without_services_every_packet_is_the_hosts() -> None:
    director = World().director
    assert director.receive(packets.tcp(CLIENT, 1, VIP, 80), 0.0) == NOT_OURS
    assert director.receive(packets.ip(CLIENT, VIP, 6, bytes(30), more=True), 0.0) == NOT_OURS
    assert director.receive(b"", 0.0) == Drop(Reason.MALFORMED)


@pytest.mark.parametrize(
    "packet",
    [
        packets.tcp(CLIENT, 1024, VIP, 80, "A"),
        packets.tcp(CLIENT, 1024, VIP, 80, "R"),
        packets.tcp(CLIENT, 1024, VIP, 80, "SR"),
        packets.tcp(CLIENT, 1024, VIP, 80, "F"),
        packets.tcp(CLIENT, 1024, VIP, 80, 0),
        packets.tcp(CLIENT, 1024, VIP, 81, "S"),
        packets.tcp(CLIENT, 1024, "192.168.1.177", 80, "S"),
        packets.tcp(CLIENT, 20, VIP, 80, "S"),
        packets.udp(CLIENT, 1024, VIP, 80),
        packets.udp(CLIENT, 20, VIP, 53),
        packets.tcp(CLIENT6, 1024, VIP6, 80, "S"),
        packets.ip(CLIENT, VIP, 1, bytes((8, 0)) + bytes(6)),
        packets.ip(CLIENT, VIP, 132, bytes(40)),
        packets.icmp_error(CLIENT, VIP, 3, 3, packets.tcp(VIP, 80, CLIENT, 1024)),
    ],
    ids=lambda packet: packet.hex(),
)
def test_packets_that_are_not_ours(packet: bytes) -> None:
    world = World()
    world.serve(WEB, ONE)
    world.serve(DNS, ONE)
    assert world.director.receive(packet, 0.0) == NOT_OURS
    assert len(world.director.table) == 0


@pytest.mark.parametrize("flags", ["S", "SA", "SF", "SP", "SECUP"])
def test_packets_that_open_a_connection(flags: str) -> None:
    world = World()
    world.serve(WEB, ONE)
    verdict = world.send(flags)
    assert isinstance(verdict, Transmit)
    assert verdict.packet[16:20] == ONE
    assert verdict.route is ROUTE
    (connection,) = world.connections
    assert connection.state_name == "SYN_RECV"
    assert connection.flow == packets.flow(CLIENT, 1024, VIP, 80)
    assert connection.dport == 80


def test_without_a_server_the_client_is_refused() -> None:
    """By ICMP, also for TCP; nothing is remembered."""
    world = World()
    world.serve(WEB)
    world.serve(DNS, ONE)
    world.serve(ServiceKey.of(UDP, address(VIP6), 53))
    world.director.edit_server(DNS, ONE, None, ServerSettings(weight=0))
    for packet in (
        packets.tcp(CLIENT, 1024, VIP, 80),
        packets.udp(CLIENT, 1024, VIP, 53),
        packets.udp(CLIENT6, 1024, VIP6, 53),
    ):
        wanted = refuse(packet, Refusal.PORT_UNREACHABLE)
        assert wanted.reason is Reason.NO_SERVER
        assert world.director.receive(packet + b"padding", 0.0) == wanted
    assert len(world.director.table) == 0


def test_a_fragment_is_dropped() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.send()
    for offset in (0, 1):
        piece = packets.ip(
            CLIENT, VIP, 6, packets.tcp(CLIENT, 1024, VIP, 80)[20:], more=True, offset=offset
        )
        assert world.director.receive(piece, 1.0) == Drop(Reason.FRAGMENT)
    short = packets.ip(CLIENT, VIP, 6, packets.tcp(CLIENT, 1024, VIP, 80)[20:28], more=True)
    assert world.director.receive(short, 1.0) == Drop(Reason.FRAGMENT)
    (connection,) = world.connections
    assert connection.deadline == 60.0


@pytest.mark.parametrize("size", range(20))
def test_a_transport_header_cut_short_belongs_to_its_connection_if_the_ports_are_there(
    size: int,
) -> None:
    """It changes no state, and no connection begins with it."""
    world = World()
    world.serve(WEB, ONE)
    world.serve(DNS, ONE)
    world.send("S")
    world.send("A")
    world.director.receive(packets.udp(CLIENT, 1024, VIP, 53), 0.0)
    for port in (1024, 1025):
        known = port == 1024 and size >= 4
        segment = packets.tcp(CLIENT, port, VIP, 80, "S")[20 : 20 + size]
        verdict = world.director.receive(packets.ip(CLIENT, VIP, TCP, segment), 1.0)
        assert isinstance(verdict, Transmit) if known else verdict == Drop(Reason.MALFORMED)
        known = port == 1024 and size % 8 >= 4
        segment = packets.udp(CLIENT, port, VIP, 53)[20 : 20 + size % 8]
        verdict = world.director.receive(packets.ip(CLIENT, VIP, UDP, segment), 1.0)
        assert isinstance(verdict, Transmit) if known else verdict == Drop(Reason.MALFORMED)
    tcp, udp = world.connections
    assert (tcp.state_name, tcp.deadline) == ("ESTABLISHED", 900.0 + (size >= 4))
    assert udp.deadline == 300.0 + (size % 8 >= 4)


# --- which service ---


def claims(world: World, packet: bytes, mark: int = 0) -> str:
    """Return which service's server gets a new connection: its last byte."""
    verdict = world.director.receive(packet, 0.0, mark)
    assert isinstance(verdict, Transmit)
    return f"{verdict.packet[19]}"


def test_port_0_claims_what_no_other_service_does_and_a_mark_claims_first() -> None:
    world = World()
    world.serve(ServiceKey.of(TCP, address(VIP), 0), address("192.168.1.20"), persistence_s=60)
    world.serve(WEB, address("192.168.1.80"))
    world.serve(ServiceKey.mark(7), address("192.168.1.7"))
    assert claims(world, packets.tcp(CLIENT, 1, VIP, 80)) == "80"
    assert claims(world, packets.tcp(CLIENT, 1, VIP, 81)) == "20"
    assert claims(world, packets.tcp(CLIENT, 2, VIP, 80), mark=7) == "7"
    assert claims(world, packets.tcp(CLIENT, 3, VIP, 80), mark=8) == "80"
    assert claims(world, packets.tcp(CLIENT, 3, "192.168.1.99", 80), mark=7) == "7"
    assert claims(world, packets.udp(CLIENT, 3, VIP, 999), mark=7) == "7"
    assert world.director.receive(packets.udp(CLIENT, 3, VIP, 998), 0.0) == NOT_OURS


def test_of_ipv6_port_0_and_ftp_claim_likewise() -> None:
    world = World()
    world.serve(ServiceKey.of(TCP, address(VIP6), 0), address("192.168.1.20"), persistence_s=60)
    assert claims(world, packets.tcp(CLIENT6, 1, VIP6, 81)) == "20"
    world.serve(ServiceKey.of(TCP, address(VIP6), 21), address("192.168.1.21"), persistence_s=60)
    assert claims(world, packets.tcp(CLIENT6, 1, VIP6, 1023)) == "20"
    another = "2001:db8:1::2"  # whom no template has a server for
    assert claims(world, packets.tcp(another, 1, VIP6, 1024)) == "21"
    assert claims(world, packets.tcp(another, 1, VIP6, 20)) == "21"


def test_marks_of_the_two_ip_versions_are_two_services() -> None:
    world = World()
    world.serve(ServiceKey.mark(7, version=6), address("192.168.1.6"))
    verdict = world.director.receive(packets.tcp(CLIENT, 1, VIP, 80), 0.0, 7)
    assert verdict == NOT_OURS
    assert claims(world, packets.tcp(CLIENT6, 1, VIP6, 80), mark=7) == "6"


def test_a_packet_has_no_mark_unless_the_datapath_names_one() -> None:
    world = World()
    world.serve(ServiceKey.mark(1), ONE)
    packet = packets.tcp(CLIENT, 1, VIP, 80)
    assert world.director.receive(packet, 0.0) == NOT_OURS
    assert isinstance(world.director.receive(packet, 0.0, 1), Transmit)


def test_servers_of_a_fwmark_service_may_have_a_port_and_keep_the_clients_otherwise() -> None:
    world = World()
    world.serve(ServiceKey.mark(7), ONE)
    world.director.receive(packets.tcp(CLIENT, 1, VIP, 81), 0.0, 7)
    world.director.remove_server(ServiceKey.mark(7), ONE, None, 0.0)
    world.director.add_server(ServiceKey.mark(7), TWO, 8080, SERVER)
    world.director.receive(packets.tcp(CLIENT, 1, VIP, 82), 0.0, 7)
    assert [(c.dport, c.server.name) for c in world.connections] == [
        (81, "192.168.1.11:0"),
        (8080, "192.168.1.12:8080"),
    ]


# --- routes ---


def test_a_server_that_is_here_gets_the_packet_untouched() -> None:
    world = World()
    world.routes[ONE] = Route(HERE, 65536, local=True)
    service = world.serve(WEB, ONE)
    packet = packets.tcp(CLIENT, 1024, VIP, 80, ttl=1)
    assert world.director.receive(packet, 0.0) is DELIVER
    assert service.servers[0].settings.method == "tunnel"
    world.director.replied(packets.tcp(VIP, 80, CLIENT, 1024, "SA"), 1.0)
    world.director.receive(packets.tcp(CLIENT, 1024, VIP, 80, "A"), 2.0)
    world.director.replied(packets.tcp(VIP, 80, CLIENT, 1024, "FA"), 3.0)
    world.director.receive(packets.tcp(CLIENT, 1024, VIP, 80, "FA"), 4.0)
    (connection,) = world.connections
    assert (connection.state_name, connection.deadline) == ("TIME_WAIT", 124.0)
    assert service.counters == lvskit.Counters(1, 3, 2, 120, 80)


def test_a_server_without_a_route_keeps_its_connections() -> None:
    world = World()
    world.routes[ONE] = None
    service = world.serve(WEB, ONE)
    packet = packets.tcp(CLIENT, 1024, VIP, 80)
    for _ in range(2):
        verdict = world.director.receive(packet, 0.0)
        assert verdict == refuse(packet, Refusal.HOST_UNREACHABLE)
        assert isinstance(verdict, Reply)
        assert verdict.reason is Reason.SERVER_UNREACHABLE
    server = service.servers[0]
    assert (server.activeconns, server.route) == (1, None)
    error = packets.icmp_error(CLIENT, VIP, 3, 4, packets.tcp(VIP, 80, CLIENT, 1024, "A"))
    assert world.director.receive(error, 0.0) == Drop(Reason.SERVER_UNREACHABLE)


def test_connections_follow_a_change_of_routes() -> None:
    world = World()
    world.routes[ONE] = None
    service = world.serve(WEB, ONE)
    world.serve(DNS, TWO)
    other = packets.udp(CLIENT, 9, VIP, 53)
    assert isinstance(world.director.receive(other, 0.0), Transmit)
    (still,) = world.connections
    bound = still.transmit
    assert isinstance(world.send("S"), Reply)

    world.routes[ONE] = slow = Route(HERE, 100)
    world.director.routes_changed()
    verdict = world.send("A")
    assert isinstance(verdict, Transmit)
    assert verdict.route is slow
    assert service.servers[0].route is slow
    assert still.transmit == bound

    slow.mtu = 90  # the path is narrower: the same route object, a new value
    world.director.routes_changed()
    verdict = world.send("A", payload=bytes(31))
    assert isinstance(verdict, Reply)
    assert verdict.reason is Reason.TOO_BIG
    assert isinstance(world.send("A", payload=bytes(30)), Transmit)

    world.routes[ONE] = Route(HERE, 65536, local=True)
    world.director.routes_changed()
    assert isinstance(world.send("A"), Deliver)
    world.routes[ONE] = None
    world.director.routes_changed()
    assert isinstance(world.send("A"), Reply)
    world.director.routes_changed()
    assert not world.faults


def test_templates_survive_a_change_of_routes() -> None:
    world = World()
    world.serve(WEB, ONE, persistence_s=60)
    world.send("S")
    world.routes[ONE] = None
    world.director.routes_changed()
    assert isinstance(world.send("S", cport=2), Reply)
    assert len(world.director.table) == 3


# --- a server that leaves ---


def test_connections_of_a_removed_server_go_nowhere_until_it_is_back() -> None:
    world = World()
    service = world.serve(WEB, ONE)
    world.send("S")
    world.send("A", now=1.0)
    server = service.servers[0]
    world.director.remove_server(WEB, ONE, None, 2.0)
    assert world.send("A", now=3.0) == Drop(Reason.SERVER_REMOVED)
    assert world.send("S", now=3.0) == Drop(Reason.SERVER_REMOVED)
    assert not server.available
    (connection,) = world.connections
    assert connection.deadline == 901.0
    # An ICMP error still finds its way, but counts for nobody.
    error = packets.icmp_error(CLIENT, VIP, 3, 4, packets.tcp(VIP, 80, CLIENT, 1024, "A"))
    assert isinstance(world.director.receive(error, 3.0), Transmit)
    world.director.replied(packets.tcp(VIP, 80, CLIENT, 1024, "A"), 3.0)
    assert server.counters == service.counters == lvskit.Counters(1, 2, 0, 80, 0)
    again = world.director.add_server(WEB, ONE, None, ServerSettings(weight=5))
    assert again is server
    assert (server.activeconns, server.weight) == (1, 5)
    assert isinstance(world.send("A", now=4.0), Transmit)


@pytest.mark.parametrize(
    ("seconds", "remembered"), [(59, True), (119, True), (179, True), (180, False)]
)
def test_a_removed_server_is_remembered_with_its_counters(seconds: int, remembered: bool) -> None:
    """Swept every minute; forgotten two minutes after the first sweep that finds it idle."""
    world = World()
    service = world.serve(WEB, ONE)
    server = service.servers[0]
    world.director.remove_server(WEB, ONE, None, 0.0)
    world.director.expire(float(seconds))
    world.director.add_server(WEB, ONE, None, SERVER)
    assert (service.servers[0] is server) == remembered


def test_a_removed_server_is_remembered_from_the_end_of_its_last_connection() -> None:
    """Also where nobody calls `expire` for an hour meanwhile."""
    world = World()
    service = world.serve(WEB, ONE)
    world.send("S")
    world.send("A", now=1.0)
    server = service.servers[0]
    world.director.remove_server(WEB, ONE, None, 2.0)
    world.director.expire(1010.0)
    world.director.add_server(WEB, ONE, None, SERVER)
    assert service.servers[0] is server


def test_one_sweep_is_for_all_that_is_remembered() -> None:
    """Each minute from the removal of the first: a second one does not put it off."""
    world = World()
    service = world.serve(WEB, ONE, TWO)
    servers = set(service.servers)
    world.director.remove_server(WEB, ONE, None, 0.0)
    world.director.remove_server(WEB, TWO, None, 50.0)
    world.director.expire(181.0)
    for address_ in (ONE, TWO):
        assert world.director.add_server(WEB, address_, None, SERVER) not in servers


def test_the_idle_time_of_a_removed_server_begins_as_its_last_connection_ends() -> None:
    """However late anybody asks, and whatever else is removed meanwhile."""
    world = World()
    service = world.serve(WEB, ONE, TWO)
    world.send("S")
    (server,) = (each for each in service.servers if each.activeconns)
    (other,) = (each for each in service.servers if each is not server)
    world.director.remove_server(WEB, server.address, None, 0.0)  # it was referred to until 60
    world.director.remove_server(WEB, other.address, None, 250.0)
    world.director.expire(251.0)
    assert world.director.add_server(WEB, server.address, None, SERVER) is not server


def test_what_is_forgotten_takes_nothing_else_along() -> None:
    world = World()
    service = world.serve(WEB, ONE, TWO)
    two, one = service.servers
    world.director.remove_server(WEB, ONE, None, 0.0)
    world.director.expire(100.0)
    world.director.remove_server(WEB, TWO, None, 100.0)
    world.director.expire(181.0)
    assert world.director.add_server(WEB, TWO, None, SERVER) is two
    assert world.director.add_server(WEB, ONE, None, SERVER) is not one


def test_the_sweep_goes_on_as_long_as_something_is_remembered() -> None:
    world = World()
    service = world.serve(WEB, ONE, TWO)
    two, one = service.servers
    world.director.remove_server(WEB, ONE, None, 0.0)
    world.director.remove_server(WEB, TWO, None, 50.0)  # swept together with the first one
    world.director.expire(100.0)
    world.director.add_server(WEB, ONE, None, SERVER)
    world.director.expire(170.0)
    world.director.add_server(WEB, TWO, None, SERVER)
    assert service.servers == [two, one]
    world.director.expire(1000.0)
    world.director.remove_server(WEB, ONE, None, 1000.0)
    world.director.expire(1181.0)
    world.director.add_server(WEB, ONE, None, SERVER)
    assert service.servers[0] is not one


def test_a_server_comes_back_only_to_the_same_service() -> None:
    world = World()
    service = world.serve(WEB, ONE)
    other = world.serve(ServiceKey.of(TCP, address(VIP), 81))
    world.send("S")
    server = service.servers[0]
    world.director.expire(2.0)
    assert server.estimator.shown() == lvskit.Counters(1, 1, 0, 40, 0)
    world.director.remove_server(WEB, ONE, None, 2.0)
    world.director.add_server(other.key, ONE, None, SERVER)
    assert other.servers[0] is not server
    world.director.remove_service(WEB, 3.0)
    again = world.serve(WEB)
    world.director.add_server(WEB, ONE, None, SERVER)
    assert again is not service
    assert again.servers == [server]
    assert server.service is again
    assert again.counters == lvskit.Counters()
    assert server.estimator.shown() == lvskit.Counters()


def test_without_any_service_the_connections_are_the_hosts() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.serve(DNS, ONE)
    world.send("S")
    world.director.receive(packets.udp(CLIENT, 9, VIP, 53), 0.0)
    world.director.clear(1.0)
    assert list(world.director.services) == []
    assert world.send("A", now=2.0) == NOT_OURS
    assert world.director.receive(packets.udp(CLIENT, 9, VIP, 53), 2.0) == NOT_OURS
    world.director.replied(packets.tcp(VIP, 80, CLIENT, 1024, "A"), 2.0)
    assert [c.deadline for c in world.connections] == [60.0, 300.0]
    assert world.director.services.counters == lvskit.Counters(2, 2, 0, 68, 0)


# --- ports used again ---


@pytest.mark.parametrize(
    ("flags", "elsewhere"),
    [("SF", True), ("SAR", True), ("SAF", False), ("SA", False), ("S", False)],
)
def test_a_syn_after_the_end_of_a_connection_is_scheduled_anew(flags: str, elsewhere: bool) -> None:
    """After TIME_WAIT (SYN, FIN) and CLOSE (SYN, ACK, RST), not after FIN_WAIT and so on."""
    world = World()
    world.serve(WEB, ONE, TWO)
    for now, letter in enumerate(flags):
        world.send(letter, now=float(now))
    (before,) = world.connections
    first = before.server
    world.send("S", now=5.0)
    (after,) = world.connections
    assert (after is not before) == (after.server is not first) == elsewhere
    assert first.activeconns + first.inactconns == (0 if elsewhere else 1)


def test_a_syn_that_is_a_reset_too_ends_a_closed_connection_and_opens_none() -> None:
    world = World()
    world.serve(WEB, ONE)
    for letter in ("S", "A", "R"):
        world.send(letter)
    assert world.send("SR") == NOT_OURS
    (connection,) = world.connections  # the host's answer may still find it
    assert connection.deadline == 0.004
    world.director.expire(0.004)
    assert world.connections == []


def test_with_a_template_the_same_connection_is_used_again() -> None:
    world = World()
    world.serve(WEB, ONE, TWO, persistence_s=300)
    for now, letter in enumerate("SARS"):
        world.send(letter, now=float(now))
    (connection,) = world.connections
    assert (connection.state_name, connection.deadline) == ("SYN_RECV", 63.0)


# --- time ---


def test_an_entry_ends_at_its_deadline_even_if_nobody_calls_expire() -> None:
    world = World()
    service = world.serve(WEB, ONE, TWO)
    world.send("S")
    assert isinstance(world.send("A", now=59.999), Transmit)
    assert world.send("A", now=959.999) == NOT_OURS
    assert [s.activeconns for s in service.servers] == [0, 0]
    world.director.receive(packets.udp(CLIENT, 1, VIP, 53), 1000.0)


def test_a_shorter_timeout_counts_from_the_next_packet() -> None:
    """Also for the packets that take the short cut."""
    world = World()
    world.serve(WEB, ONE)
    world.serve(DNS, ONE)
    world.send("S")
    world.send("A")
    dns = packets.udp(CLIENT, 9, VIP, 53)
    world.director.receive(dns, 0.0)
    world.director.tune({"timeout_established": 10, "timeout_udp": 20})
    world.director.expire(100.0)
    assert len(world.connections) == 2
    world.send("A", now=100.0)
    world.director.receive(dns, 100.0)
    assert world.director.next_timer() == 110.0
    world.director.expire(110.0)
    assert [c.protocol for c in world.connections] == [UDP]
    world.director.expire(120.0)
    assert world.connections == []
    world.director.expire(1000.0)
    assert world.director.next_timer() is None


def test_next_timer_and_connections() -> None:
    world = World()
    world.serve(WEB, ONE, persistence_s=300)
    assert world.director.next_timer() is None
    world.send("S")
    assert world.director.next_timer() == 60.0
    kinds = [type(entry) for entry in world.director.connections(1.0)]
    assert kinds == [Connection, Template]
    assert [type(entry) for entry in world.director.connections(100.0)] == [Template]
    assert list(world.director.connections(400.0)) == []


def test_statistics_are_folded_every_two_seconds() -> None:
    world = World(now=100.0)
    service = world.serve(WEB, ONE)
    director = world.director
    world.send("S", now=100.0)
    director.expire(101.999)
    assert director.estimator.shown() == lvskit.Counters()
    director.expire(102.0)
    for estimator in (director.estimator, service.estimator, service.servers[0].estimator):
        assert estimator.shown() == lvskit.Counters(1, 1, 0, 40, 0)
        assert estimator.rates().inbps == 5  # 20 bytes a second, a quarter of it
    director.zero(WEB)
    assert service.estimator.shown() == service.servers[0].estimator.shown() == lvskit.Counters()
    assert director.estimator.shown().conns == 1
    director.zero()
    assert director.estimator.shown() == lvskit.Counters()
    with pytest.raises(ServiceNotFound):
        director.zero(DNS)
    world.send("A", now=103.0)
    director.expire(107.0)  # two ticks at once
    assert director.estimator.shown() == lvskit.Counters(0, 1, 0, 40, 0)


def test_the_two_seconds_are_a_grid() -> None:
    """Who comes late finds the next tick at its time, and the missed ones made up for."""
    world = World(now=100.0)
    service = world.serve(WEB, ONE)
    world.send("S", now=100.0)
    world.director.expire(107.5)
    assert service.estimator.shown().conns == 1
    assert service.estimator.rates().inbps == 3  # 5, but two ticks ago
    world.send("S", cport=2, now=107.6)
    world.director.expire(107.999)
    assert service.estimator.shown().conns == 1
    world.director.expire(108.0)
    assert service.estimator.shown().conns == 2


# --- local answers ---


def test_answers_that_belong_to_nothing_change_nothing() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.send("S")
    answer = packets.tcp(VIP, 80, CLIENT, 1024, "SA")
    for stray in (
        b"",
        answer[:30],
        packets.tcp(VIP, 80, CLIENT, 1025, "SA"),
        packets.udp(VIP, 80, CLIENT, 1024),
        packets.tcp(CLIENT, 1024, VIP, 80, "SA"),
        packets.ip(VIP, CLIENT, 1, bytes(8)),
        packets.ip(VIP, CLIENT, 6, answer[20:], more=True),
    ):
        world.director.replied(stray, 1.0)
    (connection,) = world.connections
    assert not connection.two_way
    assert connection.deadline == 60.0
    world.director.replied(answer + b"padding", 2.0)
    assert connection.server.counters == lvskit.Counters(1, 1, 1, 40, 40)
    assert connection.two_way
    world.director.replied(answer, 200.0)  # too late
    assert world.connections == []


# --- one packet ---


def test_one_packet_connections_are_counted_and_forgotten() -> None:
    world = World()
    service = world.serve(DNS, ONE, TWO, one_packet=True)
    targets = []
    for _ in range(4):
        verdict = world.director.receive(packets.udp(CLIENT, 9, VIP, 53), 0.0)
        assert isinstance(verdict, Transmit)
        targets.append(verdict.packet[16:20])
    assert targets == [TWO, ONE, TWO, ONE]
    assert len(world.director.table) == 0
    assert world.director.next_timer() is None
    assert service.counters == lvskit.Counters(4, 4, 0, 112, 0)
    assert all(s.inactconns == s.activeconns == 0 for s in service.servers)
    expired = world.director.receive(packets.udp(CLIENT, 9, VIP, 53, ttl=1), 0.0)
    assert isinstance(expired, Reply)
    assert service.counters.outpkts == 0  # the reply is to no connection that is known


def test_one_packet_is_for_udp_alone() -> None:
    world = World()
    world.serve(ServiceKey.mark(7), ONE, one_packet=True)
    world.director.receive(packets.tcp(CLIENT, 9, VIP, 53), 0.0, 7)
    assert len(world.connections) == 1
    world.director.receive(packets.udp(CLIENT, 9, VIP, 53), 0.0, 7)
    assert len(world.connections) == 1


# --- a full table ---


def test_a_full_table_sheds_the_oldest_handshake_and_never_an_established_connection() -> None:
    world = World(size=3)
    world.serve(WEB, ONE)
    table = world.director.table
    for cport in (1, 2, 3):
        world.send("S", cport=cport)
    world.send("S", cport=1)  # said again: it is not younger for that
    world.send("A", cport=2)
    world.send("S", cport=4)
    assert [c.flow.cport for c in world.connections] == [2, 3, 4]
    assert (table.shed, table.refused) == (1, 0)
    world.send("A", cport=3)
    world.send("A", cport=4)
    assert world.send("S", cport=5) == Drop(Reason.TABLE_FULL)
    assert [c.flow.cport for c in world.connections] == [2, 3, 4]
    assert (table.shed, table.refused) == (1, 1)
    assert isinstance(world.send("A", cport=2), Transmit)


def test_a_first_persistent_connection_needs_room_for_two() -> None:
    world = World(size=3)
    world.serve(WEB, ONE, persistence_s=60)
    world.send("S", cport=1)
    world.send("A", cport=1)
    stranger = packets.tcp("10.0.0.2", 1, VIP, 80)
    assert world.director.receive(stranger, 0.0) == Drop(Reason.TABLE_FULL)
    assert isinstance(world.send("S", cport=2), Transmit)
    world.send("A", cport=2)
    assert world.send("S", cport=3) == Drop(Reason.TABLE_FULL)
    assert world.director.table.refused == 2
    exact = World(size=2)
    exact.serve(WEB, ONE, persistence_s=60)
    assert isinstance(exact.send("S"), Transmit)
    assert (len(exact.director.table), exact.director.table.refused) == (2, 0)


# --- what operators tell it ---


def picture(director: Director) -> object:
    """Return all that a command may change, as values."""
    return [
        (
            s.key,
            s.settings,
            s.scheduler,
            [(r, r.settings, r.weight, r.overloaded) for r in s.servers],
        )
        for s in director.services
    ]


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (ServiceExists, lambda d: d.add_service(WEB, PLAIN)),
        (ServiceExists, lambda d: d.add_service(WEB, ServiceSettings(scheduler="wlx"))),
        (ConfigError, lambda d: d.add_service(DNS, ServiceSettings(persistence_s=-1))),
        (ConfigError, lambda d: d.add_service(ServiceKey.of(TCP, address(VIP), 0), PLAIN)),
        (ConfigError, lambda d: d.add_service(DNS, ServiceSettings(netmask=bytes(16)))),
        (UnknownPlugin, lambda d: d.add_service(DNS, ServiceSettings(scheduler="wlx"))),
        (ConfigError, lambda d: d.add_service(DNS, ServiceSettings(options={"seed": 1}))),
        (ServiceNotFound, lambda d: d.edit_service(DNS, PLAIN)),
        (ConfigError, lambda d: d.edit_service(WEB, ServiceSettings(persistence_s=-1))),
        (ConfigError, lambda d: d.edit_service(WEB, ServiceSettings(netmask=bytes(16)))),
        (UnknownPlugin, lambda d: d.edit_service(WEB, ServiceSettings(scheduler="wlx"))),
        (ServiceNotFound, lambda d: d.remove_service(DNS, 0.0)),
        (ServiceNotFound, lambda d: d.add_server(DNS, TWO, None, SERVER)),
        (ServerExists, lambda d: d.add_server(WEB, ONE, None, SERVER)),
        (ServerExists, lambda d: d.add_server(WEB, ONE, 8080, SERVER)),
        (NotUnicast, lambda d: d.add_server(WEB, address("224.0.0.1"), None, SERVER)),
        (OutOfRange, lambda d: d.add_server(WEB, TWO, None, ServerSettings(weight=-1))),
        (OutOfRange, lambda d: d.add_server(WEB, TWO, None, ServerSettings(upper=1, lower=2))),
        (UnknownPlugin, lambda d: d.add_server(WEB, TWO, None, ServerSettings(method="pigeon"))),
        (ConfigError, lambda d: d.add_server(WEB, TWO, None, ServerSettings(options={"x": 1}))),
        (ServiceNotFound, lambda d: d.edit_server(DNS, ONE, None, SERVER)),
        (ServerNotFound, lambda d: d.edit_server(WEB, TWO, None, SERVER)),
        (OutOfRange, lambda d: d.edit_server(WEB, ONE, None, ServerSettings(weight=2**31))),
        (UnknownPlugin, lambda d: d.edit_server(WEB, ONE, None, ServerSettings(method="pigeon"))),
        (ServiceNotFound, lambda d: d.remove_server(DNS, ONE, None, 0.0)),
        (ServerNotFound, lambda d: d.remove_server(WEB, TWO, None, 0.0)),
        (ServerNotFound, lambda d: d.remove_server(WEB, ONE, 8080, 0.0)),
    ],
)  # fmt: skip
def test_a_command_that_is_refused_changes_nothing(
    error: type[Exception], command: Callable[[Director], object]
) -> None:
    world = World()
    world.serve(WEB, ONE)
    before = picture(world.director)
    with pytest.raises(error) as caught:
        command(world.director)
    assert str(caught.value)
    assert picture(world.director) == before
    assert isinstance(world.send("S"), Transmit)


def test_what_is_refused_names_the_facts() -> None:
    world = World()
    world.serve(WEB, ONE)
    with pytest.raises(
        ServerNotFound,
        match=r"192\.168\.1\.12:80 in TCP 192\.168\.1\.176:80; there are: 192\.168\.1\.11:80",
    ):
        world.director.edit_server(WEB, TWO, None, SERVER)
    with pytest.raises(ServiceNotFound, match=r"UDP 192\.168\.1\.176:53"):
        world.director.edit_service(DNS, PLAIN)
    with pytest.raises(ConfigError, match=r"option 'seed'.*none"):
        world.director.edit_service(WEB, ServiceSettings(scheduler="rr", options={"seed": 1}))
    with pytest.raises(ConfigError, match=r"'tunnel' of 192\.168\.1\.12:80: unknown option 'x'"):
        world.director.add_server(WEB, TWO, None, ServerSettings(options={"x": 1}))
    with pytest.raises(OutOfRange, match=r"weight -1 of 192\.168\.1\.12:80"):
        world.director.add_server(WEB, TWO, None, ServerSettings(weight=-1))
    with pytest.raises(OutOfRange, match=r"weight -1 of 192\.168\.1\.11:80"):
        world.director.edit_server(WEB, ONE, None, ServerSettings(weight=-1))
    world.director.add_server(WEB, TWO, None, SERVER)
    there = r"there are: 192\.168\.1\.12:80, 192\.168\.1\.11:80$"
    with pytest.raises(ServerNotFound, match=there):
        world.director.remove_server(WEB, HERE, None, 0.0)


def test_an_edit_keeps_the_scheduler_unless_it_is_about_the_scheduler() -> None:
    world = World()
    service = world.serve(WEB, ONE)
    scheduler = service.scheduler
    world.director.edit_service(WEB, ServiceSettings(scheduler="rr", persistence_s=5))
    assert service.scheduler is scheduler
    assert service.settings.persistence_s == 5
    world.director.edit_service(WEB, ServiceSettings(scheduler="rr", flags=frozenset({3})))
    assert service.scheduler is scheduler  # a flag that means nothing to it
    assert service.settings.flags == {3}
    world.director.edit_service(WEB, ServiceSettings(scheduler="wrr", flags=frozenset({3})))
    assert type(service.scheduler) is not type(scheduler)


def test_a_server_takes_the_services_port_where_packets_are_not_rewritten() -> None:
    world = World(plugin=Rewriting())
    world.serve(WEB)
    assert world.director.add_server(WEB, ONE, 8080, SERVER).port == 80
    rewriting = ServerSettings(method="rewriting")
    assert world.director.add_server(WEB, TWO, 8080, rewriting).port == 8080
    assert world.director.add_server(WEB, TWO, None, rewriting).port == 80
    edited = world.director.edit_server(
        WEB, TWO, 8080, ServerSettings(method="rewriting", weight=9)
    )
    assert (edited.port, edited.weight) == (8080, 9)
    world.director.remove_server(WEB, TWO, 8080, 0.0)
    assert [s.name for s in world.director.services.get(WEB).servers] == [
        "192.168.1.12:80",
        "192.168.1.11:80",
    ]


def test_an_edited_method_is_for_new_connections() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.send("S", cport=1)
    world.director.edit_server(WEB, ONE, None, ServerSettings(method="local"))
    assert isinstance(world.send("A", cport=1), Transmit)
    assert isinstance(world.send("S", cport=2), Deliver)


# --- plugins: told of everything, and survived ---


class Rewriting:
    """Registers a forwarding method that rewrites ports, so that servers have their own."""

    class Forwarder:
        def __init__(self, server: Server, options: Any) -> None:
            pass

        def transmit(self, connection: Seen, packet: bytes) -> Verdict:
            return DELIVER

        def route_changed(self, route: Route) -> None:
            pass

    @lvskit.hookimpl
    def lvskit_register_forwarders(self) -> Iterable[ForwarderSpec]:
        return [
            ForwarderSpec(name="rewriting", factory=self.Forwarder, summary="-", keeps_port=False)
        ]


@dataclass(frozen=True)
class Wishes:
    """Options of the scheduler below."""

    seed: int = 0
    fallback: bool = False
    port: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError("seed must be 0 or more")


class Nosy:
    """Hears of all there is to hear; its scheduler does what it is told to."""

    def __init__(self, act: Callable[[Any], Any] = lambda scheduler: scheduler.servers[0]) -> None:
        self.act = act
        self.heard: list[str] = []
        self.options: list[Wishes] = []
        self.scheduler_class = self.Scheduler

    class Scheduler(SchedulerBase):
        plugin: Nosy

        def schedule(self, flow: Any) -> Any:
            return self.plugin.act(self)

        def server_added(self, server: Server) -> None:
            self.plugin.heard.append(f"scheduler: {server.name} added to {len(self.servers)}")

        def server_removed(self, server: Server) -> None:
            self.plugin.heard.append(f"scheduler: {server.name} removed from {len(self.servers)}")

        def server_updated(self, server: Server) -> None:
            self.plugin.heard.append(f"scheduler: {server.name} weighs {server.weight}")

        def close(self) -> None:
            self.plugin.heard.append("scheduler: closed")

    def _make(self, servers: Any, options: Wishes) -> Any:
        self.options.append(options)
        scheduler = self.scheduler_class(servers, options)
        scheduler.plugin = self
        return scheduler

    @lvskit.hookimpl
    def lvskit_register_schedulers(self) -> Iterable[SchedulerSpec]:
        flags = ("fallback", "port")
        return [
            SchedulerSpec(name="nosy", factory=self._make, summary="-", options=Wishes, flags=flags)
        ]

    @lvskit.hookimpl
    def lvskit_connection_observer(self, service: Service) -> Any:
        return self

    def opened(self, connection: Seen) -> None:
        self.heard.append(f"opened {connection.flow.cport} to {connection.server.name}")

    def state_changed(self, connection: Seen, old: str, new: str) -> None:
        self.heard.append(f"{connection.flow.cport}: {old} to {new}")

    def closed(self, connection: Seen, reason: str) -> None:
        self.heard.append(f"closed {connection.flow.cport}: {reason}")

    @lvskit.hookimpl
    def lvskit_service_added(self, service: Service) -> None:
        self.heard.append(f"{service.name} added")

    @lvskit.hookimpl
    def lvskit_service_changed(self, service: Service) -> None:
        self.heard.append(f"{service.name} changed")

    @lvskit.hookimpl
    def lvskit_service_removed(self, service: Service) -> None:
        self.heard.append(f"{service.name} removed")

    @lvskit.hookimpl
    def lvskit_server_added(self, service: Service, server: Server) -> None:
        self.heard.append(f"{server.name} added")

    @lvskit.hookimpl
    def lvskit_server_changed(self, service: Service, server: Server) -> None:
        self.heard.append(f"{server.name} changed")

    @lvskit.hookimpl
    def lvskit_server_removed(self, service: Service, server: Server) -> None:
        self.heard.append(f"{server.name} removed")


def test_plugins_hear_of_every_change() -> None:
    nosy = Nosy()
    director = World(plugin=nosy).director
    director.add_service(WEB, ServiceSettings(scheduler="nosy"))
    director.add_server(WEB, ONE, None, SERVER)
    director.add_server(WEB, TWO, None, SERVER)
    director.edit_server(WEB, TWO, None, ServerSettings(weight=7))
    director.edit_service(WEB, ServiceSettings(scheduler="nosy", one_packet=True))
    director.edit_service(WEB, ServiceSettings(scheduler="nosy", options={"seed": 1}))
    director.remove_server(WEB, ONE, None, 0.0)
    director.clear(0.0)
    web, one, two = "TCP 192.168.1.176:80", "192.168.1.11:80", "192.168.1.12:80"
    assert nosy.heard == [
        f"{web} added",
        f"scheduler: {one} added to 1",
        f"{one} added",
        f"scheduler: {two} added to 2",
        f"{two} added",
        f"scheduler: {two} weighs 7",
        f"{two} changed",
        f"{web} changed",
        "scheduler: closed",
        f"{web} changed",
        f"{one} removed",
        f"scheduler: {one} removed from 1",
        "scheduler: closed",
        f"{two} removed",
        f"{web} removed",
    ]  # fmt: skip


def test_observers_follow_a_connection_from_its_birth_to_its_end() -> None:
    nosy = Nosy()
    world = World(plugin=nosy, size=2)
    world.serve(WEB, ONE, scheduler="nosy")
    nosy.heard.clear()
    for cport, flags in ((1, "S"), (1, "A"), (1, "A"), (1, "R"), (1, "S"), (2, "S"), (3, "S")):
        world.send(flags, cport=cport)
    world.director.expire(60.0)
    one = "192.168.1.11:80"
    assert nosy.heard == [
        f"opened 1 to {one}",
        "1: SYN_RECV to ESTABLISHED",
        "1: ESTABLISHED to CLOSE",
        "closed 1: rescheduled",
        f"opened 1 to {one}",
        f"opened 2 to {one}",
        "closed 1: shed",
        f"opened 3 to {one}",
        "closed 3: expired",
        "closed 2: expired",
    ]


def test_observers_hear_why_a_connection_ends() -> None:
    nosy = Nosy()
    world = World(plugin=nosy)
    world.serve(DNS, ONE, one_packet=True)
    world.serve(WEB, ONE, TWO)
    nosy.heard.clear()
    world.director.receive(packets.udp(CLIENT, 9, VIP, 53), 0.0)
    for cport in (1, 2, 3, 4):
        world.send("S", cport=cport)
    world.director.remove_server(WEB, ONE, None, 0.0)
    world.director.tune({"expire_nodest_conn": 1, "drop_entry": 3})
    world.send("A", cport=2)  # it goes by without a connection; the old one ends with the tick
    world.send("S", cport=4)
    world.director.expire(1.0)
    world.director.remove_server(WEB, TWO, None, 1.0)
    assert [text for text in nosy.heard if text.startswith("closed")] == [
        "closed 9: expired",
        "closed 4: server removed",
        "closed 2: expired",
        "closed 1: dropped",
        "closed 3: server removed",
        "closed 4: server removed",
    ]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, Wishes()),
        ({"options": {"seed": 3}}, Wishes(seed=3)),
        ({"flags": frozenset({1})}, Wishes(fallback=True)),
        ({"flags": frozenset({2}), "options": {"seed": 1}}, Wishes(seed=1, port=True)),
        ({"flags": frozenset({1, 2, 3})}, Wishes(fallback=True, port=True)),
    ],
)
def test_options_and_flags_reach_the_scheduler(settings: Any, wanted: Wishes) -> None:
    nosy = Nosy()
    World(plugin=nosy).serve(WEB, scheduler="nosy", **settings)
    assert nosy.options == [wanted]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"seed": -1}, "seed must be 0 or more"),
        ({"sneed": 1}, "unknown option 'sneed'; options of nosy: seed, fallback, port"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_options_that_the_scheduler_refuses(options: Any, complaint: str) -> None:
    world = World(plugin=Nosy())
    with pytest.raises(
        ConfigError, match=f"scheduler 'nosy' of TCP 192.168.1.176:80: .*{complaint}"
    ):
        world.serve(WEB, scheduler="nosy", options=options)
    assert len(world.director.services) == 0


def no_server_of_this_service(scheduler: Any) -> Any:
    other = VirtualService(DNS)
    return RealServer(other, ONE, 80)


def a_removed_server(scheduler: Any) -> Any:
    server = scheduler.servers[0]
    twin = RealServer(server.service, server.address, server.port)
    twin.available = False
    return twin


@pytest.mark.parametrize(
    "act",
    [
        lambda scheduler: "192.168.1.11",
        lambda scheduler: scheduler.nothing_like_this,
        lambda scheduler: 1 / 0,
        lambda scheduler: scheduler,
        no_server_of_this_service,
        a_removed_server,
    ],
)
@pytest.mark.parametrize("persistence_s", [0, 60])
def test_a_scheduler_that_breaks_its_contract_costs_one_packet(
    act: Callable[[Any], Any], persistence_s: int
) -> None:
    nosy = Nosy(act)
    world = World(plugin=nosy)
    world.serve(WEB, ONE, scheduler="nosy", persistence_s=persistence_s)
    assert world.send("S") == Drop(Reason.PLUGIN_FAULT)
    (fault,) = world.faults
    assert fault.plugin == "nosy"
    assert "'nosy' of TCP 192.168.1.176:80" in str(fault)
    assert len(world.director.table) == 0
    nosy.act = lambda scheduler: scheduler.servers[0]
    assert isinstance(world.send("S"), Transmit)
    assert len(world.faults) == 1


def test_a_scheduler_whose_other_methods_raise_does_not_stop_a_command() -> None:
    class Sulking(Nosy.Scheduler):
        def server_added(self, server: Server) -> None:
            raise RuntimeError("too many")

        def server_removed(self, server: Server) -> None:
            raise RuntimeError("too few")

        def server_updated(self, server: Server) -> None:
            raise RuntimeError("as it was, please")

        def close(self) -> None:
            raise RuntimeError("never")

    nosy = Nosy()
    nosy.scheduler_class = Sulking
    world = World(plugin=nosy)
    director = world.director
    service = world.serve(WEB, ONE, TWO, scheduler="nosy")
    director.edit_server(WEB, ONE, None, ServerSettings(weight=2))
    director.remove_server(WEB, TWO, None, 0.0)
    director.edit_service(WEB, PLAIN)
    assert isinstance(world.send("S"), Transmit)
    director.edit_service(WEB, ServiceSettings(scheduler="nosy"))
    director.remove_service(WEB, 0.0)
    assert len(director.services) == 0
    assert not service.servers
    told = [str(fault).split(": ")[1].split(" raised")[0] for fault in world.faults]
    assert told == [
        "server_added",
        "server_added",
        "server_updated",
        "server_removed",
        "close",
        "close",
    ]
    assert {fault.plugin for fault in world.faults} == {"nosy"}


def test_a_scheduler_that_cannot_be_made_is_an_error_of_the_command() -> None:
    nosy = Nosy()
    nosy._make = lambda servers, options: 1 / 0  # type: ignore[method-assign]
    world = World(plugin=nosy)
    with pytest.raises(ConfigError, match=r"'nosy' of TCP .*:80 failed: ZeroDivisionError"):
        world.serve(WEB, scheduler="nosy")
    service = world.serve(WEB, ONE)
    scheduler = service.scheduler
    with pytest.raises(ConfigError):
        world.director.edit_service(WEB, ServiceSettings(scheduler="nosy"))
    assert service.scheduler is scheduler
    assert service.settings.scheduler == "rr"


def test_a_forwarder_that_raises_costs_one_packet() -> None:
    rewriting = Rewriting()
    world = World(plugin=rewriting)
    world.serve(WEB)
    world.director.add_server(WEB, ONE, None, ServerSettings(method="rewriting"))
    forwarder: Any = rewriting.Forwarder
    working, forwarder.transmit = forwarder.transmit, lambda self, connection, packet: 1 / 0
    try:
        world.director.edit_server(WEB, ONE, None, ServerSettings(method="rewriting"))
        assert world.send("S") == Drop(Reason.PLUGIN_FAULT)
        assert world.send("A") == Drop(Reason.PLUGIN_FAULT)
        assert world.send("A") == Drop(Reason.PLUGIN_FAULT)
    finally:
        forwarder.transmit = working
    (connection,) = world.connections
    assert (connection.state_name, connection.deadline) == ("ESTABLISHED", 900.0)
    assert [fault.plugin for fault in world.faults] == ["rewriting"] * 3
    assert "'rewriting' of 192.168.1.11:80 raised ZeroDivisionError" in str(world.faults[0])
    assert world.director.next_timer() == 60.0


@dataclass(frozen=True)
class Colour:
    """Options of the forwarding method below."""

    colour: str = "red"

    def __post_init__(self) -> None:
        if self.colour == "none":
            raise ValueError("colour must be one")


class Painting:
    """Registers a forwarding method with an option, which its packets show."""

    class Forwarder:
        def __init__(self, server: Server, options: Colour) -> None:
            self.colour = options.colour

        def transmit(self, connection: Seen, packet: bytes) -> Verdict:
            return Transmit(self.colour.encode(), ROUTE)

        def route_changed(self, route: Route) -> None:
            pass

    @lvskit.hookimpl
    def lvskit_register_forwarders(self) -> Iterable[ForwarderSpec]:
        return [ForwarderSpec(name="paint", factory=self.Forwarder, summary="-", options=Colour)]


def test_an_edited_option_of_a_forwarder_is_for_all_its_connections() -> None:
    world = World(plugin=Painting())
    world.serve(WEB)

    def settings(**options: str) -> ServerSettings:
        return ServerSettings(method="paint", options=options)

    def colour(flags: str, cport: int) -> bytes:
        verdict = world.send(flags, cport=cport)
        assert isinstance(verdict, Transmit)
        return verdict.packet

    world.director.add_service(DNS, ServiceSettings(scheduler="rr"))
    world.director.add_server(DNS, TWO, None, settings(colour="green"))
    world.director.receive(packets.udp(CLIENT, 1, VIP, 53), 0.0)
    (other,) = world.connections
    server = world.director.add_server(WEB, ONE, None, settings())
    assert colour("S", 1) == b"red"
    world.director.edit_server(WEB, ONE, None, settings(colour="blue"))
    assert (colour("A", 1), colour("S", 2)) == (b"blue", b"blue")
    assert other.transmit == other.server.transmit
    bound = server.transmit
    world.director.edit_server(WEB, ONE, None, settings(colour="blue"))
    assert server.transmit == bound
    for refused in ({"colour": "none"}, {"shade": "dark"}):
        with pytest.raises(ConfigError, match=r"forwarder 'paint' of 192\.168\.1\.11:80: "):
            world.director.edit_server(WEB, ONE, None, settings(**refused))
    assert colour("S", 3) == b"blue"
    # The director's own address takes the local method, whose options these are not.
    world.routes[ONE] = Route(HERE, 65536, local=True)
    world.director.routes_changed()
    assert isinstance(world.send("S", cport=4), Deliver)


def test_an_observer_that_raises_changes_nothing() -> None:
    class Grumbler(Nosy):
        def opened(self, connection: Seen) -> None:
            raise RuntimeError("one more")

        def state_changed(self, connection: Seen, old: str, new: str) -> None:
            raise RuntimeError("no change, please")

        def closed(self, connection: Seen, reason: str) -> None:
            raise RuntimeError("gone")

    world = World(plugin=Grumbler())
    service = world.serve(WEB, ONE)
    assert isinstance(world.send("S"), Transmit)
    assert isinstance(world.send("F"), Transmit)
    world.director.expire(120.0)
    assert world.connections == []
    assert [service.servers[0].activeconns, service.servers[0].inactconns] == [0, 0]
    assert [str(fault).split("'")[1] for fault in world.faults] == [
        "one more",
        "no change, please",
        "gone",
    ]
    assert all("Grumbler" in fault.plugin for fault in world.faults)


def test_an_observer_needs_only_one_of_the_methods() -> None:
    class Brief:
        heard: list[str]

        def closed(self, connection: Seen, reason: str) -> None:
            self.heard.append(reason)

    class Plugin:
        @lvskit.hookimpl
        def lvskit_connection_observer(self, service: Service) -> Any:
            return brief

    brief = Brief()
    brief.heard = []
    world = World(plugin=Plugin())
    world.serve(WEB, ONE)
    world.send("S")
    world.director.expire(61.0)
    assert brief.heard == ["expired"]


def test_nobody_need_listen_to_the_faults() -> None:
    director = Director(load_plugins(), lambda target: ROUTE)
    director.add_service(WEB, PLAIN)
    director.add_server(WEB, ONE, None, SERVER)
    director.services.get(WEB).scheduler = object()  # type: ignore[assignment]
    assert director.receive(packets.tcp(CLIENT, 1, VIP, 80), 0.0) == Drop(Reason.PLUGIN_FAULT)


# --- anything at all ---


@given(
    st.binary(max_size=120),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=3),
)
def test_no_packet_raises(junk: bytes, changes: list[tuple[int, int]]) -> None:
    """Neither bytes at random nor a packet of a live connection with some bytes changed."""
    world = World()
    world.serve(WEB, ONE)
    world.serve(ServiceKey.of(UDP, address(VIP6), 0), ONE, persistence_s=60)
    world.send("S")
    for raw in (
        junk,
        packets.tcp(CLIENT, 1024, VIP, 80, "A", payload=bytes(8)),
        packets.udp(CLIENT6, 1024, VIP6, 53, payload=bytes(8)),
        packets.icmp_error(CLIENT, VIP, 3, 4, packets.tcp(VIP, 80, CLIENT, 1024)),
    ):
        changed = bytearray(raw)
        for at, value in changes:
            if at < len(changed):
                changed[at] = value
        assert isinstance(world.director.receive(bytes(changed), 1.0), Verdict)
        world.director.replied(bytes(changed), 1.0)
    assert not world.faults
