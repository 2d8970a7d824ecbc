"""Judge emitted packets by scapy: they parse, and lengths and checksums are right."""

from __future__ import annotations

from scapy.config import conf
from scapy.layers import inet, inet6, l2
from scapy.layers.sctp import crc32c
from scapy.packet import Packet
from scapy.utils import checksum

conf.debug_dissector = False  # a client's payload may be any junk

ICMP, IPIP, TCP, UDP, IPV6_IN_IP, GRE, ICMPV6, SCTP = 1, 4, 6, 17, 41, 47, 58, 132
_GUE_HEADER = 4
_EXTENSIONS = (
    inet6.IPv6ExtHdrHopByHop,
    inet6.IPv6ExtHdrRouting,
    inet6.IPv6ExtHdrDestOpt,
    inet6.IPv6ExtHdrFragment,
)


def check(packet: bytes, *, sound: bool, wrapped: bytes = b"") -> None:
    """Assert that `packet` is as a host may send it.

    Args:
        packet: one datagram.
        sound: what came in, of which this was made, was right down to its last checksum; if not,
            what is carried on may be as wrong as it came.
        wrapped: the address of whoever wrapped it, if it is wrapped: the outer header is right
            whatever it carries.
    """
    version = packet[0] >> 4
    assert version in (4, 6), packet[:64].hex()
    ip = inet.IP(packet) if version == 4 else inet6.IPv6(packet)
    outside = bool(wrapped) and _source(packet) == wrapped
    if version == 4:
        assert ip.len == len(packet), packet[:64].hex()
        assert ip.ihl >= 5
        if sound or outside:
            assert checksum(packet[: ip.ihl * 4]) == 0, packet[:64].hex()
        if ip.frag or "MF" in ip.flags:
            return
        protocol, body = ip.proto, packet[ip.ihl * 4 :]
    else:
        assert ip.plen + 40 == len(packet), packet[:64].hex()
        protocol, body, fragment = _behind_extensions(packet)
        if fragment:
            return
    if outside:
        _check_carried(protocol, body, ip, sound=sound)
    elif sound:
        _check_transport(protocol, body, ip, sound=sound)


def check_error(packet: bytes, *, sound: bool) -> None:
    """Assert that `packet` is an ICMP error of our own making, right whatever it quotes.

    Args:
        packet: one datagram.
        sound: what it quotes was right.
    """
    check(packet, sound=False)
    ip: Packet = inet.IP(packet) if packet[0] >> 4 == 4 else inet6.IPv6(packet)
    if ip.version == 4:
        assert checksum(packet[:20]) == 0
        assert ip.proto == ICMP
        assert len(packet) <= 576
        _check_transport(ICMP, packet[20:], ip, sound=sound)
        assert packet[20] in (3, 4, 11)
    else:
        assert ip.nh == ICMPV6
        assert len(packet) <= 1280
        _check_transport(ICMPV6, packet[40:], ip, sound=sound)
        assert packet[40] in (1, 2, 3, 4)


def _source(packet: bytes) -> bytes:
    return packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]


def _behind_extensions(packet: bytes) -> tuple[int, bytes, bool]:
    """Return the payload's protocol, the payload, and whether it is part of a fragment."""
    protocol, at = packet[6], 40
    while protocol in (0, 43, 44, 51, 60, 135) and at + 8 <= len(packet):
        if protocol == 44 and int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF9:
            return packet[at], packet[at + 8 :], True
        size = {44: 8, 51: (packet[at + 1] + 2) * 4}.get(protocol, (packet[at + 1] + 1) * 8)
        protocol, at = packet[at], at + size
    return protocol, packet[at:], False


def _check_carried(protocol: int, body: bytes, ip: Packet, *, sound: bool) -> None:
    """Assert that what a tunnel carries is whole."""
    if protocol == GRE:
        header = l2.GRE(body)
        size = 4 + 4 * (header.chksum_present or header.routing_present)
        size += 4 * header.key_present + 4 * header.seqnum_present
        assert header.proto in (0x0800, 0x86DD)
        assert not header.chksum_present or checksum(body) == 0
        body = body[size:]
    elif protocol == UDP:  # GUE, draft-ietf-intarea-gue
        header = inet.UDP(body)
        assert header.len == len(body)
        assert not header.chksum or _sum(UDP, body, ip) == 0
        assert body[8] >> 6 == 0, "version"
        body = body[8 + _GUE_HEADER + (body[8] & 31) * 4 :]
    else:
        assert protocol in (IPIP, IPV6_IN_IP)
        assert body[0] >> 4 == (4 if protocol == IPIP else 6)
    check(body, sound=sound)


def _check_transport(protocol: int, body: bytes, ip: Packet, *, sound: bool) -> None:
    if protocol == TCP:
        assert _sum(TCP, body, ip) == 0, body[:64].hex()
        assert inet.TCP(body).dataofs >= 5
    elif protocol == UDP:
        header = inet.UDP(body)
        assert header.len == len(body)
        if header.chksum or ip.version == 6:
            assert _sum(UDP, body, ip) == 0, body[:64].hex()
    elif protocol == ICMP:
        assert checksum(body) == 0, body[:64].hex()
        if sound and body[0] in (3, 4, 11) and len(body) >= 28:
            assert checksum(body[8 : 8 + (body[8] & 15) * 4]) == 0, "of the quoted header"
    elif protocol == ICMPV6:
        assert _sum(ICMPV6, body, ip) == 0, body[:64].hex()
    elif protocol == SCTP:
        assert crc32c(body[:8] + bytes(4) + body[12:]) == int.from_bytes(body[8:12], "big")


def _sum(protocol: int, body: bytes, ip: Packet) -> int:
    """Return the checksum of a transport datagram with its pseudo header; 0 if it is right."""
    if ip.version == 4:
        total: int = inet.in4_chksum(protocol, ip, body)
    else:
        total = inet6.in6_chksum(protocol, inet6.IPv6(src=ip.src, dst=ip.dst), body)
    return total
