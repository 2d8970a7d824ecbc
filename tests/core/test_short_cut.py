"""The short cut for packets of known connections: when it is taken, and that nothing shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from director_world import (
    CLIENT,
    ONE,
    VIP,
    WEB,
    World,
    address,
    counted,
    loads,
    target,
)
from hypothesis import example, given
from hypothesis import strategies as st

from lvskit import UDP, ServiceKey
from lvskit.core import director
from lvskit.testing import packets

DNS = ServiceKey.of(UDP, address(VIP), 53)
DATA = packets.tcp(CLIENT, 1024, VIP, 80, "A", payload=bytes(300))
QUERY = packets.udp(CLIENT, 9, VIP, 53, payload=bytes(300))


def busy() -> World:
    """Return a world with a TCP connection, established, and one of UDP."""
    world = World()
    world.serve(WEB, ONE)
    world.serve(DNS, ONE)
    world.tcps("SA")
    world.receive(QUERY)
    return world


@pytest.mark.parametrize(
    "packet",
    [
        packets.tcp(CLIENT, 1024, VIP, 80, "A"),
        packets.tcp(CLIENT, 1024, VIP, 80, "FA"),
        packets.tcp(CLIENT, 1024, VIP, 80, "R"),
        DATA,
        DATA[:6] + bytes(2) + DATA[8:],
        packets.udp(CLIENT, 9, VIP, 53),
        packets.udp(CLIENT, 9, VIP, 53, payload=bytes(12)),
        QUERY,
    ],
    ids=["ACK", "FIN", "RST", "data", "no DF", "empty datagram", "short datagram", "datagram"],
)
def test_it_is_taken_without_a_look_at_anything_else(
    packet: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each field of a packet that is looked at costs as much as forwarding it does."""

    def parse(packet: bytes) -> None:
        raise AssertionError("the long way")

    world = busy()
    before = counted(world.director.services)
    monkeypatch.setattr(director, "parse", parse)
    assert target(world.receive(packet, 1.0)) == ONE
    after = counted(world.director.services)
    assert (after[1] - before[1], after[3] - before[3]) == (1, len(packet))


def everything(world: World) -> Iterator[object]:
    """Yield all that packets change."""
    for connection in world.connections:
        yield connection.flow, connection.state_name, connection.deadline, connection.packets
    for service in world.director.services:
        yield counted(service), [loads(server) for server in service.servers]
    yield world.director.next_timer()


# Behind the length, which says where padding begins; in the first byte the length of the header.
CHANGES = st.tuples(st.integers(4, 43), st.integers(0, 255)) | st.tuples(
    st.just(0), st.integers(0x40, 0x4F)
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([DATA, DATA[:2] + b"\0\x28" + DATA[4:40], QUERY]),
        st.lists(CHANGES, max_size=2),
        st.sampled_from([0.0, 1.0, 61.0, 901.0]),
    ),
    max_size=6,
)


@example([(DATA, [(6, 0x60)], 1.0), (QUERY, [(6, 0x20)], 0.0)])
@given(STEPS)
def test_it_ends_where_the_long_way_ends(
    steps: list[tuple[bytes, list[tuple[int, int]], float]],
) -> None:
    """Padding of the link, which is cut off, is reason enough to take the long way."""
    short, long, now = busy(), busy(), 0.0
    for packet, changes, seconds in steps:
        changed = bytearray(packet)
        for at, value in changes:
            if at < len(changed):
                changed[at] = value
        now += seconds
        raw = bytes(changed)
        assert short.receive(raw, now) == long.receive(raw + b"padding", now)
        assert list(everything(short)) == list(everything(long))
