"""Weighted least connection: the server with the fewest connections for its weight.

Source: Linux net/netfilter/ipvs/ip_vs_wlc.c and ip_vs.h (ip_vs_dest_conn_overhead), by behaviour.
`schedule` looks at every server: O(n).
"""

from __future__ import annotations

from lvskit import Flow, RealServer, SchedulerBase


def overhead(server: RealServer) -> int:
    """Return a server's load: an active connection weighs as much as 257 inactive ones.

    The kernel counts 256 for each active one and 1 for every connection, active ones included.
    """
    return 257 * server.activeconns + server.inactconns


class WeightedLeastConnection(SchedulerBase):
    """Chooses the least `overhead` per weight; the newest server of equals."""

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the least loaded server, or None where none may be used."""
        best, best_load = None, 0
        for server in self.servers:
            if server.overloaded or server.weight <= 0:
                continue
            load = overhead(server)
            # Loads per weight are compared by cross-multiplication: exact, and no division.
            if best is None or best_load * server.weight > load * best.weight:
                best, best_load = server, load
        return best
