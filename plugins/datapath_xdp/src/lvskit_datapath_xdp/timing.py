"""The program's clock in the director's time, and expiry by what the program has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lvskit import Wheel

_WORD: Final = 1 << 32


class Clock:
    """Translates the program's time: the kernel's ticks, shifted, in 32 bits.

    Args:
        ticks: the lower 32 bits of the kernel's tick count.
        now: the director's time at that moment.
        rate: ticks per second.
        shift: the program's constant ``clock_shift``.
    """

    def __init__(self, ticks: int, now: float, rate: int, shift: int) -> None:
        self._zero = now - ticks / rate  # when the lower 32 bits were 0
        self._rate = rate
        self._shift = shift
        self._mask = (_WORD >> shift) - 1  # only so many bits are known of both

    @property
    def unit_s(self) -> float:
        """Seconds of one unit."""
        return (1 << self._shift) / self._rate

    def units(self, now: float) -> int:
        """Return a time as the program has it, but not cut to 32 bits."""
        return int((now - self._zero) * self._rate) >> self._shift

    def until(self, seen: int, now: float) -> float:
        """Return the end of the unit in which a packet was seen, at `now` or before."""
        present = self.units(now)
        age = present - seen & self._mask
        if age > self._mask >> 1:
            age = 0  # a unit has begun there that has not here
        end = (present - age + 1 << self._shift) / self._rate + self._zero
        return min(end, now)


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
