"""Split a datagram that is larger than the path's MTU, as the host's IP output would.

Source: RFC 791 section 2.3. Only a datagram without DF may be split, or one that came in fragments.
"""

from __future__ import annotations

from lvskit.core.packet import checksum

_MORE = 0x20
_FRAGMENT_HEADER = 44
_DF = 0x40
_COPIED = 0x80  # the bit of an option's type: it belongs to every fragment
_END, _NOTHING = 0, 1


def fragment(packet: bytes, mtu: int) -> list[bytes]:
    """Return `packet`, an IPv4 datagram, as datagrams of at most `mtu` bytes.

    Example:
        >>> whole = bytes.fromhex("4500003000070000400400000a0000010a000002") + bytes(28)
        >>> [len(part) for part in fragment(whole, 40)]
        [36, 32]
    """
    if len(packet) <= mtu:
        return [packet]
    size = (packet[0] & 15) * 4
    header, payload = bytearray(packet[:size]), packet[size:]
    step = max((mtu - size) // 8 * 8, 8)
    parts = []
    for start in range(0, len(payload), step):
        piece = payload[start : start + step]
        more = _MORE if start + step < len(payload) else 0
        offset = start // 8
        header[2:4] = (size + len(piece)).to_bytes(2, "big")
        header[6:8] = ((packet[6] & _DF | more) << 8 | offset).to_bytes(2, "big")
        header[10:12] = b"\0\0"
        header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
        parts.append(bytes(header) + piece)
        if not start:
            _blank_options(header)
    return parts


def _blank_options(header: bytearray) -> None:
    """Take away what only the first fragment has; the length stays (ip_options_fragment)."""
    at = 20
    while at < len(header) and header[at] != _END:
        size = 1
        if header[at] != _NOTHING and at + 1 < len(header):
            size = max(header[at + 1], 1)
        if not header[at] & _COPIED:
            end = min(at + size, len(header))
            header[at:end] = bytes((_NOTHING,)) * (end - at)
        at += size


def fragment_v6(packet: bytes, mtu: int, identification: int) -> list[bytes]:
    """Return an IPv6 datagram without extension headers as fragments (RFC 8200 section 4.5).

    >>> whole = bytes((0x60, 0, 0, 0, 0, 64, 4, 64)) + bytes(32 + 64)
    >>> [len(part) for part in fragment_v6(whole, 80, 1)]
    [80, 80]
    """
    payload = packet[40:]
    step = (mtu - 48) // 8 * 8
    parts = []
    for start in range(0, len(payload), step):
        piece = payload[start : start + step]
        offset = start | (start + step < len(payload))  # in units of 8 bytes, above three bits
        header = bytes((packet[6], 0)) + offset.to_bytes(2, "big")
        header += identification.to_bytes(4, "big")
        length = (8 + len(piece)).to_bytes(2, "big")
        parts.append(
            packet[:4] + length + bytes((_FRAGMENT_HEADER,)) + packet[7:40] + header + piece
        )
    return parts
