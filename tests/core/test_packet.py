"""Parsing against scapy: every datagram that scapy builds is read right, and nothing raises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers import inet, inet6
from scapy.packet import Packet
from scapy.utils import checksum as scapy_checksum

from lvskit import TCP, UDP, Flow
from lvskit.checksums import checksum
from lvskit.core.connection import unpack
from lvskit.core.packet import Parsed, parse, parse_quoted
from lvskit.core.states import CUT_SHORT
from lvskit.testing import packets
from lvskit.types import ICMP

PORTS = st.integers(0, 65535)
BYTES = st.integers(0, 255)
KINDS = st.sampled_from(["tcp", "udp"])
PAYLOADS = st.binary(max_size=64)
V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)
OPTIONS = st.lists(
    st.sampled_from([inet.IPOption_NOP, inet.IPOption_Router_Alert]), max_size=6
).map(lambda kinds: [kind() for kind in kinds])


def transport(kind: str, sport: int, dport: int, flags: int) -> Packet:
    return (
        inet.TCP(sport=sport, dport=dport, flags=flags)
        if kind == "tcp"
        else inet.UDP(sport=sport, dport=dport)
    )


def extension(name: str, units: int) -> Packet:
    """Return an IPv6 extension header of (units + 1) * 8 bytes."""
    padding = inet6.PadN(optdata=bytes(units * 8 + 4))
    match name:
        case "hop-by-hop":
            return inet6.IPv6ExtHdrHopByHop(options=[padding])
        case "destination":
            return inet6.IPv6ExtHdrDestOpt(options=[padding])
        case "routing":
            return inet6.IPv6ExtHdrRouting(addresses=["::1"] * units)
        case _:
            return inet6.IPv6ExtHdrFragment(offset=0, m=0)  # a datagram in one piece ("atomic")


@given(
    src=V4, dst=V4, sport=PORTS, dport=PORTS, flags=BYTES, kind=KINDS, options=OPTIONS,
    payload=PAYLOADS, tos=BYTES,
)  # fmt: skip
def test_ipv4_of_scapy(
    *,
    src: str,
    dst: str,
    sport: int,
    dport: int,
    flags: int,
    kind: str,
    options: Any,
    payload: bytes,
    tos: int,
) -> None:
    segment = transport(kind, sport, dport, flags)
    raw = bytes(inet.IP(src=src, dst=dst, tos=tos, options=options) / segment / payload)
    parsed = parse(raw)
    assert parsed is not None
    assert parsed.version == 4
    assert parsed.protocol == (TCP if kind == "tcp" else UDP)
    assert (parsed.src, parsed.dst) == (packets.address(src), packets.address(dst))
    assert (parsed.sport, parsed.dport) == (sport, dport)
    assert parsed.flags == (flags if kind == "tcp" else 0)
    assert parsed.offset == 20 + len(options and bytes(inet.IP(options=options))[20:])
    assert parsed.length == len(raw)
    assert not parsed.fragment
    assert parse(raw + b"padding of the link") == parsed
    assert unpack(parsed.protocol, parsed.flow.key) == parsed.flow


@given(
    src=V6, dst=V6, sport=PORTS, dport=PORTS, flags=BYTES, kind=KINDS, payload=PAYLOADS,
    chain=st.lists(
        st.tuples(
            st.sampled_from(["hop-by-hop", "destination", "routing", "atomic"]), st.integers(0, 5)
        ),
        max_size=6,
    ),
)  # fmt: skip
def test_ipv6_of_scapy_with_extension_headers(
    *,
    src: str,
    dst: str,
    sport: int,
    dport: int,
    flags: int,
    kind: str,
    payload: bytes,
    chain: list[tuple[str, int]],
) -> None:
    built: Packet = inet6.IPv6(src=src, dst=dst)
    for name, units in chain:
        built /= extension(name, units)
    raw = bytes(built / transport(kind, sport, dport, flags) / payload)
    parsed = parse(raw)
    assert parsed is not None
    assert (parsed.version, parsed.protocol) == (6, TCP if kind == "tcp" else UDP)
    assert (parsed.src, parsed.dst) == (packets.address(src), packets.address(dst))
    assert (parsed.sport, parsed.dport) == (sport, dport)
    assert parsed.flags == (flags if kind == "tcp" else 0)
    assert parsed.length == len(raw)
    assert parsed.offset == len(raw) - len(payload) - (20 if kind == "tcp" else 8)
    assert not parsed.fragment
    assert unpack(parsed.protocol, parsed.flow.key) == parsed.flow
    for end in range(len(raw)):
        assert parse(raw[:end]) is None


def test_a_header_alone_is_a_packet_without_ports() -> None:
    for packet, protocol in (
        (packets.ip("::1", "::2", 59, b""), 59),
        (packets.ip("10.0.0.1", "10.0.0.2", 61, b""), 61),
    ):
        parsed = parse(packet)
        assert parsed is not None
        assert (parsed.protocol, parsed.length, parsed.key) == (protocol, len(packet), b"")


def ah(units: int, following: int) -> bytes:
    """Return an authentication header: its length counts 4-byte units, less two."""
    return bytes((following, units)) + bytes((units + 2) * 4 - 2)


@pytest.mark.parametrize("units", [1, 2, 4, 5])
def test_ipv6_authentication_header(units: int) -> None:
    body = ah(units, TCP) + packets.tcp("::1", 5, "::2", 6, "A")[40:]
    parsed = parse(packets.ip("::1", "::2", 51, body))
    assert parsed is not None
    assert (parsed.offset, parsed.sport, parsed.dport) == (40 + (units + 2) * 4, 5, 6)


@pytest.mark.parametrize(
    ("number", "size"), [(0, 8), (43, 8), (60, 8), (135, 8), (44, 8), (51, 8)], ids=str
)
def test_every_ipv6_extension_header_is_stepped_over(number: int, size: int) -> None:
    header = bytes((UDP, 0)) + bytes(6)
    parsed = parse(packets.ip("::1", "::2", number, header + packets.udp("::1", 5, "::2", 6)[40:]))
    assert parsed is not None
    assert (parsed.protocol, parsed.offset, parsed.dport) == (UDP, 40 + size, 6)


@pytest.mark.parametrize("number", [59, 50, 58, 89])
def test_other_ipv6_protocols_have_no_ports(number: int) -> None:
    """No next header, ESP (which hides all that follows), ICMPv6 and SCTP."""
    parsed = parse(packets.ip("::1", "::2", number, bytes(40)))
    assert parsed == Parsed(6, number, bytes(15) + b"\1", bytes(15) + b"\2", 40, 80, False)


def test_a_chain_of_extension_headers_has_an_end() -> None:
    options = bytes((0, 0)) + bytes(6)
    assert parse(packets.ip("::1", "::2", 0, options * 100)) is None
    segment = packets.tcp("::1", 5, "::2", 6)[40:]
    chain = options * 6 + bytes((TCP, 0)) + bytes(6)
    parsed = parse(packets.ip("::1", "::2", 0, chain + segment))
    assert parsed is not None
    assert parsed.offset == 40 + 7 * 8


@pytest.mark.parametrize("claimed", [1, 40, 255])
def test_an_extension_header_longer_than_the_packet(claimed: int) -> None:
    body = bytes((TCP, claimed)) + bytes(6)
    assert parse(packets.ip("::1", "::2", 60, body)) is None
    assert parse(packets.ip("::1", "::2", 60, body[:7])) is None


@pytest.mark.parametrize("number", [0, 43, 44, 51, 60, 135])
@pytest.mark.parametrize("size", range(8))
def test_an_extension_header_cut_short(number: int, size: int) -> None:
    """Where the IP header itself says that there is no more."""
    assert parse(packets.ip("::1", "::2", number, bytes((TCP, 0, 0, 0, 0, 0, 0))[:size])) is None


@pytest.mark.parametrize("following", [0, 43, 44, 51, 60])
def test_what_follows_a_fragment_header_is_not_looked_at(following: int) -> None:
    """It may be the middle of anything."""
    head = bytes((following, 0)) + (8 << 3 | 1).to_bytes(2, "big") + bytes(4)
    parsed = parse(packets.ip("::1", "::2", 44, head + b"\xff" * 16))
    assert parsed is not None
    assert (parsed.fragment, parsed.protocol, parsed.offset) == (True, following, 48)


@pytest.mark.parametrize(
    ("more", "offset", "reserved", "fragment"),
    [(0, 0, 0, False), (0, 0, 3, False), (1, 0, 0, True), (0, 1, 0, True), (0, 0x1FFF, 0, True)],
)
def test_ipv6_fragments(more: int, offset: int, reserved: int, fragment: bool) -> None:
    """A fragment's payload need not hold a header, and has no ports; reserved bits say nothing."""
    word = offset << 3 | reserved << 1 | more
    head = bytes((TCP, 0)) + word.to_bytes(2, "big") + bytes(4)
    segment = packets.tcp("::1", 5, "::2", 6)[40:]
    parsed = parse(packets.ip("::1", "::2", 44, head + segment))
    assert parsed is not None
    assert (parsed.fragment, parsed.protocol) == (fragment, TCP)
    assert (parsed.sport, parsed.dport) == ((0, 0) if fragment else (5, 6))
    cut = parse(packets.ip("::1", "::2", 44, head + segment[:3]))
    assert (cut is not None) == fragment


@pytest.mark.parametrize(
    ("word", "fragment"),
    [(0, False), (0x4000, False), (0x8000, False), (0x2000, True), (1, True), (0x1F00, True)],
)
def test_ipv4_fragments(word: int, fragment: bool) -> None:
    raw = bytearray(packets.tcp("10.0.0.1", 5, "10.0.0.2", 6))
    raw[6:8] = word.to_bytes(2, "big")
    parsed = parse(bytes(raw))
    assert parsed is not None
    assert parsed.fragment == fragment
    assert (parsed.sport, parsed.dport) == ((0, 0) if fragment else (5, 6))
    raw = bytearray(packets.ip("10.0.0.1", "10.0.0.2", TCP, bytes(3)))
    raw[6:8] = word.to_bytes(2, "big")
    assert (parse(bytes(raw)) is not None) == fragment


@given(V4, V4, PORTS, PORTS, KINDS)
def test_an_ipv4_datagram_cut_anywhere_is_malformed(
    src: str, dst: str, sport: int, dport: int, kind: str
) -> None:
    raw = bytes(inet.IP(src=src, dst=dst) / transport(kind, sport, dport, 2))
    for end in range(len(raw)):
        assert parse(raw[:end]) is None


@pytest.mark.parametrize("size", [0, 1, 19])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_transport_header_cut_short_is_malformed_where_the_ports_are(
    protocol: int, size: int
) -> None:
    """Also where the IP header itself says that there is no more."""
    short = bytes(min(size, 7) if protocol == UDP else size)
    for source, target in (("10.0.0.1", "10.0.0.2"), ("::1", "::2")):
        parsed = parse(packets.ip(source, target, protocol, short))
        assert (parsed and parsed.flags) == (None if len(short) < 4 else CUT_SHORT)
    whole = parse(packets.ip("10.0.0.1", "10.0.0.2", protocol, bytes(20)))
    assert whole is not None
    assert whole.flags == 0


@pytest.mark.parametrize("first", [0x44, 0x40, 0x05, 0x55, 0x75, 0xF5])
def test_wrong_versions_and_header_lengths(first: int) -> None:
    raw = bytearray(packets.tcp("10.0.0.1", 5, "10.0.0.2", 6) + bytes(100))
    raw[0] = first
    assert parse(bytes(raw)) is None


@pytest.mark.parametrize("claimed", [0, 19, 23, 24, 44, 45])
def test_ipv4_lengths(claimed: int) -> None:
    """The length must hold the header and a TCP header, and the packet must be as long."""
    raw = bytearray(packets.ip("10.0.0.1", "10.0.0.2", TCP, bytes(20), options=bytes(4)))
    assert len(raw) == 44
    raw[2:4] = claimed.to_bytes(2, "big")
    assert (parse(bytes(raw)) is not None) == (claimed == 44)


def check_bounds(raw: bytes) -> None:
    """Check what holds of any bytes at all."""
    parsed = parse(raw)
    if parsed is not None:
        assert parsed.version == raw[0] >> 4
        assert (20 if parsed.version == 4 else 40) <= parsed.offset <= parsed.length <= len(raw)
        assert len(parsed.src) == len(parsed.dst) == (4 if parsed.version == 4 else 16)
    quoted = parse_quoted(raw)
    if quoted is not None:
        assert quoted.offset + 4 <= len(raw)
        assert quoted.protocol in (TCP, UDP)


@given(st.binary(max_size=200))
@example(b"")
def test_arbitrary_bytes_never_raise(raw: bytes) -> None:
    check_bounds(raw)


@given(
    st.sampled_from([b"\x45", b"\x46", b"\x4f", b"\x60"]), st.binary(min_size=19, max_size=120),
    st.sampled_from([0, 6, 17, 43, 44, 51, 60, 135]),
)  # fmt: skip
def test_bytes_that_begin_like_a_datagram_never_raise(
    first: bytes, rest: bytes, protocol: int
) -> None:
    raw = bytearray(first + rest)
    if first == b"\x60":
        raw[4:7] = max(len(raw) - 40, 0).to_bytes(2, "big") + bytes((protocol,))
    else:
        raw[2:4] = len(raw).to_bytes(2, "big")
        raw[9] = protocol
    check_bounds(bytes(raw))


@given(
    st.booleans(), st.lists(st.tuples(st.integers(0, 99), BYTES), max_size=4), st.integers(0, 100)
)
def test_mutated_packets_never_raise(six: bool, changes: list[tuple[int, int]], cut: int) -> None:
    ends = ("2001:db8::1", "2001:db8::2") if six else ("10.0.0.1", "10.0.0.2")
    body = bytes((TCP, 0)) + bytes(6) + packets.tcp(ends[0], 1, ends[1], 2, payload=bytes(32))[-52:]
    raw = bytearray(packets.ip(*ends, 60 if six else TCP, body))
    for at, value in changes:
        raw[at % len(raw)] = value
    check_bounds(bytes(raw[: len(raw) - cut] if cut < len(raw) else raw))


# --- quoted in an ICMP error: a header and a few bytes ---


@given(src=V4 | V6, sport=PORTS, dport=PORTS, kind=KINDS, options=OPTIONS, part=st.floats(0, 1))
def test_quotes(*, src: str, sport: int, dport: int, kind: str, options: Any, part: float) -> None:
    six = ":" in src
    head = inet6.IPv6(src=src, dst=src) if six else inet.IP(src=src, dst=src, options=options)
    raw = bytes(head / transport(kind, sport, dport, 2) / b"payload")
    offset = 40 if six else (raw[0] & 15) * 4
    end = round(part * len(raw))
    quoted = parse_quoted(raw[:end])
    if end < offset + 4:
        assert quoted is None
    else:
        packed = packets.address(src)
        assert quoted is not None
        assert quoted.flow == Flow(TCP if kind == "tcp" else UDP, packed, sport, packed, dport)


@pytest.mark.parametrize(
    ("word", "known"), [(0x2000, True), (0x4000, True), (1, False), (0x1F00, False), (0xFF, False)]
)
def test_quotes_of_fragments(word: int, known: bool) -> None:
    """Only a datagram's first fragment has the ports."""
    raw = bytearray(packets.udp("10.0.0.1", 5, "10.0.0.2", 6))
    raw[6:8] = word.to_bytes(2, "big")
    assert (parse_quoted(bytes(raw)) is not None) == known


@pytest.mark.parametrize("first", [0x44, 0x50, 0x05])
def test_quotes_of_nonsense(first: int) -> None:
    raw = bytearray(packets.udp("10.0.0.1", 5, "10.0.0.2", 6))
    raw[0] = first
    assert parse_quoted(bytes(raw)) is None
    assert parse_quoted(packets.ip("10.0.0.1", "10.0.0.2", ICMP, bytes(20))) is None


# --- sums and builders ---


@given(st.binary(max_size=1600))
@example(b"")
@example(b"\0\0")
@example(b"\xff\xff")
@example(b"\xff\xff\xff\xff")
@example(b"\0\1\xff\xfe")
def test_checksum_is_scapys(data: bytes) -> None:
    assert checksum(data) == scapy_checksum(data)


@given(
    six=st.booleans(), kind=KINDS, sport=PORTS, dport=PORTS, flags=BYTES, payload=PAYLOADS,
    ttl=BYTES, tos=BYTES, df=st.booleans(),
)  # fmt: skip
def test_the_packet_builders_build_what_scapy_builds(
    *,
    six: bool,
    kind: str,
    sport: int,
    dport: int,
    flags: int,
    payload: bytes,
    ttl: int,
    tos: int,
    df: bool,
) -> None:
    src, dst = ("2001:db8::1", "2001:db8:1::2") if six else ("10.0.0.1", "192.168.1.176")
    head = (
        inet6.IPv6(src=src, dst=dst, hlim=ttl, tc=tos)
        if six
        else inet.IP(src=src, dst=dst, ttl=ttl, tos=tos, id=1, flags="DF" if df else 0)
    )
    if kind == "tcp":
        built = packets.tcp(src, sport, dst, dport, flags, payload=payload, ttl=ttl, tos=tos, df=df)
        segment: Packet = inet.TCP(sport=sport, dport=dport, flags=flags, window=65535)
    else:
        built = packets.udp(src, sport, dst, dport, payload=payload, ttl=ttl, tos=tos, df=df)
        segment = inet.UDP(sport=sport, dport=dport)
    assert built == bytes(head / segment / payload)


def test_flags_by_letter() -> None:
    assert packets.tcp("10.0.0.1", 1, "10.0.0.2", 2, "SA") == packets.tcp(
        "10.0.0.1", 1, "10.0.0.2", 2, 0x12
    )
    assert packets.flow("10.0.0.1", 1, "10.0.0.2", 2).key.hex() == "0a0000010a00000200010002"
