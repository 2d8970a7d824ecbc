"""Split a datagram that is larger than the path's MTU, as the host's IP output would.

Sources: RFC 791 section 2.3, RFC 8200 section 4.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from lvskit.checksums import checksum
from lvskit.datapath.extensions import FRAGMENT, behind_options
from lvskit.types import Reassembled

_MORE = 0x20
_DF = 0x40
_COPIED = 0x80  # the bit of an option's type: it belongs to every fragment
_END, _NOTHING = 0, 1
_LEAST_MTU_V6 = 1280  # RFC 8200


def split(packet: bytes, came: bytes, mtu: int, identifications: Iterator[int]) -> list[bytes]:
    """Return `packet` as it leaves by a path of `mtu` bytes; nothing where it may not be split.

    What came in fragments is split again, even with DF, and into none that are larger than those,
    unless it is now in a tunnel that is IPv6 or carries that. So is an IPv4 datagram without DF,
    and one in a tunnel that is IPv6, whatever it says: whoever made the tunnel has judged that.
    Source: Linux net/netfilter/ipvs/ip_vs_xmit.c (ip_vs_tunnel_xmit_v6), by behaviour.

    Args:
        packet: a whole datagram.
        came: what it was before the director looked at it; empty = the host's own.
        mtu: bytes.
        identifications: gives one for the fragments of an IPv6 datagram.
    """
    size, version, before = len(packet), packet[0] >> 4, came[0] >> 4 if came else 0
    pieces: tuple[int, ...] = ()
    if isinstance(came, Reassembled):
        if size == len(came) or (version == 4 and before == 4):
            mtu = min(mtu, came.largest)
        pieces = came.pieces if before == 6 else ()
    elif size > mtu and (packet[6] & _DF if version == 4 else before != 4):
        return []
    if size <= mtu:
        return [packet]
    if version == 4:
        return fragment(packet, mtu, pieces)
    identification = next(identifications) & 0xFFFFFFFF
    return fragment_v6(packet, max(mtu, _LEAST_MTU_V6), identification, pieces)


def fragment(packet: bytes, mtu: int, pieces: Sequence[int] = ()) -> list[bytes]:
    """Return `packet`, an IPv4 datagram, as datagrams of at most `mtu` bytes.

    Args:
        packet: the datagram.
        mtu: bytes; at least 28.
        pieces: of the payload as it came, which is split there again if that can be.

    Example:
        >>> whole = bytes.fromhex("4500003000070000400400000a0000010a000002") + bytes(28)
        >>> [len(part) for part in fragment(whole, 40)]
        [36, 32]
    """
    if len(packet) <= mtu:
        return [packet]
    size = (packet[0] & 15) * 4
    header, payload = bytearray(packet[:size]), packet[size:]
    parts = []
    for start, end in _cuts(len(payload), mtu - size, pieces):
        piece = payload[start:end]
        more = _MORE if end < len(payload) else 0
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


def _cuts(length: int, room: int, pieces: Sequence[int]) -> list[tuple[int, int]]:
    """Return where to split a payload: as it came, or in parts as large as there is room for.

    What has been put in front of the payload since it came is in the first part. Source: Linux
    net/ipv4/ip_output.c (ip_do_fragment) and net/ipv6/ip6_output.c (ip6_fragment), by behaviour.
    """
    if pieces:
        first = length - sum(pieces[1:])
        sizes = [first, *pieces[1:]]
        if max(sizes) <= room and not any(size % 8 for size in sizes[:-1]):
            ends = list(accumulate(sizes))
            return list(zip([0, *ends], ends, strict=False))
    step = room // 8 * 8
    if step <= 0:
        return []  # the headers alone are too much
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def fragment_v6(
    packet: bytes, mtu: int, identification: int, pieces: Sequence[int] = ()
) -> list[bytes]:
    """Return an IPv6 datagram as fragments (RFC 8200 section 4.5).

    Args:
        packet: the datagram.
        mtu: bytes.
        identification: of all fragments.
        pieces: see `fragment`.

    >>> whole = bytes((0x60, 0, 0, 0, 0, 64, 4, 64)) + bytes(32 + 64)
    >>> [len(part) for part in fragment_v6(whole, 80, 1)]
    [80, 80]
    """
    named, size = behind_options(packet, repeated=True)
    head, payload = bytearray(packet[:size]), packet[size:]
    head[named] = FRAGMENT
    parts = []
    for start, end in _cuts(len(payload), mtu - size - 8, pieces):
        offset = start | (end < len(payload))  # in units of 8 bytes, above three bits
        header = bytes((packet[named], 0)) + offset.to_bytes(2, "big")
        header += identification.to_bytes(4, "big")
        head[4:6] = (size - 40 + 8 + end - start).to_bytes(2, "big")
        parts.append(bytes(head) + header + payload[start:end])
    return parts
