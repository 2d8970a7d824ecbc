"""What opens a connection, and what ends one for another."""

from __future__ import annotations

from typing import Any

import pytest
from director_world import (
    CLIENT,
    LOCAL_ROUTE,
    ONE,
    TWO,
    VIP,
    WEB,
    World,
    address,
    loads,
    target,
)

from lvskit import (
    NOT_OURS,
    TCP,
    UDP,
    Drop,
    Reason,
    Refusal,
    ServerSettings,
    ServiceKey,
    refuse,
)
from lvskit.testing import packets

DNS = ServiceKey.of(UDP, address(VIP), 53)
FTP = ServiceKey.of(TCP, address(VIP), 21)
MARK = ServiceKey.mark(7)
QUIET = ServerSettings(weight=0)


# --- sloppy_tcp ---


@pytest.mark.parametrize("sloppy", [0, 1, 2])
def test_which_flags_open_a_connection(sloppy: int) -> None:
    """SYN, or with sloppy_tcp anything; RST never."""
    world = World()
    world.serve(WEB, ONE)
    world.tune(sloppy_tcp=sloppy)
    for flags in range(256):
        verdict = world.tcp(flags, cport=1000 + flags)  # type: ignore[arg-type]
        opens = not flags & 0x04 and bool(sloppy or flags & 0x02)
        assert (verdict == NOT_OURS) != opens, f"flags {flags:#04x}"
        assert (target(verdict) == ONE) == opens


@pytest.mark.parametrize(
    ("flags", "state", "deadline"),
    [
        ("A", "ESTABLISHED", 900.0),
        ("F", "CLOSE", 10.0),
        (0, "CLOSE", 10.0),
        ("S", "SYN_RECV", 60.0),
    ],
)
def test_a_sloppy_connection_begins_where_its_packet_says(
    flags: Any, state: str, deadline: float
) -> None:
    world = World()
    world.serve(WEB, ONE)
    world.tune(sloppy_tcp=1)
    world.tcp(flags)
    assert (world.connection.state_name, world.connection.deadline) == (state, deadline)


# --- conn_reuse_mode ---


@pytest.mark.parametrize(
    ("letters", "modes"),
    [("S", ""), ("SA", ""), ("SAF", "23"), ("SF", "123"), ("SAR", "123"), ("SAFR", "123")],
)
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_a_syn_on_ports_that_had_a_connection(letters: str, modes: str, mode: int) -> None:
    """TIME_WAIT and CLOSE begin anew in any mode but 0, FIN_WAIT where bit 2 is set."""
    world = World()
    service = world.serve(WEB, ONE, TWO)
    world.tune(conn_reuse_mode=mode)
    world.tcps(letters)
    old = world.connection
    assert target(world.tcp("S", now=1.0)) == (ONE if str(mode) in modes else TWO)
    assert (world.connection is not old) == (str(mode) in modes)
    assert service.counters.conns == (2 if str(mode) in modes else 1)
    assert sum(sum(loads(server)) for server in service.servers) == 1


def test_in_a_full_table_the_connection_that_gives_way_makes_the_room() -> None:
    """Nothing else is shed for the new one: not even a connection that is half open."""
    world = World(size=2)
    service = world.serve(WEB, ONE, TWO)
    world.tcps("SAR")
    world.tcp("S", cport=2000)
    (other,) = world.director.table.half_open
    assert target(world.tcp("S", now=1.0)) is not None
    assert len(world.director.table) == 2
    assert other in world.director.table.half_open
    assert (world.director.table.shed, world.director.table.refused) == (0, 0)
    assert sum(sum(loads(server)) for server in service.servers) == 2


def test_other_packets_end_no_connection() -> None:
    world = World()
    world.serve(WEB, ONE, TWO)
    world.tune(conn_reuse_mode=3)
    world.tcps("SF")
    for letter in "AFR":
        assert target(world.tcp(letter)) == TWO


def test_a_fin_wait_of_which_answers_were_seen_is_no_end() -> None:
    """The client's FIN is known to be answered or not: the server may still be sending."""
    for mode in (2, 3):
        world = World()
        world.routes[ONE] = world.routes[TWO] = LOCAL_ROUTE
        world.serve(WEB, ONE, TWO)
        world.tune(conn_reuse_mode=mode)
        world.tcps("SA")
        world.director.replied(packets.tcp(VIP, 80, CLIENT, 1024, "FA"), 0.0)
        old = world.connection
        assert (old.state_name, old.two_way) == ("FIN_WAIT", True)
        world.tcp("S", now=1.0)
        assert world.connection is old
        assert (old.state_name, old.deadline) == ("SYN_RECV", 61.0)


def test_a_connection_that_hangs_on_a_template_is_not_begun_anew() -> None:
    for mode in (1, 2, 3):
        world = World()
        world.serve(WEB, ONE, TWO, persistence_s=300)
        world.tune(conn_reuse_mode=mode)
        world.tcps("SAR")
        old = world.connection
        world.tcp("S")
        assert world.connection is old


def test_the_mode_is_that_of_the_connections_service() -> None:
    world = World()
    world.serve(WEB, ONE, TWO)
    world.tune(WEB, conn_reuse_mode=0)
    world.tcps("SAR")
    old = world.connection
    world.tcp("S")
    assert world.connection is old
    world.tcps("AR")
    world.tune(WEB, conn_reuse_mode=None)
    world.tcp("S")
    assert world.connection is not old


def test_a_udp_connection_has_no_first_packet() -> None:
    world = World()
    world.serve(DNS, ONE, TWO)
    world.tune(conn_reuse_mode=3, expire_nodest_conn=1)
    world.receive(packets.udp(CLIENT, 9, VIP, 53))
    world.director.edit_server(DNS, TWO, None, QUIET)
    assert target(world.receive(packets.udp(CLIENT, 9, VIP, 53))) == TWO


# --- expire_nodest_conn ---


@pytest.mark.parametrize(("setting", "moves"), [(0, False), (1, True)])
def test_a_syn_leaves_a_quiesced_server(setting: int, moves: bool) -> None:
    """In any state, whatever conn_reuse_mode says; other packets stay."""
    for letters in ("S", "SA", "SAF"):
        world = World()
        service = world.serve(WEB, ONE, TWO)
        world.tune(expire_nodest_conn=setting, conn_reuse_mode=0)
        world.tcps(letters)
        world.director.edit_server(WEB, TWO, None, QUIET)
        assert target(world.tcp("A")) == TWO
        assert target(world.tcp("S")) == (ONE if moves else TWO)
        assert len(world.connections) == 1
        assert sum(loads(service.servers[0])) == (0 if moves else 1)


def test_a_syn_on_a_quiesced_server_without_another_is_refused() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.tune(expire_nodest_conn=1)
    world.tcps("SA")
    world.director.edit_server(WEB, ONE, None, QUIET)
    packet = packets.tcp(CLIENT, 1024, VIP, 80)
    refusal = refuse(packet, Refusal.PORT_UNREACHABLE)
    assert world.receive(packet) == refusal
    (service,) = world.director.services
    assert service.counters.outbytes == len(refusal.packet)  # it passes the old connection
    world.director.expire(0.004)
    assert world.connections == []


def test_a_connection_that_gives_way_to_none_is_revived_by_the_hosts_answer() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.serve(DNS, ONE)
    world.tcps("SAR")
    world.director.remove_service(WEB, 0.0)
    assert world.tcp("S", now=1.0) == NOT_OURS
    reset = packets.tcp(VIP, 80, CLIENT, 1024, "RA")
    assert world.director.replied(reset, 1.0) == NOT_OURS
    assert (world.connection.state_name, world.connection.deadline) == ("CLOSE", 11.0)


def test_a_template_brings_the_client_back_to_its_quiesced_server() -> None:
    world = World()
    service = world.serve(WEB, ONE, TWO, persistence_s=300)
    world.tune(expire_nodest_conn=1)
    world.tcps("SA")
    old = world.connection
    world.director.edit_server(WEB, TWO, None, QUIET)
    assert target(world.tcp("S")) == TWO
    assert world.connection is not old
    assert (loads(service.servers[0]), service.counters.conns) == ((1, 0, 1), 2)


class Ends:
    """An observer that remembers why connections ended."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def closed(self, connection: Any, reason: str) -> None:
        self.reasons.append(f"{connection.flow.cport}: {reason}")


def test_a_removed_servers_connections_end_with_it_if_so_set() -> None:
    """And its templates, assured or not; those of others stay."""
    ends = Ends()
    world = World(observers=[ends])
    service = world.serve(WEB, ONE, TWO, persistence_s=300)
    dns = world.serve(DNS, ONE)
    world.tune(WEB, expire_nodest_conn=1)
    two, one = service.servers
    world.tcps("SA", cport=1)
    world.tcps("S", cport=2)
    world.receive(packets.tcp("10.0.0.2", 3, VIP, 80))
    world.receive(packets.udp(CLIENT, 4, VIP, 53))
    assert (loads(two), loads(one)) == ((2, 0, 1), (1, 0, 1))
    world.director.remove_server(WEB, TWO, None, 1.0)
    assert (loads(two), loads(one)) == ((0, 0, 0), (1, 0, 1))
    assert ends.reasons == ["1: server removed", "2: server removed"]
    assert world.tcp("A", cport=1, now=2.0) == NOT_OURS
    assert target(world.tcp("S", cport=1, now=2.0)) == ONE
    world.director.remove_server(DNS, ONE, None, 2.0)  # a service without the setting
    assert world.receive(packets.udp(CLIENT, 4, VIP, 53), 2.0) == Drop(Reason.SERVER_REMOVED)
    assert dns.servers == []
    assert len(world.director.table) == 5
    world.director.expire(1000.0)
    assert len(world.director.table) == 0


def test_the_connections_of_a_removed_service_end_with_it_if_so_set() -> None:
    world = World()
    service = world.serve(WEB, ONE, TWO, persistence_s=300)
    world.serve(DNS, ONE)
    servers = list(service.servers)
    world.tune(expire_nodest_conn=1)
    world.tcps("SA", cport=1)
    world.receive(packets.tcp("10.0.0.2", 3, VIP, 80))
    world.receive(packets.udp(CLIENT, 4, VIP, 53))
    world.director.remove_service(WEB, 1.0)
    assert [loads(server) for server in servers] == [(0, 0, 0)] * 2
    assert [c.protocol for c in world.connections] == [UDP]
    assert world.templates == []


def test_a_retired_template_of_a_removed_server_goes_too() -> None:
    world = World()
    service = world.serve(WEB, ONE, TWO, persistence_s=300)
    two = service.servers[0]
    world.tcps("S", cport=1)
    world.director.remove_server(WEB, TWO, None, 1.0)
    world.tcps("S", cport=2)
    assert len(world.director.table.retired) == 1
    world.tune(expire_nodest_conn=1)
    assert loads(two) == (1, 0, 1)  # until something is removed, or a packet comes
    world.director.remove_server(WEB, ONE, None, 2.0)
    assert len(world.director.table) == 0
    assert loads(two) == (0, 0, 0)


def test_switched_on_later_the_next_packet_ends_the_connection() -> None:
    ends = Ends()
    world = World(observers=[ends])
    world.serve(WEB, ONE, TWO)
    world.serve(DNS, ONE)
    world.tcps("SA", cport=1)
    world.tcps("SA", cport=2)
    world.receive(packets.udp(CLIENT, 3, VIP, 53))
    world.director.remove_server(WEB, TWO, None, 1.0)
    world.director.remove_server(DNS, ONE, None, 1.0)
    world.tune(expire_nodest_conn=1)
    assert len(world.connections) == 3
    assert world.tcp("A", cport=1, now=2.0) == NOT_OURS
    query = packets.udp(CLIENT, 3, VIP, 53)
    assert world.receive(query, 2.0) == refuse(query, Refusal.PORT_UNREACHABLE)
    world.director.expire(2.004)
    assert ends.reasons == ["3: expired", "1: expired"]
    assert target(world.tcp("A", cport=2, now=3.0)) == ONE
    assert target(world.tcp("S", cport=1, now=3.0)) == ONE


def test_what_is_removed_elsewhere_ends_only_where_it_is_so_set() -> None:
    world = World()
    web, dns = world.serve(WEB, ONE), world.serve(DNS, ONE, TWO)
    world.tcps("SA", cport=1)
    world.receive(packets.udp(CLIENT, 3, VIP, 53))
    world.director.remove_server(WEB, ONE, None, 1.0)
    world.tune(DNS, expire_nodest_conn=1)
    world.director.remove_server(DNS, TWO, None, 1.0)
    assert [c.protocol for c in world.connections] == [TCP]
    world.tune(WEB, expire_nodest_conn=1)
    world.tune(DNS, expire_nodest_conn=0)
    world.director.remove_server(DNS, ONE, None, 1.0)
    assert [c.protocol for c in world.connections] == [TCP]
    world.director.add_server(WEB, TWO, None, ServerSettings())
    world.director.remove_server(WEB, TWO, None, 1.0)
    assert world.connections == web.servers == dns.servers == []


# --- expire_quiescent_template ---


@pytest.mark.parametrize(("setting", "moves"), [(0, False), (1, True)])
def test_a_template_and_its_quiesced_server(setting: int, moves: bool) -> None:
    world = World()
    service = world.serve(WEB, ONE, TWO, persistence_s=300)
    world.tune(expire_quiescent_template=setting)
    two, one = service.servers
    world.tcps("SA", cport=1)
    assert target(world.tcp("S", cport=2, now=10.0)) == TWO
    world.director.edit_server(WEB, TWO, None, QUIET)
    assert target(world.tcp("A", cport=1, now=20.0)) == TWO
    assert target(world.tcp("S", cport=3, now=20.0)) == (ONE if moves else TWO)
    assert (two.persistconns, one.persistconns) == ((1, 1) if moves else (1, 0))
    assert sorted((t.flow.vport, t.deadline) for t in world.templates) == (
        [(80, 320.0), (65535, 310.0)] if moves else [(80, 320.0)]
    )
    world.director.edit_server(WEB, TWO, None, ServerSettings())
    assert target(world.tcp("S", cport=4, now=30.0)) == (ONE if moves else TWO)


def test_without_another_server_the_quiesced_ones_client_is_refused() -> None:
    world = World()
    world.serve(WEB, ONE, persistence_s=300)
    world.tune(WEB, expire_quiescent_template=1)
    world.tcps("S", cport=1)
    world.director.edit_server(WEB, ONE, None, QUIET)
    packet = packets.tcp(CLIENT, 2, VIP, 80)
    assert world.receive(packet) == refuse(packet, Refusal.PORT_UNREACHABLE)
    assert [t.flow.vport for t in world.templates] == [65535]
