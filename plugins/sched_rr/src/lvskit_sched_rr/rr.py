"""Round robin: each server in turn, whatever its weight.

Source: Linux net/netfilter/ipvs/ip_vs_rr.c, by behaviour. `schedule` looks at one server, or at
more where some are quiesced or overloaded: O(1), O(n) at worst. Removal is O(n).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from lvskit import Flow, RealServer, Ring, SchedulerBase, VirtualService


class RoundRobin(SchedulerBase):
    """Continues after the server chosen last.

    Servers join at the head of the list, so a place counted from its end moves only when a server
    behind it leaves: `_last` counts the server chosen last and those behind it; 0 = none yet.
    """

    def __init__(self, servers: Sequence[RealServer], options: Any = None) -> None:
        super().__init__(servers, options)
        self._last = 0
        self._order = list(servers)

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the next server with a weight that is not overloaded, or None."""
        servers = self.servers
        count = len(servers)
        start = count - self._last + 1 if self._last else 0
        for step in range(count):
            index = (start + step) % count
            server = servers[index]
            if server.weight > 0 and not server.overloaded:
                self._last = count - index
                return server
        return None

    def ring(self, service: VirtualService) -> Ring | None:
        """Return the servers that may be chosen, the next one first."""
        count = sum(server.weight > 0 and not server.overloaded for server in self.servers)
        if not 1 <= count <= Ring.LONGEST:
            return None
        ahead = copy(self)
        flow = Flow(service.protocol, b"", 0, service.address, service.port)
        return Ring(servers=[ahead.schedule(flow) for _ in range(count)])

    def server_added(self, server: RealServer) -> None:
        """Keep the order, to know later where a removed server stood."""
        self._order = list(self.servers)

    def server_removed(self, server: RealServer) -> None:
        """Keep the place; one that was the removed server's goes to the server before it."""
        removed = len(self._order) - self._order.index(server)
        if removed < self._last:
            self._last -= 1
        elif removed == self._last > len(self.servers):
            self._last = 0
        self._order = list(self.servers)
