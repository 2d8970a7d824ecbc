"""lblc and lblcr again, slow and obvious; see `lvskit.testing.reference`.

Their cache has no limits here, so it is to be compared below 16,384 addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from lvskit import Flow, SchedulerBase
from lvskit.testing.reference import usable


def load(server: Any) -> Fraction:
    """Return a server's load per weight."""
    return Fraction(257 * server.activeconns + server.inactconns, server.weight)


def least(servers: Iterable[Any]) -> Any:
    """Return the first of the usable servers with the least load."""
    return min((s for s in servers if usable(s) and s.available), key=load, default=None)


class Remembered:
    """A virtual address, its servers (the newest first), and when it was used and changed."""

    def __init__(self, address: bytes, server: Any, now: float) -> None:
        self.address, self.servers = address, [server]
        self.used = self.changed = now


class RememberingLocality(SchedulerBase):
    """lblc: looks through all that it remembers.

    Args:
        servers, options: as every scheduler's; options are not read.
        expiration_s: as the option of that name.
    """

    def __init__(
        self, servers: Sequence[Any], options: Any = None, expiration_s: float = 86400
    ) -> None:
        super().__init__(servers, options)
        self._expiration_s = expiration_s
        self._memory: list[Remembered] = []
        self._start: float | None = None
        self._now = 0.0

    def tick(self, now: float) -> None:
        """Forget, at every full half hour since the first tick, what was not used for long."""
        self._start = now if self._start is None else self._start
        before, self._now = self._now, now - self._start
        for half_hour in range(int(before // 1800) + 1, int(self._now // 1800) + 1):
            oldest = half_hour * 1800 - self._expiration_s
            self._memory = [entry for entry in self._memory if entry.used > oldest]

    def server_added(self, server: Any) -> None:
        """Take it for the one of that address and port that was there before."""
        for entry in self._memory:
            for place, known in enumerate(entry.servers):
                if known.name == server.name:
                    entry.servers[place] = server

    def schedule(self, flow: Flow) -> Any:
        """Return what is remembered if it will do, else the least loaded server."""
        entry = self._recall(flow.vaddr)
        if entry is not None:
            known = entry.servers[0]
            if known.weight and known.available and not self._too_busy(known):
                return known
        chosen = least(self.servers)
        if chosen is not None and entry is not None and entry.servers != [chosen]:
            self._memory.remove(entry)
            entry = None
        if chosen is not None and entry is None:
            self._memory.append(Remembered(flow.vaddr, chosen, self._now))
        return chosen

    def _recall(self, address: bytes) -> Remembered | None:
        for entry in self._memory:
            if entry.address == address:
                entry.used = self._now
                return entry
        return None

    def _too_busy(self, server: Any) -> bool:
        idle = [other for other in self.servers if other.activeconns < Fraction(other.weight, 2)]
        return server.activeconns > server.weight and bool(idle)


class RememberingReplication(RememberingLocality):
    """lblcr: the same with sets of servers."""

    def schedule(self, flow: Flow) -> Any:
        """Return the least loaded of the set, or of all servers, which the set then has."""
        entry = self._recall(flow.vaddr)
        if entry is None:
            chosen = least(self.servers)
            if chosen is not None:
                self._memory.append(Remembered(flow.vaddr, chosen, self._now))
            return chosen
        known = least(entry.servers)
        weighty = [server for server in entry.servers if server.weight]
        if len(entry.servers) > 1 and self._now - entry.changed > self._expiration_s and weighty:
            entry.servers.remove(max(weighty, key=load))
            entry.changed = self._now
        if known is not None and not self._too_busy(known):
            return known
        chosen = least(self.servers)
        if chosen is not None and chosen not in entry.servers:
            entry.servers = [chosen, *entry.servers]
            entry.changed = self._now
        return chosen
