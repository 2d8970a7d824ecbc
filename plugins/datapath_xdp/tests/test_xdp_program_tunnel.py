"""That the program writes the bytes that the forwarding method in Python writes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import Reason, ServerFlag
from lvskit_fwd_tunnel.ipip import Ipip
from scapy.layers import inet, inet6
from scapy.packet import Packet, Raw
from xdp_kernel import INGRESS, Kernel, packed
from xdp_world import (
    CLIENT4,
    CLIENT6,
    HERE4,
    HERE6,
    MAC_HERE,
    MAC_REAL,
    REAL4,
    REAL6,
    USUAL,
    VIP4,
    VIP6,
    macs,
    populate,
    tunnel,
)  # fmt: skip

from lvskit import Reply, Route, Transmit, checksum
from lvskit.testing import packets
from lvskit.testing.standins import StandInConnection, StandInServer

SERVER, MTU = 1, 1500
VERSIONS = st.sampled_from([4, 6])
SERVICES = {(4, 6): 1, (4, 17): 2, (6, 6): 3, (6, 17): 4}


@pytest.fixture(scope="module")
def world(loaded_kernel: Kernel) -> Kernel:
    loaded_kernel.clear()
    populate(loaded_kernel)
    return loaded_kernel


@st.composite
def datagrams(draw: st.DrawFn) -> bytes:
    """Packets of established connections, of any length that a link carries, whatever they say."""
    version, stream = draw(VERSIONS), draw(st.booleans())
    port = draw(st.integers(1, 65535).filter(lambda port: port != 20))
    number = st.integers(0, 65535)
    payload = Raw(bytes(draw(st.one_of(st.integers(0, 100), st.integers(1380, 1480)))))
    segment: Packet
    if stream:
        flags = draw(st.sampled_from(["A", "PA", "A", "AU"]))
        segment = inet.TCP(sport=port, dport=80, flags=flags, chksum=draw(number))
    else:
        segment = inet.UDP(sport=port, dport=53, chksum=draw(number))
    ttl, tos = draw(st.integers(0, 255)), draw(st.integers(0, 255))
    if version == 6:
        head = inet6.IPv6(src=CLIENT6, dst=VIP6, hlim=ttl, tc=tos, fl=draw(st.integers(0, 0xFFFFF)))
        return bytes(head / segment / payload)
    flags = draw(st.sampled_from([0, "DF", "evil", "DF+evil"]))
    head = inet.IP(src=CLIENT4, dst=VIP4, ttl=ttl, tos=tos, flags=flags, id=draw(number))
    return bytes(head / segment / payload)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(packet=datagrams(), outer=VERSIONS, pmtu_disc=st.booleans(), padding=st.integers(0, 8))
def test_the_program_writes_what_python_writes(
    world: Kernel, packet: bytes, outer: int, pmtu_disc: bool, padding: int
) -> None:
    version = packet[0] >> 4
    source, target = (HERE4, REAL4) if outer == 4 else (HERE6, REAL6)
    model = StandInServer(packed(target), pmtu_disc=pmtu_disc)
    python = Ipip(model)
    python.route_changed(Route(packed(source), MTU))
    flow = packets.flow(CLIENT4, 1, VIP4, 80)
    expected = python.transmit(StandInConnection(flow, model), packet)

    flags = USUAL if pmtu_disc else ServerFlag.AVAILABLE
    world.server(SERVER, tunnel(outer, flags, mtu=MTU))
    number = slice(
        SERVER * layout.SERVER_SIZE + layout.SERVER_IDENTIFICATION,
        SERVER * layout.SERVER_SIZE + layout.SERVER_IDENTIFICATION + 4,
    )
    world.servers[number] = bytes(4)
    protocol, at = (packet[9], 20) if version == 4 else (packet[6], 40)
    service = SERVICES[version, protocol]
    client = packet[12:16] if version == 4 else packet[8:24]
    for memory in world.tables.values():
        memory[:] = bytes(len(memory))
    port = int.from_bytes(packet[at : at + 2], "big")
    world.connect(client, port, service, SERVER, 1 if protocol == 6 else 0)

    ethertype = b"\x08\x00" if version == 4 else b"\x86\xdd"
    frame = macs(MAC_HERE) + ethertype + packet + bytes(padding)
    came = world.send(frame)
    assume(len(frame) <= 1514)
    if isinstance(expected, Transmit) and len(expected.packet) <= MTU:
        outside = b"\x08\x00" if outer == 4 else b"\x86\xdd"
        assert came.verdict == "TX"
        assert came.frame == macs(MAC_REAL) + outside + expected.packet
    else:  # it is for Python to split, or to answer
        assert isinstance(expected, Transmit | Reply)
        assert came.verdict == "PASS"
        assert came.frame == frame
        assert came.reasons.keys() <= {Reason.TTL, Reason.TOO_BIG}


def test_numbers_go_round(world: Kernel) -> None:
    """Identifications are 16 bits of a counter of 32."""
    world.server(SERVER, tunnel(4))
    at = SERVER * layout.SERVER_SIZE + layout.SERVER_IDENTIFICATION
    world.servers[at : at + 4] = (0xFFFE).to_bytes(4, "little")
    world.connect(CLIENT4, 7, 2, SERVER)
    packet = inet.IP(src=CLIENT4, dst=VIP4, ttl=9) / inet.UDP(sport=7, dport=53)
    frame = macs(MAC_HERE) + b"\x08\x00" + bytes(packet)
    numbers = [int.from_bytes(world.send(frame).frame[18:20], "big") for _ in range(3)]
    assert numbers == [0xFFFF, 0, 1]


def test_a_checksum_may_carry_twice(world: Kernel) -> None:
    """Where the sum's halves, added, overflow again: one identification of all, for any header."""
    packet = inet.IP(src=CLIENT4, dst=VIP4, ttl=9) / inet.UDP(sport=9, dport=53)
    frame = macs(MAC_HERE) + b"\x08\x00" + bytes(packet)
    source = packed("10.0.250.250")  # so that the rest of the sum is large
    server = layout.server(source, packed(REAL4), macs(MAC_REAL), INGRESS, MTU)
    world.server(SERVER, server)
    world.connect(CLIENT4, 9, 2, SERVER)
    partial = layout.partial_checksum(b"\x45" + bytes(11) + source + packed(REAL4))
    variable = struct.pack("!HBB", len(packet) + 20, 8, 4)
    rest = partial + sum(struct.unpack("<HH", variable))
    number = int.from_bytes((0x1FFFF - rest).to_bytes(2, "little"), "big")
    at = SERVER * layout.SERVER_SIZE + layout.SERVER_IDENTIFICATION
    world.servers[at : at + 4] = (number - 1).to_bytes(4, "little")
    head = world.send(frame).frame[14:34]
    assert head[4:6] == number.to_bytes(2, "big")
    assert checksum(head) == 0
