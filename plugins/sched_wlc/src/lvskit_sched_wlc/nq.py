"""Never queue: an idle server at once, else the shortest expected delay.

Source: Linux net/netfilter/ipvs/ip_vs_nq.c, by behaviour. `schedule` is O(n).
"""

from __future__ import annotations

from lvskit import Flow, RealServer
from lvskit_sched_wlc.sed import ShortestExpectedDelay


class NeverQueue(ShortestExpectedDelay):
    """Chooses the newest server without active connections, whatever its weight, else as sed."""

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return an idle server, or the one with the shortest expected delay, or None."""
        for server in self.servers:
            if not server.activeconns and not server.overloaded and server.weight > 0:
                return server
        return super().schedule(flow)
