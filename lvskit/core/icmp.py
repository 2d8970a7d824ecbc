"""Read the ICMP and ICMPv6 errors that a director is sent. Sources: RFC 792, RFC 4443."""

from __future__ import annotations

from typing import Final, NamedTuple

from lvskit.checksums import checksum
from lvskit.core.packet import Parsed
from lvskit.types import ICMP, ICMPV6

_ERRORS_V4: Final = frozenset({3, 4, 11})  # unreachable, source quench, time exceeded
_FIRST_INFORMATION_V6: Final = 128  # RFC 4443, 2.1: lower types are errors


class Error(NamedTuple):
    """An ICMP error that somebody sent.

    Attributes:
        kind: type and code.
        rest: the four bytes behind the checksum: an MTU, or nothing.
        quote: the beginning of the datagram that it is about.
        quoted_protocol: of that datagram, where it is IPv4; else 0.
        intact: its checksum is right.
    """

    kind: tuple[int, int]
    rest: int
    quote: bytes
    quoted_protocol: int
    intact: bool


def read_error(packet: bytes, parsed: Parsed) -> Error | None:
    """Return the error that an ICMP message in `packet` tells, None where it tells none.

    Of IPv4, destination unreachable, source quench and time exceeded; of IPv6, all.
    """
    message = packet[parsed.offset :]
    if parsed.fragment or len(message) < 8:
        return None
    four = parsed.protocol == ICMP
    if not (message[0] in _ERRORS_V4 if four else message[0] < _FIRST_INFORMATION_V6):
        return None
    quote = message[8:]
    protocol = quote[9] if len(quote) >= 20 and quote[0] >> 4 == 4 else 0
    rest = int.from_bytes(message[4:8], "big")
    pseudo = b""
    if parsed.protocol == ICMPV6:
        pseudo = parsed.src + parsed.dst + len(message).to_bytes(4, "big") + bytes((0, 0, 0, 58))
    return Error((message[0], message[1]), rest, quote, protocol, not checksum(pseudo + message))
