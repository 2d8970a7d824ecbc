"""lblc and lblcr: what was asked for before goes to the server, or the servers, that had it.

Source: Linux net/netfilter/ipvs/ip_vs_lblc.c and ip_vs_lblcr.c, by behaviour. Time is known by
`tick` alone, so to two seconds. A server that was removed and has come back is the same server.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from lvskit import Flow, SchedulerBase
from lvskit.testing.reference.hashes import bucket, folded
from lvskit.testing.reference.loads import FractionWlc, load

CHECK_S = 60
FULL_CHECK = 30
"""Every how many checks those entries go that nobody has asked for before they expire."""
STALE_S = 6 * 60
"""An entry that nobody has asked for in so long goes when there are more than `ROOM` of them."""
BUCKETS = 1024
ROOM = 16 * BUCKETS
Name = tuple[bytes, int]
"""Address and port of a server."""


class Entry:
    """What is remembered of a virtual address: its servers, the last to join first; two times."""

    def __init__(self, now: float) -> None:
        self.servers: list[Name] = []
        self.used = self.changed = now


class _ByAddress(SchedulerBase):
    """What both have in common: the cache, its ageing, and who is overloaded in their sense.

    Args:
        servers, options: as every scheduler's; there are no flags.
        expiration_s: Linux's lblc_expiration and lblcr_expiration.
    """

    def __init__(
        self, servers: Sequence[Any], options: Any = None, *, expiration_s: float = 24 * 3600
    ) -> None:
        super().__init__(servers, options)
        self._expiration_s = expiration_s
        self._known: dict[Name, Any] = {(s.address, s.port): s for s in servers}
        self._entries: dict[bytes, Entry] = {}
        self._now: float | None = None
        self._next_check = 0.0
        self._checks = 1
        self._rover = 0

    def server_added(self, server: Any) -> None:
        """Know it, again perhaps."""
        self._known[server.address, server.port] = server

    def tick(self, now: float) -> None:
        """Let entries go; what was before the first tick is as if it were then."""
        if self._now is None:
            self._next_check = now + CHECK_S
            for entry in self._entries.values():
                entry.used = entry.changed = now
        self._now = now
        while now >= self._next_check:
            self._check(self._next_check)
            self._next_check += CHECK_S

    def _check(self, now: float) -> None:
        over = len(self._entries) - ROOM
        if self._checks == FULL_CHECK:
            self._checks = 1
            self._drop_unused(now - self._expiration_s, len(self._entries) + 1)
        elif over <= 0:
            self._checks += 1
        else:
            self._drop_unused(now - STALE_S, min(over * 4 // 3, ROOM // 2))

    def _drop_unused(self, since: float, goal: int) -> None:
        """Drop what was last used by `since`, bucket by bucket, until `goal` entries have gone."""
        unused: dict[int, list[bytes]] = {}
        for address, entry in self._entries.items():
            if entry.used <= since:
                unused.setdefault(bucket(folded(address), BUCKETS), []).append(address)
        for _ in range(BUCKETS):
            self._rover = (self._rover + 1) % BUCKETS
            for address in unused.get(self._rover, ()):
                del self._entries[address]
                goal -= 1
            if goal <= 0:
                break

    def _entry(self, flow: Flow) -> Entry | None:
        """Return what is remembered of the address that a client asks for."""
        entry = self._entries.get(flow.destination)
        if entry is not None:
            entry.used = self._now or 0.0
        return entry

    def _remember(self, flow: Flow, server: Any) -> None:
        """Make a new entry, where there is room."""
        self._entries.pop(flow.destination, None)
        if len(self._entries) < ROOM * 3 // 2:
            entry = self._entries[flow.destination] = Entry(self._now or 0.0)
            entry.servers.append((server.address, server.port))

    def _is_there(self, server: Any) -> bool:
        return any(server is one for one in self.servers)

    def _has_too_much(self, server: Any) -> bool:
        """It has more than its weight while some server has less than half of its own."""
        bored = [s for s in self.servers if s.activeconns * 2 < s.weight]
        return bool(server.activeconns > server.weight and bored)

    def _least_loaded(self, flow: Flow) -> Any:
        return FractionWlc(self.servers).schedule(flow)


class ServerByAddress(_ByAddress):
    """lblc: an address keeps its server while that is there, not quiesced, and not too busy."""

    def schedule(self, flow: Flow) -> Any:
        """Return the server of the address, or from now on the least loaded."""
        entry = self._entry(flow)
        if entry is not None:
            server = self._known[entry.servers[0]]
            if self._is_there(server) and server.weight > 0 and not self._has_too_much(server):
                return server
        chosen = self._least_loaded(flow)
        if chosen is not None:
            self._remember(flow, chosen)
        return chosen


class ServerSetByAddress(_ByAddress):
    """lblcr: an address has several servers; the least loaded of them serves.

    One joins when that one is too busy; the most loaded leaves when the set has stayed as it is
    for long.
    """

    def schedule(self, flow: Flow) -> Any:
        """Return the least loaded of the address's servers, or from now on of all."""
        entry = self._entry(flow)
        if entry is None:
            chosen = self._least_loaded(flow)
            if chosen is not None:
                self._remember(flow, chosen)
            return chosen
        members = [self._known[name] for name in entry.servers]
        there = [server for server in members if self._is_there(server)]
        best = FractionWlc(there).schedule(flow)
        now = self._now or 0.0
        if len(members) > 1 and now > entry.changed + self._expiration_s:
            worst = max((s for s in members if s.weight > 0), key=_per_weight, default=None)
            if worst is not None:
                entry.servers.remove((worst.address, worst.port))
                entry.changed = now
        if best is not None and not self._has_too_much(best):
            return best
        chosen = self._least_loaded(flow)
        if chosen is not None and (chosen.address, chosen.port) not in entry.servers:
            entry.servers.insert(0, (chosen.address, chosen.port))
            entry.changed = now
        return chosen


def _per_weight(server: Any) -> Fraction:
    return Fraction(load(server), server.weight)
