"""Shortest expected delay: the server that would serve one connection more the soonest.

Source: Linux net/netfilter/ipvs/ip_vs_sed.c, by behaviour. A change of a server is O(log n); see
`LeastLoaded`.
"""

from __future__ import annotations

from lvskit import RealServer
from lvskit_sched_wlc.least import LeastLoaded


class ShortestExpectedDelay(LeastLoaded):
    """Chooses the least (active connections + 1) per weight.

    Inactive connections do not count, so for UDP the heaviest server always wins.
    """

    def load(self, server: RealServer) -> int:
        """Return the active connections that there would be."""
        return server.activeconns + 1
