"""FTP: whose data connections are, by port 21, by port 20, and by a template."""

from __future__ import annotations

import pytest
from director_world import (
    CLIENT,
    ONE,
    OTHER_VIP,
    THREE,
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
    Refusal,
    ServiceKey,
    refuse,
)
from lvskit.testing import packets

DNS = ServiceKey.of(UDP, address(VIP), 53)
FTP = ServiceKey.of(TCP, address(VIP), 21)
MARK = ServiceKey.mark(7)


def test_a_data_connection_needs_the_template_of_its_control_connection() -> None:
    """Port 20 and the unprivileged ones of a TCP service on port 21, with persistence."""
    world = World()
    service = world.serve(FTP, ONE, TWO, persistence_s=300)
    assert target(world.receive(packets.tcp(CLIENT, 1, VIP, 21))) == TWO
    for port in (20, 1024, 65535):
        assert target(world.receive(packets.tcp(CLIENT, 2, VIP, port))) == TWO
        assert world.receive(packets.tcp(CLIENT, 2, OTHER_VIP, port)) == NOT_OURS
        assert world.receive(packets.udp(CLIENT, 2, VIP, port)) == NOT_OURS
    for port in (0, 19, 22, 1023):
        assert world.receive(packets.tcp(CLIENT, 2, VIP, port)) == NOT_OURS
    assert [(c.flow.vport, c.dport) for c in world.connections] == [
        (21, 21), (20, 20), (1024, 1024), (65535, 65535),
    ]  # fmt: skip
    (template,) = world.templates
    assert (template.flow.vport, template.dport, template.children) == (0, 0, 4)
    assert [loads(server) for server in service.servers] == [(4, 0, 1), (0, 0, 0)]


def test_a_data_connection_may_make_the_template() -> None:
    world = World()
    world.serve(FTP, ONE, TWO, persistence_s=300)
    assert target(world.receive(packets.tcp(CLIENT, 2, VIP, 2000))) == TWO
    assert target(world.receive(packets.tcp(CLIENT, 2, VIP, 21))) == TWO


def test_without_persistence_data_connections_are_the_hosts() -> None:
    world = World()
    world.serve(FTP, ONE)
    assert world.receive(packets.tcp(CLIENT, 1, VIP, 2000)) == NOT_OURS
    assert target(world.receive(packets.tcp(CLIENT, 1, VIP, 21))) == ONE


@pytest.mark.parametrize("persistence_s", [0, 300])
def test_without_a_server_only_the_control_connection_is_refused(persistence_s: int) -> None:
    """The others may be for another service of the host."""
    world = World()
    world.serve(FTP, persistence_s=persistence_s)
    control = packets.tcp(CLIENT, 1, VIP, 21)
    assert world.receive(control) == refuse(control, Refusal.PORT_UNREACHABLE)
    assert world.receive(packets.tcp(CLIENT, 1, VIP, 2000)) == NOT_OURS


def test_a_service_for_the_port_itself_goes_before_ftp_and_ftp_before_port_0() -> None:
    world = World()
    world.serve(FTP, ONE, persistence_s=300)
    world.serve(ServiceKey.of(TCP, address(VIP), 2000), TWO)
    world.serve(ServiceKey.of(TCP, address(VIP), 0), THREE, persistence_s=300)
    clients = zip(("10.0.0.1", "10.0.0.2", "10.0.0.3"), (2000, 2001, 1023), strict=True)
    found = [target(world.receive(packets.tcp(client, 1, VIP, port))) for client, port in clients]
    assert found == [TWO, ONE, THREE]


def test_the_servers_end_of_an_active_data_connection_is_never_scheduled() -> None:
    world = World()
    world.serve(WEB, ONE, persistence_s=300)
    world.serve(DNS, ONE)
    world.serve(MARK, ONE)
    assert world.tcp("S", cport=20) == NOT_OURS
    assert world.receive(packets.udp(CLIENT, 20, VIP, 53)) == NOT_OURS
    assert world.receive(packets.udp(CLIENT, 20, VIP, 99), mark=7) == NOT_OURS
    assert len(world.director.table) == 0
