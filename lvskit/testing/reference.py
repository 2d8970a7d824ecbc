"""Schedulers again, slow and obvious: what the fast ones are compared with.

Each follows from the description of the algorithm and shares no code or trick with the plugin that
it checks. `Pool` drives a scheduler and its reference side by side:

>>> pool = Pool(RotationRoundRobin)
>>> for weight in (1, 1, 0):
...     pool.add(weight)
>>> [pool.pick() for turn in range(4)]
[1, 0, 1, 0]

Every reference has a scheduler's methods, so it is one: useful as a known-good stand-in as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import gcd
from typing import Any

from lvskit import TCP, Flow, Scheduler, SchedulerBase, ServerSettings, ServiceKey
from lvskit.core.service import RealServer, VirtualService


def usable(server: Any) -> bool:
    """Whether a scheduler may choose `server` at all."""
    return server.weight > 0 and not server.overloaded


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


class FractionWlc(SchedulerBase):
    """wlc: the least (257 x active + inactive) per weight, as an exact fraction."""

    def schedule(self, flow: Flow) -> Any:
        """Return the first of the servers with the least fraction."""
        return min(filter(usable, self.servers), key=self._cost, default=None)

    def _cost(self, server: Any) -> Fraction:
        return Fraction(257 * server.activeconns + server.inactconns, server.weight)


class FractionLc(FractionWlc):
    """lc: the same without weights."""

    def _cost(self, server: Any) -> Fraction:
        return Fraction(257 * server.activeconns + server.inactconns)


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


class SortedFailOver(SchedulerBase):
    """fo: the usable servers in the order of their weights, the heaviest first."""

    def schedule(self, flow: Flow) -> Any:
        """Return the first."""
        order = sorted(filter(self._wanted, self.servers), key=lambda server: -server.weight)
        return order[0] if order else None

    def _wanted(self, server: Any) -> bool:
        return usable(server)


class SortedOverflow(SortedFailOver):
    """ovf: the same without those that have more active connections than they weigh."""

    def _wanted(self, server: Any) -> bool:
        return usable(server) and not server.activeconns > server.weight


CLIENT = Flow(TCP, bytes([10, 2, 0, 1]), 1024, bytes([10, 0, 0, 1]), 80)
"""Whose connection `Pool.pick` asks for where it is not told."""


class Pool:
    """The servers of one service, and schedulers that are told of every change to them.

    Servers are known by number, in the order in which they were added. Their counts are set by
    hand; in a director they follow from connections.

    Args:
        factories: of a scheduler and, as a rule, of its reference.
    """

    def __init__(self, *factories: Callable[[Sequence[Any], Any], Scheduler]) -> None:
        self._service = VirtualService(ServiceKey.of(TCP, bytes([10, 0, 0, 1]), 80))
        self._numbers: dict[RealServer, int] = {}
        self._count = 0
        servers = self._service.servers
        self.schedulers = [factory(servers, None) for factory in factories]

    @property
    def servers(self) -> list[RealServer]:
        """Those in the service, newest first."""
        return self._service.servers

    def add(self, weight: int = 1) -> None:
        """Add a server."""
        number = self._count
        server = RealServer(self._service, bytes([10, 1, number >> 8 & 255, number & 255]), 80)
        server.apply(ServerSettings(weight=weight))
        self._numbers[server] = number
        self._count += 1
        self._service.attach(server)
        for scheduler in self.schedulers:
            scheduler.server_added(server)

    def remove(self, place: int) -> None:
        """Remove the server at this place of the list."""
        server = self.servers[place]
        self._service.detach(server)
        for scheduler in self.schedulers:
            scheduler.server_removed(server)

    def edit(self, place: int, weight: int) -> None:
        """Give the server at this place another weight."""
        server = self.servers[place]
        server.apply(ServerSettings(weight=weight))
        for scheduler in self.schedulers:
            scheduler.server_updated(server)

    def load(self, place: int, active: int, inactive: int = 0) -> None:
        """Give the server at this place that many connections."""
        server = self.servers[place]
        server.activeconns, server.inactconns = active, inactive

    def overload(self, place: int, overloaded: bool = True) -> None:
        """Let the server at this place reach its upper threshold, or recover; nobody is told."""
        self.servers[place].overloaded = overloaded

    def tick(self, now: float) -> None:
        """Tell every scheduler the time."""
        for scheduler in self.schedulers:
            scheduler.tick(now)

    def pick(self, flow: Flow = CLIENT) -> int | None:
        """Ask every scheduler once; return the number of the server they agree on.

        Raises:
            AssertionError: they do not agree.
        """
        picks = [scheduler.schedule(flow) for scheduler in self.schedulers]
        numbers = [None if server is None else self._numbers[server] for server in picks]  # type: ignore[index]
        assert len(set(numbers)) == 1, f"picks {numbers} of {[s.name for s in self.servers]}"
        return numbers[0]
