"""Maglev hashing: a function of the client that hardly changes when servers come and go.

Source: Eisenbud et al., "Maglev" (NSDI 2016), section 3.4, and Linux net/netfilter/ipvs/ip_vs_mh.c,
by behaviour. Every server has its own order of all slots (an offset and a skip, hashed from its
address and port); round by round each takes, as often as its turns say, the first slot of its order
that is free, until none is. Of 7 slots, with one turn each:

    A prefers 3 0 4 1 5 2 6  and B prefers 0 2 4 6 1 3 5:  A 3, B 0, A 4, B 2, A 1, B 6, A 5

Turns are weights over their greatest common divisor, halved until the heaviest has fewer than
2^(half the bits of the number of slots), 64 of 4093; nobody has less than one. A server that is
quiesced keeps its slots, and its clients are refused, or with `fallback` hashed again and again.

`schedule` is O(1); with `fallback` as many hashes as slots per usable slot are expected, one for
each slot at most, and none where no server is usable. The table is built anew, by the first
`schedule` after it, when a server joins, leaves or is edited: O(slots x log slots).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from itertools import count, cycle, filterfalse, islice
from math import gcd

from lvskit import Flow, RealServer, Ring, SchedulerBase, VirtualService
from lvskit_sched_hash.fold import MASK, fold
from lvskit_sched_hash.siphash import hsiphash

SLOTS = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 65537, 131071)
"""The kernel's primes, and the one of the Maglev paper."""
SHORTEST_KEY = 16
_KERNEL_KEYS = (2654435761, 2654435761), (2654446892, 2654446892)
Hash = Callable[[bytes, int, int], int]
"""Of an address, a port, and how far a search for another slot has gone."""


@dataclass(frozen=True)
class MaglevOptions:
    """Options of mh; the first two are flags of ipvsadm's, mh-fallback and mh-port.

    Attributes:
        fallback: where the server may not be used, hash again until one may.
        port: the client's port counts too, so that its connections spread.
        key: 16 characters or more that only the directors know, so that nobody else can tell which
            clients share a server; None = the kernel's hash, which everybody can compute.
        slots: size of the table, one of `SLOTS`. More slots share more exactly, and move fewer
            clients; 4093 is the kernel's choice. Directors that must agree need the same.
    """

    fallback: bool = False
    port: bool = False
    key: str | None = field(default=None, repr=False)
    slots: int = 4093

    def __post_init__(self) -> None:
        if self.key is not None and len(self.key) < SHORTEST_KEY:
            raise ValueError(
                f"key of {len(self.key)} characters; allowed: {SHORTEST_KEY} or more, "
                "as 32 random hexadecimal digits"
            )
        if self.slots not in SLOTS:
            raise ValueError(f"slots {self.slots}; allowed: {', '.join(map(str, SLOTS))}")

    def hashes(self) -> tuple[Hash, Hash]:
        """Return the hash for clients and for the servers' first choices, and that for skips."""
        if self.key is None:
            return kernel_hash(_KERNEL_KEYS[0]), kernel_hash(_KERNEL_KEYS[1])
        return private_hash(self.key, b"slot"), private_hash(self.key, b"skip")


class MaglevHashing(SchedulerBase):
    """Looks the client up in a table of servers.

    A server counts with its last weight other than 0: to quiesce one moves nobody else's clients.
    `_changed` is what the next table will be built from, if anything
    has changed. More servers than slots leave the table as it was, as in the kernel.

    Raises:
        ValueError: made for more servers than there are slots.
    """

    def __init__(self, servers: Sequence[RealServer], options: MaglevOptions | None = None) -> None:
        super().__init__(servers, options)
        self._options = options or MaglevOptions()
        self._hash, _ = self._options.hashes()
        self._table: list[RealServer] = []
        self._changed: list[tuple[RealServer, int]] | None = None
        if len(servers) > self._options.slots:
            raise ValueError(f"{len(servers)} servers; allowed: {self._options.slots}, one a slot")
        self._note()

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the server of the client's slot, or None where it may not be used."""
        if self._changed is not None:
            self._build(self._changed, len(flow.caddr))
        table, slots = self._table, self._options.slots
        if not table:
            return None
        port = flow.cport * self._options.port
        first = self._hash(flow.caddr, port, 0) % slots
        if usable(table[first]):
            return table[first]
        if self._options.fallback and any(map(usable, self.servers)):
            for step in range(slots):
                server = table[self._hash(flow.caddr, port, (first + step) % slots) % slots]
                if usable(server):
                    return server
        return None

    def ring(self, service: VirtualService) -> Ring | None:
        """Return the table, with nobody in the place of who may not be used.

        None for a private hash, a table that is too large, and a mark, which has no address.
        """
        options = self._options
        if options.key is not None or options.slots > Ring.LONGEST or not service.address:
            return None
        if self._changed is not None:
            self._build(self._changed, len(service.address))
        places = [server if usable(server) else None for server in self._table]
        return Ring(servers=places, by="mh", port=options.port) if any(places) else None

    def _build(self, changed: list[tuple[RealServer, int]], size: int) -> None:
        """Build the table of what has changed, for clients' addresses of `size` bytes."""
        self._table = populate(changed, self._options, size)
        self._changed = None

    def server_added(self, server: RealServer) -> None:
        """Build the table anew."""
        self._note()

    def server_removed(self, server: RealServer) -> None:
        """Build the table anew."""
        self._note()

    def server_updated(self, server: RealServer) -> None:
        """Build the table anew, with the server's weight unless it is 0."""
        if server.weight:
            self._note()

    def _note(self) -> None:
        if len(self.servers) <= self._options.slots:
            self._changed = [(s, s.last_weight) for s in self.servers]


def populate(
    servers: Sequence[tuple[RealServer, int]], options: MaglevOptions, size: int
) -> list[RealServer]:
    """Return the server of every slot; nothing where no server has a weight.

    Args:
        servers: with their weights.
        options: the size of the table and the keys.
        size: bytes of the clients' addresses. In the kernel's hash no more counts of a server's,
            either: it takes the service's family for everybody's.
    """
    slots = options.slots
    slot_hash, skip_hash = options.hashes()
    step = gcd(*(weight for _, weight in servers))
    if not step:
        return []
    most = max(weight for _, weight in servers) // step
    shift = max(most.bit_length() - slots.bit_length() // 2, 0)
    table: dict[int, RealServer] = {}
    rounds = []
    for server, weight in servers:
        if weight:
            address = server.address if options.key else server.address[:size]
            offset = slot_hash(address, server.port, 0) % slots
            skip = skip_hash(address, server.port, 0) % (slots - 1) + 1
            preferred = map(slots.__rmod__, count(offset, skip))  # without end
            free = filterfalse(table.__contains__, preferred)  # as the table is by then
            rounds.append((server, max(weight // step >> shift, 1), free))
    for server, turns, free in cycle(rounds):
        for slot in islice(free, min(turns, slots - len(table))):
            table[slot] = server
        if len(table) == slots:
            break
    return [table[slot] for slot in range(slots)]


def kernel_hash(key: tuple[int, int]) -> Hash:
    """Return the kernel's hash: of the sum of all three, so many clients share one."""
    return lambda address, port, searched: hsiphash(fold(address) + port + searched & MASK, key)


def private_hash(key: str, purpose: bytes) -> Hash:
    """Return a hash of all the bytes, from which nobody without `key` learns anything."""
    secret = sha256(key.encode()).digest()

    def digest(address: bytes, port: int, searched: int) -> int:
        message = address + port.to_bytes(2, "big") + searched.to_bytes(4, "big")
        found = blake2b(message, digest_size=8, key=secret, person=purpose).digest()
        return int.from_bytes(found, "big")

    return digest


def usable(server: RealServer) -> bool:
    """Whether a new connection may go to `server`; one of an old table may have been removed."""
    return server.weight > 0 and not server.overloaded and server.available
