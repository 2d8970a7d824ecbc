"""The program's clock in the director's time, and expiry by what the program has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lvskit import Wheel


class Clock:
    """Translates the program's time.

    Args:
        origin: the director's time when it was 0; see `layout.seen_origin`.
        unit_s: seconds of one unit.
    """

    def __init__(self, origin: float, unit_s: float) -> None:
        self._origin = origin
        self._unit_s = unit_s

    def units(self, now: float) -> int:
        """Return a time as the program has it."""
        return int((now - self._origin) / self._unit_s)

    def until(self, seen: int, now: float) -> float:
        """Return the end of the unit in which a packet was seen, at `now` or before."""
        return min(self._origin + (seen + 1) * self._unit_s, now)


class SeenWheel(Wheel[Any]):
    """A wheel that asks when the program saw an entry last, before it lets it end.

    Args:
        now: the time.
        kept_until: returns the deadline of an entry by its last packet in the program; 0 where
            the program does not know it.
    """

    def __init__(self, now: float, kept_until: Callable[[Any, float], float]) -> None:
        super().__init__(now)
        self._kept_until = kept_until

    def due(self, now: float) -> Any:
        """Take out and return one entry whose deadline has really passed, or None."""
        while (entry := super().due(now)) is not None:
            deadline = self._kept_until(entry, now)
            if deadline <= now:
                return entry
            self.fired -= 1
            entry.deadline = deadline
            self.schedule(entry)
        return None
