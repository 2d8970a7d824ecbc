"""Weighted least connection: the server with the fewest connections for its weight.

Source: Linux net/netfilter/ipvs/ip_vs_wlc.c and ip_vs.h (ip_vs_dest_conn_overhead), by behaviour.
A change of a server is O(log n); see `LeastLoaded`.
"""

from __future__ import annotations

from lvskit import RealServer
from lvskit_sched_wlc.least import LeastLoaded


class WeightedLeastConnection(LeastLoaded):
    """Chooses the least load per weight, an active connection being the load of 257 inactive."""

    def load(self, server: RealServer) -> int:
        """Return 256 for each active connection, and 1 for every connection, active or not."""
        return 257 * server.activeconns + server.inactconns
