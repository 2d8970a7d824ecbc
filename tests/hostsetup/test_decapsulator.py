"""What comes out of the tunnel, packet by packet; scapy is the oracle."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from lvskit.hostsetup.decapsulator import inner_packet

VIP, VIP6 = "192.168.1.176", "2001:db8::176"
VIPS = frozenset({socket.inet_aton(VIP), socket.inet_pton(socket.AF_INET6, VIP6)})


def ipv4(payload: Packet, **fields: object) -> Packet:
    return IP(src="10.0.0.1", dst=VIP, **fields) / payload


def ipv6(payload: Packet, **fields: object) -> Packet:
    return IPv6(src="2001:db8::1", dst=VIP6, **fields) / payload


def pseudo_sum(packet: bytes, protocol: int) -> int:
    """Return what a kernel leaves in the checksum field for the card to finish."""
    addresses, header = (packet[12:20], 20) if packet[0] >> 4 == 4 else (packet[8:40], 40)
    words = [int.from_bytes(addresses[n : n + 2], "big") for n in range(0, len(addresses), 2)]
    total = sum(words) + protocol + len(packet) - header
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("size", [0, 1, 2, 1399, 40_001])
@pytest.mark.parametrize("ip", [ipv4, ipv6])
@pytest.mark.parametrize(("layer", "protocol", "offset"), [(TCP, 6, 16), (UDP, 17, 6)])
def test_an_unfinished_checksum_is_finished(size, ip, layer, protocol, offset):
    payload = (bytes(range(256)) * (size // 256 + 1))[:size]
    whole = bytes(ip(layer(sport=1024, dport=80) / Raw(payload)))
    place = (20 if whole[0] >> 4 == 4 else 40) + offset
    partial = pseudo_sum(whole, protocol).to_bytes(2, "big")
    unfinished = whole[:place] + partial + whole[place + 2 :]
    assert inner_packet(unfinished, VIPS, 0) == whole


@pytest.mark.parametrize("ip", [ipv4, ipv6])
def test_a_finished_or_wrong_checksum_is_left_alone(ip):
    for packet in (ip(TCP() / b"abc"), ip(TCP(chksum=0x1234) / b"abc"), ip(UDP(chksum=0) / b"x")):
        assert inner_packet(bytes(packet), VIPS, 0) == bytes(packet)


def test_fragments_are_left_alone():
    first = bytes(ipv4(UDP() / (b"x" * 64), flags="MF"))
    partial = first[:26] + pseudo_sum(first, 17).to_bytes(2, "big") + first[28:]
    assert inner_packet(partial, VIPS, 0) == partial
    later = bytes(ipv4(Raw(b"x" * 64), frag=8, proto=17))
    assert inner_packet(later, VIPS, 0) == later


def test_only_packets_for_the_vips_come_out():
    assert inner_packet(bytes(IP(dst="192.168.1.11") / UDP()), VIPS, 0) is None
    assert inner_packet(bytes(IPv6(dst="2001:db8::11") / UDP()), VIPS, 0) is None
    assert inner_packet(bytes(ipv4(UDP())), frozenset(), 0) is None


@pytest.mark.parametrize("packet", [b"", b"E", b"\x45" * 19, b"\x60" * 39, bytes(60), b"\xff" * 60])
def test_rubbish_does_not(packet):
    assert inner_packet(packet, VIPS, 0) is None


@pytest.mark.parametrize("make", [ipv4, ipv6])
def test_no_prefix_of_a_packet_raises(make):
    packet = bytes(make(TCP() / b"payload"))
    for size in range(len(packet)):
        inner_packet(packet[:size], VIPS, 3)


@pytest.mark.parametrize("make", [ipv4, ipv6])
def test_bytes_behind_the_end_are_cut_off(make):
    packet = bytes(make(UDP() / b"x"))
    assert inner_packet(packet + bytes(9), VIPS, 0) == packet


@pytest.mark.parametrize(("make", "field"), [(ipv4, "tos"), (ipv6, "tc")])
@pytest.mark.parametrize("dscp", [0, 0xB8])
def test_congestion_marks_go_inside(make, field, dscp):
    # RFC 6040 section 4.2, figure 4: outer, inner, outcome.
    for outer in range(4):
        for inner in range(4):
            packet = bytes(make(UDP() / b"x", **{field: dscp | inner}))
            outcome = None if outer == 3 and inner == 0 else 3 if outer == 3 else inner
            expected = (
                None if outcome is None else bytes(make(UDP() / b"x", **{field: dscp | outcome}))
            )
            assert inner_packet(packet, VIPS, outer) == expected


@pytest.mark.parametrize("length", [0, 10, 19, 23])
def test_a_header_that_is_longer_than_its_packet_is_no_packet(length):
    packet = bytes(ipv4(Raw(b"x" * 20), ihl=6, len=length, proto=6))
    for ecn in (0, 3):
        assert inner_packet(packet, VIPS, ecn) is None
