"""Methods whose servers answer through the director: packets, states and tables both ways."""

from __future__ import annotations

from typing import Any

import pytest
from director_world import (
    CLIENT,
    LOCAL_ROUTE,
    METHODS,
    ONE,
    OTHER_VIP,
    ROUTE,
    TWO,
    VIP,
    WEB,
    Straight,
    Translating,
    World,
    address,
    counted,
    loads,
)
from hypothesis import given
from hypothesis import strategies as st

from lvskit import (
    NOT_OURS,
    SCTP,
    TCP,
    UDP,
    Drop,
    Flow,
    ForwarderSpec,
    Reason,
    Refusal,
    ServerSettings,
    ServiceKey,
    Transmit,
    Verdict,
    refuse,
)
from lvskit.core.connection import Connection, ConnectionTable
from lvskit.core.service import RealServer, VirtualService
from lvskit.testing import packets

DNS = ServiceKey.of(UDP, address(VIP), 53)
MASQ = ServerSettings(method="masq")
SERVER = "192.168.1.11"


def masquerading(**settings: Any) -> World:
    """Return a world whose web server listens on another port than the service."""
    world = World()
    world.serve(WEB, **settings)
    world.director.add_server(WEB, ONE, 8080, MASQ)
    return world


def answer(
    world: World, flags: str = "SA", cport: int = 1024, now: float = 0.0, *, sport: int = 8080
) -> Verdict:
    """Let the server send a segment to the client."""
    return world.director.replied(packets.tcp(ONE, sport, CLIENT, cport, flags), now)


def ends(verdict: Verdict) -> tuple[bytes, int, bytes, int]:
    """Return source and destination of the IPv4 packet that is sent."""
    assert isinstance(verdict, Transmit)
    packet = verdict.packet
    ports = int.from_bytes(packet[20:22], "big"), int.from_bytes(packet[22:24], "big")
    return packet[12:16], ports[0], packet[16:20], ports[1]


def test_a_packet_and_its_answer_are_carried_both_ways() -> None:
    world = masquerading()
    client, vip = address(CLIENT), address(VIP)
    assert ends(world.tcp("S")) == (client, 1024, ONE, 8080)
    assert ends(answer(world)) == (vip, 80, client, 1024)
    assert ends(world.tcp("A")) == (client, 1024, ONE, 8080)
    assert world.connection.dport == 8080


def test_both_sides_move_the_state_and_count() -> None:
    world = masquerading()
    (service,) = world.director.services
    found = []
    for now, step in enumerate(["S", "<SA", "A", "F", "<A", "<FA", "A"]):
        if step.startswith("<"):
            answer(world, step[1:], now=float(now))
        else:
            world.tcp(step, now=float(now))
        found.append((world.connection.state_name, world.connection.deadline - now))
    assert found == [
        ("SYN_RECV", 60.0), ("SYN_RECV", 60.0), ("ESTABLISHED", 900.0), ("CLOSE_WAIT", 60.0),
        ("CLOSE_WAIT", 60.0), ("TIME_WAIT", 120.0), ("TIME_WAIT", 120.0),
    ]  # fmt: skip
    assert counted(service) == (1, 4, 3, 160, 120)
    assert loads(service.servers[0]) == (0, 1, 0)
    assert world.connection.packets == 4


def test_a_fin_wait_is_never_reused() -> None:
    world = masquerading()
    world.tune(conn_reuse_mode=3)
    world.tcps("SA")
    answer(world, "FA")
    old = world.connection
    assert (old.state_name, old.two_way) == ("FIN_WAIT", True)
    world.tcp("S")
    assert world.connection is old


def test_nothing_is_kept_for_the_answer_to_one_packet() -> None:
    world = World()
    world.serve(DNS, ONE, method="masq", one_packet=True)
    packet = packets.udp(CLIENT, 9, VIP, 53)
    assert ends(world.receive(packet)) == (address(CLIENT), 9, ONE, 53)
    assert world.director.replied(packets.udp(ONE, 53, CLIENT, 9), 0.0) == NOT_OURS
    assert len(world.director.table) == 0


@pytest.mark.parametrize(
    "packet",
    [
        packets.tcp(ONE, 8080, CLIENT, 1025, "SA"),
        packets.tcp(ONE, 8081, CLIENT, 1024, "SA"),
        packets.tcp(TWO, 8080, CLIENT, 1024, "SA"),
        packets.udp(ONE, 8080, CLIENT, 1024),
        packets.tcp(VIP, 80, CLIENT, 1024, "SA"),
        packets.tcp(CLIENT, 1024, ONE, 8080, "SA"),
        packets.icmp_error(ONE, CLIENT, 3, 3, packets.tcp(CLIENT, 1024, VIP, 80)),
    ],
    ids=["client port", "server port", "server", "protocol", "from the VIP", "a request", "error"],
)
def test_what_the_server_did_not_send_is_no_answer(packet: bytes) -> None:
    world = masquerading()
    world.tcp("S")
    before = counted(world.director.services)
    assert world.director.replied(packet, 5.0) == NOT_OURS
    assert counted(world.director.services) == before
    assert world.connection.deadline == 60.0


def test_an_answer_that_comes_too_late() -> None:
    world = masquerading()
    world.tcp("S")
    assert isinstance(answer(world, now=59.0), Transmit)
    assert isinstance(answer(world, now=118.5), Transmit)
    assert answer(world, now=178.5) == NOT_OURS
    assert len(world.director.table) == 0


def test_a_server_that_is_here_is_translated_for_as_well() -> None:
    """What is rewritten is no longer for the virtual address's own socket."""
    world = World()
    world.routes[ONE] = LOCAL_ROUTE
    world.serve(WEB)
    server = world.director.add_server(WEB, ONE, 8080, MASQ)
    assert ends(world.tcp("S"))[2:] == (ONE, 8080)
    assert set(server.forwarders) == {"masq"}
    assert ends(answer(world))[:2] == (address(VIP), 80)


def test_without_any_service_nothing_is_translated() -> None:
    world = masquerading()
    world.tcp("S")
    world.director.clear(1.0)
    assert answer(world, now=2.0) == NOT_OURS
    assert world.connection.deadline == 60.0


def test_a_removed_servers_answers_are_still_translated_and_count_for_nobody() -> None:
    world = masquerading()
    world.serve(DNS)
    world.tcps("SA")
    world.director.remove_server(WEB, ONE, 8080, 1.0)
    before = counted(world.director.services)
    assert ends(answer(world, "A", now=2.0))[:2] == (address(VIP), 80)
    assert world.connection.deadline == 902.0
    assert counted(world.director.services) == before


def test_an_answer_of_udp_assures_the_template() -> None:
    world = World()
    world.serve(DNS, ONE, method="masq", persistence_s=300)
    world.receive(packets.udp(CLIENT, 9, VIP, 53))
    assert not world.templates[0].assured
    assert isinstance(world.director.replied(packets.udp(ONE, 53, CLIENT, 9), 7.0), Transmit)
    assert world.templates[0].assured
    assert (world.templates[0].deadline, world.connection.deadline) == (300.0, 307.0)


def test_an_answer_of_tcp_assures_it_only_with_the_connection() -> None:
    world = masquerading(persistence_s=300)
    world.tcp("S")
    answer(world, "SA")
    assert not world.templates[0].assured
    answer(world, "A")
    assert (world.connection.state_name, world.templates[0].assured) == ("ESTABLISHED", True)


# --- errors ---


def test_an_error_of_the_server_goes_back_to_the_client() -> None:
    """It quotes what the server got; it counts as out, and moves nothing."""
    world = masquerading()
    world.tcp("S")
    quote = packets.tcp(CLIENT, 1024, SERVER, 8080, "S")
    error = packets.icmp_error(ONE, CLIENT, 3, 3, quote)
    verdict = world.director.replied(error, 5.0)
    assert isinstance(verdict, Transmit)
    assert verdict.packet[12:16] == address(VIP)
    assert counted(world.director.services) == (1, 1, 1, 40, len(error))
    assert (world.connection.state_name, world.connection.deadline) == ("SYN_RECV", 60.0)


def test_such_an_error_to_the_director_itself_is_carried_as_well() -> None:
    world = masquerading()
    world.tcp("S")
    error = packets.icmp_error("192.168.1.1", VIP, 11, 0, packets.tcp(CLIENT, 1024, ONE, 8080))
    verdict = world.receive(error, 5.0)
    assert isinstance(verdict, Transmit)
    assert verdict.packet == error[:12] + address(VIP) + error[16:]
    assert counted(world.director.services) == (1, 1, 1, 40, len(error))


def test_an_error_about_an_answer_goes_to_the_server() -> None:
    world = masquerading()
    world.tcp("S")
    error = packets.icmp_error("10.9.9.9", VIP, 3, 4, packets.tcp(VIP, 80, CLIENT, 1024))
    verdict = world.receive(error, 5.0)
    assert isinstance(verdict, Transmit)
    assert verdict.packet[16:20] == ONE
    assert counted(world.director.services) == (1, 2, 0, 40 + len(error), 0)
    assert world.connection.deadline == 60.0


# --- faults ---


class Raising(Translating):
    def reply(self, connection: Any, packet: bytes) -> Verdict:
        raise RuntimeError("no way back")


class Dropping(Translating):
    def reply(self, connection: Any, packet: bytes) -> Verdict:
        return Drop(Reason.MALFORMED)


def world_of(method: type[Translating]) -> World:
    masq = ForwarderSpec(name="masq", factory=method, summary="-", keeps_port=False)
    world = World(forwarders={**METHODS, "masq": masq})
    world.serve(WEB)
    world.director.add_server(WEB, ONE, 8080, MASQ)
    world.tcp("S")
    return world


def test_what_a_method_says_to_the_client_itself_counts_only_where_answers_do_not_pass() -> None:
    """The host sends it, and would see it as an answer of the connection: so has the kernel."""

    class Refusing(Translating):
        def transmit(self, connection: Any, packet: bytes) -> Verdict:
            return refuse(packet, Refusal.TIME_EXCEEDED)

    class OneWay(Straight):
        transmit = Refusing.transmit

    methods = {
        name: ForwarderSpec(name=name, factory=factory, summary="-", keeps_port=False)
        for name, factory in (("masq", Refusing), ("droute", OneWay))
    }
    for method, out in (("masq", (0, 0)), ("droute", (1, 68))):
        world = World(forwarders={**METHODS, **methods})
        world.serve(WEB, ONE, method=method)
        assert world.tcp("S") == refuse(packets.tcp(CLIENT, 1024, VIP, 80), Refusal.TIME_EXCEEDED)
        assert counted(world.director.services) == (1, 1, out[0], 40, out[1])


def test_a_method_that_raises_on_the_way_back_costs_one_packet() -> None:
    world = world_of(Raising)
    assert answer(world, now=5.0) == Drop(Reason.PLUGIN_FAULT)
    (fault,) = world.faults
    assert fault.plugin == "masq"
    assert "forwarder 'masq' of 192.168.1.11:8080 raised RuntimeError('no way back')" in str(fault)
    assert counted(world.director.services) == (1, 1, 0, 40, 0)
    assert world.connection.deadline == 60.0
    assert isinstance(world.tcp("A"), Transmit)


def test_an_answer_that_the_method_drops_counts_for_nothing() -> None:
    world = world_of(Dropping)
    assert answer(world, now=5.0) == Drop(Reason.MALFORMED)
    assert counted(world.director.services) == (1, 1, 0, 40, 0)
    assert world.connection.deadline == 60.0


@pytest.mark.parametrize("answer_", [None, b"junk", 0])
def test_a_method_that_returns_no_verdict_on_the_way_back_costs_one_packet(answer_: Any) -> None:
    class Mute(Translating):
        def reply(self, connection: Any, packet: bytes) -> Any:
            return answer_

    world = world_of(Mute)
    assert answer(world, now=5.0) == Drop(Reason.PLUGIN_FAULT)
    assert [fault.plugin for fault in world.faults] == ["masq"]
    assert counted(world.director.services) == (1, 1, 0, 40, 0)
    assert world.connection.deadline == 60.0


def test_a_damaged_error_is_not_translated() -> None:
    """Its checksum would be made right on the way; it counts for nothing."""
    world = masquerading()
    world.tcp("S")
    error = bytearray(packets.icmp_error("10.9.9.9", VIP, 3, 4, packets.tcp(VIP, 80, CLIENT, 1024)))
    error[-1] ^= 1
    assert world.receive(bytes(error), 5.0) == Drop(Reason.MALFORMED)
    assert counted(world.director.services) == (1, 1, 0, 40, 0)
    assert world.connection.packets == 1


# --- the table of answers ---


def reverse(world: World, protocol: int = TCP) -> dict[bytes, tuple[Connection, ...]]:
    return world.director.table.reverse[protocol]


def test_answers_are_found_by_what_the_server_writes() -> None:
    world = masquerading()
    world.serve(DNS, ONE)  # by a tunnel: its answers do not pass
    world.tcp("S")
    world.receive(packets.udp(CLIENT, 9, VIP, 53))
    connection = world.connections[0]
    key = Flow(TCP, ONE, 8080, address(CLIENT), 1024).key
    assert reverse(world) == {key: (connection,)}
    assert reverse(world, UDP) == reverse(world, SCTP) == {}
    world.director.expire(60.0)
    assert reverse(world) == {}


def test_a_connection_that_follows_on_the_same_ports_keeps_its_answers() -> None:
    world = masquerading()
    world.tcps("SF")
    old = world.connection
    world.tcp("S")
    assert world.connection is not old
    assert list(reverse(world).values()) == [(world.connection,)]
    assert ends(answer(world))[:2] == (address(VIP), 80)


def test_an_edited_method_is_for_new_connections_both_ways() -> None:
    world = masquerading()
    world.tcp("S", cport=1)
    (service,) = world.director.services
    world.director.remove_server(WEB, ONE, 8080, 0.0)
    world.director.add_server(WEB, ONE, 80, MASQ)
    world.tcp("S", cport=2)
    world.director.edit_server(WEB, ONE, 80, ServerSettings(method="droute"))
    verdict = world.tcp("S", cport=3)
    assert verdict == Transmit(packets.tcp(CLIENT, 3, VIP, 80), ROUTE, ONE)
    assert ends(answer(world, cport=2, sport=80))[:2] == (address(VIP), 80)
    assert answer(world, cport=3, sport=80) == NOT_OURS
    assert [c.two_way for c in world.connections] == [True, True, False]
    assert service.servers[0].reply is None


ANSWERED = st.tuples(
    st.sampled_from([TCP, UDP, SCTP]),
    st.integers(1, 2),  # client port
    st.integers(80, 81),  # the server's, whatever the virtual one
    st.sampled_from([VIP, OTHER_VIP]),
    st.booleans(),  # both ways
    st.booleans(),  # it ends
)


@given(st.lists(ANSWERED, max_size=12, unique_by=lambda one: one[:4]))
def test_the_table_finds_each_answer_while_its_connection_is_there(wanted: list[Any]) -> None:
    """By protocol, server, its port, client and port: of several, the newest first."""
    table = ConnectionTable(size=100)
    service = VirtualService(WEB)
    servers = []
    for two_way in (False, True):
        server = RealServer(service, ONE, 8080)
        server.transmit = lambda connection, packet: NOT_OURS
        server.reply = server.transmit if two_way else None
        servers.append(server)
    expected: dict[int, dict[bytes, list[Connection]]] = {TCP: {}, UDP: {}, SCTP: {}}
    there = []
    for protocol, cport, dport, vip, two_way, ends_ in wanted:
        key = Flow(protocol, address(CLIENT), cport, address(vip), dport).key
        connection = Connection(protocol, key, servers[two_way], dport)
        table.add(connection)
        answer_key = Flow(protocol, ONE, dport, address(CLIENT), cport).key
        if two_way:
            expected[protocol].setdefault(answer_key, []).insert(0, connection)
        there.append((connection, protocol, answer_key, ends_))
    for connection, protocol, answer_key, ends_ in there:
        if ends_:
            table.remove(connection)
            if connection.reply is not None:
                expected[protocol][answer_key].remove(connection)
    assert table.reverse == {
        protocol: {key: tuple(found) for key, found in answers.items() if found}
        for protocol, answers in expected.items()
    }


def both_virtual_addresses() -> World:
    """Return a world where a client uses one port for two VIPs with one server."""
    world = masquerading()
    other = ServiceKey.of(TCP, address(OTHER_VIP), 80)
    world.serve(other)
    world.director.add_server(other, ONE, 8080, MASQ)
    world.tcp("S")
    world.receive(packets.tcp(CLIENT, 1024, OTHER_VIP, 80))
    return world


def test_of_two_connections_with_like_answers_the_newer_has_them() -> None:
    """Also when the older has ended."""
    world = both_virtual_addresses()
    assert ends(answer(world))[:2] == (address(OTHER_VIP), 80)
    world.receive(packets.tcp(CLIENT, 1024, OTHER_VIP, 80, "A"))
    world.director.expire(60.0)
    assert [c.flow.vaddr for c in world.connections] == [address(OTHER_VIP)]
    assert ends(answer(world, "A", now=60.0))[:2] == (address(OTHER_VIP), 80)


def test_once_the_newer_has_ended_the_older_has_them_again() -> None:
    world = both_virtual_addresses()
    assert ends(answer(world, "RA"))[:2] == (address(OTHER_VIP), 80)  # which ends it
    world.director.expire(10.0)
    assert [c.flow.vaddr for c in world.connections] == [address(VIP)]
    assert ends(answer(world, now=10.0))[:2] == (address(VIP), 80)


def test_a_connection_made_without_a_route_goes_on_once_there_is_one() -> None:
    """Its server was away, and is back: the forwarder is asked about that very connection."""
    world = World()
    world.routes[ONE] = None
    world.serve(WEB, ONE, method="masq")
    assert not isinstance(world.tcp(), Transmit)
    world.director.remove_server(WEB, ONE, None, 0.0)
    world.routes[ONE] = ROUTE
    world.director.add_server(WEB, ONE, None, ServerSettings(method="masq"))
    verdict = world.tcp(now=1.0)
    assert isinstance(verdict, Transmit)
    assert verdict.packet[16:20] == ONE
    assert world.faults == []
