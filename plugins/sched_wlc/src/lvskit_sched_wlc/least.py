"""The least loaded of many servers, found without looking at each: what the four here share."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from lvskit import Flow, RealServer, SchedulerBase

_SPARE = 4  # a heap this many times longer than the list is made anew


class LeastLoaded(SchedulerBase):
    """Chooses the least `load` per weight among those that may be used; the newest of equals.

    Each server has a rank, one number: its load per weight, and behind that, for equals, its place
    in the list, which is counted from 0, the newest. Loads per weight are whole multiples of one
    over the square of the greatest weight: fractions that differ at all differ by that much, so
    they are told apart exactly, as Linux ip_vs_wlc.c does it by cross-multiplication.

    The ranks are in a heap. One that grows on top sinks at once; elsewhere it stays until it comes
    to the top, where its new rank takes its place; one that becomes less is pushed besides.

    A choice looks at the top, and each change of a server is O(log n); O(n log n) after the list
    itself has changed, or a weight has become the greatest.
    """

    weighted = True
    """Loads are compared per weight; False: as they are."""

    def __init__(self, servers: Sequence[RealServer], options: Any = None) -> None:
        super().__init__(servers, options)
        self._places: dict[RealServer, int] = {}  # empty: the list has changed
        self._begin()

    def load(self, server: RealServer) -> int:
        """Return how busy a server is."""
        raise NotImplementedError

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the least loaded server, or None where none may be used."""
        if not self._places:
            self._begin()
        ranks, heap = self._ranks, self._heap
        while heap:
            least = heap[0]
            place = least % len(ranks)
            rank = ranks[place]
            if rank == least:
                return self.servers[place]
            if rank < 0:
                heappop(heap)
            else:
                heapreplace(heap, rank)
        return None

    def server_added(self, server: RealServer) -> None:
        """Begin anew at the next choice: places have changed."""
        self._places.clear()

    def server_removed(self, server: RealServer) -> None:
        """As for a server that joins."""
        self._places.clear()

    def server_updated(self, server: RealServer) -> None:
        """Give it another rank; begin anew at the next choice where no weight was as great."""
        if server.weight > self._greatest:
            self._places.clear()
        self.load_changed(server)

    def load_changed(self, server: RealServer) -> None:
        """Give it another rank."""
        place = self._places.get(server)
        if place is None:  # of a list that has changed, or has been left
            return
        ranks, heap = self._ranks, self._heap
        old, rank = ranks[place], -1
        if server.weight > 0 and not server.overloaded:
            rank = self.load(server) * self._unit
            if self.weighted:
                rank //= server.weight
            rank = rank * len(ranks) + place
        ranks[place] = rank
        if 0 <= old <= rank:
            if heap[0] == old:
                heapreplace(heap, rank)
        elif rank >= 0:
            heappush(heap, rank)
            if len(heap) > _SPARE * len(ranks):
                heap[:] = [rank for rank in ranks if rank >= 0]
                heapify(heap)

    def _begin(self) -> None:
        self._places.update((server, place) for place, server in enumerate(self.servers))
        self._greatest = max((server.weight for server in self.servers), default=0)
        self._unit = self._greatest**2  # the rank of a load of one for a weight of one
        self._ranks = [-1] * len(self.servers)  # by place; less than 0: not to be used
        self._heap: list[int] = []
        for server in self.servers:
            self.load_changed(server)
