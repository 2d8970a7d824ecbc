"""What a simulated host's IP stack does with packets, against scapy and the RFCs."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import inet, inet6

from lvskit.checksums import checksum
from lvskit.core.packet import Parsed, parse
from lvskit.datapath.memory import stack
from lvskit.testing import packets
from lvskit.testing.packets import address

CLIENT, HOST = "10.0.0.1", "192.168.1.11"
CLIENT6, HOST6 = "2001:db8:1::1", "2001:db8::11"
PORTS = st.integers(0, 65535)
NUMBERS = st.integers(0, 2**32 - 1)


def parsed(packet: bytes) -> Parsed:
    found = parse(packet)
    assert found is not None
    return found


# --- what is accepted ---


@pytest.mark.parametrize(
    ("packet", "sane"),
    [
        (packets.udp(CLIENT, 1, HOST, 2), True),
        (packets.ip(CLIENT, HOST, 17, bytes(8), options=bytes(40)), True),
        (packets.udp(CLIENT6, 1, HOST6, 2), True),
        (b"", False),
        (packets.udp(CLIENT, 1, HOST, 2)[:19], False),
        (packets.udp(CLIENT, 1, HOST, 2)[:20], True),
        (packets.udp(CLIENT6, 1, HOST6, 2)[:39], False),
        (packets.udp(CLIENT6, 1, HOST6, 2)[:40], True),
        (b"\x44" + packets.udp(CLIENT, 1, HOST, 2)[1:], False),
        (b"\x4f" + packets.udp(CLIENT, 1, HOST, 2)[1:], False),
        (b"\x55" + packets.udp(CLIENT, 1, HOST, 2)[1:], False),
        (b"\x75" + packets.udp(CLIENT6, 1, HOST6, 2)[1:], False),
    ],
)
def test_a_sane_header_is_whole(packet: bytes, sane: bool) -> None:
    assert stack.sane(packet) is sane


@pytest.mark.parametrize(("words", "sane"), [(4, False), (5, True), (7, True), (8, False)])
def test_a_header_has_a_length_that_can_be(words: int, sane: bool) -> None:
    """Even where its checksum is right over as much as there is."""
    packet = bytearray(packets.udp(CLIENT, 1, HOST, 2))
    packet[0] = 0x40 | words
    packet[10:12] = b"\0\0"
    packet[10:12] = checksum(bytes(packet[: words * 4])).to_bytes(2, "big")
    assert checksum(bytes(packet[: words * 4])) == 0
    assert stack.sane(bytes(packet)) is sane


@given(st.integers(0, 19), st.integers(1, 255))
def test_a_wrong_byte_in_the_header_shows_in_its_checksum(at: int, change: int) -> None:
    packet = bytearray(packets.udp(CLIENT, 1, HOST, 2))
    packet[at] ^= change
    assert not stack.sane(bytes(packet))


@pytest.mark.parametrize(
    ("source", "plausible"),
    [
        ("10.0.0.1", True), ("0.0.0.0", False), ("0.1.2.3", False), ("255.255.255.255", False),
        ("127.0.0.1", False), ("224.0.0.1", False), ("239.1.2.3", False), ("240.0.0.1", True),
        ("2001:db8::1", True), ("fe80::1", True), ("::", True), ("::1", False), ("ff02::1", False),
    ],
)  # fmt: skip
def test_who_a_packet_may_come_from(source: str, plausible: bool) -> None:
    assert stack.plausible_source(address(source)) is plausible


@pytest.mark.parametrize(
    ("options", "routed"),
    [
        ("", False), ("01010101", False), ("94040000", False), ("83030400", True),
        ("89030400", True), ("0183030400000000", True), ("9404000083030400", True),
        ("0083030400000000", False), ("94080000 83030400", False), ("94000000", False),
        ("9401830304000000", True), ("01010194", False), ("010101 83", True),
    ],
)  # fmt: skip
def test_packets_with_a_route_of_their_own(options: str, routed: bool) -> None:
    """Loose (131) and strict (137); an option's length is at least 2."""
    packet = packets.ip(CLIENT, HOST, 17, bytes(8), options=bytes.fromhex(options))
    assert stack.source_routed(packet) is routed


def test_ipv6_has_no_such_options() -> None:
    assert not stack.source_routed(packets.udp(CLIENT6, 1, HOST6, 2))


# --- forwarding ---


@given(st.integers(0, 255), st.integers(0, 3), st.integers(0, 255), st.booleans())
def test_a_hop_takes_one_off_the_time_to_live(ttl: int, words: int, tos: int, six: bool) -> None:
    if six:
        packet = packets.udp(CLIENT6, 1, HOST6, 2, ttl=ttl, tos=tos)
        wanted: Any = inet6.IPv6(packet)
        wanted.hlim = max(ttl, 1) - 1
    else:
        packet = packets.ip(CLIENT, HOST, 17, bytes(9), ttl=ttl, tos=tos, options=b"\1" * 4 * words)
        wanted = inet.IP(packet)
        wanted.ttl = max(ttl, 1) - 1
        del wanted.chksum
    found = stack.decremented(packet)
    assert found == (bytes(wanted) if ttl > 1 else None)


# --- answers ---


@given(
    payload=st.binary(max_size=40),
    change=st.integers(1, 255),
    where=st.integers(0, 47),
    six=st.booleans(),
    tcp=st.booleans(),
)
def test_a_wrong_transport_checksum_is_noticed(
    payload: bytes, change: int, where: int, six: bool, tcp: bool
) -> None:
    source, target = (CLIENT6, HOST6) if six else (CLIENT, HOST)
    build = packets.tcp if tcp else packets.udp
    packet = bytearray(build(source, 1, target, 2, payload=payload))
    found = parsed(bytes(packet))
    assert stack.transport_intact(bytes(packet), found)
    at = found.offset + where
    packet[at if at < len(packet) else -1] ^= change
    unsummed = not tcp and packet[found.offset + 6 : found.offset + 8] == b"\0\0"
    assert stack.transport_intact(bytes(packet), found) == (unsummed and not six)


def test_a_udp_datagram_may_go_without_a_checksum_in_ipv4_alone() -> None:
    for source, target, fine in ((CLIENT, HOST, True), (CLIENT6, HOST6, False)):
        packet = bytearray(packets.udp(source, 1, target, 2))
        found = parsed(bytes(packet))
        packet[found.offset + 6 : found.offset + 8] = b"\0\0"
        assert stack.transport_intact(bytes(packet), found) is fine
    segment = bytearray(packets.tcp(CLIENT, 1, HOST, 2))  # of TCP those bytes are another field
    assert stack.transport_intact(bytes(segment), parsed(bytes(segment)))


@given(st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=40))
def test_a_ping_is_answered(identification: int, sequence: int, data: bytes) -> None:
    ping = inet.IP(src=CLIENT, dst=HOST, ttl=7) / inet.ICMP(id=identification, seq=sequence) / data
    wanted = inet.IP(src=HOST, dst=CLIENT, id=0) / inet.ICMP(
        type=0, id=identification, seq=sequence
    )
    assert stack.echo_reply(bytes(ping), parsed(bytes(ping))) == bytes(wanted / data)
    ping6 = (
        inet6.IPv6(src=CLIENT6, dst=HOST6, hlim=7)
        / inet6.ICMPv6EchoRequest(id=identification, seq=sequence)
        / data
    )
    wanted6 = (
        inet6.IPv6(src=HOST6, dst=CLIENT6)
        / inet6.ICMPv6EchoReply(id=identification, seq=sequence)
        / data
    )
    assert stack.echo_reply(bytes(ping6), parsed(bytes(ping6))) == bytes(wanted6)


@pytest.mark.parametrize("message", [b"", bytes((8, 0)) + bytes(5), bytes(8), b"\x05" + bytes(7)])
def test_other_icmp_is_not_answered(message: bytes) -> None:
    packet = packets.ip(CLIENT, HOST, 1, message)
    assert stack.echo_reply(packet, parsed(packet)) is None


def fields(packet: bytes | None) -> tuple[Any, ...]:
    """Return addresses, ports, flags, sequence and acknowledgement of a well-formed segment."""
    assert packet is not None
    assert stack.transport_intact(packet, parsed(packet))
    assert stack.sane(packet)
    found: Any = inet.IP(packet) if packet[0] >> 4 == 4 else inet6.IPv6(packet)
    segment = found[inet.TCP]
    ends = found.src, segment.sport, found.dst, segment.dport
    numbers = segment.seq, segment.ack, segment.window
    return ends, str(segment.flags), *numbers, bytes(segment.payload)


@pytest.mark.parametrize(
    ("flags", "payload", "wanted"),
    [
        # RFC 9293, 3.10.7.1: <SEQ=SEG.ACK>, or <SEQ=0><ACK=SEG.SEQ+SEG.LEN>
        ("A", b"", ("R", 777, 0)),
        ("SA", b"data", ("R", 777, 0)),
        ("S", b"", ("RA", 0, 124)),
        ("F", b"", ("RA", 0, 124)),
        ("SF", b"four", ("RA", 0, 129)),
        ("P", b"four", ("RA", 0, 127)),
        ("", b"", ("RA", 0, 123)),
        ("R", b"", None),
        ("RA", b"", None),
    ],
)
def test_a_closed_port_resets(flags: str, payload: bytes, wanted: Any) -> None:
    for source, target in ((CLIENT, HOST), (CLIENT6, HOST6)):
        ip = inet6.IPv6 if ":" in source else inet.IP
        segment = inet.TCP(
            sport=1024, dport=80, flags=flags, seq=123, ack=777, options=[("MSS", 1460)]
        )
        packet = bytes(ip(src=source, dst=target) / segment / payload)
        answer = stack.reset(packet, parsed(packet))
        if wanted is None:
            assert answer is None
            continue
        ends = (target, 80, source, 1024)
        assert fields(answer) == (ends, *wanted, 0, b"")


@given(st.integers(0, 255), st.integers(0, 0xFFFFF), st.sampled_from(["S", "A"]))
def test_a_reset_has_the_traffic_class_that_came_without_its_ecn(
    tos: int, label: int, flags: str
) -> None:
    segment = inet.TCP(sport=1024, dport=80, flags=flags)
    four = bytes(inet.IP(src=CLIENT, dst=HOST, tos=tos) / segment)
    answer = stack.reset(four, parsed(four))
    assert answer is not None
    assert (inet.IP(answer).tos, stack.sane(answer)) == (tos & 0xFC, True)
    six = bytes(inet6.IPv6(src=CLIENT6, dst=HOST6, tc=tos, fl=label) / segment)
    answer = stack.reset(six, parsed(six))
    assert answer is not None
    found = inet6.IPv6(answer)
    assert (found.version, found.tc, found.fl) == (6, tos & 0xFC, 0)


@given(
    ends=st.sampled_from([(CLIENT, HOST), (CLIENT6, HOST6)]),
    ports=st.tuples(PORTS, PORTS),
    flags=st.integers(0, 63),
    numbers=st.tuples(NUMBERS, NUMBERS),
    data=st.binary(max_size=20),
)
def test_segments_are_what_scapy_builds(
    ends: tuple[str, str], ports: tuple[int, int], flags: int, numbers: tuple[int, int], data: bytes
) -> None:
    source, target = ends
    ip: Any = inet6.IPv6() if ":" in source else inet.IP(id=0, flags="DF")
    ip.src, ip.dst = source, target
    wanted = inet.TCP(
        sport=ports[0], dport=ports[1], flags=flags, seq=numbers[0], ack=numbers[1], window=64240
    )
    one, two = (address(source), ports[0]), (address(target), ports[1])
    found = stack.tcp(one, two, flags, numbers[0], numbers[1], data)
    assert found == bytes(ip / wanted / data)
    assert stack.tcp(one, two, flags, numbers[0] + 2**32, numbers[1] + 2**33, data) == found
    to = parsed(packets.tcp(target, ports[1], source, ports[0]))
    assert stack.segment(to, flags, *numbers, data) == found
    assert fields(stack.segment(to, flags, *numbers, data, window=5))[4] == 5


def test_datagrams_are_what_scapy_builds() -> None:
    body = bytes(range(9))
    four, six = (address(a) for a in (CLIENT, CLIENT6))
    for df in (True, False):
        wanted = inet.IP(src=CLIENT, dst=HOST, id=0, proto=99, flags=2 * df) / body
        assert stack.datagram(four, address(HOST), 99, body, df=df) == bytes(wanted)
    wanted6 = inet6.IPv6(src=CLIENT6, dst=HOST6, nh=99) / body
    assert stack.datagram(six, address(HOST6), 99, body) == bytes(wanted6)
    assert ipaddress.ip_address(six).version == 6
