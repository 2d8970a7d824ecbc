"""Never queue: an idle server at once, else the shortest expected delay.

Source: Linux net/netfilter/ipvs/ip_vs_nq.c, by behaviour. A change of a server is O(log n); see
`LeastLoaded`.
"""

from __future__ import annotations

from lvskit import RealServer
from lvskit_sched_wlc.least import LeastLoaded


class NeverQueue(LeastLoaded):
    """Chooses the newest server without active connections, whatever its weight, else as sed."""

    def load(self, server: RealServer) -> int:
        """Return sed's load, but 0 for an idle server: per any weight, that is the least."""
        return server.activeconns + 1 if server.activeconns else 0
