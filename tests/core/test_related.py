"""ICMP errors: whose connection they are about, who gets them, and what they count for."""

from __future__ import annotations

import pytest
from director_world import (
    CLIENT,
    CLIENT6,
    HERE,
    LOCAL_ROUTE,
    METHODS,
    ONE,
    ROUTE,
    TWO,
    VIP,
    VIP6,
    WEB,
    World,
    Wrapping,
    address,
    counted,
    loads,
    target,
)
from scapy.layers import inet
from scapy.utils import checksum

from lvskit import (
    NOT_OURS,
    TCP,
    UDP,
    Drop,
    ForwarderSpec,
    Reason,
    Reply,
    Route,
    ServerSettings,
    ServiceKey,
    Transmit,
)
from lvskit.testing import packets

ROUTER = "192.168.1.1"
OTHER = ServiceKey.of(TCP, address(VIP), 81)
DNS = ServiceKey.of(UDP, address(VIP), 53)


# --- about what a server sent to a client ---


def test_the_server_gets_errors_about_its_answers_and_nothing_else_happens() -> None:
    world = World()
    service = world.serve(WEB, ONE)
    world.tcps("SA")
    error = packets.icmp_error("10.9.9.9", VIP, 3, 4, packets.tcp(VIP, 80, CLIENT, 1024), rest=1300)
    before = counted(service)
    verdict = world.receive(error + b"padding", 5.0)
    assert target(verdict) == ONE
    assert verdict.packet[40:] == error[20:]  # type: ignore[union-attr]
    assert counted(service) == (1, before[1] + 1, 0, before[3] + len(error), 0)
    connection = world.connection
    assert (connection.state_name, connection.deadline) == ("ESTABLISHED", 900.0)
    assert (connection.packets, connection.two_way) == (3, False)


def test_an_error_finds_no_connection_whose_time_has_come() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.tcp("S")
    error = packets.icmp_error(ROUTER, VIP, 3, 4, packets.tcp(VIP, 80, CLIENT, 1024))
    assert target(world.receive(error, 59.999)) == ONE
    assert world.receive(error, 60.0) == NOT_OURS
    assert world.connections == []


@pytest.mark.parametrize(
    "quote",
    [
        packets.tcp(VIP, 80, CLIENT, 1025),
        packets.udp(VIP, 80, CLIENT, 1024),
        packets.tcp(CLIENT, 1024, VIP, 80)[:19],
        packets.tcp(VIP, 80, CLIENT, 1024)[:23],
        packets.ip(VIP, CLIENT, 1, bytes(8)),
        packets.ip(VIP, CLIENT, TCP, packets.tcp(VIP, 80, CLIENT, 1024)[20:], offset=1),
        packets.tcp(VIP6, 80, CLIENT6, 1024),
        b"",
    ],
    ids=lambda quote: quote.hex() or "empty",
)
def test_errors_about_no_connection_are_the_hosts(quote: bytes) -> None:
    world = World()
    service = world.serve(WEB, ONE)
    world.serve(ServiceKey.of(TCP, address(VIP6), 80), ONE)
    world.tcp("S")
    world.receive(packets.tcp(CLIENT6, 1024, VIP6, 80))
    before = counted(world.director.services)
    assert world.receive(packets.icmp_error(ROUTER, VIP, 3, 3, quote)) == NOT_OURS
    assert counted(world.director.services) == before
    assert service.counters.conns == 1


def test_of_ipv6_likewise() -> None:
    world = World()
    service = world.serve(ServiceKey.of(TCP, address(VIP6), 80), ONE)
    world.receive(packets.tcp(CLIENT6, 1024, VIP6, 80))
    answer = packets.tcp(VIP6, 80, CLIENT6, 1024)
    error = packets.icmp_error("2001:db8:9::9", VIP6, 2, 0, answer, rest=1300)
    verdict = world.receive(error, 1.0)
    assert isinstance(verdict, Transmit)
    assert (verdict.packet[9], verdict.packet[16:20]) == (41, ONE)
    assert service.counters.inbytes == 60 + len(error)
    four = packets.tcp(VIP, 80, CLIENT, 1024)
    assert world.receive(packets.icmp_error("2001:db8:9::9", VIP6, 1, 4, four)) == NOT_OURS


def test_an_error_that_earns_an_error_is_dropped() -> None:
    """RFC 1122, 3.2.2."""
    world = World()
    service = world.serve(WEB, ONE)
    world.tcp("S")
    error = bytearray(packets.icmp_error(ROUTER, VIP, 3, 4, packets.tcp(VIP, 80, CLIENT, 1024)))
    error[8] = 1
    assert world.receive(bytes(error)) == Drop(Reason.TTL_EXCEEDED)
    assert counted(service) == (1, 2, 0, 40 + len(error), 0)


# --- about what a client sent to a local server ---


def test_an_error_of_a_local_server_counts_and_goes_its_way() -> None:
    """The host's own: its port is closed. It is no answer that could move the state."""
    world = World()
    world.routes[ONE] = LOCAL_ROUTE
    service = world.serve(DNS, ONE, persistence_s=300)
    query = packets.udp(CLIENT, 9, VIP, 53)
    world.receive(query)
    error = packets.icmp_error(VIP, CLIENT, 3, 3, query)
    assert world.director.replied(error, 5.0) == NOT_OURS
    assert counted(service) == (1, 1, 1, 28, len(error))
    assert (world.connection.deadline, world.connection.two_way) == (300.0, False)
    assert not world.templates[0].assured


def test_an_error_about_a_request_may_come_from_elsewhere() -> None:
    """By its quote it is about a client's packet: it is not for the server, and counts as out."""
    world = World()
    service = world.serve(WEB, ONE)
    world.tcp("S")
    error = packets.icmp_error(ROUTER, VIP, 11, 0, packets.tcp(CLIENT, 1024, VIP, 80))
    assert world.receive(error, 5.0) == NOT_OURS
    assert counted(service) == (1, 1, 1, 40, len(error))
    assert world.connection.deadline == 60.0


@pytest.mark.parametrize(
    "packet",
    [
        packets.icmp_error(VIP, CLIENT, 3, 3, packets.udp(CLIENT, 10, VIP, 53)),
        packets.icmp_error(VIP, CLIENT, 3, 3, packets.udp(CLIENT, 9, VIP, 53)[:23]),
        packets.icmp_error(VIP, CLIENT, 3, 3, packets.ip(CLIENT, VIP, 47, bytes(8))),
        packets.icmp_error(VIP, CLIENT, 5, 0, packets.udp(CLIENT, 9, VIP, 53)),
        packets.ip(VIP, CLIENT, 1, bytes((0, 0)) + bytes(6)),
        packets.ip(VIP, CLIENT, 47, bytes(8)),
        packets.ip(VIP, CLIENT, 17, packets.udp(VIP, 53, CLIENT, 9)[20:], more=True),
        packets.udp(VIP, 54, CLIENT, 9),
        packets.udp(CLIENT, 9, VIP, 53),
    ],
    ids=lambda packet: packet.hex(),
)
def test_what_else_a_host_sends_is_nobodys_answer(packet: bytes) -> None:
    world = World()
    world.routes[ONE] = LOCAL_ROUTE
    service = world.serve(DNS, ONE)
    world.receive(packets.udp(CLIENT, 9, VIP, 53))
    assert world.director.replied(packet, 5.0) == NOT_OURS
    assert counted(service) == (1, 1, 0, 28, 0)
    assert (world.connection.deadline, world.connection.two_way) == (300.0, False)


def test_an_error_of_the_other_ip_version_is_about_nothing() -> None:
    world = World()
    world.routes[ONE] = LOCAL_ROUTE
    service = world.serve(ServiceKey.of(UDP, address(VIP6), 53), ONE)
    query = packets.udp(CLIENT6, 9, VIP6, 53)
    world.receive(query)
    assert world.receive(packets.icmp_error(ROUTER, VIP, 3, 3, query)) == NOT_OURS
    assert world.director.replied(packets.icmp_error(VIP, CLIENT, 3, 3, query), 1.0) == NOT_OURS
    assert service.counters.outpkts == 0


# --- about a packet that the director has wrapped ---

OUTER = 24  # bytes that `Wrapping` puts before a packet


def wrapped(inner: bytes, server: bytes = ONE) -> bytes:
    return packets.ip(HERE, server, Wrapping.PROTOCOL, Wrapping.SIGN + inner)


def about(
    inner: bytes, kind: int = 3, code: int = 4, rest: int = 1400, *, of: bytes = ONE
) -> bytes:
    """Return a router's error about `inner` in its tunnel."""
    return packets.icmp_error(ROUTER, HERE, kind, code, wrapped(inner, of), rest=rest)


SENT = packets.tcp(CLIENT, 1024, VIP, 80, "A", payload=bytes(600), ttl=63)


def tunnelling(mtu: int = 1500) -> World:
    """Return a world with one connection, established, through a tunnel that knows its own."""
    world = World()
    world.routes[ONE] = Route(HERE, mtu)
    world.serve(WEB, ONE, method="wrap")
    world.tcps("SA")
    return world


@pytest.mark.parametrize(
    ("kind", "code", "rest"),
    [(3, 1, 0), (3, 3, 0x01020304), (4, 0, 7), (11, 0, 0), (11, 1, 0xFFFF)],
)
def test_the_client_is_told_what_a_router_said_of_the_tunnel(
    kind: int, code: int, rest: int
) -> None:
    world = tunnelling()
    verdict = world.receive(about(SENT, kind, code, rest), 5.0)
    assert isinstance(verdict, Reply)
    assert verdict.reason is Reason.TUNNEL_ERROR
    found = inet.IP(verdict.packet)
    assert (found.src, found.dst, found.ttl, found.len) == (VIP, CLIENT, 64, 576)
    assert verdict.packet[20:22] == bytes((kind, code))
    assert int.from_bytes(verdict.packet[24:28], "big") == rest
    assert verdict.packet[28:] == SENT[:548]
    assert checksum(verdict.packet[20:]) == 0


def test_it_counts_twice_as_the_kernel_counts_it() -> None:
    """The request that is answered, and the answer; state and deadline stay."""
    world = tunnelling()
    service = world.director.services.get(WEB)
    verdict = world.receive(about(SENT[:200]), 5.0)
    assert isinstance(verdict, Reply)
    assert counted(service) == (1, 2, 2, 80, 200 + 228)
    assert len(verdict.packet) == 228
    connection = world.connection
    assert (connection.state_name, connection.deadline, connection.packets) == (
        "ESTABLISHED", 900.0, 2,
    )  # fmt: skip
    assert not connection.two_way


@pytest.mark.parametrize(
    ("mtu", "told"),
    [(1500, 1476), (1280, 1256), (94, 70), (93, 69), (92, 92), (68, 68)],
)
def test_the_mtu_leaves_room_for_the_tunnel(mtu: int, told: int) -> None:
    """What the host knows of the way outranks the router's word; 68 bytes are the least."""
    verdict = tunnelling(mtu).receive(about(SENT, rest=600))
    assert isinstance(verdict, Reply)
    assert verdict.packet[24:28] == told.to_bytes(4, "big")


def test_without_a_way_to_the_server_the_router_is_believed() -> None:
    world = tunnelling()
    world.routes[ONE] = None
    world.director.routes_changed()
    verdict = world.receive(about(SENT, rest=0x00020578))  # 1400, and something above it
    assert isinstance(verdict, Reply)
    assert verdict.packet[24:28] == (1400 - OUTER).to_bytes(4, "big")


def test_who_may_not_learn_an_mtu_is_told_none() -> None:
    world = tunnelling()
    undemanding = packets.tcp(CLIENT, 1024, VIP, 80, "A", df=False)
    assert world.receive(about(undemanding)) == NOT_OURS
    assert world.director.services.counters.outpkts == 0
    verdict = world.receive(about(undemanding, 3, 1))  # other errors are told all the same
    assert isinstance(verdict, Reply)


def damaged(packet: bytes) -> bytes:
    return packet[:22] + bytes((packet[22] ^ 0xFF,)) + packet[23:]


@pytest.mark.parametrize(
    "error",
    [
        damaged(about(SENT)),
        about(SENT[:23]),
        about(packets.tcp(CLIENT6, 1, VIP6, 80)),
        about(packets.ip(CLIENT, VIP, 1, bytes(8))),
        about(packets.tcp(CLIENT, 1025, VIP, 80)),
        about(packets.tcp(VIP, 80, CLIENT, 1024)),
        about(SENT, of=TWO),
        packets.icmp_error(ROUTER, HERE, 3, 4, wrapped(SENT)[:20]),
        packets.icmp_error(ROUTER, HERE, 3, 4, packets.ip(HERE, ONE, 4, SENT)),
        packets.icmp_error(ROUTER, HERE, 3, 4, packets.ip(HERE, ONE, 47, SENT)),
        packets.icmp_error(ROUTER, HERE, 5, 0, wrapped(SENT)),
    ],
    ids=["checksum", "short", "IPv6", "no ports", "no connection", "an answer", "no server",
         "only the outer header", "another tunnel", "not ours", "a redirect"],
)  # fmt: skip
def test_errors_that_are_for_the_host_alone(error: bytes) -> None:
    world = tunnelling()
    before = counted(world.director.services)
    assert world.receive(error) == NOT_OURS
    assert counted(world.director.services) == before


def test_an_error_about_a_connection_that_has_ended_is_the_hosts() -> None:
    world = tunnelling()
    assert isinstance(world.receive(about(SENT), 899.999), Reply)
    assert world.receive(about(SENT), 900.0) == NOT_OURS


def test_every_server_of_the_address_is_asked_whose_packet_it_was() -> None:
    """A method without tunnels knows none; one that does not recognise its own says so."""

    class Forgetful(Wrapping):
        def unwrap(self, quote: bytes) -> bytes | None:
            return None

    class Raising(Wrapping):
        def unwrap(self, quote: bytes) -> bytes | None:
            raise RuntimeError("what is this")

    more = {
        "forgetful": ForwarderSpec(name="forgetful", factory=Forgetful, summary="-"),
        "raising": ForwarderSpec(name="raising", factory=Raising, summary="-"),
    }
    world = World(forwarders={**METHODS, **more})
    for port, method in enumerate(("droute", "forgetful", "raising"), start=8000):
        world.serve(ServiceKey.of(TCP, address(VIP), port), ONE, method=method)
    assert world.receive(about(SENT)) == NOT_OURS
    assert [fault.plugin for fault in world.faults] == ["raising"]
    assert "forwarder 'raising' of 192.168.1.11:8002 raised RuntimeError" in str(world.faults[0])
    world.serve(WEB, TWO, ONE, method="wrap")
    world.tcps("SA")
    verdict = world.receive(about(SENT))
    assert isinstance(verdict, Reply)
    assert verdict.packet[28:68] == SENT[:40]


def test_a_method_is_asked_about_packets_of_the_tunnels_that_there_are() -> None:
    """IPIP, UDP (GUE) and GRE."""
    asked = []

    class Curious(Wrapping):
        def unwrap(self, quote: bytes) -> bytes | None:
            asked.append(quote[9])
            return None

    curious = ForwarderSpec(name="curious", factory=Curious, summary="-")
    world = World(forwarders={**METHODS, "curious": curious})
    world.serve(WEB, ONE, method="curious")
    for protocol in range(256):
        quote = packets.ip(HERE, ONE, protocol, bytes(40))
        assert world.receive(packets.icmp_error(ROUTER, HERE, 3, 4, quote)) == NOT_OURS
    assert asked == [4, 17, 47]


def test_only_the_method_that_a_server_has_now_is_asked() -> None:
    world = tunnelling()
    world.director.edit_server(WEB, ONE, None, ServerSettings(method="droute"))
    assert world.receive(about(SENT)) == NOT_OURS


def test_a_removed_servers_connection_is_answered_and_counts_for_nobody() -> None:
    """Where another service still has the server, so that the tunnel is known."""
    world = tunnelling()
    world.serve(OTHER, ONE, method="wrap")
    world.director.remove_server(WEB, ONE, None, 1.0)
    before = counted(world.director.services)
    assert isinstance(world.receive(about(SENT), 2.0), Reply)
    assert counted(world.director.services) == before


def test_a_client_may_have_a_servers_address() -> None:
    """Then an error about an answer to it looks like one about a tunnel, but for its inside."""
    world = World()
    world.serve(DNS, TWO, address(CLIENT), method="wrap")
    world.receive(packets.udp(CLIENT, 9, VIP, 53))
    world.receive(packets.udp(CLIENT, 10, VIP, 53))
    error = packets.icmp_error(ROUTER, VIP, 3, 3, packets.udp(VIP, 53, CLIENT, 10))
    verdict = world.receive(error)
    assert isinstance(verdict, Transmit)
    assert (verdict.packet[16:20], verdict.packet[24:]) == (TWO, error)


# --- over changes of routes ---


def test_a_connection_keeps_its_method_over_a_change_of_routes() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.tcps("SA")
    world.director.edit_server(WEB, ONE, None, ServerSettings(method="droute"))
    for route in (None, ROUTE):
        world.routes[ONE] = route
        world.director.routes_changed()
    assert target(world.tcp("A")) == ONE


def test_a_server_that_comes_back_is_reached_the_way_there_is_then() -> None:
    world = World()
    world.routes[ONE] = None
    service = world.serve(WEB, ONE)
    assert isinstance(world.tcp("S"), Reply)
    world.director.remove_server(WEB, ONE, None, 1.0)
    world.routes[ONE] = ROUTE
    world.director.routes_changed()
    world.director.add_server(WEB, ONE, None, ServerSettings())
    assert loads(service.servers[0]) == (1, 0, 0)
    assert target(world.tcp("A", now=2.0)) == ONE
