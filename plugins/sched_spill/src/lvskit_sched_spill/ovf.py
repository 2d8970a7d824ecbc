"""Overflow: the heaviest server until it is full, then the next.

Source: Linux net/netfilter/ipvs/ip_vs_ovf.c, by behaviour. `schedule` looks at every server: O(n).
"""

from __future__ import annotations

from operator import attrgetter

from lvskit import Flow, RealServer, SchedulerBase


class Overflow(SchedulerBase):
    """Chooses the greatest weight, the newest of equals, among servers with room.

    A server has room while its active connections do not exceed its weight, so it gets one more
    than its weight. UDP is never active and never overflows.
    """

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the heaviest server with room that is not overloaded, or None."""
        roomy = (
            s
            for s in self.servers
            if s.weight > 0 and s.activeconns <= s.weight and not s.overloaded
        )
        return max(roomy, key=attrgetter("weight"), default=None)
