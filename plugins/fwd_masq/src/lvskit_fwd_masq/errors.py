"""ICMP and ICMPv6 errors about translated packets: the error and what it quotes, rewritten.

Source: Linux net/netfilter/ipvs/ip_vs_core.c (ip_vs_nat_icmp, ip_vs_nat_icmp_v6), by behaviour.
"""

from __future__ import annotations

from typing import Final

from lvskit import checksum
from lvskit_fwd_masq.headers import pseudo, transport

ICMP: Final = 1
ICMPV6: Final = 58
_HEADER: Final = 8
_PORTS: Final = 4


def translate_error(
    packet: bytes, at: int, address: bytes, port: int, hops: int, *, inward: bool
) -> bytes | None:
    """Return the error as the other side knows its packets; None for a broken one.

    Checksums are computed anew, but for that of the quoted payload, which is seldom all there.

    Args:
        packet: an IPv4 or IPv6 datagram with an ICMP error at `at`.
        at: see there.
        address: of the server for what goes there, else the virtual one; packed.
        port: likewise.
        hops: taken off its TTL or hop limit.
        inward: the error is for the server, about a packet of its own; else for the client.
    """
    four = len(address) == 4
    raw, quote = bytearray(packet), at + _HEADER
    if _total(raw, at, four=four) or len(raw) < quote + (20 if four else 40):
        return None
    _, payload = transport(packet, quote)
    if raw[quote] >> 4 != packet[0] >> 4 or payload < quote + 20 or len(raw) < payload + _PORTS:
        return None
    source, target = (12, 16) if four else (8, 24)
    outer, inner = (target, source) if inward else (source, target)
    port_at = payload if inward else payload + 2
    raw[outer : outer + len(address)] = address
    raw[quote + inner : quote + inner + len(address)] = address
    raw[port_at : port_at + 2] = port.to_bytes(2, "big")
    if four:
        raw[8] -= hops
        _sum_header(raw, 0, at)
        _sum_header(raw, quote, payload)
    else:
        raw[7] -= hops
    raw[at + 2 : at + 4] = bytes(2)
    total = _total(raw, at, four=four)
    if not four:
        total = total or 0xFFFF  # as the kernel, and both are the same sum
    raw[at + 2 : at + 4] = total.to_bytes(2, "big")
    return bytes(raw)


def _total(raw: bytearray, at: int, *, four: bool) -> int:
    """Return the checksum of the ICMP message at `at`: 0 where it contains a right one."""
    return checksum(bytes(raw[at:]) if four else pseudo(raw, ICMPV6, at) + raw[at:])


def _sum_header(raw: bytearray, start: int, end: int) -> None:
    """Write the checksum of an IPv4 header."""
    raw[start + 10 : start + 12] = bytes(2)
    raw[start + 10 : start + 12] = checksum(bytes(raw[start:end])).to_bytes(2, "big")
