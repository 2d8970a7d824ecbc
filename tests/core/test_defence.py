"""The defences drop_packet and drop_entry: what they give up, when, and what they spare."""

from __future__ import annotations

from typing import Any

import pytest
from director_world import (
    CLIENT,
    COOKIE_ECHO,
    INIT,
    ONE,
    SHUTDOWN,
    TWO,
    VIP,
    WEB,
    World,
    address,
    loads,
    sctp,
    target,
)

from lvskit import NOT_OURS, SCTP, TCP, UDP, Drop, Reason, ServiceKey, ServiceSettings
from lvskit.core.connection import Connection
from lvskit.testing import packets

DNS = ServiceKey.of(UDP, address(VIP), 53)
CALL = ServiceKey.of(SCTP, address(VIP), 80)
OTHER = ServiceKey.of(TCP, address(VIP), 81)
DROPPED = Drop(Reason.DEFENCE)


def query(world: World, cport: int, times: int = 1, now: float = 0.0) -> None:
    for _ in range(times):
        world.receive(packets.udp(CLIENT, cport, VIP, 53), now)


def ports(world: World) -> list[int]:
    return [connection.flow.cport for connection in world.connections]


# --- drop_packet ---


def test_every_nth_packet_that_would_open_a_connection_is_dropped() -> None:
    """The first one first; am_droprate says which, in mode 3."""
    world = World()
    service = world.serve(WEB, ONE)
    world.tune(drop_packet=3, am_droprate=3)
    verdicts = [world.tcp("S", cport=port) for port in range(1, 9)]
    assert [verdict == DROPPED for verdict in verdicts] == [
        True, False, False, True, False, False, True, False,
    ]  # fmt: skip
    assert ports(world) == [2, 3, 5, 6, 8]
    table = world.director.table
    assert (table.dropped_packets, table.dropped_entries, table.refused, table.shed) == (3, 0, 0, 0)
    assert service.counters.inpkts == 5


def test_what_opens_no_connection_is_neither_dropped_nor_counted() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.serve(OTHER, ONE)
    world.tune(WEB, drop_packet=3, am_droprate=2)
    assert world.tcp("S", cport=1) == DROPPED
    assert target(world.tcp("S", cport=2)) == ONE
    for flags in "SAAFSRA":  # of a connection that is there
        assert target(world.tcp(flags, cport=2)) == ONE
    assert world.tcp("A", cport=3) == NOT_OURS
    assert world.receive(packets.tcp(CLIENT, 3, VIP, 82)) == NOT_OURS
    assert target(world.receive(packets.tcp(CLIENT, 3, VIP, 81))) == ONE  # a service without it
    assert world.tcp("S", cport=3) == DROPPED
    # FTP's data connection counts before it is told apart.
    assert world.tcp("S", cport=20) == NOT_OURS
    assert world.tcp("S", cport=4) == DROPPED
    assert world.director.table.dropped_packets == 3


def test_a_rate_of_0_drops_nothing_and_of_1_everything() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.tune(drop_packet=3, am_droprate=0)
    assert [target(world.tcp("S", cport=port)) for port in range(1, 5)] == [ONE] * 4
    world.tune(am_droprate=1)
    assert [world.tcp("S", cport=port) for port in range(5, 9)] == [DROPPED] * 4
    world.tune(drop_packet=0)
    assert target(world.tcp("S", cport=9)) == ONE


def test_the_rate_follows_the_free_entries_each_second() -> None:
    """Mode 1: threshold / (threshold - free), once fewer than the threshold are free."""
    world = World(size=20)
    world.serve(WEB, ONE)
    world.tune(drop_packet=1, amemthresh=12)
    rules = world.director.services.get(WEB)
    for cport in range(8):
        world.tcps("SA", cport=1 + cport, now=0.0)
    world.director.expire(1.0)
    assert rules.rules.drop_rate == 0
    for cport in range(8, 12):
        world.tcps("SA", cport=1 + cport, now=1.5)
    assert (len(world.director.table), rules.rules.drop_rate) == (12, 0)
    world.director.expire(1.999)
    assert rules.rules.drop_rate == 0
    world.director.expire(2.0)
    assert rules.rules.drop_rate == 3
    assert [world.tcp("S", cport=port, now=2.0) == DROPPED for port in range(50, 54)] == [
        True, False, False, True,
    ]  # fmt: skip
    world.director.expire(3.0)
    assert rules.rules.drop_rate == 2
    world.director.expire(1000.0)
    assert (len(world.director.table), rules.rules.drop_rate) == (0, 0)


def test_without_an_automatic_mode_the_settings_are_not_bound_again() -> None:
    world = World(size=4)
    world.serve(WEB, ONE)
    world.tune(drop_packet=3, amemthresh=4)
    bound = world.director.rules
    world.director.expire(10.0)
    assert world.director.rules is bound
    world.tune(WEB, drop_entry=1)  # a service's own counts as well
    bound = world.director.rules
    world.director.expire(11.0)
    assert world.director.rules is not bound


# --- drop_entry ---


@pytest.mark.parametrize(("flood", "a_second"), [(1, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_a_flood_of_half_open_connections_loses_a_32nd_each_second(
    flood: int, a_second: int
) -> None:
    world = World()
    service = world.serve(WEB, ONE)
    for cport in range(flood):
        world.tcp("S", cport=1000 + cport)
    world.tune(drop_entry=3)
    table, (server,) = world.director.table, service.servers
    world.director.expire(0.999)
    assert table.dropped_entries == 0
    world.director.expire(1.0)
    assert table.dropped_entries == a_second
    assert ports(world) == list(range(1000 + a_second, 1000 + flood))
    assert loads(server) == (flood - a_second, 0, 0)
    world.director.expire(2.5)
    left = flood - a_second
    left -= -(-left // 32)  # a 32nd of what is left, rounded up
    assert (table.dropped_entries, loads(server), len(table)) == (flood - left, (left, 0, 0), left)
    world.tcp("S", cport=1, now=2.5)
    world.director.expire(59.0)  # before they run out
    assert len(table) == sum(1 for _ in world.connections) < flood / 2 + 1
    assert table.shed == table.refused == table.dropped_packets == 0


def test_seconds_that_nobody_asked_about_are_made_up_for() -> None:
    world = World(now=100.5)
    world.serve(WEB, ONE)
    for cport in range(32):
        world.tcp("S", cport=1000 + cport, now=100.5)
    world.tune(drop_entry=3)
    world.director.expire(101.4)
    assert world.director.table.dropped_entries == 0
    world.director.expire(110.5)
    assert world.director.table.dropped_entries == 10
    world.director.expire(111.4)
    assert world.director.table.dropped_entries == 10


def test_the_next_32nd_begins_where_the_last_one_ended() -> None:
    """What is spared is passed by until the next round; what has come meanwhile is in it."""
    world = World()
    world.serve(WEB, ONE)
    for cport in range(1, 97):  # three a second
        world.tcps("SA" if cport % 3 else "S", cport=cport)
    world.tune(drop_entry=3)
    gone: list[int] = []
    for second in range(1, 5):
        there = ports(world)
        world.director.expire(float(second))
        gone += [port for port in there if port not in ports(world)]
    assert gone == [3, 6, 9, 12]


def test_a_growing_flood_loses_its_share_from_the_beginning() -> None:
    world = World(size=10_000)
    world.serve(WEB, ONE)
    world.tune(drop_entry=3)
    for second in range(1, 5):
        for number in range(320):
            world.tcp("S", cport=second * 1000 + number, now=second - 0.5)
        there = len(world.connections)
        world.director.expire(float(second))
        assert len(world.connections) == there - -(-there // 32)


def test_half_open_and_idle_connections_go_and_no_others() -> None:
    """Of TCP: SYN_RECV at once, ESTABLISHED after a minute without a packet, else none."""
    world = World()
    world.serve(WEB, ONE)
    world.tune(drop_entry=3)
    lives = {1: "S", 2: "SA", 3: "SAF", 4: "SAR", 5: "SF"}
    for cport, letters in lives.items():
        world.tcps(letters, cport=cport)
    world.director.expire(9.999)
    assert ports(world) == [2, 3, 4, 5]
    world.director.expire(59.999)
    assert ports(world) == [2, 3, 5]  # CLOSE has run out by itself
    assert world.director.table.dropped_entries == 1
    world.director.expire(65.0)
    assert ports(world) == [3, 5]
    assert world.director.table.dropped_entries == 2
    world.director.expire(119.0)
    assert [c.state_name for c in world.connections] == ["FIN_WAIT", "TIME_WAIT"]


def test_a_handshake_that_only_the_server_has_not_confirmed_goes_too() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.tune(drop_entry=3, secure_tcp=3)
    world.tcp("S")
    assert world.connection.state_name == "SYNACK"
    world.director.expire(1.0)
    assert world.connections == []


@pytest.mark.parametrize(("packets_", "second"), [(1, 60), (2, 60), (8, 60), (9, None)])
def test_an_idle_connection_with_few_packets_goes_after_a_minute(
    packets_: int, second: int | None
) -> None:
    world = World()
    service = world.serve(DNS, ONE)
    world.tune(drop_entry=3)
    query(world, 1, packets_)
    world.director.expire(59.999)
    assert len(world.director.table) == 1
    world.director.expire(60.0)
    assert len(world.director.table) == (0 if second else 1)
    world.director.expire(299.0)
    assert world.director.table.dropped_entries == (1 if second else 0)
    assert loads(service.servers[0]) == (0, 0 if second else 1, 0)


def test_a_packet_gives_a_connection_another_minute() -> None:
    world = World()
    world.serve(DNS, ONE)
    world.tune(drop_entry=3)
    query(world, 1, now=0.0)
    query(world, 1, now=30.5)
    world.director.expire(90.0)
    assert len(world.connections) == 1
    world.director.expire(91.0)
    assert world.connections == []


@pytest.mark.parametrize("times", [1, 2, 3, 8])
def test_of_connections_with_n_packets_one_in_n_goes(times: int) -> None:
    """The first, and from then on each nth; one is looked at each second."""
    world = World()
    world.serve(DNS, ONE)
    world.tune(drop_entry=3)
    for cport in range(5):
        query(world, 1000 + cport, times)
    seconds = []
    for now in range(55, 60 + 5 * times):
        before = world.director.table.dropped_entries
        world.director.expire(float(now))
        seconds += [now] * (world.director.table.dropped_entries - before)
    assert seconds == [60 + times * n for n in range(5)]


def test_each_number_of_packets_has_its_own_turns() -> None:
    world = World()
    world.serve(DNS, ONE)
    world.tune(drop_entry=3)
    for cport, times in enumerate([3, 2, 3, 2], start=1):
        query(world, cport, times)
    world.director.expire(59.0)
    gone = []
    for now in range(60, 72):
        there = ports(world)
        world.director.expire(float(now))
        gone += [(now, port) for port in there if port not in ports(world)]
    # Second 60 looks at the fourth entry, and each second at the next that is there.
    assert gone == [(60, 4), (61, 1), (64, 2), (66, 3)]


@pytest.mark.parametrize(
    ("kinds", "second"),
    [
        ((INIT,), 1),
        ((INIT, INIT), 1),
        ((INIT, COOKIE_ECHO), 60),
        ((INIT, COOKIE_ECHO, SHUTDOWN), 0),
    ],
)
def test_of_sctp_half_open_and_idle_associations_go(kinds: tuple[int, ...], second: int) -> None:
    world = World()
    world.serve(CALL, ONE)
    world.tune(drop_entry=3)
    for kind in kinds:
        world.receive(sctp(CLIENT, 1, VIP, 80, kind))
    world.director.expire(second - 0.001 if second else 60.9)
    assert len(world.connections) == 1
    world.director.expire(float(second))
    assert (
        world.director.table.dropped_entries
        == len(world.director.table) ^ 1
        == (1 if second else 0)
    )


def test_an_idle_limit_is_counted_by_the_connections_own_timeout() -> None:
    """A minute since the last packet, whatever the state's timeout."""
    world = World()
    world.serve(DNS, ONE)
    world.tune(drop_entry=3, timeout_udp=1000)
    query(world, 1, now=0.25)
    world.director.expire(60.0)
    assert len(world.connections) == 1
    world.director.expire(61.0)
    assert world.connections == []


def test_one_services_defence_spares_the_others_entries() -> None:
    world = World()
    world.serve(WEB, ONE)
    world.serve(OTHER, ONE)
    world.tune(OTHER, drop_entry=3)
    world.tcp("S", cport=1)
    world.receive(packets.tcp(CLIENT, 2, VIP, 81))
    world.director.expire(10.0)
    assert ports(world) == [1]
    world.tune(WEB, drop_entry=2)  # no shortage
    world.director.expire(20.0)
    assert ports(world) == [1]


def test_automatic_dropping_stops_when_there_is_room_again() -> None:
    world = World(size=8)
    world.serve(WEB, ONE)
    world.tune(drop_entry=1, amemthresh=4)
    for cport in range(6):
        world.tcp("S", cport=1 + cport)
    world.director.expire(1.0)  # 2 are free
    assert world.director.table.dropped_entries == 1
    world.director.expire(2.0)  # 3
    assert world.director.table.dropped_entries == 2
    world.director.expire(30.0)  # 4: enough
    assert world.director.table.dropped_entries == 2
    assert ports(world) == [3, 4, 5, 6]


# --- templates ---


def test_a_dropped_connection_takes_its_unassured_template_along() -> None:
    world = World()
    service = world.serve(WEB, ONE, persistence_s=300)
    world.tune(drop_entry=3)
    world.tcp("S", cport=1)
    world.tcp("S", cport=2)
    (template,) = world.templates
    world.director.expire(1.0)
    assert (ports(world), world.templates, template.children) == ([2], [template], 1)
    world.director.expire(2.0)
    assert len(world.director.table) == 0
    assert (template.children, loads(service.servers[0])) == (0, (0, 0, 0))
    assert world.director.table.dropped_entries == 2  # the template went with the second
    assert world.director.wheel.due(1e9) is None


def test_an_assured_template_stays() -> None:
    world = World()
    service = world.serve(WEB, ONE, persistence_s=300)
    world.tune(drop_entry=3)
    world.tcps("SA", cport=1)
    world.tcps("R", cport=1)
    world.tcp("S", cport=2)
    (template,) = world.templates
    world.director.expire(30.0)
    assert (world.connections, world.templates) == ([], [template])
    assert loads(service.servers[0]) == (0, 0, 1)
    world.director.expire(299.0)
    assert world.templates == [template]


def test_a_template_with_connections_stays_with_them() -> None:
    world = World()
    world.serve(WEB, ONE, persistence_s=300)
    world.tune(drop_entry=3)
    world.tcps("SF")
    (template,) = world.templates
    assert not template.assured
    world.director.expire(100.0)
    assert world.templates == [template]
    assert (template.children, world.director.table.dropped_entries) == (1, 0)
    world.director.expire(121.0)  # without it, in its turn
    assert (len(world.director.table), world.director.table.dropped_entries) == (0, 1)


def test_a_template_without_connections_goes_unless_it_is_assured() -> None:
    world = World()
    service = world.serve(WEB, ONE, persistence_s=3000)
    world.tcps("SF", cport=1)
    world.director.expire(121.0)
    assert loads(service.servers[0]) == (0, 0, 1)
    world.tune(drop_entry=3)
    world.director.expire(122.0)
    assert (loads(service.servers[0]), world.director.table.dropped_entries) == ((0, 0, 0), 1)


@pytest.mark.parametrize(("times", "gone"), [(1, True), (8, True), (9, False)])
def test_a_template_of_one_packet_connections_is_idle_like_a_connection(
    times: int, gone: bool
) -> None:
    world = World()
    world.serve(DNS, ONE, persistence_s=300, one_packet=True)
    world.tune(drop_entry=3)
    query(world, 1, times)
    (template,) = world.templates
    assert (template.packets, template.deadline) == (times, 300.0)
    world.director.expire(59.999)
    assert world.templates == [template]
    world.director.expire(60.0)
    assert world.templates == ([] if gone else [template])


def test_whether_it_is_one_packet_is_asked_of_the_service_as_it_is_now() -> None:
    world = World()
    world.serve(DNS, ONE, persistence_s=300, one_packet=True)
    world.tune(drop_entry=3)
    query(world, 1)
    world.director.edit_service(DNS, ServiceSettings(scheduler="rr", persistence_s=300))
    world.director.expire(1.0)  # an ordinary template now, and not assured
    assert len(world.director.table) == 0


def test_observers_hear_of_dropped_connections() -> None:
    class Observer:
        heard: list[tuple[int, str]]

        def closed(self, connection: Any, reason: str) -> None:
            assert isinstance(connection, Connection)
            self.heard.append((connection.flow.cport, reason))

    observer = Observer()
    observer.heard = []
    world = World(observers=[observer])
    world.serve(WEB, ONE, TWO)
    world.tune(drop_entry=3)
    world.tcp("S", cport=1)
    world.tcps("SAR", cport=2)
    world.director.expire(1.0)
    world.director.expire(10.0)
    assert observer.heard == [(1, "dropped"), (2, "expired")]
