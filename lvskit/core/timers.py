"""Expiry by `now`: a wheel of one-second slots that asks an entry for its deadline when due.

A packet only stores `entry.deadline`; the wheel finds out when the slot that it filed the entry
under comes up, and files it again if the deadline has moved on. An entry whose deadline moves to
*before* its slot must be told to the wheel (`schedule`), which then ignores the older filing.
"""

from __future__ import annotations

import heapq
from math import inf
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """What the wheel keeps: an entry with a deadline."""

    deadline: float
    slot: object  # where the wheel filed it, for the wheel alone


T = TypeVar("T", bound=Timed)


class Wheel(Generic[T]):
    """Holds entries until their deadlines.

    `schedule` and a look at a due entry are O(1), except that the entries of the one slot that
    is current sit in a heap, so that they leave in order and on time: O(log n) in that slot.

    Attributes:
        fired: how many entries have come due.
        soonest: nothing is due before.
    """

    def __init__(self, now: float) -> None:
        self._slots: dict[float, list[T]] = {}
        self._order: list[float] = []  # a heap of the slots there are
        self._current: list[tuple[float, int, T]] = []  # deadline, filing, entry
        self._horizon = float(int(now))  # the end of the current slot
        self._serial = 0
        self._latest, self._filed = inf, list[T]()  # the deadline filed last, and where
        self.fired = 0
        self.soonest = inf

    def schedule(self, entry: T) -> None:
        """File `entry` under its deadline; call again when the deadline has become earlier."""
        deadline = entry.deadline
        if deadline == self._latest:  # as those of all that packets of one moment have opened
            self._filed.append(entry)
            entry.slot = self._filed
            return
        self.soonest = min(self.soonest, deadline)
        if deadline < self._horizon:
            # Of equal deadlines the one filed last ends first, as in the kernel: a connection
            # before the template that it was made from, which must not outlive it.
            entry.slot = self._serial = self._serial - 1
            heapq.heappush(self._current, (deadline, self._serial, entry))
            return
        slot = deadline // 1
        filed = self._slots.get(slot)
        if filed is None:
            self._slots[slot] = filed = []
            heapq.heappush(self._order, slot)
        filed.append(entry)
        entry.slot = filed
        self._latest, self._filed = deadline, filed

    def forget(self, entry: T) -> None:
        """Take `entry` out: its filing is ignored when it comes up."""
        entry.slot = None

    def due(self, now: float) -> T | None:
        """Take out and return one entry whose deadline is at or before `now`, or None."""
        while True:
            while self._current and self._current[0][0] <= now:
                deadline, filing, entry = heapq.heappop(self._current)
                if entry.slot != filing:
                    continue  # forgotten, or filed again
                if entry.deadline == deadline:
                    entry.slot = None
                    self.fired += 1
                    return entry
                self.schedule(entry)
            if not self._order or self._order[0] > now:
                self.soonest = self.next() or inf
                return None
            slot = heapq.heappop(self._order)
            self._horizon = slot + 1
            filed = self._slots.pop(slot)
            self._latest = inf
            for entry in filed:
                if entry.slot is filed:
                    self.schedule(entry)

    def next(self) -> float | None:
        """Return a time before which nothing is due, or None when the wheel is empty."""
        times = [self._current[0][0]] if self._current else []
        times += self._order[:1]
        return min(times) if times else None
