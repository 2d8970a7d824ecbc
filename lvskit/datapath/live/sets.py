"""The sets of the nftables table: which packets are the director's, as keys to look up."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import Final, NamedTuple

from lvskit.settings import ServiceKey
from lvskit.types import ICMP, ICMPV6, SCTP, TCP, UDP

FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}

# Types of keys as nft numbers them, six bits each in a concatenation.
_ADDRESS: Final = {4: 7, 6: 8}
_PROTOCOL, _PORT, _MARK, _NFPROTO = 12, 13, 19, 2
_PROTOCOLS: Final = (TCP, UDP, SCTP)
_ERRORS: Final = ((ICMP, (3, 4, 11)), (ICMPV6, (1, 2, 3, 4)))

SETS: Final = {
    "services4": (_ADDRESS[4] << 12 | _PROTOCOL << 6 | _PORT, 12),
    "services6": (_ADDRESS[6] << 12 | _PROTOCOL << 6 | _PORT, 24),
    "allports4": (_ADDRESS[4] << 6 | _PROTOCOL, 8),
    "allports6": (_ADDRESS[6] << 6 | _PROTOCOL, 20),
    "addresses4": (_ADDRESS[4], 4),
    "addresses6": (_ADDRESS[6], 16),
    "marks": (_NFPROTO << 12 | _PROTOCOL << 6 | _MARK, 12),
    "marked": (_NFPROTO << 6 | _PROTOCOL, 8),
    "errors": (_PROTOCOL << 6 | 14, 8),
    "servers4": (_ADDRESS[4], 4),
    "servers6": (_ADDRESS[6], 16),
    "answers4": (_ADDRESS[4] << 12 | _PROTOCOL << 6 | _PORT, 12),
    "answers6": (_ADDRESS[6] << 12 | _PROTOCOL << 6 | _PORT, 24),
    "allanswers4": (_ADDRESS[4] << 6 | _PROTOCOL, 8),
    "allanswers6": (_ADDRESS[6] << 6 | _PROTOCOL, 20),
}
"""By name: what ``nft list`` shows the keys as, and their bytes.

services, allports: virtual services by address, protocol and port, or with every port;
addresses: theirs; marks, marked: firewall marks of services, and the families and protocols that
may have one; errors: ICMP types that say what became of a packet; servers: addresses of real
servers; answers, allanswers: where packets come from that the director must rewrite.
"""

Contents = dict[str, set[bytes]]


class Endpoint(NamedTuple):
    """A real server that answers through the director.

    Attributes:
        protocol: of its service; 0 = a service by mark, with any.
        address: packed.
        port: 0 = whichever the client asked for.
    """

    protocol: int
    address: bytes
    port: int


@dataclass(frozen=True)
class Claims:
    """Whose packets the director wants.

    Attributes:
        services: virtual services.
        servers: packed addresses of their real servers.
        answering: those of them that answer through the director.
    """

    services: frozenset[ServiceKey] = frozenset()
    servers: frozenset[bytes] = frozenset()
    answering: frozenset[Endpoint] = frozenset()


def contents(claims: Claims) -> Contents:
    """Return what each set holds.

    >>> service = ServiceKey.of(6, bytes([10, 0, 0, 2]), 80)
    >>> sorted(key.hex() for key in contents(Claims(frozenset({service})))["services4"])
    ['0a0000020600000000500000']
    """
    found: Contents = {name: set() for name in SETS}
    found["errors"] = {_word(protocol) + _word(t) for protocol, types in _ERRORS for t in types}
    for key in claims.services:
        if key.fwmark:
            _add_mark(found, key)
        else:
            _add_place(found, ("services", "allports"), key.protocol, key.address, key.port)
            found[f"addresses{key.version}"].add(key.address)
    for address in claims.servers:
        found[f"servers{_version(address)}"].add(address)
    for protocol, address, port in claims.answering:
        for each in [protocol] if protocol else _PROTOCOLS:
            _add_place(found, ("answers", "allanswers"), each, address, port)
    return found


def _add_mark(found: Contents, key: ServiceKey) -> None:
    family, mark = _word(FAMILY[key.version]), key.fwmark.to_bytes(4, sys.byteorder)
    for protocol in _PROTOCOLS:
        found["marks"].add(family + _word(protocol) + mark)
    for protocol in (*_PROTOCOLS, ICMP if key.version == 4 else ICMPV6):
        found["marked"].add(family + _word(protocol))


def _add_place(
    found: Contents, names: tuple[str, str], protocol: int, address: bytes, port: int
) -> None:
    """Add an address with a port to the first of two sets, one with every port to the other."""
    place, version = address + _word(protocol), _version(address)
    if port:
        found[f"{names[0]}{version}"].add(place + port.to_bytes(2, "big") + b"\0\0")
    else:
        found[f"{names[1]}{version}"].add(place)


def _version(address: bytes) -> int:
    return 4 if len(address) == 4 else 6


def _word(value: int) -> bytes:
    """Return one byte as a key's field: fields fill registers of 4 bytes."""
    return bytes((value, 0, 0, 0))
