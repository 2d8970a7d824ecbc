"""The setting cache_bypass: without a server, a mark's packets go on to where clients sent them."""

from __future__ import annotations

import pytest
from director_world import (
    CLIENT,
    CLIENT6,
    HERE,
    HERE6,
    LOCAL_ROUTE,
    METHODS,
    ONE,
    ROUTE,
    VIP,
    WEB,
    Straight,
    World,
    address,
    counted,
    target,
)

from lvskit import (
    NOT_OURS,
    Drop,
    ForwarderSpec,
    Reason,
    Refusal,
    Route,
    ServerSettings,
    ServiceKey,
    Transmit,
    refuse,
)
from lvskit.testing import packets

MARK, MARK6 = ServiceKey.mark(7), ServiceKey.mark(7, 6)
SITE, SITE6 = "172.16.0.9", "2001:db8:9::9"
SYN = packets.tcp(CLIENT, 1024, SITE, 80)


def world_with_bypass(**settings: int) -> World:
    world = World()
    world.serve(MARK, **settings)
    world.tune(cache_bypass=1)
    return world


def test_a_packet_goes_on_and_its_connection_is_remembered() -> None:
    world = world_with_bypass()
    way = world.routes[address(SITE)] = Route(HERE, 1400)
    assert world.receive(SYN, 1.0, mark=7) == Transmit(SYN, way, address(SITE))
    connection = world.connection
    assert (connection.state_name, connection.deadline) == ("SYN_RECV", 61.0)
    assert connection.flow == packets.flow(CLIENT, 1024, SITE, 80)
    assert (connection.server.address, connection.dport) == (bytes(4), 0)  # as listings have it
    data = packets.tcp(CLIENT, 1024, SITE, 80, "A", payload=b"data")
    assert world.receive(data, 2.0, mark=7) == Transmit(data, way, address(SITE))
    assert world.connection is connection
    assert (connection.state_name, connection.deadline) == ("ESTABLISHED", 902.0)
    assert world.director.next_timer() == 61.0
    world.director.expire(902.0)
    assert len(world.director.table) == 0


def test_it_counts_for_nobody() -> None:
    world = world_with_bypass()
    (service,) = world.director.services
    for letter in "SAF":
        world.receive(packets.tcp(CLIENT, 1024, SITE, 80, letter), mark=7)
    assert counted(service) == counted(world.director.services) == (0, 0, 0, 0, 0)
    assert service.servers == []
    world.director.expire(2.0)
    assert world.director.estimator.shown().inpkts == 0
    assert world.faults == []  # nobody's scheduler was told of it


def test_of_ipv6_likewise() -> None:
    world = World()
    world.serve(MARK6)
    world.tune(cache_bypass=1)
    way = world.routes[address(SITE6)] = Route(HERE6, 1400)
    packet = packets.udp(CLIENT6, 9, SITE6, 53)
    assert world.receive(packet, mark=7) == Transmit(packet, way, address(SITE6))
    assert world.connection.server.address == bytes(16)
    assert (world.connection.state_name, world.connection.deadline) == ("UDP", 300.0)


def test_one_packet_is_sent_on_and_forgotten() -> None:
    world = world_with_bypass(one_packet=True)
    packet = packets.udp(CLIENT, 9, SITE, 53)
    assert world.receive(packet, mark=7) == Transmit(packet, ROUTE, address(SITE))
    assert len(world.director.table) == 0


def test_each_connection_goes_on_to_where_its_client_sent_it() -> None:
    world = world_with_bypass()
    syns = [packets.tcp(CLIENT, 1024 + last, f"172.16.0.{last}", 80) for last in (8, 9)]
    for last, syn in zip((8, 9), syns, strict=True):
        assert world.receive(syn, mark=7) == Transmit(syn, ROUTE, address(f"172.16.0.{last}"))
    for last, syn in zip((8, 9), syns, strict=True):
        assert world.receive(syn, mark=7) == Transmit(syn, ROUTE, address(f"172.16.0.{last}"))
    assert [c.flow.vaddr[3] for c in world.connections] == [8, 9]


def test_once_there_is_a_server_the_connection_stays_where_it_was() -> None:
    world = world_with_bypass()
    world.receive(SYN, mark=7)
    world.director.add_server(MARK, ONE, None, ServerSettings())
    data = packets.tcp(CLIENT, 1024, SITE, 80, "A")
    assert world.receive(data, mark=7).packet == data  # type: ignore[union-attr]
    assert target(world.receive(packets.tcp(CLIENT, 1025, SITE, 80), mark=7)) == ONE
    for letter in "RS":  # its ports may be used again
        verdict = world.receive(packets.tcp(CLIENT, 1024, SITE, 80, letter), mark=7)
    assert target(verdict) == ONE


@pytest.mark.parametrize("persistence_s", [0, 300])
def test_a_service_without_a_server_that_is_available(persistence_s: int) -> None:
    world = world_with_bypass(persistence_s=persistence_s)
    world.director.add_server(MARK, ONE, None, ServerSettings(weight=0))
    assert world.receive(SYN, mark=7).packet == SYN  # type: ignore[union-attr]
    assert world.templates == []


def test_only_what_goes_to_another_host_goes_on() -> None:
    refused = refuse(SYN, Refusal.PORT_UNREACHABLE)
    for route in (None, LOCAL_ROUTE):
        world = world_with_bypass()
        world.routes[address(SITE)] = route
        assert world.receive(SYN, mark=7) == refused
        assert len(world.director.table) == 0
    world = World()
    world.serve(MARK)
    assert world.receive(SYN, mark=7) == refused  # not without the setting
    world.tune(MARK, cache_bypass=1)
    assert isinstance(world.receive(SYN, mark=7), Transmit)


def test_only_marks_are_bypassed() -> None:
    world = World()
    world.serve(WEB)
    world.tune(cache_bypass=1)
    assert world.tcp() == refuse(packets.tcp(CLIENT, 1024, VIP, 80), Refusal.PORT_UNREACHABLE)
    assert world.receive(SYN) == NOT_OURS


def test_its_fin_is_judged_as_where_answers_are_seen() -> None:
    """There is no server that would answer the client directly: the kernel's CLOSE_WAIT."""
    world = world_with_bypass()
    for letter in "SAF":
        world.receive(packets.tcp(CLIENT, 1024, SITE, 80, letter), mark=7)
    assert (world.connection.state_name, world.connection.deadline) == ("CLOSE_WAIT", 60.0)


def test_it_follows_the_settings() -> None:
    world = world_with_bypass()
    for letter in "SA":
        world.receive(packets.tcp(CLIENT, 1024, SITE, 80, letter), mark=7)
    world.tune(timeout_established=50)
    world.receive(packets.tcp(CLIENT, 1024, SITE, 80, "A"), 1.0, mark=7)
    assert world.connection.deadline == 51.0


def test_a_method_that_fails_costs_one_packet() -> None:
    class Failing(Straight):
        def route_changed(self, route: Route) -> None:
            raise RuntimeError("no way")

    droute = ForwarderSpec(name="droute", factory=Failing, summary="-")
    world = World(forwarders={**METHODS, "droute": droute})
    world.serve(MARK)
    world.tune(cache_bypass=1)
    assert world.receive(SYN, mark=7) == Drop(Reason.PLUGIN_FAULT)
    (fault,) = world.faults
    assert (str(fault), fault.plugin) == (
        "forwarder 'droute' of 172.16.0.9:0 failed: RuntimeError('no way')",
        "droute",
    )
    assert len(world.director.table) == 0
