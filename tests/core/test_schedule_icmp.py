"""The setting schedule_icmp: errors about answers of which no connection is known."""

from __future__ import annotations

import pytest
from director_world import (
    CLIENT,
    CLIENT6,
    ONE,
    VIP,
    VIP6,
    WEB,
    World,
    address,
    counted,
    loads,
    target,
)

from lvskit import (
    NOT_OURS,
    TCP,
    UDP,
    Drop,
    Reason,
    ServiceKey,
    Transmit,
)
from lvskit.testing import packets

DNS = ServiceKey.of(UDP, address(VIP), 53)
FTP = ServiceKey.of(TCP, address(VIP), 21)
MARK = ServiceKey.mark(7)


def complaint(answer: bytes, vip: str = VIP) -> bytes:
    """Return an ICMP error about a server's answer."""
    six = ":" in vip
    return packets.icmp_error(
        "2001:db8:9::9" if six else "10.9.9.9", vip, 1 if six else 3, 3, answer
    )


ANSWER = packets.tcp(VIP, 80, CLIENT, 1024, "A")


def test_an_error_about_no_known_connection_is_the_hosts() -> None:
    world = World()
    world.serve(WEB, ONE)
    assert world.receive(complaint(ANSWER)) == NOT_OURS
    assert len(world.director.table) == 0


@pytest.mark.parametrize("size", [24, 28, 40])
def test_with_schedule_icmp_it_opens_one(size: int) -> None:
    """Whatever the packet was that it is about; for three seconds, in no state yet."""
    world = World()
    service = world.serve(WEB, ONE)
    world.tune(WEB, schedule_icmp=1)
    error = complaint(ANSWER[:size])
    verdict = world.receive(error, 1.0)
    assert target(verdict) == ONE
    assert verdict.packet[40:] == error[20:]  # type: ignore[union-attr]
    assert world.connection.flow == packets.flow(CLIENT, 1024, VIP, 80)
    assert (world.connection.state_name, world.connection.deadline) == ("NONE", 4.0)
    assert counted(service) == (1, 1, 0, len(error), 0)
    assert loads(service.servers[0]) == (0, 1, 0)
    assert world.director.next_timer() == 4.0
    world.receive(error, 2.0)
    assert (world.connection.deadline, service.counters.inpkts) == (4.0, 2)
    world.tcp("A", now=3.0)
    assert (world.connection.state_name, world.connection.deadline) == ("ESTABLISHED", 903.0)


def test_such_a_connection_ends_by_itself() -> None:
    world = World()
    service = world.serve(DNS, ONE)
    world.tune(schedule_icmp=1)
    world.receive(complaint(packets.udp(VIP, 53, CLIENT, 9)))
    assert (world.connection.state_name, world.connection.deadline) == ("UDP", 3.0)
    world.director.expire(3.0)
    assert (len(world.director.table), loads(service.servers[0])) == (0, (0, 0, 0))


def test_of_ipv6_likewise() -> None:
    world = World()
    world.serve(ServiceKey.of(UDP, address(VIP6), 53), ONE)
    answer = packets.udp(VIP6, 53, CLIENT6, 9)
    assert world.receive(complaint(answer, VIP6)) == NOT_OURS
    world.tune(schedule_icmp=1)
    verdict = world.receive(complaint(answer, VIP6))
    assert isinstance(verdict, Transmit)
    assert verdict.packet[16:20] == ONE
    assert world.connection.flow == packets.flow(CLIENT6, 9, VIP6, 53, UDP)


def test_the_mark_of_an_error_counts_as_a_packets() -> None:
    world = World()
    world.serve(MARK, ONE)
    world.tune(schedule_icmp=1)
    assert world.receive(complaint(ANSWER)) == NOT_OURS
    assert target(world.receive(complaint(ANSWER), mark=7)) == ONE


def test_with_one_packet_scheduling_nothing_is_left_of_it() -> None:
    world = World()
    service = world.serve(DNS, ONE, one_packet=True)
    world.tune(schedule_icmp=1)
    assert target(world.receive(complaint(packets.udp(VIP, 53, CLIENT, 9)))) == ONE
    assert (len(world.director.table), service.counters.conns) == (0, 1)
    assert loads(service.servers[0]) == (0, 0, 0)


def test_an_error_is_never_refused_by_an_error() -> None:
    world = World()
    world.serve(WEB)
    world.serve(FTP)
    world.serve(MARK)
    world.tune(schedule_icmp=1, cache_bypass=1)
    assert world.receive(complaint(ANSWER)) == Drop(Reason.NO_SERVER)
    assert world.receive(complaint(ANSWER), mark=7) == Drop(Reason.NO_SERVER)
    for port, wanted in ((21, Drop(Reason.NO_SERVER)), (2000, NOT_OURS)):
        answer = packets.tcp(VIP, port, CLIENT, 1024)
        assert world.receive(complaint(answer)) == wanted
    assert world.receive(complaint(packets.tcp(VIP, 82, CLIENT, 1024))) == NOT_OURS
    assert len(world.director.table) == 0


def test_an_error_that_may_live_no_longer_opens_a_connection_and_is_dropped() -> None:
    """RFC 1122, 3.2.2: no error is sent about an error."""
    world = World()
    service = world.serve(WEB, ONE)
    world.tune(schedule_icmp=1)
    error = bytearray(complaint(ANSWER))
    error[8] = 1
    assert world.receive(bytes(error)) == Drop(Reason.TTL_EXCEEDED)
    assert counted(service) == (1, 1, 0, len(error), 0)


def test_an_error_opens_what_a_packet_may_open() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.tune(schedule_icmp=1, drop_packet=3, am_droprate=2)
    assert world.receive(complaint(ANSWER)) == Drop(Reason.DEFENCE)
    assert world.director.table.dropped_packets == 1
    assert world.receive(complaint(packets.tcp(VIP, 80, CLIENT, 20))) == NOT_OURS
    assert world.receive(complaint(ANSWER)) == Drop(Reason.DEFENCE)
    assert target(world.receive(complaint(ANSWER))) == ONE
