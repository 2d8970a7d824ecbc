"""Weighted fail-over: the heaviest server takes everything.

Source: Linux net/netfilter/ipvs/ip_vs_fo.c, by behaviour. `schedule` looks at every server: O(n).
"""

from __future__ import annotations

from operator import attrgetter

from lvskit import Flow, RealServer, SchedulerBase


class FailOver(SchedulerBase):
    """Chooses the greatest weight, the newest server of equals; the others stand by."""

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the heaviest server that is not overloaded, or None."""
        usable = (s for s in self.servers if s.weight > 0 and not s.overloaded)
        return max(usable, key=attrgetter("weight"), default=None)
