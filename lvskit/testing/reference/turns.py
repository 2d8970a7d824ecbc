"""rr and wrr: servers that take turns."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

from lvskit import Flow, SchedulerBase
from lvskit.testing.reference.usable import usable


class RotationRoundRobin(SchedulerBase):
    """rr: the servers sit in a ring, and whoever was chosen last is turned to its front.

    A mark in the ring stands for the beginning of the list: a new server joins behind it, and the
    search begins there until a server has been chosen. Removing the server in front turns the
    ring back to the one before it.
    """

    def __init__(self, servers: Sequence[Any], options: Any = None) -> None:
        super().__init__(servers, options)
        self._ring: list[Any] = [None, *servers]

    def schedule(self, flow: Flow) -> Any:
        """Return the first usable server behind the front, the front itself as the last."""
        for _ in self._ring:
            self._ring = [*self._ring[1:], self._ring[0]]
            if self._ring[0] is not None and usable(self._ring[0]):
                return self._ring[0]
        return None

    def server_added(self, server: Any) -> None:
        """Put it behind the mark."""
        self._ring.insert(self._ring.index(None) + 1, server)

    def server_removed(self, server: Any) -> None:
        """Take it out of the ring."""
        if self._ring[0] is server:
            self._ring = [self._ring[-1], *self._ring[:-1]]
        self._ring.remove(server)


class CycleWeightedRoundRobin(SchedulerBase):
    """wrr: walks over the written-out cycle of turns, one pass per threshold.

    With weights 4, 2 (greatest common divisor 2) the thresholds are 3 and 1, and a cycle is
    (3, first), (3, second), (1, first), (1, second): a turn is taken by its server if the weight
    reaches the threshold. A search ends without a choice when every server had a turn of the last
    threshold in vain.
    """

    def __init__(self, servers: Sequence[Any], options: Any = None) -> None:
        super().__init__(servers, options)
        self._threshold = 0
        self._position = -1
        self._restart()

    def schedule(self, flow: Flow) -> Any:
        """Return the server of the next turn that is taken."""
        count = len(self.servers)
        turns = [(t, i) for t in self._thresholds() for i in range(count)]
        if not turns:
            return None
        began_in_last_pass = self._threshold == turns[-1][0] and self._position >= 0
        at = turns.index((self._threshold, 0)) + self._position + 1
        last_turns = 0
        for turn in range(at, at + 2 * len(turns) + 1):
            threshold, index = turns[turn % len(turns)]
            server = self.servers[index]
            if server.weight >= threshold and not server.overloaded:
                self._threshold, self._position = threshold, index
                return server
            last_turns += threshold == turns[-1][0]
            if last_turns == count:
                break
        if began_in_last_pass:  # it came round to where it had begun
            self._threshold = turns[-1][0]
        else:
            self._threshold, self._position = turns[0][0], -1
        return None

    def server_added(self, server: Any) -> None:
        """Begin again."""
        self._restart()

    def server_removed(self, server: Any) -> None:
        """Begin again."""
        self._restart()

    def server_updated(self, server: Any) -> None:
        """Begin again."""
        self._restart()

    def _thresholds(self) -> list[int]:
        weights = [server.weight for server in self.servers if server.weight]
        if not weights:
            return []
        step = gcd(*weights)
        return [weight - step + 1 for weight in range(max(weights), 0, -step)]

    def _restart(self) -> None:
        """Go to the head of the list, in the pass nearest below the one that it was in."""
        thresholds = self._thresholds()
        self._position = -1
        if self._threshold not in range(1, max(thresholds, default=0) + 1):
            self._threshold = max(thresholds, default=0)
            return
        step = gcd(*(server.weight for server in self.servers))
        if step > 1:  # the kernel's rounding: down to a multiple, and one more
            self._threshold = self._threshold // step * step + 1
