"""SCTP: its tables against those typed in a second time; its packets; its connections."""

from __future__ import annotations

from typing import Any

import pytest
from director_world import (
    ABORT,
    CLIENT,
    CLIENT6,
    COOKIE_ACK,
    COOKIE_ECHO,
    DATA,
    ERROR,
    INIT,
    INIT_ACK,
    LOCAL_ROUTE,
    ONE,
    OTHER_VIP,
    SHUTDOWN,
    SHUTDOWN_ACK,
    SHUTDOWN_COMPLETE,
    TWO,
    VIP,
    VIP6,
    WEB,
    World,
    address,
    counted,
    loads,
    sctp,
    target,
)
from hypothesis import given
from hypothesis import strategies as st
from kernel_tables import SCTP_NAMES, after_sctp
from scapy.layers import inet, inet6
from scapy.layers import sctp as scapy_sctp

from lvskit import NOT_OURS, SCTP, Drop, Reason, ServiceKey
from lvskit.core import states
from lvskit.core.packet import parse
from lvskit.testing import packets

CALL = ServiceKey.of(SCTP, address(VIP), 80)
STATES = list(SCTP_NAMES.values())


# --- the tables ---


@pytest.mark.parametrize("direction", ["input", "output", "input_only"])
@pytest.mark.parametrize("state", STATES)
def test_every_transition_for_every_chunk(direction: str, state: str) -> None:
    table = getattr(states.SCTP, direction)[STATES.index(state)]
    for kind in range(256):
        wanted = after_sctp(direction, state, kind)
        assert states.SCTP.names[table[kind]] == wanted, f"chunk {kind}"
    assert states.SCTP.names[table[states.CUT_SHORT]] == after_sctp(direction, state, None) == state
    assert table[states.BUNDLED_ABORT] == table[ABORT]
    assert len(table) == 258


def test_names_and_what_is_active() -> None:
    assert list(states.SCTP.names) == STATES
    assert {states.SCTP.names[state] for state in states.SCTP.active} == {"ESTABLISHED"}
    assert states.SCTP.names[states.SCTP.established] == "ESTABLISHED"
    assert states.SCTP.names[states.SCTP_CLOSED] == "CLOSED"
    assert {states.SCTP.names[state] for state in states.SCTP_HALF_OPEN} == {"INIT1", "INIT"}


# --- its packets ---

SCAPYS = st.sampled_from(
    [
        scapy_sctp.SCTPChunkData(data=b"some"),
        scapy_sctp.SCTPChunkInit(),
        scapy_sctp.SCTPChunkInitAck(),
        scapy_sctp.SCTPChunkSACK(),
        scapy_sctp.SCTPChunkHeartbeatReq(),
        scapy_sctp.SCTPChunkAbort(),
        scapy_sctp.SCTPChunkShutdown(),
        scapy_sctp.SCTPChunkShutdownAck(),
        scapy_sctp.SCTPChunkShutdownComplete(),
        scapy_sctp.SCTPChunkError(),
        scapy_sctp.SCTPChunkCookieEcho(cookie=b"of five or more"),
        scapy_sctp.SCTPChunkCookieEcho(cookie=bytes(8)),
        scapy_sctp.SCTPChunkCookieAck(),
    ]
)


@given(st.lists(SCAPYS, max_size=3), st.booleans(), st.integers(0, 65535), st.integers(0, 65535))
def test_sctp_of_scapy(chunks: list[Any], six: bool, sport: int, dport: int) -> None:
    """The first chunk is what counts, or an ABORT right behind a cookie."""
    packet = scapy_sctp.SCTP(sport=sport, dport=dport)
    for chunk in chunks:
        packet /= chunk.copy()
    ip = inet6.IPv6(src=CLIENT6, dst=VIP6) if six else inet.IP(src=CLIENT, dst=VIP)
    parsed = parse(bytes(ip / packet))
    assert parsed is not None
    assert (parsed.protocol, parsed.sport, parsed.dport) == (SCTP, sport, dport)
    kinds = [bytes(chunk)[0] for chunk in chunks]
    if kinds[:1] in ([COOKIE_ECHO], [COOKIE_ACK]) and kinds[1:2] == [ABORT]:
        assert parsed.flags == states.BUNDLED_ABORT
    else:
        assert parsed.flags == (kinds[0] if kinds else states.CUT_SHORT)


def flags_of(body: bytes) -> int | None:
    """Return what moves the state in a packet whose chunks are these bytes; None: malformed."""
    parsed = parse(packets.ip(CLIENT, VIP, SCTP, bytes((0, 1, 0, 2)) + bytes(8) + body))
    return None if parsed is None else parsed.flags


COOKIE = bytes((COOKIE_ECHO, 0, 0, 5)) + bytes(1)  # its length leaves out the padding


@pytest.mark.parametrize(
    ("body", "flags"),
    [
        (b"", states.CUT_SHORT),
        (bytes((INIT, 0, 0)), states.CUT_SHORT),
        (bytes((INIT, 0, 0, 0)), INIT),
        (bytes((255, 0, 0, 4)), 255),
        (COOKIE + bytes(3) + bytes((ABORT, 0, 0, 4)), states.BUNDLED_ABORT),
        (COOKIE + bytes(3) + bytes((ABORT, 0, 0)), COOKIE_ECHO),
        (COOKIE + bytes(3) + bytes((DATA, 0, 0, 4)), COOKIE_ECHO),
        (COOKIE + bytes(2) + bytes((ABORT, 0, 0, 4)), COOKIE_ECHO),
        (bytes((COOKIE_ACK, 0, 0, 4, ABORT, 0, 0, 4)), states.BUNDLED_ABORT),
        (bytes((COOKIE_ACK, 0, 0, 3, ABORT, 0, 0, 4)), COOKIE_ACK),
        (bytes((COOKIE_ACK, 0, 0, 0, ABORT, 0, 0, 4)), COOKIE_ACK),
        (bytes((COOKIE_ACK, 0, 255, 255, ABORT, 0, 0, 4)), COOKIE_ACK),
        (bytes((COOKIE_ACK, 0, 1, 4)) + bytes(256) + bytes((ABORT, 0, 0, 4)), states.BUNDLED_ABORT),
        (bytes((DATA, 0, 0, 4, ABORT, 0, 0, 4)), DATA),
        (bytes((ERROR, 0, 0, 4, ABORT, 0, 0, 4)), ERROR),
    ],
)
def test_chunks_at_the_edge(body: bytes, flags: int) -> None:
    assert flags_of(body) == flags


def test_bytes_behind_the_datagram_are_no_chunk() -> None:
    parsed = parse(sctp(CLIENT, 1, VIP, 2) + bytes((INIT, 0, 0, 4)))
    assert parsed is not None
    assert parsed.flags == states.CUT_SHORT


@pytest.mark.parametrize("size", range(12))
def test_a_header_cut_short_is_malformed(size: int) -> None:
    world = World()
    world.serve(CALL, ONE)
    assert world.receive(packets.ip(CLIENT, VIP, SCTP, bytes(size))) == Drop(Reason.MALFORMED)


# --- its connections ---


def step(world: World, kind: int | None, now: float, cport: int = 1024) -> tuple[str, float]:
    """Return state and deadline after a client's packet with such a chunk, None: without any."""
    kinds = () if kind is None else (kind,)
    assert target(world.receive(sctp(CLIENT, cport, VIP, 80, *kinds), now)) == ONE
    return world.connection.state_name, world.connection.deadline


def test_the_life_of_an_association_that_only_the_client_is_seen_of() -> None:
    world = World()
    service = world.serve(CALL, ONE)
    (server,) = service.servers
    assert step(world, INIT, 0.0) == ("INIT1", 4.0)
    assert loads(server) == (0, 1, 0)
    assert step(world, INIT, 1.0) == ("INIT", 62.0)
    assert loads(server) == (0, 1, 0)
    assert not world.director.table.half_open
    assert step(world, COOKIE_ECHO, 2.0) == ("ESTABLISHED", 902.0)
    assert loads(server) == (1, 0, 0)
    assert step(world, None, 3.0) == ("ESTABLISHED", 903.0)
    assert step(world, DATA, 4.0) == ("ESTABLISHED", 904.0)
    assert step(world, SHUTDOWN, 5.0) == ("S-RECEIVED", 66.0)
    assert loads(server) == (0, 1, 0)
    assert step(world, SHUTDOWN_COMPLETE, 6.0) == ("CLOSED", 67.0)
    assert step(world, DATA, 7.0) == ("CLOSED", 68.0)
    world.director.expire(67.999)
    assert loads(server) == (0, 1, 0)
    world.director.expire(68.0)
    assert loads(server) == (0, 0, 0)
    assert len(world.director.table) == 0
    assert counted(service) == (1, 8, 0, 7 * 40 + 32, 0)
    assert world.connections == []


def test_an_association_whose_answers_pass_goes_by_both_sides() -> None:
    world = World()
    world.routes[ONE] = LOCAL_ROUTE
    service = world.serve(CALL, ONE)
    found = []
    for now, (inward, kind) in enumerate(
        [(True, INIT), (False, INIT_ACK), (True, COOKIE_ECHO), (False, COOKIE_ACK),
         (False, SHUTDOWN), (True, SHUTDOWN_ACK), (False, SHUTDOWN_COMPLETE)]
    ):  # fmt: skip
        if inward:
            world.receive(sctp(CLIENT, 1024, VIP, 80, kind), float(now))
        else:
            assert world.director.replied(sctp(VIP, 80, CLIENT, 1024, kind), float(now)) == NOT_OURS
        found.append((world.connection.state_name, world.connection.deadline - now))
    assert found == [
        ("INIT1", 4.0), ("C-SENT", 61.0), ("C-REPLIED", 61.0), ("ESTABLISHED", 900.0),
        ("S-SENT", 61.0), ("CLOSED", 61.0), ("CLOSED", 61.0),
    ]  # fmt: skip
    assert counted(service) == (1, 3, 4, 120, 160)


def test_only_an_init_opens_a_connection() -> None:
    world = World()
    world.serve(CALL, ONE)
    for kind in range(256):
        opened = target(world.receive(sctp(CLIENT, 1000 + kind, VIP, 80, kind))) == ONE
        assert opened == (kind == INIT), f"chunk {kind}"
    assert [c.flow.cport for c in world.connections] == [1000 + INIT]
    assert world.receive(sctp(CLIENT, 1, VIP, 81, INIT)) == NOT_OURS
    assert world.receive(sctp(CLIENT, 9, VIP, 80, DATA)) == NOT_OURS


def test_without_a_chunk_a_packet_is_dropped_whoever_it_is_for() -> None:
    world = World()
    world.serve(CALL, ONE)
    for vip, port in ((VIP, 80), (VIP, 81), (OTHER_VIP, 80)):
        assert world.receive(sctp(CLIENT, 9, vip, port)) == Drop(Reason.MALFORMED)
    assert len(world.director.table) == 0


def test_with_sloppy_sctp_all_but_an_abort_opens_one() -> None:
    world = World()
    world.serve(CALL, ONE)
    world.tune(sloppy_sctp=1)
    for kind in range(256):
        opened = target(world.receive(sctp(CLIENT, 1000 + kind, VIP, 80, kind))) == ONE
        assert opened == (kind != ABORT), f"chunk {kind}"
    assert world.receive(sctp(CLIENT, 9, VIP, 80)) == Drop(Reason.MALFORMED)
    world.serve(WEB, ONE)
    assert world.tcp("A") == NOT_OURS  # it is of SCTP alone
    assert len(world.director.table) == 255


def test_what_opens_is_the_first_chunk_and_what_moves_may_be_the_second() -> None:
    """A cookie with an ABORT behind it opens a connection that is closed at once."""
    world = World()
    world.serve(CALL, ONE)
    assert world.receive(sctp(CLIENT, 1, VIP, 80, COOKIE_ECHO, ABORT)) == NOT_OURS
    world.tune(sloppy_sctp=1)
    assert target(world.receive(sctp(CLIENT, 1, VIP, 80, COOKIE_ECHO, ABORT))) == ONE
    assert (world.connection.state_name, world.connection.deadline) == ("CLOSED", 61.0)
    assert target(world.receive(sctp(CLIENT, 2, VIP, 80, INIT, ABORT))) == ONE
    assert world.connections[1].state_name == "INIT1"
    world.receive(sctp(CLIENT, 2, VIP, 80, COOKIE_ACK, ABORT), 1.0)
    assert (world.connections[1].state_name, world.connections[1].deadline) == ("CLOSED", 62.0)


@pytest.mark.parametrize(
    ("before", "closed"),
    [((), False), ((INIT,), False), ((COOKIE_ECHO,), False), ((COOKIE_ECHO, SHUTDOWN), False),
     ((ABORT,), True), ((COOKIE_ECHO, SHUTDOWN, SHUTDOWN_COMPLETE), True)],
)  # fmt: skip
def test_an_init_after_the_end_is_a_new_association(before: tuple[int, ...], closed: bool) -> None:
    world = World()
    service = world.serve(CALL, ONE, TWO)
    one, two = reversed(service.servers)
    for kind in (INIT, *before):
        world.receive(sctp(CLIENT, 1024, VIP, 80, kind))
    old = world.connection
    assert old.server is two
    world.receive(sctp(CLIENT, 1024, VIP, 80, DATA), 1.0)
    assert world.connection is old
    world.receive(sctp(CLIENT, 1024, VIP, 80, INIT), 1.0)
    assert (world.connection is not old) == closed
    assert world.connection.server is (one if closed else two)
    assert (loads(one), loads(two))[closed] == (0, 0, 0)
    if closed:
        assert (world.connection.state_name, world.connection.deadline) == ("INIT1", 5.0)


def test_reuse_mode_0_keeps_the_association() -> None:
    world = World()
    world.serve(CALL, ONE, TWO)
    world.tune(conn_reuse_mode=0)
    for kind in (INIT, ABORT):
        world.receive(sctp(CLIENT, 1024, VIP, 80, kind))
    old = world.connection
    world.receive(sctp(CLIENT, 1024, VIP, 80, INIT), 1.0)
    assert world.connection is old
    assert (old.state_name, old.deadline) == ("INIT", 62.0)


def test_an_established_association_assures_its_template() -> None:
    world = World()
    world.serve(CALL, ONE, persistence_s=300)
    world.receive(sctp(CLIENT, 1024, VIP, 80, INIT))
    (template,) = world.templates
    assert (template.protocol, template.dport, template.assured) == (SCTP, 80, False)
    world.receive(sctp(CLIENT, 1024, VIP, 80, COOKIE_ECHO), 1.0)
    assert template.state_name == "ASSURED"


def test_a_full_table_sheds_no_association() -> None:
    """Only TCP knows that a client was never there: an INIT is short-lived anyway."""
    world = World(size=1)
    world.serve(CALL, ONE)
    world.receive(sctp(CLIENT, 1, VIP, 80, INIT))
    assert world.receive(sctp(CLIENT, 2, VIP, 80, INIT)) == Drop(Reason.TABLE_FULL)
    assert target(world.receive(sctp(CLIENT, 2, VIP, 80, INIT), 4.0)) == ONE


def test_one_packet_scheduling_is_not_for_sctp() -> None:
    world = World()
    world.serve(ServiceKey.mark(7), ONE, one_packet=True)
    world.receive(sctp(CLIENT, 1, VIP, 80, INIT), mark=7)
    assert world.connection.dport == 80
