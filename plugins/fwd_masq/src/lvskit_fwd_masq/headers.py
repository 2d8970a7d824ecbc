"""Addresses and ports of a packet rewritten, and its checksums with them.

Sources: RFC 1624; Linux net/netfilter/ipvs/ip_vs_proto_tcp.c, ip_vs_proto_udp.c and
ip_vs_proto_sctp.c, by behaviour: the checksums of TCP and UDP are adjusted, so that a wrong one
stays wrong; a UDP datagram without one gets one; that of SCTP, which covers no addresses, is
computed anew where the port changes.
"""

from __future__ import annotations

from typing import Final

from lvskit import SCTP, TCP, UDP, checksum
from lvskit_fwd_masq.crc32c import crc32c

DF: Final = 0x40
_CHECKSUMS: Final = {TCP: 16, UDP: 6}  # where they stand in their headers
LEAST: Final = {TCP: 20, UDP: 8, SCTP: 12}
"""How long their headers are at least: what is cut short cannot be rewritten."""
_AUTHENTICATION: Final = 51
_FRAGMENT: Final = 44
_EXTENSIONS: Final = frozenset({0, 43, _FRAGMENT, _AUTHENTICATION, 60, 135})


def transport(packet: bytes, start: int = 0) -> tuple[int, int]:
    """Return protocol and position of the payload of the datagram that begins at `start`.

    IPv6 extension headers are no payload. The position may lie beyond the end of the packet.
    """
    if packet[start] >> 4 == 4:
        return packet[start + 9], start + (packet[start] & 15) * 4
    protocol, at = packet[start + 6], start + 40
    while protocol in _EXTENSIONS and at + 2 <= len(packet):
        if protocol == _FRAGMENT:
            size = 8
        elif protocol == _AUTHENTICATION:  # RFC 4302: in units of 4 bytes, less two
            size = (packet[at + 1] + 2) * 4
        else:  # RFC 8200: in units of 8 bytes, less one
            size = (packet[at + 1] + 1) * 8
        protocol, at = packet[at], at + size
    return protocol, at


def one_hop_less(packet: bytes) -> bytes:
    """Return a packet with its TTL or hop limit decremented."""
    if packet[0] >> 4 == 6:
        return b"%b%c%b" % (packet[:7], packet[7] - 1, packet[8:])
    total = ((packet[10] << 8 | packet[11]) + 0x100) % 0xFFFF
    head = b"%b%c%c%b" % (packet[:8], packet[8] - 1, packet[9], total.to_bytes(2, "big"))
    return head + packet[12:]


def translate(
    packet: bytes,
    protocol: int,
    at: int,
    address_at: int,
    address: bytes,
    port_at: int,
    port: int,
    hops: int,
) -> bytes:
    """Return a TCP, UDP or SCTP packet with another address and port.

    Args:
        packet: an IPv4 or IPv6 datagram.
        protocol: of its payload, which begins at `at`.
        at: see there.
        address_at: where the address stands that `address` replaces.
        address: packed.
        port_at: where the port stands that `port` replaces.
        port: 0 to 65535.
        hops: taken off its TTL or hop limit.
    """
    raw = bytearray(packet)
    end = address_at + len(address)
    # A sum of 16-bit words with end-around carry is a remainder modulo 0xffff, so addresses are
    # subtracted as the numbers that they are.
    change = int.from_bytes(raw[address_at:end], "big") - int.from_bytes(address, "big")
    raw[address_at:end] = address
    if end <= 20:  # IPv4; a word less 0x100 is a sum more 0x100
        total = ((raw[10] << 8 | raw[11]) + change + (hops << 8)) % 0xFFFF
        raw[8] -= hops
        raw[10:12] = total.to_bytes(2, "big")
    else:
        raw[7] -= hops
    before = raw[port_at] << 8 | raw[port_at + 1]
    raw[port_at : port_at + 2] = port.to_bytes(2, "big")
    if protocol == SCTP:
        if port != before:
            raw[at + 8 : at + 12] = bytes(4)
            raw[at + 8 : at + 12] = crc32c(raw[at:]).to_bytes(4, "little")
        return bytes(raw)
    where = at + _CHECKSUMS[protocol]
    total = raw[where] << 8 | raw[where + 1]
    if protocol == TCP:
        total = (total + change + before - port) % 0xFFFF
    elif total:
        total = (total + change + before - port) % 0xFFFF or 0xFFFF
    else:
        total = checksum(pseudo(raw, UDP, at) + raw[at:]) or 0xFFFF
    raw[where : where + 2] = total.to_bytes(2, "big")
    return bytes(raw)


def pseudo(raw: bytes | bytearray, protocol: int, at: int) -> bytes:
    """Return what a checksum covers besides the payload at `at`, in two bytes less for IPv6."""
    addresses = raw[12:20] if raw[0] >> 4 == 4 else raw[8:40]
    return bytes(addresses) + bytes((0, protocol)) + (len(raw) - at).to_bytes(2, "big")
