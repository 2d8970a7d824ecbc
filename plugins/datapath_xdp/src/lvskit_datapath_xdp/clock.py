"""The clock that the program dates connections by, in the director's time."""

from __future__ import annotations

import time
from math import log2
from typing import Final

_WRAP: Final = 1 << 32
_CLOCK_MONOTONIC_COARSE: Final = 6  # Linux include/uapi/linux/time.h


def clock_shift() -> int:
    """Return the constant of that name: ticks are shifted by it for a unit near 0.25 s."""
    return round(log2(ticks_per_second() / 4))


def seen_origin(ticks: int, now: float) -> float:
    """Return when, in monotonic seconds, a connection's `last seen` would have been 0.

    It was seen between `origin + seen * unit` and a unit later, where a unit is
    `(1 << clock_shift()) / ticks_per_second()` seconds. The clock stands still where the monotonic
    one does, and does not overflow.

    Args:
        ticks: what a test run of the program ``lvskit_clock`` gave as its verdict.
        now: the monotonic time of that.
    """
    rate = ticks_per_second()
    # Linux include/linux/jiffies.h, INITIAL_JIFFIES: the lower half overflows five minutes after
    # the start. The test run gives that half, and the upper one can only be what is nearest.
    guess = _WRAP - 300 * rate + now * rate
    return now - (ticks + round((guess - ticks) / _WRAP) * _WRAP) / rate


def ticks_per_second() -> int:
    """Return how often the kernel's clock ticks (CONFIG_HZ)."""
    # The resolution of a coarse clock is a tick: Linux kernel/time/posix-timers.c.
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


class Clock:
    """Translates the program's time.

    Args:
        origin: the director's time when it was 0; see `seen_origin`.
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
