"""The extension headers of IPv6 datagrams (RFC 8200, section 4)."""

from __future__ import annotations

from typing import Final

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
DESTINATION: Final = 60
_OPTIONS: Final = frozenset({HOP_BY_HOP, ROUTING, DESTINATION})


def behind_options(packet: bytes, *, repeated: bool = False) -> tuple[int, int]:
    """Return where the first header that is no option is named, and where it is.

    Options are the headers that may stand before a fragment header: hop-by-hop and destination
    options, and routing headers. Source for those that are `repeated`: Linux
    net/ipv6/output_core.c (ip6_find_1stfragopt), by behaviour.

    Args:
        packet: an IPv6 datagram.
        repeated: pass only what every fragment repeats: no destination options behind a routing
            header.

    >>> behind_options(bytes((0x60, 0, 0, 0, 0, 0, 6, 64)) + bytes(32))
    (6, 40)
    """
    named, at, routed = 6, 40, False
    while packet[named] in _OPTIONS and at + 8 <= len(packet):
        if repeated and routed and packet[named] == DESTINATION:
            break
        routed = routed or packet[named] == ROUTING
        named, at = at, at + (packet[at + 1] + 1) * 8
    return named, at


def without(packet: bytes, named: int, at: int) -> bytes:
    """Return `packet` without its header of 8 bytes at `at`, which is named at `named`.

    The length that it claims stays.

    >>> without(bytes(6) + b"," + bytes(33) + b"T......." + b"payload", 6, 40)[40:]
    b'payload'
    """
    return packet[:named] + packet[at : at + 1] + packet[named + 1 : at] + packet[at + 8 :]
