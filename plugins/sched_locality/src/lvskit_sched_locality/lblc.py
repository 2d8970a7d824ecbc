"""Locality-based least connection: a virtual address keeps its server while that can carry it.

Source: Linux net/netfilter/ipvs/ip_vs_lblc.c, by behaviour. `schedule` is O(1) while the server
that the cache names has no more active connections than it weighs, else O(n).
"""

from __future__ import annotations

from collections.abc import Sequence

from lvskit import Flow, RealServer, SchedulerBase
from lvskit_sched_locality.cache import Cache, LocalityOptions
from lvskit_sched_locality.load import least_loaded, too_busy


class LocalityLeastConnection(SchedulerBase):
    """Chooses the server that the virtual address has, or gives it the least loaded one."""

    def __init__(
        self, servers: Sequence[RealServer], options: LocalityOptions | None = None
    ) -> None:
        super().__init__(servers, options)
        self._cache = Cache((options or LocalityOptions()).expiration_s)

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the virtual address's server, or the least loaded one, or None.

        As in the kernel, a server over its upper threshold keeps the addresses that it has.
        """
        entry = self._cache.find(flow.destination)
        known = entry.servers[0] if entry is not None else None
        if (
            known is not None
            and known.available
            and known.weight > 0
            and not too_busy(known, self.servers)
        ):
            return known
        server = least_loaded(self.servers)
        if server is not None:
            self._cache.store(flow.destination, server)
        return server

    def server_added(self, server: RealServer) -> None:
        """Let it have the addresses that it had before it was removed."""
        self._cache.readmit(server)

    def tick(self, now: float) -> None:
        """Forget what has not been used for long."""
        self._cache.tick(now)
