"""sh, dh and mh again, slow and obvious; see `lvskit.testing.reference`.

No table is kept: who owns a bucket or a slot is worked out from the servers for every choice.
"""

from __future__ import annotations

import hashlib
import ipaddress
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from math import gcd
from operator import xor
from typing import Any

from lvskit import Flow, SchedulerBase
from lvskit.testing.reference import usable

WORD = 2**32


def number(address: bytes) -> int:
    """Return an address as 32 bits: an IPv6 one by the exclusive or of its four groups of 32."""
    value = int(ipaddress.ip_address(address))
    return reduce(xor, (value >> shift & WORD - 1 for shift in (0, 32, 64, 96)))


def golden(value: int) -> int:
    """Return which 256th of a turn comes after `value` steps of 0x61C88647 2^32ths of a turn."""
    return int(Fraction(value * 0x61C88647, WORD) % 1 * 256)


class WrittenOutSourceHashing(SchedulerBase):
    """sh: 256 buckets lie in a circle, dealt by weight; a client's is a hash of its address."""

    def __init__(
        self,
        servers: Sequence[Any],
        options: Any = None,
        fallback: bool = False,
        port: bool = False,
    ) -> None:
        super().__init__(servers, options)
        self._fallback = fallback
        self._port = port

    def schedule(self, flow: Flow) -> Any:
        """Return the bucket's server; with fallback the first usable one of all buckets."""
        turns = [s for s in self.servers for _ in range(min(max(s.weight, 1), 256))]
        if not turns:
            return None
        circle = [turns[n % len(turns)] for n in range(256)]
        bucket = golden(number(flow.caddr) + (flow.cport if self._port else 0))
        if usable(circle[bucket]):
            return circle[bucket]
        # From as far behind the bucket as that is behind the beginning, once round.
        start = bucket * 2 % 256
        around = circle[start:] + circle[:start]
        return next(filter(usable, around), None) if self._fallback else None


class WrittenOutDestinationHashing(SchedulerBase):
    """dh: the same with the virtual address, every server weighing 1, and no fallback."""

    def schedule(self, flow: Flow) -> Any:
        """Return the bucket's server, if it may be used."""
        if not self.servers:
            return None
        server = self.servers[golden(number(flow.vaddr)) % len(self.servers)]
        return server if usable(server) else None


def siphash(rounds: int, finish: int, key: bytes, message: bytes) -> int:
    """Return SipHash-`rounds`-`finish` of any message, 64 bits, as its authors write it down."""
    size = 2**64

    def rotate(value: int, bits: int) -> int:
        return (value << bits) % size + (value >> 64 - bits)

    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    a, b, c, d = (
        key_word ^ int.from_bytes(text, "big")
        for key_word, text in zip(
            (k0, k1, k0, k1), (b"somepseu", b"dorandom", b"lygenera", b"tedbytes"), strict=True
        )
    )

    def sip_round() -> None:
        nonlocal a, b, c, d
        a = (a + b) % size
        b = rotate(b, 13) ^ a
        a = rotate(a, 32)
        c = (c + d) % size
        d = rotate(d, 16) ^ c
        a = (a + d) % size
        d = rotate(d, 21) ^ a
        c = (c + b) % size
        b = rotate(b, 17) ^ c
        c = rotate(c, 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        d ^= word
        for _ in range(rounds):
            sip_round()
        a ^= word
    c ^= 0xFF
    for _ in range(finish):
        sip_round()
    return a ^ b ^ c ^ d


class WrittenOutMaglev(SchedulerBase):
    """mh: the population of the Maglev paper, with the preference lists written out.

    Args:
        servers, options: as every scheduler's; options are not read.
        fallback, port, slots, key: as the options of those names.
    """

    def __init__(
        self,
        servers: Sequence[Any],
        options: Any = None,
        fallback: bool = False,
        port: bool = False,
        slots: int = 4093,
        key: str | None = None,
    ) -> None:
        super().__init__(servers, options)
        self._fallback = fallback
        self._port = port
        self._slots = slots
        self._key = key
        self._last_weights = {id(server): server.weight for server in servers}

    def server_added(self, server: Any) -> None:
        """Take its weight, whatever it is."""
        self._last_weights[id(server)] = server.weight

    def server_updated(self, server: Any) -> None:
        """Take its weight unless it is 0."""
        self._last_weights[id(server)] = server.weight or self._last_weights[id(server)]

    def schedule(self, flow: Flow) -> Any:
        """Return the server of the client's slot, or with fallback of another slot."""
        owners = self._owners(len(flow.caddr))
        client = flow.caddr, flow.cport if self._port else 0
        first = self._hash(0, *client) % self._slots
        if not owners or usable(owners[first]) or not self._fallback:
            return owners[first] if owners and usable(owners[first]) else None
        tries = ((first + n) % self._slots for n in range(self._slots))
        found = (owners[self._hash(0, *client, n) % self._slots] for n in tries)
        return next(filter(usable, found), None)

    def _hash(self, which: int, address: bytes, port: int, searched: int = 0) -> int:
        if self._key is not None:
            message = struct.pack(">HI", port, searched)
            secret = hashlib.sha256(self._key.encode()).digest()
            hashed = hashlib.blake2b(key=secret, digest_size=8, person=[b"slot", b"skip"][which])
            hashed.update(address)
            hashed.update(message)
            return int(hashed.hexdigest(), 16)
        message = ((number(address) + port + searched) % WORD).to_bytes(4, "little")
        key = [2654435761, 2654446892][which].to_bytes(8, "little") * 2
        return siphash(1, 3, key, message) % WORD

    def _owners(self, family: int) -> dict[int, Any]:
        """Return the owner of every slot."""
        weights = {server: self._last_weights[id(server)] for server in self.servers}
        weights = {server: weight for server, weight in weights.items() if weight}
        if not weights:
            return {}
        step = gcd(*weights.values())
        bits = {251: 4, 509: 4, 1021: 5, 2039: 5, 4093: 6, 8191: 6}[self._slots]
        halvings = 0
        while max(weights.values()) // step // 2**halvings >= 2**bits:
            halvings += 1
        lists = {}
        for server in weights:
            name = server.address[:family] if self._key is None else server.address, server.port
            offset = self._hash(0, *name) % self._slots
            skip = self._hash(1, *name) % (self._slots - 1) + 1
            lists[server] = [(offset + n * skip) % self._slots for n in range(self._slots)]
        owners: dict[int, Any] = {}
        while len(owners) < self._slots:
            for server, weight in weights.items():
                for _ in range(max(weight // step // 2**halvings, 1)):
                    while lists[server] and lists[server][0] in owners:
                        lists[server].pop(0)
                    if lists[server]:
                        owners[lists[server].pop(0)] = server
        return owners
