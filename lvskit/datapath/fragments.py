"""Split a datagram that is larger than the path's MTU, as the host's IP output would.

Source: RFC 791 section 2.3. Only a datagram without DF may be split, or one that came in fragments.
"""

from __future__ import annotations

from lvskit.core.packet import checksum

_MORE = 0x20
_DF = 0x40


def fragment(packet: bytes, mtu: int) -> list[bytes]:
    """Return `packet`, an IPv4 datagram without options, as datagrams of at most `mtu` bytes.

    Example:
        >>> whole = bytes.fromhex("4500003000070000400400000a0000010a000002") + bytes(28)
        >>> [len(part) for part in fragment(whole, 40)]
        [36, 32]
    """
    if len(packet) <= mtu:
        return [packet]
    payload = packet[20:]
    step = (mtu - 20) // 8 * 8
    parts = []
    for start in range(0, len(payload), step):
        piece = payload[start : start + step]
        more = _MORE if start + step < len(payload) else 0
        offset = start // 8
        head = bytearray(packet[:20])
        head[2:4] = (20 + len(piece)).to_bytes(2, "big")
        head[6:8] = ((packet[6] & _DF | more) << 8 | offset).to_bytes(2, "big")
        head[10:12] = b"\0\0"
        head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
        parts.append(bytes(head) + piece)
    return parts
