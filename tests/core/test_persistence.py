"""Persistence as clients see it: one network keeps its server, for how long, and when not."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvskit import (
    TCP,
    UDP,
    Director,
    Reply,
    Route,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
    load_plugins,
)
from lvskit.core.connection import Connection, Template
from lvskit.core.persistence import masked
from lvskit.testing import packets
from lvskit.testing.packets import address

VIP, VIP6 = "192.168.1.176", "2001:db8::176"
CLIENT, CLIENT6 = "10.1.2.3", "2001:db8:1:2:3::4"
WEB, WEB6 = ServiceKey.of(TCP, address(VIP), 80), ServiceKey.of(TCP, address(VIP6), 80)
SERVERS = [bytes([192, 168, 1, last]) for last in (11, 12, 13)]
PLUGINS = load_plugins()


def director(*keys: ServiceKey, **settings: Any) -> Director:
    """Return a director with a persistent service per key, and the same servers in each."""
    made = Director(PLUGINS, lambda target: Route(bytes([192, 168, 1, 175]), 1500))
    wanted: dict[str, Any] = {"scheduler": "rr", "persistence_s": 300} | settings
    told = ServiceSettings(**wanted)
    for key in keys or (WEB,):
        made.add_service(key, told)
        for server in SERVERS:
            made.add_server(key, server, None, ServerSettings())
    return made


def server_for(
    made: Director, client: str, cport: int, now: float = 0.0, *, port: int = 80, mark: int = 0
) -> int | None:
    """Return which server a new connection gets: the last byte of its address; None: refused."""
    vip = VIP6 if ":" in client else VIP
    verdict = made.receive(packets.tcp(client, cport, vip, port), now, mark)
    if isinstance(verdict, Reply):
        return None
    assert isinstance(verdict, Transmit)
    return verdict.packet[19]


def templates(made: Director) -> list[Template]:
    return [entry for entry in made.table if isinstance(entry, Template)]


# --- the same network, the same server ---

ADDRESSES = st.one_of(
    st.tuples(st.just(4), st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=8)),
    st.tuples(st.just(6), st.lists(st.ip_addresses(v=6).map(str), min_size=1, max_size=8)),
)


@given(ADDRESSES, st.integers(0, 128), st.lists(st.integers(0, 7), max_size=12))
def test_clients_of_one_network_share_a_server_and_a_template(
    clients: tuple[int, list[str]], prefix: int, order: list[int]
) -> None:
    version, addresses = clients
    prefix = min(prefix, 32 if version == 4 else 128)
    network = ipaddress.ip_network(f"{'0.0.0.0' if version == 4 else '::'}/{prefix}")
    made = director(WEB if version == 4 else WEB6, netmask=network.netmask.packed)
    chosen: dict[Any, int | None] = {}
    for cport, which in enumerate([*range(len(addresses)), *order], start=1024):
        client = addresses[which % len(addresses)]
        home = ipaddress.ip_network(f"{client}/{prefix}", strict=False)
        server = server_for(made, client, cport, cport / 1000)
        assert chosen.setdefault(home, server) == server
    assert len(templates(made)) == len(chosen)
    for template in templates(made):
        home = ipaddress.ip_network((template.flow.caddr, prefix))
        assert chosen[home] == template.server.address[3]
        assert template.flow.cport == 0


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4))
def test_any_mask_will_do(client: bytes, mask: bytes) -> None:
    """-M takes a mask for IPv4, which need not be a prefix."""
    assert masked(client, mask) == bytes(a & b for a, b in zip(client, mask, strict=True))
    assert masked(client, None) == client


def test_new_networks_are_scheduled_and_known_ones_are_not() -> None:
    made = director()
    first = [server_for(made, f"10.0.0.{n}", 1) for n in range(6)]
    assert first == [13, 12, 11, 13, 12, 11]
    assert [server_for(made, f"10.0.0.{n}", 2) for n in range(6)] == first
    assert server_for(made, "10.0.0.99", 1) == 13


# --- how long ---


def test_a_template_lasts_from_the_last_new_connection_on() -> None:
    """Not from the last packet."""
    made = director(persistence_s=100)
    assert server_for(made, CLIENT, 1, 0.0) == 13
    made.receive(packets.tcp(CLIENT, 1, VIP, 80, "R"), 0.0)
    assert server_for(made, CLIENT, 2, 90.0) == 13
    made.receive(packets.tcp(CLIENT, 2, VIP, 80, "A"), 95.0)
    made.receive(packets.tcp(CLIENT, 2, VIP, 80, "R"), 95.0)  # ends at 105
    (template,) = templates(made)
    assert template.deadline == 190.0
    made.expire(189.999)
    assert templates(made) == [template]
    made.expire(190.0)
    assert len(made.table) == 0
    assert server_for(made, CLIENT, 3, 190.0) == 12


def test_a_template_outlives_its_connections_in_steps_of_a_minute() -> None:
    """And its own time is a minute from then on: the kernel's quirk."""
    made = director(persistence_s=100)
    server_for(made, CLIENT, 1, 0.0)
    made.receive(packets.tcp(CLIENT, 1, VIP, 80, "A"), 1.0)  # until 901
    made.expire(99.0)
    (template,) = templates(made)
    assert (template.deadline, template.timeout) == (100.0, 100.0)
    made.expire(100.0)
    assert (template.deadline, template.timeout) == (160.0, 60.0)
    made.expire(900.0)
    assert template.deadline == 940.0
    assert server_for(made, CLIENT, 2, 900.0) == 13
    assert template.deadline == 960.0
    made.expire(960.0)  # the second connection's SYN_RECV ends at the same instant: it goes first
    assert templates(made) == []
    assert len(made.table) == 0


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_at_one_instant_a_connection_ends_before_its_template(protocol: int) -> None:
    made = director(
        ServiceKey.of(protocol, address(VIP), 80), persistence_s=120 + 180 * (protocol == UDP)
    )
    build = packets.tcp if protocol == TCP else packets.udp
    made.receive(build(CLIENT, 1, VIP, 80), 5.0)
    if protocol == TCP:
        made.receive(packets.tcp(CLIENT, 1, VIP, 80, "F"), 5.0)  # TIME_WAIT, 120 s
    ends = {entry.deadline for entry in made.table}
    assert len(ends) == 1
    made.expire(ends.pop())
    assert len(made.table) == 0


@pytest.mark.parametrize("late", [False, True])
def test_renewals_are_made_up_for_when_nobody_called_expire(late: bool) -> None:
    made = director(persistence_s=100)
    server_for(made, CLIENT, 1, 0.0)
    made.receive(packets.tcp(CLIENT, 1, VIP, 80, "A"), 0.0)
    (template,) = templates(made)
    for now in () if late else (100.0, 160.0, 220.0, 300.0):
        made.expire(now)
    made.expire(400.0)
    assert template.deadline == 400.0 + 60.0
    assert template.children == 1


def test_an_edited_time_is_for_new_templates() -> None:
    made = director(persistence_s=100)
    server_for(made, CLIENT, 1, 0.0)
    made.edit_service(WEB, ServiceSettings(scheduler="rr", persistence_s=7))
    server_for(made, CLIENT, 2, 1.0)
    server_for(made, "10.9.9.9", 2, 1.0)
    assert sorted(template.deadline for template in templates(made)) == [8.0, 101.0]
    made.edit_service(WEB, ServiceSettings(scheduler="rr"))
    server_for(made, CLIENT, 3, 2.0)
    assert sorted(template.deadline for template in templates(made)) == [8.0, 101.0]


# --- when a template counts, and when it does not ---


def test_quiescing_keeps_the_clients_that_are_there() -> None:
    made = director()
    assert server_for(made, CLIENT, 1) == 13
    made.edit_server(WEB, SERVERS[2], None, ServerSettings(weight=0))
    assert server_for(made, CLIENT, 2) == 13
    assert [server_for(made, f"10.0.0.{n}", 1) for n in range(3)] == [12, 11, 12]


def test_an_overloaded_server_keeps_the_clients_that_are_there() -> None:
    made = director()
    assert server_for(made, CLIENT, 1) == 13
    made.edit_server(WEB, SERVERS[2], None, ServerSettings(upper=1))
    assert server_for(made, CLIENT, 2) == 13
    server = made.services.get(WEB).servers[0]
    assert server.overloaded
    assert server_for(made, "10.0.0.9", 1) == 12
    made.expire(61.0)  # the connections end; the template does not load the server
    assert not server.overloaded
    assert server.persistconns == 1


def test_a_removed_servers_clients_are_scheduled_anew_and_the_old_template_ends_unseen() -> None:
    made = director()
    assert server_for(made, CLIENT, 1, 0.0) == 13
    old = templates(made)[0]
    made.remove_server(WEB, SERVERS[2], None, 1.0)
    assert server_for(made, CLIENT, 2, 2.0) == 12
    assert {(t.server.address[3], t.flow.vport, t.dport) for t in templates(made)} == {
        (13, 65535, 65535),
        (12, 80, 80),
    }
    # Back again: its connection lives on, but the client has another server now.
    made.add_server(WEB, SERVERS[2], None, ServerSettings())
    assert server_for(made, CLIENT, 3, 3.0) == 12
    assert old.server.persistconns == 1
    made.expire(300.0)
    assert old not in made.table
    assert old.server.persistconns == 0


def test_without_another_server_the_client_is_refused_and_the_old_template_retires() -> None:
    made = director()
    for server in SERVERS[:2]:
        made.remove_server(WEB, server, None, 0.0)
    assert server_for(made, CLIENT, 1, 0.0) == 13
    made.remove_server(WEB, SERVERS[2], None, 1.0)
    assert server_for(made, CLIENT, 2, 2.0) is None
    assert [t.flow.vport for t in templates(made)] == [65535]
    assert server_for(made, CLIENT, 2, 3.0) is None


def test_a_server_that_is_back_in_time_keeps_its_clients() -> None:
    made = director()
    assert server_for(made, CLIENT, 1, 0.0) == 13
    made.remove_server(WEB, SERVERS[2], None, 1.0)
    made.add_server(WEB, SERVERS[2], None, ServerSettings())
    assert server_for(made, CLIENT, 2, 2.0) == 13


# --- assured ---


def test_a_template_is_assured_by_an_established_connection() -> None:
    made = director()
    server_for(made, CLIENT, 1)
    (template,) = templates(made)
    assert template.state_name == "NONE"
    made.receive(packets.tcp(CLIENT, 1, VIP, 80, "F"), 1.0)
    assert template.state_name == "NONE"
    server_for(made, CLIENT, 2, 2.0)
    made.receive(packets.tcp(CLIENT, 2, VIP, 80, "A"), 2.0)
    assert (template.assured, template.state_name) == (True, "ASSURED")


def test_a_udp_template_is_assured_by_an_answer() -> None:
    made = director(ServiceKey.of(UDP, address(VIP), 53))
    for cport in (1, 2):
        made.receive(packets.udp(CLIENT, cport, VIP, 53), 0.0)
    (template,) = templates(made)
    assert template.state_name == "NONE"
    made.replied(packets.udp(VIP, 53, CLIENT, 2), 1.0)
    assert template.state_name == "ASSURED"


# --- which template ---


def flows(made: Director) -> list[tuple[int, str, int, int]]:
    """Return protocol, virtual address, virtual port and server port of every template."""
    return [
        (t.protocol, str(ipaddress.ip_address(t.flow.vaddr)), t.flow.vport, t.dport)
        for t in templates(made)
    ]


def test_services_have_templates_of_their_own() -> None:
    dns = ServiceKey.of(UDP, address(VIP), 80)
    made = director(WEB, ServiceKey.of(TCP, address(VIP), 81), dns)
    server_for(made, CLIENT, 1)
    server_for(made, CLIENT, 1, port=81)
    made.receive(packets.udp(CLIENT, 1, VIP, 80), 0.0)
    assert flows(made) == [(TCP, VIP, 80, 80), (TCP, VIP, 81, 81), (UDP, VIP, 80, 80)]


def test_port_0_spans_ports_but_not_protocols() -> None:
    made = director(ServiceKey.of(TCP, address(VIP), 0), ServiceKey.of(UDP, address(VIP), 0))
    assert [server_for(made, CLIENT, 1, port=port) for port in (80, 21, 443)] == [13] * 3
    made.receive(packets.udp(CLIENT, 1, VIP, 80), 0.0)
    assert flows(made) == [(TCP, VIP, 0, 0), (UDP, VIP, 0, 0)]
    ports = [(c.flow.vport, c.dport) for c in made.table if isinstance(c, Connection)]
    assert ports == [(80, 80), (21, 21), (443, 443), (80, 80)]


def test_ftp_spans_its_data_connections() -> None:
    made = director(ServiceKey.of(TCP, address(VIP), 21), ServiceKey.of(TCP, address(VIP), 0))
    made.remove_server(ServiceKey.of(TCP, address(VIP), 0), SERVERS[2], None, 0.0)
    assert server_for(made, CLIENT, 1, port=21) == 13
    assert server_for(made, CLIENT, 2, port=2000) == 13
    assert flows(made) == [(TCP, VIP, 0, 0)]


@pytest.mark.parametrize(("client", "vip"), [(CLIENT, VIP), (CLIENT6, VIP6)])
def test_a_mark_spans_protocols_ports_and_addresses(client: str, vip: str) -> None:
    made = director(ServiceKey.mark(0x01020304, version=6 if ":" in vip else 4))
    mark = 0x01020304
    assert server_for(made, client, 1, port=80, mark=mark) == 13
    assert server_for(made, client, 1, port=443, mark=mark) == 13
    verdict = made.receive(packets.udp(client, 1, vip, 53), 0.0, mark)
    assert isinstance(verdict, Transmit)
    assert verdict.packet[19] == 13
    shown = "102:304::" if ":" in vip else "1.2.3.4"
    assert flows(made) == [(0, shown, 0, 0)]


def test_a_persistent_mark_leaves_the_clients_port_alone() -> None:
    """Even where the server was given one: only without persistence does that count."""
    key = ServiceKey.mark(7)
    made = director(key)
    for server in SERVERS:
        made.remove_server(key, server, None, 0.0)
    made.add_server(key, SERVERS[0], 8080, ServerSettings())
    server_for(made, CLIENT, 1, port=81, mark=7)
    (connection,) = [entry for entry in made.table if isinstance(entry, Connection)]
    assert connection.dport == 81
    assert flows(made) == [(0, "0.0.0.7", 0, 0)]


def test_templates_neither_begin_nor_end_an_overload() -> None:
    made = director(persistence_s=100)
    for gone in SERVERS[:2]:
        made.remove_server(WEB, gone, None, 0.0)
    (server,) = made.services.get(WEB).servers
    made.edit_server(WEB, SERVERS[2], None, ServerSettings(upper=2, lower=1))
    server_for(made, CLIENT, 1)
    assert (server.persistconns, server.overloaded) == (1, False)
    made.receive(packets.tcp(CLIENT, 1, VIP, 80, "A"), 0.0)
    server_for(made, "10.0.0.9", 1)
    made.expire(60.0)
    assert (server.activeconns, server.overloaded) == (1, True)
    made.expire(100.0)
    assert (server.persistconns, server.overloaded) == (1, True)


def test_one_packet_and_persistent_at_once() -> None:
    """Each datagram renews the template, and leaves nothing else."""
    made = director(ServiceKey.of(UDP, address(VIP), 53), one_packet=True)
    for now in (0.0, 100.0):
        verdict = made.receive(packets.udp(CLIENT, 1, VIP, 53), now)
        assert isinstance(verdict, Transmit)
        assert verdict.packet[19] == 13
    (template,) = made.table
    assert isinstance(template, Template)
    assert (template.deadline, template.children) == (400.0, 0)
    made.expire(400.0)
    assert len(made.table) == 0
