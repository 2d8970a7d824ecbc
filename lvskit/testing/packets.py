"""Build packets for tests, from text addresses and a few numbers; nothing is ever parsed here.

A packet is one IPv4 or IPv6 datagram from its first header byte, with right checksums, as
`Director.receive` takes it. Which IP version it is follows from the addresses.

>>> tcp("10.0.0.1", 1024, "192.168.1.176", 80, "S").hex()[:40]
'450000280001400040066e760a000001c0a801b0'
"""

from __future__ import annotations

import ipaddress

from lvskit import TCP, UDP, Flow, checksum
from lvskit.types import ICMP, ICMPV6

FLAGS = {"F": 0x01, "S": 0x02, "R": 0x04, "P": 0x08, "A": 0x10, "U": 0x20, "E": 0x40, "C": 0x80}
"""TCP flags by letter, as tcpdump and scapy name them."""


def address(text: str | bytes) -> bytes:
    """Return an address packed: 4 or 16 bytes in network order.

    >>> address("10.0.0.1").hex()
    '0a000001'
    """
    return text if isinstance(text, bytes) else ipaddress.ip_address(text).packed


def flow(
    client: str | bytes, cport: int, virtual: str | bytes, vport: int, protocol: int = TCP
) -> Flow:
    """Return the flow of a client's packets."""
    return Flow(protocol, address(client), cport, address(virtual), vport)


def tcp(
    src: str | bytes,
    sport: int,
    dst: str | bytes,
    dport: int,
    flags: str | int = "S",
    *,
    payload: bytes = b"",
    ttl: int = 64,
    tos: int = 0,
    df: bool = True,
) -> bytes:
    """Return a TCP segment in its datagram.

    Args:
        src, dst: addresses, as text or packed.
        sport, dport: ports.
        flags: letters out of `FLAGS`, or the flags byte itself.
        payload: what follows the header.
        ttl: time to live, or hop limit.
        tos: type of service, or traffic class.
        df: don't fragment; IPv6 has no such bit.
    """
    bits = flags if isinstance(flags, int) else sum(FLAGS[letter] for letter in flags)
    header = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes(8)
    header += bytes((0x50, bits)) + (65535).to_bytes(2, "big") + bytes(4)
    body = _summed(src, dst, TCP, header + payload, 16)
    return ip(src, dst, TCP, body, ttl=ttl, tos=tos, df=df)


def udp(
    src: str | bytes,
    sport: int,
    dst: str | bytes,
    dport: int,
    *,
    payload: bytes = b"",
    ttl: int = 64,
    tos: int = 0,
    df: bool = True,
) -> bytes:
    """Return a UDP datagram in its IP datagram; arguments as for `tcp`."""
    header = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    header += (8 + len(payload)).to_bytes(2, "big") + bytes(2)
    body = _summed(src, dst, UDP, header + payload, 6)
    return ip(src, dst, UDP, body, ttl=ttl, tos=tos, df=df)


def icmp_error(
    src: str | bytes, dst: str | bytes, kind: int, code: int, quote: bytes, *, rest: int = 0
) -> bytes:
    """Return an ICMP error, or an ICMPv6 one.

    Args:
        src, dst: of the error itself; the IP version is theirs.
        kind, code: what it says: (3, 4) is "fragmentation needed", (2, 0) its IPv6 twin.
        quote: the packet that it is about, or its beginning.
        rest: the second four bytes of its header, where an MTU stands.
    """
    body = bytes((kind, code, 0, 0)) + rest.to_bytes(4, "big") + quote
    if len(address(src)) == 16:
        return ip(src, dst, ICMPV6, _summed(src, dst, ICMPV6, body, 2))
    body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
    return ip(src, dst, ICMP, body)


def ip(
    src: str | bytes,
    dst: str | bytes,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    tos: int = 0,
    df: bool = True,
    more: bool = False,
    offset: int = 0,
    identification: int = 1,
    options: bytes = b"",
) -> bytes:
    """Return an IP datagram around `payload`.

    Args:
        src, dst: addresses, as text or packed, both of one version.
        protocol: number of the payload's protocol.
        payload: what follows the header; for IPv6 it may begin with extension headers.
        ttl: time to live, or hop limit.
        tos: type of service, or traffic class.
        df: don't fragment. This and the rest is for IPv4 alone.
        more: it is a fragment, and not the last one.
        offset: where the fragment belongs, in units of 8 bytes.
        identification: what the fragments of a datagram have in common.
        options: of the IPv4 header, a multiple of 4 bytes.
    """
    source, target = address(src), address(dst)
    if len(source) == 16:
        head = (6 << 28 | tos << 20).to_bytes(4, "big") + len(payload).to_bytes(2, "big")
        return head + bytes((protocol, ttl)) + source + target + payload
    size = 20 + len(options)
    word = df << 14 | more << 13 | offset
    head = bytes((0x40 | size // 4, tos)) + (size + len(payload)).to_bytes(2, "big")
    head += identification.to_bytes(2, "big") + word.to_bytes(2, "big")
    head += bytes((ttl, protocol, 0, 0)) + source + target + options
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def _summed(src: str | bytes, dst: str | bytes, protocol: int, body: bytes, position: int) -> bytes:
    """Return `body`, a transport header and payload, with its checksum at `position`."""
    source, target = address(src), address(dst)
    if len(source) == 4:
        pseudo = source + target + bytes((0, protocol)) + len(body).to_bytes(2, "big")
    else:
        pseudo = source + target + len(body).to_bytes(4, "big") + bytes((0, 0, 0, protocol))
    total = checksum(pseudo + body)
    if protocol == UDP and total == 0:
        total = 0xFFFF  # RFC 768: a sent 0 says that there is no checksum
    return body[:position] + total.to_bytes(2, "big") + body[position + 2 :]
