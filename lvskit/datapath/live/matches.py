"""What the rules of the nftables table match: each is a tuple of expressions, all of which must.

Every look-up is in a set (`lvskit.datapath.live.sets`), so rules stay while services change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lvskit.datapath.extensions import FRAGMENT
from lvskit.datapath.live import nftables
from lvskit.datapath.live.sets import FAMILY, SETS

NUMBERS: Final = {name: number for number, name in enumerate(SETS, start=1)}
"""The numbers by which expressions name sets that are made in the same transaction."""

_SIZE: Final = {4: 4, 6: 16}
# Offsets of the addresses in a header, and of the ports behind it.
_SOURCE: Final = {4: 12, 6: 8}
_DESTINATION: Final = {4: 16, 6: 24}
_SOURCE_PORT, _DESTINATION_PORT = 0, 2
_QUOTE: Final = 8  # where an ICMP error has the header of the packet that it is about
_FRAGMENT: Final = 6
_MF_AND_OFFSET: Final = b"\x3f\xff"

Match = tuple[bytes, ...]


def _member(name: str) -> bytes:
    return nftables.member(name, NUMBERS[name])


_MARKABLE: Final = (nftables.meta(nftables.NFPROTO), nftables.meta(nftables.L4PROTO, 1))
_MAY_BE_MARKED: Final = (*_MARKABLE, _member("marked"))
_ERROR: Final = (
    nftables.meta(nftables.L4PROTO),
    nftables.payload(nftables.TRANSPORT, 0, 1, 1),
    _member("errors"),
)


def _of(version: int) -> Match:
    """Match packets of an IP version."""
    return nftables.meta(nftables.NFPROTO), nftables.equals(bytes((FAMILY[version],)))


def to_places(ports: str, allports: str) -> Iterator[Match]:
    """Match packets by where they go: address, protocol and port, or without the port."""
    return _places(ports, allports, _DESTINATION, _DESTINATION_PORT)


def from_places(ports: str, allports: str) -> Iterator[Match]:
    """Match packets by where they come from: address, protocol and port, or without the port."""
    return _places(ports, allports, _SOURCE, _SOURCE_PORT)


def _places(ports: str, allports: str, address: dict[int, int], port: int) -> Iterator[Match]:
    for version, size in _SIZE.items():
        place = nftables.payload(nftables.NETWORK, address[version], size)
        protocol = nftables.meta(nftables.L4PROTO, size // 4)
        own = nftables.payload(nftables.TRANSPORT, port, 2, size // 4 + 1)
        yield (*_of(version), place, protocol, own, _member(f"{ports}{version}"))
        yield (*_of(version), place, protocol, _member(f"{allports}{version}"))


def marked() -> Match:
    """Match packets by their firewall mark."""
    return (*_MARKABLE, nftables.meta(nftables.MARK, 2), _member("marks"))


def markable() -> Match:
    """Match packets of an IP version and a protocol of which marked ones are wanted."""
    return _MAY_BE_MARKED


def errors() -> Iterator[Match]:
    """Match ICMP errors that may be about the packets of services or real servers."""
    for version, size in _SIZE.items():
        to = nftables.payload(nftables.NETWORK, _DESTINATION[version], size)
        yield (*_ERROR, *_of(version), to, _member(f"addresses{version}"))
    yield from errors_about("servers")
    yield (*_ERROR, *_MAY_BE_MARKED)


def errors_about(addresses: str) -> Iterator[Match]:
    """Match ICMP errors by where the packet went that they are about."""
    for version, size in _SIZE.items():
        to = nftables.payload(nftables.TRANSPORT, _QUOTE + _DESTINATION[version], size)
        yield (*_ERROR, *_of(version), to, _member(f"{addresses}{version}"))


def errors_of_programs() -> Match:
    """Match ICMP errors that a program's socket sends; the host's own have no user."""
    return nftables.meta(nftables.SKUID), *_ERROR


def fragments() -> Iterator[Match]:
    """Match fragments."""
    yield (
        *_of(4),
        nftables.payload(nftables.NETWORK, _FRAGMENT, 2),
        nftables.equals(b"\0\0", mask=_MF_AND_OFFSET, negated=True),
    )
    yield *_of(6), nftables.has_header(FRAGMENT), nftables.equals(b"\1")


def wanted_fragments() -> Iterator[Match]:
    """Match fragments that may be of a service's packets."""
    for version, size in _SIZE.items():
        to = nftables.payload(nftables.NETWORK, _DESTINATION[version], size)
        yield *_of(version), to, _member(f"addresses{version}")
    yield _MAY_BE_MARKED
