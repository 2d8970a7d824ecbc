"""Locality-based least connection with replication: a virtual address has a set of servers.

Source: Linux net/netfilter/ipvs/ip_vs_lblcr.c, by behaviour. `schedule` is O(size of the set) while
the set's least loaded server has no more active connections than it weighs, else O(n).
"""

from __future__ import annotations

from collections.abc import Sequence

from lvskit import Flow, RealServer, SchedulerBase
from lvskit_sched_locality.cache import Cache, LocalityOptions
from lvskit_sched_locality.load import least_loaded, most_loaded, too_busy


class ReplicatedLocality(SchedulerBase):
    """Chooses the least loaded of the virtual address's servers; a set that is too busy grows.

    A set that has not changed for `expiration_s` loses its most loaded server.
    """

    def __init__(
        self, servers: Sequence[RealServer], options: LocalityOptions | None = None
    ) -> None:
        super().__init__(servers, options)
        self._expiration_s = (options or LocalityOptions()).expiration_s
        self._cache = Cache(self._expiration_s)

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the least loaded server of the set, or of all, which then joins the set."""
        cache = self._cache
        entry = cache.find(flow.destination)
        if entry is not None:
            # Chosen before the set shrinks: it may be the one that leaves.
            server = least_loaded(entry.servers)
            if len(entry.servers) > 1 and cache.now > entry.changed + self._expiration_s:
                leaving = most_loaded(entry.servers)
                if leaving is not None:
                    entry.servers.remove(leaving)
                    entry.changed = cache.now
            if server is not None and not too_busy(server, self.servers):
                return server
        server = least_loaded(self.servers)
        if server is None:
            return None
        if entry is None:
            cache.store(flow.destination, server)
        elif server not in entry.servers:
            entry.servers.insert(0, server)
            entry.changed = cache.now
        return server

    def server_added(self, server: RealServer) -> None:
        """Let it have its places in sets again that it had before it was removed."""
        self._cache.readmit(server)

    def tick(self, now: float) -> None:
        """Forget what has not been used for long."""
        self._cache.tick(now)
