"""Weighted round robin: each server in turn, as often as its weight says.

Source: Linux net/netfilter/ipvs/ip_vs_wrr.c, by behaviour. One cycle has sum(weights)/gcd picks
and hands out the heavy servers' surplus first, in bursts. Weights 4, 3, 2:

    threshold   4  3  2  1
    server A    A  A  A  A
    server B       B  B  B
    server C          C  C      -> A AB ABC ABC

`schedule` looks at each server at most once per threshold, and skips the thresholds that no usable
server reaches: O(1) amortised over a cycle of equal weights, O(n) at worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from math import gcd
from typing import Any

from lvskit import Flow, RealServer, Ring, SchedulerBase, VirtualService


class WeightedRoundRobin(SchedulerBase):
    """Passes over the servers, at each pass with a lower threshold that weights must reach.

    `_position` is the place chosen last (-1 = before the first), `_threshold` the present pass's,
    `_step` the weights' greatest common divisor, `_top` the first pass's threshold: the greatest
    weight less (step - 1), so that the last pass has threshold 1 and takes every weight.
    """

    def __init__(self, servers: Sequence[RealServer], options: Any = None) -> None:
        super().__init__(servers, options)
        self._threshold = 0
        self._position: int
        self._step: int
        self._top: int
        self._measure()

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the next server whose weight reaches the threshold, or None.

        Gives up only after every server was looked at in a last pass, where any weight will do;
        a search that began in mid-list must come round to its beginning for that.
        """
        if not self._top:
            return None
        servers = self.servers
        began, start = self._position, self._position + 1
        restarted = last_pass = False
        end, closing = len(servers), False
        while True:
            for index in range(start, end):
                server = servers[index]
                if server.weight >= self._threshold and not server.overloaded:
                    self._position = index
                    return server
            if closing:
                self._position = began
                return None
            self._threshold -= self._step
            if self._threshold <= 0:
                self._threshold = self._top
                if last_pass or began < 0:
                    self._position = -1
                    return None
                restarted = True
            elif self._threshold > 1:  # passes that nobody's weight reaches need not be walked
                best = max((s.weight for s in servers if not s.overloaded), default=0)
                reached = max(best - 1, 0) // self._step * self._step + 1
                self._threshold = min(self._threshold, reached)
            last_pass = self._threshold <= self._step
            if last_pass and restarted and began >= 0:
                end, closing = began + 1, True
            start = 0

    def ring(self, service: VirtualService) -> Ring | None:
        """Return one cycle of turns, the next one first; None where it is too long."""
        weights = [s.weight for s in self.servers if not s.overloaded]
        length = sum(weights) // self._step
        if not 1 <= length <= Ring.LONGEST:
            return None
        ahead = copy(self)
        flow = Flow(service.protocol, b"", 0, service.address, service.port)
        return Ring(servers=[ahead.schedule(flow) for _ in range(length)])

    def server_added(self, server: RealServer) -> None:
        """Begin again at the head, with steps that fit the weights there are now."""
        self._measure()

    def server_removed(self, server: RealServer) -> None:
        """As for a server that joins."""
        self._measure()

    def server_updated(self, server: RealServer) -> None:
        """As for a server that joins."""
        self._measure()

    def _measure(self) -> None:
        weights = [server.weight for server in self.servers]
        self._position = -1
        self._step = gcd(*weights) or 1
        self._top = max(weights, default=0) - (self._step - 1)
        if not 0 < self._threshold <= self._top:
            self._threshold = self._top
        elif self._step > 1:
            self._threshold = self._threshold // self._step * self._step + 1
