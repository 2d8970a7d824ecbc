"""Which servers a virtual address has, as far as remembered: the cache of lblc and lblcr.

Source: Linux net/netfilter/ipvs/ip_vs_lblc.c and ip_vs_lblcr.c (the tables, their timers and
limits), by behaviour. Looking up and storing are O(1). Once a minute the cache is looked after:

    every 30th time                 entries that were not used for `expiration_s` go
    else, with more than 16,384     entries that were not used for six minutes go, bucket after
                                    bucket of 1,024, until 4/3 of the surplus (8,192 at most) has

Beyond 24,576 entries none are added.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from lvskit import RealServer

SIZE: Final = 16384
LIMIT: Final = SIZE * 3 // 2
CHECK_S: Final = 60.0
STALE_S: Final = 360.0
CHECKS_TO_SWEEP: Final = 30
_BUCKET_BITS: Final = 10
_GOLDEN_RATIO: Final = 0x61C88647


@dataclass(frozen=True)
class LocalityOptions:
    """Options of lblc and lblcr.

    Attributes:
        expiration_s: seconds after which an unused entry is swept out, and after which lblcr takes
            a server out of a set that has not changed; the kernel's lblc_expiration and
            lblcr_expiration.
    """

    expiration_s: int = 86400

    def __post_init__(self) -> None:
        if self.expiration_s < 0:
            raise ValueError(f"expiration_s {self.expiration_s}; allowed: 0 or more seconds")


@dataclass(slots=True)
class Entry:
    """The servers of one virtual address.

    Attributes:
        servers: the one added last first; removed ones stay, and return when they are added again.
        used: when it was looked up last, in the cache's time.
        changed: when `servers` changed last.
    """

    servers: list[RealServer]
    used: float
    changed: float


class Cache:
    """Entries by packed virtual address.

    Attributes:
        now: seconds since the first `tick`, 0 before it; as coarse as ticks are.
    """

    def __init__(self, expiration_s: float) -> None:
        self.now = 0.0
        self._expiration_s = expiration_s
        self._entries: dict[bytes, Entry] = {}
        self._began: float | None = None
        self._next_check = CHECK_S
        self._checks = 1
        self._rover = 0  # the bucket that collection stopped at

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, address: bytes) -> Entry | None:
        """Return the entry of `address`, which is used by that, or None."""
        entry = self._entries.get(address)
        if entry is not None:
            entry.used = self.now
        return entry

    def store(self, address: bytes, server: RealServer) -> None:
        """Let `server` be the only one of `address`, unless there is no room for a new entry."""
        if address in self._entries or len(self._entries) < LIMIT:
            self._entries[address] = Entry([server], self.now, self.now)

    def readmit(self, server: RealServer) -> None:
        """Let a server that was removed, and is added again, have its places back.

        The kernel does not forget a removed server while an entry names it. O(entries).
        """
        for entry in self._entries.values():
            entry.servers = [
                server if (known.address, known.port) == (server.address, server.port) else known
                for known in entry.servers
            ]

    def tick(self, now: float) -> None:
        """Take note of the time, monotonic seconds, and look after the entries when it is due."""
        if self._began is None:
            self._began = now
        self.now = now - self._began
        while self.now >= self._next_check:
            self._check(self._next_check)
            self._next_check += CHECK_S

    def _check(self, now: float) -> None:
        if self._checks == CHECKS_TO_SWEEP:
            self._checks = 1
            limit = now - self._expiration_s
            self._entries = {a: e for a, e in self._entries.items() if e.used > limit}
        elif len(self) <= SIZE:
            self._checks += 1
        else:
            self._collect(now - STALE_S)

    def _collect(self, limit: float) -> None:
        """Drop entries that were used at `limit` at the latest, until the goal is reached."""
        goal = min((len(self) - SIZE) * 4 // 3, SIZE // 2)
        stale: dict[int, list[bytes]] = defaultdict(list)
        for address, entry in self._entries.items():
            if entry.used <= limit:
                stale[bucket(address)].append(address)
        for _ in range(1 << _BUCKET_BITS):
            self._rover = (self._rover + 1) % (1 << _BUCKET_BITS)
            for address in stale[self._rover]:
                del self._entries[address]
                goal -= 1
            if goal <= 0:
                break


def bucket(address: bytes) -> int:
    """Return the kernel's bucket for an address: it decides what is collected first.

    >>> bucket(bytes([192, 168, 1, 176]))
    387
    """
    value = int.from_bytes(address, "big")
    if len(address) == 16:
        value ^= value >> 64
        value ^= value >> 32
    return ((value & 0xFFFFFFFF) * _GOLDEN_RATIO & 0xFFFFFFFF) >> (32 - _BUCKET_BITS)
