"""Parse IPv4 and IPv6 datagrams from bytes, with bounds on every field.

Sources: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260. Header checksums are the host's business:
by the time a datapath hands a packet over, its IP stack has checked them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lvskit.core import states
from lvskit.types import SCTP, TCP, UDP, Flow, RelatedFlow

FRAGMENT_HEADER: Final = 44
_EXTENSIONS: Final = frozenset({0, 43, FRAGMENT_HEADER, 51, 60, 135})
_MAX_EXTENSIONS: Final = 8
_TRANSPORT_MINIMUM: Final = {TCP: 20, UDP: 8, SCTP: 12}


class Parsed(NamedTuple):
    """The fields of a datagram that the director looks at.

    Attributes:
        version: 4 or 6.
        protocol: of the payload, after IPv6 extension headers.
        src, dst: packed addresses.
        offset: where the payload begins.
        length: of the whole datagram by its header; never more than there are bytes.
        fragment: it is part of a larger datagram.
        sport, dport: ports of TCP, UDP and SCTP, else 0.
        flags: what moves the state (`states`): TCP's flags byte, SCTP's chunk type, else 0;
            `states.CUT_SHORT` where the transport header is not whole.
        key: of the client's connection, if a client sent it; see `Flow.key`.
        related: it stands for one that an ICMP error about the answer is about.
    """

    version: int
    protocol: int
    src: bytes
    dst: bytes
    offset: int
    length: int
    fragment: bool
    sport: int = 0
    dport: int = 0
    flags: int = 0
    key: bytes = b""
    related: bool = False

    @property
    def flow(self) -> Flow:
        """The connection that a client's packet belongs to."""
        kind = RelatedFlow if self.related else Flow
        return kind(self.protocol, self.src, self.sport, self.dst, self.dport)

    def reversed(self) -> Parsed:
        """The fields that a packet the other way would have."""
        key = self.dst + self.src + self.key[-2:] + self.key[-4:-2]
        src, dst, sport, dport = self.dst, self.src, self.dport, self.sport
        return self._replace(src=src, dst=dst, sport=sport, dport=dport, key=key)


def parse(packet: bytes) -> Parsed | None:
    """Return the fields of `packet`, or None where it is malformed.

    A header that claims more than there are bytes, or ports that are not there, are malformed;
    bytes after the end that the header claims (link padding) are not.
    """
    if len(packet) < 20:
        return None
    version = packet[0] >> 4
    if version == 4:
        return _ipv4(packet)
    return _ipv6(packet) if version == 6 and len(packet) >= 40 else None


def _transport(
    packet: bytes, protocol: int, src: bytes, dst: bytes, offset: int, length: int
) -> Parsed | None:
    """Return the fields of a whole datagram; None where its ports are cut off."""
    version = packet[0] >> 4
    least = _TRANSPORT_MINIMUM.get(protocol)
    if least is None:
        return Parsed(version, protocol, src, dst, offset, length, False)
    if length - offset < 4:
        return None
    flags = 0
    if length - offset < least:
        flags = states.CUT_SHORT
    elif protocol == TCP:
        flags = packet[offset + 13]
    elif protocol == SCTP:
        flags = _chunk(packet[offset + 12 : length])
    ports = packet[offset : offset + 4]
    sport, dport = ports[0] << 8 | ports[1], ports[2] << 8 | ports[3]
    key = src + dst + ports
    return Parsed(version, protocol, src, dst, offset, length, False, sport, dport, flags, key)


def _chunk(chunks: bytes) -> int:
    """Return the type of the SCTP chunk that moves the state: the first, or a bundled ABORT."""
    if len(chunks) < 4:
        return states.CUT_SHORT
    size = chunks[2] << 8 | chunks[3]
    if chunks[0] in states.COOKIE_CHUNKS and size >= 4:
        behind = chunks[size + 3 & ~3 :]
        if len(behind) >= 4 and behind[0] == states.ABORT_CHUNK:
            return states.BUNDLED_ABORT
    return chunks[0]


def parse_quoted(quote: bytes) -> Parsed | None:
    """Return the fields of a datagram that an ICMP error quotes, cut short as it may be.

    None where the IP header is not whole, or the ports are not there, or it is a later fragment.
    """
    if len(quote) >= 20 and quote[0] >> 4 == 4:
        offset = (quote[0] & 15) * 4
        later = bool(quote[6] & 0x1F or quote[7])
        protocol, src, dst = quote[9], quote[12:16], quote[16:20]
    elif len(quote) >= 40 and quote[0] >> 4 == 6:
        offset, later, protocol, src, dst = 40, False, quote[6], quote[8:24], quote[24:40]
    else:
        return None
    ports = quote[offset : offset + 4]
    if later or offset < 20 or len(ports) < 4 or protocol not in _TRANSPORT_MINIMUM:
        return None
    sport, dport = ports[0] << 8 | ports[1], ports[2] << 8 | ports[3]
    version, length, key = quote[0] >> 4, len(quote), src + dst + ports
    return Parsed(version, protocol, src, dst, offset, length, False, sport, dport, 0, key)


def _ipv4(packet: bytes) -> Parsed | None:
    offset = (packet[0] & 15) * 4
    length = packet[2] << 8 | packet[3]
    if offset < 20 or not offset <= length <= len(packet):
        return None
    if packet[6] & 0x3F or packet[7]:  # more fragments, or an offset
        return Parsed(4, packet[9], packet[12:16], packet[16:20], offset, length, True)
    return _transport(packet, packet[9], packet[12:16], packet[16:20], offset, length)


def _ipv6(packet: bytes) -> Parsed | None:
    length = 40 + (packet[4] << 8 | packet[5])
    if length > len(packet):
        return None
    protocol, offset, fragment = packet[6], 40, False
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS:
            return _transport(packet, protocol, packet[8:24], packet[24:40], offset, length)
        if offset + 8 > length:
            return None
        if protocol == FRAGMENT_HEADER:
            fragment = bool(packet[offset + 2] or packet[offset + 3] & 0xF9)
            size = 8
        elif protocol == 51:  # authentication header: in 4-byte units, less two
            size = (packet[offset + 1] + 2) * 4
        else:
            size = (packet[offset + 1] + 1) * 8
        protocol, offset = packet[offset], offset + size
        if offset > length:
            return None
        if fragment:
            return Parsed(6, protocol, packet[8:24], packet[24:40], offset, length, True)
    return None
