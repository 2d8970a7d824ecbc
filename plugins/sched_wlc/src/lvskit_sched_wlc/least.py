"""The least loaded of many servers, found without looking at each: what the four here share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lvskit import Flow, RealServer, SchedulerBase


class LeastLoaded(SchedulerBase):
    """Chooses the least `load` per weight among those that may be used; the newest of equals.

    A tournament over places in the list, which are counted from 0, the newest. `_winners[1]` is
    the place of the least loaded of all, `_winners[2]` of the first half, `_winners[3]` of the
    second, and so on; behind these stand the single places, filled up to a power of two. Only
    those who have changed since the last choice play again, up to where nothing changes:

        place    0    1    2    3
        load    10    8    9    8
                   1         3         winners 2 and 3
                        1              winner 1: of equals, the one before

    `schedule` is O(log n) for each server that has changed, O(n log n) after the list itself has.
    """

    weighted = True
    """Loads are compared per weight; False: as they are."""

    def __init__(self, servers: Sequence[RealServer], options: Any = None) -> None:
        super().__init__(servers, options)
        self._places: dict[RealServer, int] = {}  # empty: the list has changed
        self._changed: set[RealServer] = set()
        self._loads: list[int] = []
        self._weights: list[int] = []
        self._winners: list[int] = []

    def load(self, server: RealServer) -> int:
        """Return how busy a server is."""
        raise NotImplementedError

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return the least loaded server, or None where none may be used."""
        if not self._places:
            self._begin()
        if self._changed:
            self._play_again()
        best = self._winners[1]
        return self.servers[best] if self._weights[best] else None

    def server_added(self, server: RealServer) -> None:
        """Begin anew at the next choice: places have changed."""
        self._places.clear()

    def server_removed(self, server: RealServer) -> None:
        """As for a server that joins."""
        self._places.clear()

    def server_updated(self, server: RealServer) -> None:
        """Let it play again at the next choice."""
        self._changed.add(server)

    def load_changed(self, server: RealServer) -> None:
        """Let it play again at the next choice."""
        self._changed.add(server)

    def _begin(self) -> None:
        size = 1
        while size < len(self.servers):
            size *= 2
        self._places.update((server, place) for place, server in enumerate(self.servers))
        self._changed.update(self.servers)
        self._loads, self._weights = [1] * size, [0] * size  # none may be used yet
        self._winners = [0] * size + list(range(size))
        for node in range(size - 1, 0, -1):
            self._winners[node] = self._winners[2 * node]

    def _play_again(self) -> None:
        loads, weights, winners = self._loads, self._weights, self._winners
        for server in self._changed:
            place = self._places.get(server)
            if place is None:  # it has left the list
                continue
            if server.weight > 0 and not server.overloaded:
                loads[place] = self.load(server)
                weights[place] = server.weight if self.weighted else 1
            else:
                loads[place], weights[place] = 1, 0  # 1 / 0: more than any other
            node = (len(loads) + place) // 2
            while node:
                first, second = winners[2 * node], winners[2 * node + 1]
                # Linux ip_vs_wlc.c: loads per weight are compared by cross-multiplication.
                first_wins = loads[first] * weights[second] <= loads[second] * weights[first]
                winner = first if first_wins else second
                if winners[node] == winner != place:
                    break  # it did not win before and does not now: all above stays
                winners[node] = winner
                node //= 2
        self._changed.clear()
