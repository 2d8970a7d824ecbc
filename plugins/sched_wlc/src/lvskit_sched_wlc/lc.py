"""Least connection: the server with the fewest connections, whatever its weight.

Source: Linux net/netfilter/ipvs/ip_vs_lc.c, by behaviour. `schedule` is O(n).
"""

from __future__ import annotations

from lvskit import Flow, RealServer, SchedulerBase
from lvskit_sched_wlc.wlc import overhead


class LeastConnection(SchedulerBase):
    """Chooses the least `overhead`; the newest server of equals; weight 0 is quiesced."""

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the least loaded server, or None where none may be used."""
        usable = [s for s in self.servers if not s.overloaded and s.weight > 0]
        return min(usable, key=overhead, default=None)
