"""How the fragments of a datagram were that the host has put together.

The kernel's ip_vs splits what it forwards as the client had split it (net/ipv4/ip_output.c,
ip_do_fragment: frag_max_size; net/ipv6/ip6_output.c, ip6_fragment), and finds no IPv6 datagram too
big whose fragments fit, but a packet queue does not tell their sizes. So the table copies the
headers of fragments before the host reassembles them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from lvskit.datapath.extensions import FRAGMENT, behind_options, without
from lvskit.types import Reassembled

KEPT_S: Final = 30.0  # net.ipv4.ipfrag_time: the host itself gives up then; IPv6 seldom takes long
MOST: Final = 1 << 14
_BEGINNING: Final = 8  # bytes of a transport header: with the ports


@dataclass(slots=True)
class _Datagram:
    """What is known of one; of IPv4, the first three.

    Attributes:
        since: when the first of its fragments came.
        largest: of them, bytes.
        name: what the whole is known by; empty while that cannot be told.
        pieces: lengths of its payload's parts, by offset; got: their sum; end: what it shall be.
        headers: length of what precedes that; beginning: of the transport header.
    """

    since: float
    largest: int = 0
    name: bytes = b""
    pieces: dict[int, int] = field(default_factory=dict)
    got: int = 0
    end: int = -1
    headers: int = 0
    beginning: bytes = b""


class FragmentSizes:
    """The fragments of each datagram that is incomplete, or waits to be forwarded.

    False while none may be complete, so that packets pay nothing for it. What does not fit is
    forgotten, oldest first: its datagram is then taken as if it had come whole.
    """

    def __init__(self) -> None:
        self._datagrams: OrderedDict[bytes, _Datagram] = OrderedDict()
        self._pieces = 0
        self._named: dict[bytes, list[bytes]] = {}

    def __bool__(self) -> bool:
        return bool(self._named)

    def note(self, fragment: bytes, now: float) -> None:
        """Take note of a fragment: its headers, at least."""
        known = self._datagrams
        while known and (
            len(known) + self._pieces >= MOST or now >= next(iter(known.values())).since + KEPT_S
        ):
            self._forget(next(iter(known)))
        if fragment[0] < 0x60:
            key = name = _name(fragment)
            datagram = known.setdefault(key, _Datagram(now))
            size = fragment[2] << 8 | fragment[3]
        else:
            named, at = behind_options(fragment)
            if fragment[named] != FRAGMENT or at + 8 > len(fragment):
                return  # behind more options than are copied
            if not (fragment[at + 2] or fragment[at + 3] & 0xF9):
                return  # it is whole (RFC 6946)
            key = fragment[8:40] + fragment[at + 4 : at + 8]
            datagram = known.setdefault(key, _Datagram(now))
            size, before = 40 + (fragment[4] << 8 | fragment[5]), len(datagram.pieces)
            name = _add(datagram, fragment, named, at, size)
            self._pieces += len(datagram.pieces) - before
        datagram.largest = max(datagram.largest, size)
        if name and not datagram.name:
            datagram.name = name
            self._named.setdefault(name, []).append(key)

    def recall(self, packet: bytes) -> bytes:
        """Return `packet`, which is whole: as `Reassembled` where it came in known fragments."""
        keys = self._named.get(_name(packet))
        if not keys:
            return packet
        datagram = self._forget(keys[0])
        pieces = tuple(length for _, length in sorted(datagram.pieces.items()))
        return Reassembled(packet, datagram.largest, pieces)

    def _forget(self, key: bytes) -> _Datagram:
        datagram = self._datagrams.pop(key)
        self._pieces -= len(datagram.pieces)
        if datagram.name:
            keys = self._named[datagram.name]
            keys.remove(key)
            if not keys:
                del self._named[datagram.name]
        return datagram


def _add(datagram: _Datagram, fragment: bytes, named: int, at: int, size: int) -> bytes:
    """Enter an IPv6 fragment with its header at `at`; return the whole's name if all have come."""
    word = fragment[at + 2] << 8 | fragment[at + 3]
    offset, length = word & 0xFFF8, size - at - 8
    if length <= 0 or offset in datagram.pieces:
        return b""  # nothing new
    datagram.pieces[offset] = length
    datagram.got += length
    if not word & 1:
        datagram.end = offset + length
    if not offset:
        datagram.headers = at
        datagram.beginning = _beginning(without(fragment, named, at))
    if not datagram.headers or datagram.got != datagram.end:
        return b""
    return _name_v6(fragment, datagram.headers + datagram.end, datagram.beginning)


def _name(packet: bytes) -> bytes:
    """Return what a whole datagram is known by.

    IPv4: what its fragments share (RFC 791, section 3.2). An IPv6 one says nothing any more of
    the identification that they had, so it is known by its addresses, length, ports and checksum.
    """
    if packet[0] < 0x60:
        return packet[4:6] + packet[9:10] + packet[12:20]
    return _name_v6(packet, len(packet), _beginning(packet))


def _name_v6(packet: bytes, size: int, beginning: bytes) -> bytes:
    return packet[8:40] + size.to_bytes(4, "big") + beginning


def _beginning(packet: bytes) -> bytes:
    _, at = behind_options(packet)
    return packet[at : at + _BEGINNING]
