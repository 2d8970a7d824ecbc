"""lc, wlc, sed and nq: whoever has least to do. fo and ovf: whoever is strongest.

All look at the servers as they are and remember nothing.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from lvskit import Flow, SchedulerBase
from lvskit.testing.reference.usable import usable


def load(server: Any) -> int:
    """Return 256 for each active connection, and 1 for every connection."""
    total: int = server.activeconns + server.inactconns
    return 256 * int(server.activeconns) + total


class FractionWlc(SchedulerBase):
    """wlc: the least load per weight, as an exact fraction."""

    def schedule(self, flow: Flow) -> Any:
        """Return the first of the servers with the least fraction."""
        return min(filter(usable, self.servers), key=self._cost, default=None)

    def _cost(self, server: Any) -> Fraction:
        return Fraction(load(server), server.weight)


class FractionLc(FractionWlc):
    """lc: the same without weights."""

    def _cost(self, server: Any) -> Fraction:
        return Fraction(load(server))


class FractionSed(FractionWlc):
    """sed: the least (active + 1) per weight, as an exact fraction."""

    def _cost(self, server: Any) -> Fraction:
        return Fraction(server.activeconns + 1, server.weight)


class FractionNq(FractionSed):
    """nq: the first server without active connections, else sed."""

    def schedule(self, flow: Flow) -> Any:
        """Return the first idle server, or sed's choice."""
        idle = [server for server in self.servers if usable(server) and server.activeconns == 0]
        return idle[0] if idle else super().schedule(flow)


class Strongest(SchedulerBase):
    """fo: the greatest weight takes everything; the first in the list of equals."""

    def schedule(self, flow: Flow) -> Any:
        """Return the first of the usable servers with the greatest weight."""
        return max(filter(usable, self.servers), key=lambda server: server.weight, default=None)


class StrongestWithRoom(SchedulerBase):
    """ovf: the same among those that have no more active connections than their weight."""

    def schedule(self, flow: Flow) -> Any:
        """Return the first with the greatest weight of the usable servers that have room."""
        roomy = [s for s in self.servers if usable(s) and s.activeconns <= s.weight]
        return max(roomy, key=lambda server: server.weight, default=None)
