"""Put the fragments of datagrams together, as a host does before its sockets see them.

Sources: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 5722; Linux net/ipv4/ip_fragment.c and
net/ipv4/inet_fragment.c, by behaviour: fragments that overlap give the datagram up, one that lies
within what came in order is ignored, and what is incomplete after its time is forgotten. Bounded
in bytes: while there are too many, the oldest datagram is given up.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lvskit.checksums import checksum
from lvskit.datapath.extensions import FRAGMENT, behind_options, without
from lvskit.types import Reassembled

TIMEOUT_S: Final = {4: 30.0, 6: 60.0}
"""How long an incomplete datagram is kept, by IP version."""
_MOST_BYTES: Final = 4 << 20
OVERHEAD: Final = 256
"""What keeping a fragment costs besides its own bytes, about."""
_LARGEST_V4: Final = 65535
_LARGEST_V6: Final = 65535 + 40
_DF: Final = 0x40


def bare(packet: bytes) -> bytes:
    """Return an IPv6 datagram without the fragment header of one that is whole (RFC 6946)."""
    named, at = behind_options(packet)
    if packet[named] != FRAGMENT or at + 8 > len(packet):
        return packet
    if packet[at + 2] or packet[at + 3] & 0xF9:
        return packet  # there is more of it
    size = int.from_bytes(packet[4:6], "big") - 8
    rest = without(packet, named, at)
    return rest[:4] + size.to_bytes(2, "big") + rest[6:]


class _Place(enum.Enum):
    """What a fragment is to those that came before."""

    NEW, TWICE, OVERLAP = range(3)


@dataclass(slots=True)
class _Queue:
    """The fragments of one datagram.

    Attributes:
        deadline: when it is given up.
        parts: payloads by offset.
        runs: [start, end] of what is there; one grows only while its fragments come in order.
        first: the whole first fragment; unfragmentable: the headers before the payload.
        end: the end of what is known of; whole: that is the datagram's.
        size: of the largest fragment; df: of the largest that had DF; held: of all.
    """

    deadline: float
    parts: dict[int, bytes] = field(default_factory=dict)
    runs: list[list[int]] = field(default_factory=list)
    first: bytes = b""
    unfragmentable: bytes = b""
    end: int = 0
    whole: bool = False
    size: int = 0
    df: int = 0
    held: int = 0

    @property
    def pieces(self) -> tuple[int, ...]:
        """How long each payload is, in order."""
        return tuple(len(part) for _, part in sorted(self.parts.items()))

    def place(self, offset: int, end: int) -> _Place:
        """Enter a fragment among the runs, if it is new."""
        runs = self.runs
        at = bisect_right(runs, [offset, end])  # of the next run; none that lies there overlaps
        before = runs[at - 1] if at else [0, 0]
        if offset < before[1]:
            return _Place.TWICE if end <= before[1] else _Place.OVERLAP
        if at < len(runs):
            if runs[at][0] == offset and end <= runs[at][1]:
                return _Place.TWICE
            if runs[at][0] < end:
                return _Place.OVERLAP
            runs.insert(at, [offset, end])
        elif runs and offset == before[1]:
            before[1] = end
        else:
            runs.append([offset, end])
        return _Place.NEW


class Reassembler:
    """Keeps fragments until their datagrams are whole.

    Args:
        limit: bytes of fragments that are kept at most.
        due: when a timer fires that is set at a time for some seconds.
    """

    def __init__(
        self, limit: int = _MOST_BYTES, due: Callable[[float, float], float] = float.__add__
    ) -> None:
        self._limit, self._due = limit, due
        self._queues: dict[bytes, _Queue] = {}
        self._held = 0

    def add(self, packet: bytes, now: float) -> Reassembled | None:
        """Take a fragment; return the datagram if it is whole now.

        Args:
            packet: an IPv4 or IPv6 datagram of which `lvskit.core.packet.parse` says that it is a
                fragment.
            now: the time.
        """
        if packet[0] >> 4 == 4:
            return self._add_v4(packet, now)
        return self._add_v6(packet, now)

    def next_timer(self) -> float | None:
        """Return when the next datagram will have waited too long; None where none waits."""
        return min((queue.deadline for queue in self._queues.values()), default=None)

    def expired(self, now: float) -> list[bytes]:
        """Forget what has waited too long; return the first fragments, which earn an error."""
        # Of those that are due at once, the kernel's timers give up the newest first.
        newest = [key for key, queue in reversed(self._queues.items()) if now >= queue.deadline]
        late = sorted(newest, key=lambda key: self._queues[key].deadline)
        firsts = [self._queues[key].first for key in late]
        for key in late:
            self._forget(key)
        return [first for first in firsts if first]

    def _add_v4(self, packet: bytes, now: float) -> Reassembled | None:
        size = (packet[0] & 15) * 4
        length = packet[2] << 8 | packet[3]
        word = packet[6] << 8 | packet[7]
        offset, more = (word & 0x1FFF) * 8, bool(word & 0x2000)
        key = packet[12:20] + packet[4:6] + packet[9:10]
        queue = self._insert(key, 4, packet[:length], size, offset, more, now)
        if queue is None:
            return None
        if offset == 0:
            queue.unfragmentable = packet[:size]
        if packet[6] & _DF:
            queue.df = max(queue.df, length)
        whole = self._complete(key, queue, _LARGEST_V4)
        if whole is None:
            return None
        head = bytearray(whole[: len(queue.unfragmentable)])
        head[2:4] = len(whole).to_bytes(2, "big")
        # As if it had come with DF, where a fragment with DF was as large as any.
        head[6:8] = bytes((_DF if queue.df == queue.size else 0, 0))
        head[10:12] = b"\0\0"
        head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
        return Reassembled(bytes(head) + whole[len(head) :], queue.size, queue.pieces)

    def _add_v6(self, packet: bytes, now: float) -> Reassembled | None:
        length = 40 + (packet[4] << 8 | packet[5])
        named, at = behind_options(packet)
        if packet[named] != FRAGMENT:
            return None
        word = packet[at + 2] << 8 | packet[at + 3]
        offset, more = word & 0xFFF8, bool(word & 1)
        key = packet[8:40] + packet[at + 4 : at + 8]
        queue = self._insert(key, 6, packet[:length], at + 8, offset, more, now)
        if queue is None:
            return None
        if offset == 0:
            queue.unfragmentable = without(packet[: at + 8], named, at)
        whole = self._complete(key, queue, _LARGEST_V6)
        if whole is None:
            return None
        payload_length = (len(whole) - 40).to_bytes(2, "big")
        whole = whole[:4] + payload_length + whole[6:]
        return Reassembled(whole, queue.size, queue.pieces)

    def _insert(
        self, key: bytes, version: int, packet: bytes, at: int, offset: int, more: bool, now: float
    ) -> _Queue | None:
        """Keep the payload behind `at`; None where the fragment adds nothing, or ruins all."""
        part = packet[at:]
        if more:
            part = part[: len(part) // 8 * 8]
        end = offset + len(part)
        queue = self._queues.get(key)
        if queue is not None and now >= queue.deadline:
            self._forget(key)
            queue = None
        if queue is None:
            queue = self._queues[key] = _Queue(self._due(now, TIMEOUT_S[version]))
        known = queue.end if queue.whole else -1
        misfit = end > known >= 0 if more else end < queue.end or 0 <= known != end
        if misfit or not part:
            self._forget(key)
            return None
        queue.end = max(queue.end, end)
        queue.whole = queue.whole or not more
        place = queue.place(offset, end)
        if place is _Place.TWICE:
            return None
        if place is _Place.OVERLAP:
            self._forget(key)
            return None
        if offset == 0:
            queue.first = packet
        queue.parts[offset] = part
        queue.size = max(queue.size, len(packet))
        queue.held += len(packet) + OVERHEAD
        self._held += len(packet) + OVERHEAD
        while self._held > self._limit:
            self._forget(next(iter(self._queues)))
        return queue if key in self._queues else None

    def _complete(self, key: bytes, queue: _Queue, largest: int) -> bytes | None:
        """Return headers and payload, if all is there, and forget the fragments.

        None too where no length field can say how long the datagram is.
        """
        payload = sum(map(len, queue.parts.values()))
        if not queue.whole or not queue.first or payload != queue.end:
            return None
        self._forget(key)
        parts = (part for _, part in sorted(queue.parts.items()))
        whole = b"".join((queue.unfragmentable, *parts))
        return whole if len(whole) <= largest else None

    def _forget(self, key: bytes) -> None:
        queue = self._queues.pop(key, None)
        if queue is not None:
            self._held -= queue.held
