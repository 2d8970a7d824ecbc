"""Shortest expected delay: the server that would serve one connection more the soonest.

Source: Linux net/netfilter/ipvs/ip_vs_sed.c, by behaviour. `schedule` is O(n).
"""

from __future__ import annotations

from lvskit import Flow, RealServer, SchedulerBase


class ShortestExpectedDelay(SchedulerBase):
    """Chooses the least (active connections + 1) per weight; the newest server of equals.

    Inactive connections do not count, so for UDP the heaviest server always wins.
    """

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the server with the shortest expected delay, or None where none may be used."""
        best: RealServer | None = None
        for server in self.servers:
            if server.overloaded or server.weight <= 0:
                continue
            if (
                best is None
                or (best.activeconns + 1) * server.weight > (server.activeconns + 1) * best.weight
            ):
                best = server
        return best
