"""ICMP errors against scapy: what is sent is well-formed, what is received is understood."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import inet, inet6
from scapy.utils import checksum

from lvskit import TCP, UDP, Flow, Reason, Refusal, refuse
from lvskit.core.icmp import read_error
from lvskit.core.packet import parse, parse_quoted
from lvskit.testing import packets

# What RFC 792, RFC 1812 and RFC 4443 number them, and the reason that the verdict gives.
WANTED = {
    Refusal.PORT_UNREACHABLE: ((3, 3), (1, 4), Reason.NO_SERVER),
    Refusal.HOST_UNREACHABLE: ((3, 1), (1, 3), Reason.SERVER_UNREACHABLE),
    Refusal.PROTOCOL_UNREACHABLE: ((3, 2), (4, 1), Reason.NO_SERVER),
    Refusal.TOO_BIG: ((3, 4), (2, 0), Reason.TOO_BIG),
    Refusal.TIME_EXCEEDED: ((11, 0), (3, 0), Reason.TTL_EXCEEDED),
}
LENGTHS = st.integers(0, 3000) | st.sampled_from([519, 520, 521, 1183, 1184, 1185])


@given(
    st.sampled_from(Refusal),
    LENGTHS,
    st.binary(max_size=10),
    st.sampled_from([0, 68, 1280, 1480, 65535]),
    st.integers(0, 255),
)
def test_ipv4_errors(refusal: Refusal, length: int, options: bytes, mtu: int, tos: int) -> None:
    """The TOS is that of internetwork control, and what RFC 1349 calls the type of service."""
    options += bytes(-len(options) % 4)
    refused = packets.ip("10.0.0.9", "192.168.1.176", UDP, bytes(length), tos=tos, options=options)
    reply = refuse(refused, refusal, mtu=mtu)
    found = inet.IP(reply.packet)
    kind, code = WANTED[refusal][0]
    assert reply.reason is WANTED[refusal][2]
    assert (found.src, found.dst) == ("192.168.1.176", "10.0.0.9")
    assert (found.version, found.ihl, found.ttl, found.proto) == (4, 5, 64, 1)
    assert found.tos == 0xC0 | tos & 0x1E
    assert (int(found.flags), found.frag) == (0, 0)
    assert (found[inet.ICMP].type, found[inet.ICMP].code) == (kind, code)
    if refusal is Refusal.TOO_BIG:
        assert found[inet.ICMP].nexthopmtu == mtu
    assert found.len == len(reply.packet) == min(576, 28 + len(refused))
    assert reply.packet[28:] == refused[:548]
    # Over the bytes as they are: built again from its fields, a cut quote would change.
    assert checksum(reply.packet[:20]) == checksum(reply.packet[20:]) == 0


@given(st.sampled_from(Refusal), LENGTHS, st.sampled_from([0, 1280, 1460, 65535]))
def test_ipv6_errors(refusal: Refusal, length: int, mtu: int) -> None:
    refused = packets.ip("2001:db8::9", "2001:db8::176", UDP, bytes(length), tos=0x28)
    reply = refuse(refused, refusal, mtu=mtu)
    found = inet6.IPv6(reply.packet)
    kind, code = WANTED[refusal][1]
    body = found.payload
    assert reply.reason is WANTED[refusal][2]
    assert (found.src, found.dst) == ("2001:db8::176", "2001:db8::9")
    assert (found.version, found.tc, found.fl, found.nh, found.hlim) == (6, 0, 0, 58, 64)
    assert (body.type, body.code) == (kind, code)
    if refusal is Refusal.TOO_BIG:
        assert body.mtu == mtu
    assert 40 + found.plen == len(reply.packet) == min(1280, 48 + len(refused))
    assert reply.packet[48:] == refused[:1232]
    # Over the bytes as they are: built again from its fields, a cut quote would change.
    assert inet6.in6_chksum(58, found, bytes(reply.packet[40:])) == 0


# --- errors that arrive ---

CLIENT, VIP = "10.0.0.1", "192.168.1.176"
CLIENT6, VIP6 = "2001:db8:1::1", "2001:db8::176"


def flow_of(raw: bytes) -> Flow | None:
    parsed = parse(raw)
    assert parsed is not None
    error = read_error(raw, parsed)
    quoted = None if error is None else parse_quoted(error.quote)
    return None if quoted is None else quoted.reversed().flow


@pytest.mark.parametrize("kind", range(20))
def test_the_ipv4_errors_that_are_relayed(kind: int) -> None:
    reply = packets.tcp(VIP, 80, CLIENT, 1024, "A")
    raw = bytes(inet.IP(src="10.9.9.9", dst=VIP) / inet.ICMP(type=kind) / reply[:28])
    wanted = packets.flow(CLIENT, 1024, VIP, 80) if kind in (3, 4, 11) else None
    assert flow_of(raw) == wanted


@pytest.mark.parametrize(
    "error",
    [
        inet6.ICMPv6DestUnreach(),
        inet6.ICMPv6PacketTooBig(),
        inet6.ICMPv6TimeExceeded(),
        inet6.ICMPv6ParamProblem(),
    ],
)
def test_the_ipv6_errors_that_are_relayed(error: Any) -> None:
    reply = packets.udp(VIP6, 53, CLIENT6, 1024)
    raw = bytes(inet6.IPv6(src="2001:db8:9::9", dst=VIP6) / error / reply)
    assert flow_of(raw) == packets.flow(CLIENT6, 1024, VIP6, 53, UDP)


@pytest.mark.parametrize("kind", [0, 5, 100, 127, 128, 129, 133, 135, 137])
def test_of_other_icmpv6_the_errors_are_told_by_their_number(kind: int) -> None:
    raw = packets.icmp_error(CLIENT6, VIP6, kind, 0, packets.udp(VIP6, 53, CLIENT6, 1024))
    assert (flow_of(raw) is not None) == (kind < 128)


@given(st.integers(0, 48))
def test_a_quote_must_reach_the_ports(length: int) -> None:
    reply = packets.tcp(VIP, 80, CLIENT, 1024, "A")
    found = flow_of(packets.icmp_error(CLIENT, VIP, 3, 4, reply[:length], rest=1300))
    assert (found is not None) == (length >= 24)


@pytest.mark.parametrize("length", range(8))
def test_an_icmp_header_cut_short(length: int) -> None:
    assert flow_of(packets.ip(CLIENT, VIP, 1, bytes((3, 4, 0, 0, 0, 0, 0, 0))[:length])) is None


def test_a_fragment_of_an_error_says_nothing() -> None:
    error = packets.icmp_error(CLIENT, VIP, 3, 4, packets.tcp(VIP, 80, CLIENT, 1024, "A"))
    assert flow_of(packets.ip(CLIENT, VIP, 1, error[20:])) is not None
    assert flow_of(packets.ip(CLIENT, VIP, 1, error[20:], more=True)) is None


def test_the_builder_of_errors_builds_what_scapy_builds() -> None:
    quote = packets.tcp(VIP, 80, CLIENT, 1024, "A")
    four = (
        inet.IP(src=CLIENT, dst=VIP, id=1, flags="DF")
        / inet.ICMP(type=3, code=4, nexthopmtu=1300)
        / quote
    )
    assert packets.icmp_error(CLIENT, VIP, 3, 4, quote, rest=1300) == bytes(four)
    quote = packets.udp(VIP6, 53, CLIENT6, 1024)
    six = inet6.IPv6(src=CLIENT6, dst=VIP6) / inet6.ICMPv6PacketTooBig(mtu=1400) / quote
    assert packets.icmp_error(CLIENT6, VIP6, 2, 0, quote, rest=1400) == bytes(six)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_an_error_of_ours_quotes_enough_to_be_relayed_by_the_next_director(protocol: int) -> None:
    make = packets.tcp if protocol == TCP else packets.udp
    reply = refuse(make(VIP, 80, CLIENT, 1024), Refusal.PORT_UNREACHABLE)
    assert inet.UDPerror in inet.IP(reply.packet) or protocol == TCP
    assert flow_of(reply.packet) == packets.flow(CLIENT, 1024, VIP, 80, protocol)
