"""sh, dh and mh: the address decides, by way of a table.

Source: Linux net/netfilter/ipvs/ip_vs_sh.c, ip_vs_dh.c and ip_vs_mh.c, include/linux/hash.h and
lib/siphash.c, by behaviour. The tables are made anew whenever somebody asks, except mh's, which
takes too long for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, cycle, islice, repeat
from math import gcd
from typing import Any

from lvskit import Flow, SchedulerBase
from lvskit.testing.reference.usable import usable

BUCKETS = 256
WORDS = 2654435761, 2654446892
"""What both words of the key are for the hash that gives the first slot, and for the other."""
_FALLBACK, _PORT = 1, 2
"""Numbers of the flags that sh and mh have: seek another server; hash the port as well."""


def folded(address: bytes) -> int:
    """Return an address as one 32-bit number: that of IPv6 is the exclusive or of its words."""
    value = 0
    for word in range(0, len(address), 4):
        value ^= int.from_bytes(address[word : word + 4], "big")
    return value


def bucket(value: int, buckets: int = BUCKETS) -> int:
    """Return which of 256 buckets, or so, a 32-bit number is in: Linux's multiplicative hash.

    >>> bucket(folded(bytes([192, 0, 2, 1]))), bucket(folded(bytes([198, 51, 100, 7])) + 40000)
    (50, 79)
    """
    return value * 0x61C88647 % 2**32 * buckets // 2**32


def siphash(rounds: int, finish: int, key: bytes, message: bytes) -> int:
    """Return SipHash-`rounds`-`finish` of a message as 64 bits; the key has 16 bytes."""

    def turned(word: int, bits: int) -> int:
        return (word << bits | word >> 64 - bits) % 2**64

    def mixed(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
        a, c = (a + b) % 2**64, (c + d) % 2**64
        b, d = turned(b, 13) ^ a, turned(d, 16) ^ c
        a = turned(a, 32)
        c, a = (c + b) % 2**64, (a + d) % 2**64
        b, d = turned(b, 17) ^ c, turned(d, 21) ^ a
        return a, b, turned(c, 32), d

    text = b"somepseudorandomlygeneratedbytes"
    a, b, c, d = (
        int.from_bytes(text[at : at + 8], "big") ^ int.from_bytes(key[at % 16 :][:8], "little")
        for at in range(0, 32, 8)
    )
    message = message.ljust(len(message) // 8 * 8 + 7, b"\0") + bytes([len(message) % 256])
    for at in range(0, len(message), 8):
        word = int.from_bytes(message[at : at + 8], "little")
        d ^= word
        for _ in range(rounds):
            a, b, c, d = mixed(a, b, c, d)
        a ^= word
    c ^= 0xFF
    for _ in range(finish):
        a, b, c, d = mixed(a, b, c, d)
    return a ^ b ^ c ^ d


@lru_cache(2**16)  # whoever falls back asks for thousands, again and again
def hsiphash(which: int, value: int) -> int:
    """Return Linux's first or second hash of a 32-bit number: on 64-bit machines, SipHash-1-3."""
    key = WORDS[which].to_bytes(8, "little") * 2
    return siphash(1, 3, key, value.to_bytes(4, "little")) % 2**32


class DestinationHash(SchedulerBase):
    """dh: the virtual address chooses among the servers, which share the buckets in turn."""

    def schedule(self, flow: Flow) -> Any:
        """Return the server of the address, where it is usable."""
        table = list(islice(cycle(self.servers), BUCKETS))
        chosen = table[bucket(folded(flow.destination))] if table else None
        return chosen if chosen is not None and usable(chosen) else None


class _ClientHash(SchedulerBase):
    """What sh and mh have in common."""

    def __init__(self, servers: Sequence[Any], options: Any = None) -> None:
        super().__init__(servers, options)
        self._flags = options or ()

    def schedule(self, flow: Flow) -> Any:
        """Return the server of the client, or with the fallback the next that is usable."""
        table = self._table(len(flow.caddr))
        if not table:
            return None
        port = flow.cport if _PORT in self._flags else 0
        first = self._index(flow.caddr, port, 0)
        others = range(first, first + len(table)) if _FALLBACK in self._flags else range(0)
        again = (self._index(flow.caddr, port, offset % len(table)) for offset in others)
        return next((table[n] for n in chain([first], again) if usable(table[n])), None)

    def _table(self, size: int) -> list[Any]:
        """Return the servers by index, for clients whose addresses have `size` bytes."""
        raise NotImplementedError

    def _index(self, address: bytes, port: int, offset: int) -> int:
        """Return where in the table to look."""
        raise NotImplementedError


class SourceHash(_ClientHash):
    """sh: a server has as many buckets in turn as its weight says, and a quiesced one has one."""

    def _table(self, size: int) -> list[Any]:
        in_turn = (repeat(server, max(server.weight, 1)) for server in cycle(self.servers))
        return list(islice(chain.from_iterable(in_turn), BUCKETS))

    def _index(self, address: bytes, port: int, offset: int) -> int:
        return (bucket(folded(address) + port) + offset) % BUCKETS


class Maglev(_ClientHash):
    """mh: every server has an order of preference over all slots; they take them in turn.

    What counts is the weight that a server had last other than 0: quiescing moves nobody else's
    clients.

    Args:
        servers, options: as every reference's.
        slots, key: as lvskit's own options of these names, which the kernel lacks.
    """

    def __init__(
        self,
        servers: Sequence[Any],
        options: Any = None,
        *,
        slots: int = 4093,
        key: str | None = None,
    ) -> None:
        super().__init__(servers, options)
        self._size, self._key = slots, key
        self._tables: dict[int, list[Any]] = {}

    def server_added(self, server: Any) -> None:
        """Deal the slots anew."""
        self._tables.clear()

    def server_removed(self, server: Any) -> None:
        """Deal the slots anew."""
        self._tables.clear()

    def server_updated(self, server: Any) -> None:
        """Deal the slots anew."""
        self._tables.clear()

    def _index(self, address: bytes, port: int, offset: int) -> int:
        return self._hash(0, address, port, offset) % self._size

    def _hash(self, which: int, address: bytes, port: int, offset: int = 0) -> int:
        if self._key is None:
            return hsiphash(which, (folded(address) + port + offset) % 2**32)
        secret = hashlib.sha256(self._key.encode()).digest()
        message = address + port.to_bytes(2, "big") + offset.to_bytes(4, "big")
        person = (b"slot", b"skip")[which]
        found = hashlib.blake2b(message, digest_size=8, key=secret, person=person)
        return int.from_bytes(found.digest(), "big")

    def _table(self, size: int) -> list[Any]:
        """Let the servers choose, in the order of the list, until every slot is taken."""
        servers = [server for server in self.servers if server.last_weight]
        if servers and size not in self._tables:
            slots = self._tables[size] = [None] * self._size
            wishes = {server: iter(self._preference(server, size)) for server in servers}
            turns = self._turns(servers)
            in_turn = cycle(chain.from_iterable(repeat(s, turns[s]) for s in servers))
            for server in islice(in_turn, self._size):
                slots[next(slot for slot in wishes[server] if slots[slot] is None)] = server
        return self._tables.get(size, [])

    def _turns(self, servers: list[Any]) -> dict[Any, int]:
        """Return how many slots in a row each takes: its weight, half as many bits as slots'."""
        step = gcd(*(server.last_weight for server in servers))
        longest = max(server.last_weight // step for server in servers).bit_length()
        excess = max(longest - self._size.bit_length() // 2, 0)
        return {server: max(server.last_weight // step >> excess, 1) for server in servers}

    def _preference(self, server: Any, size: int) -> list[int]:
        """Return all slots, in the order in which a server wants them."""
        # The kernel reads an IPv6 server of an IPv4 service as if its address were IPv4.
        address = server.address[:size] if self._key is None else server.address
        first = self._hash(0, address, server.port) % self._size
        skip = self._hash(1, address, server.port) % (self._size - 1) + 1
        return [(first + step * skip) % self._size for step in range(self._size)]
