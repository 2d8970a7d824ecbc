"""The same for the packets that nearly all are: TCP and UDP in IPv4 without options.

One unpacking, one packing, a third of the time; what is anything else is left to `headers`.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from lvskit import TCP, UDP
from lvskit_fwd_masq.headers import LEAST

# Front, TTL, protocol, header checksum, source, target, source port, target port, what lies
# between, checksum.
_INWARD: Final = {TCP: Struct("!8sBBH4sI2sH12sH"), UDP: Struct("!8sBBH4sI2sH2sH")}
# Front, header checksum, source, target, source port, what lies between, checksum.
_OUTWARD: Final = {TCP: Struct("!10sHI4sH14sH"), UDP: Struct("!10sHI4sH4sH")}


def to_server(packet: bytes, address: int, port: int, hops: int) -> bytes | None:
    """Return the packet with another destination; None where it is not of the usual kind.

    Args:
        packet: one datagram.
        address: the server's IPv4 address as a number.
        port: the server's.
        hops: taken off its TTL, which must be larger.
    """
    layout = _INWARD.get(packet[9]) if packet[0] == 0x45 else None
    if layout is None or len(packet) < LEAST[packet[9]] + 20:
        return None
    front, ttl, protocol, total, source, target, sport, dport, between, check = layout.unpack_from(
        packet
    )
    if ttl <= hops or (protocol == UDP and not check):
        return None
    change = target - address
    total = (total + change + (hops << 8)) % 0xFFFF
    check = (check + change + dport - port) % 0xFFFF
    if protocol == UDP and not check:
        check = 0xFFFF
    head = layout.pack(
        front, ttl - hops, protocol, total, source, address, sport, port, between, check
    )
    return head + packet[layout.size :]


def to_client(packet: bytes, address: int, port: int) -> bytes | None:
    """Return the packet with another source; None where it is not of the usual kind.

    Args:
        packet: one datagram.
        address: the virtual IPv4 address as a number.
        port: the virtual one.
    """
    layout = _OUTWARD.get(packet[9]) if packet[0] == 0x45 else None
    if layout is None or len(packet) < LEAST[packet[9]] + 20:
        return None
    front, total, source, target, sport, between, check = layout.unpack_from(packet)
    datagram = packet[9] == UDP
    if datagram and not check:
        return None
    change = source - address
    total = (total + change) % 0xFFFF
    check = (check + change + sport - port) % 0xFFFF
    if datagram and not check:
        check = 0xFFFF
    head = layout.pack(front, total, address, target, port, between, check)
    return head + packet[layout.size :]
