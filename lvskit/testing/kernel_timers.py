"""Timers that run as late as the kernel's, to explain what a recording shows.

Linux's timer wheel (kernel/time/timer.c) rounds a timer up to the granularity of its distance:
1 tick below 63 ticks, then eight times as coarse for every eight times the distance. So an entry
stays in the table for a while after its seconds have run out, and a packet still revives it. How
long depends on the tick count when the recording began, which nobody knows; but one count must
explain all of a recording.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from statistics import linear_regression

from lvskit.core.connection import Connection, Template
from lvskit.core.director import Director
from lvskit.core.timers import Wheel
from lvskit.testing.wire import Tree

TICKS_PER_S = 250
Entry = Connection | Template
FINE = range(64)
"""Tick counts to try for timers of seconds, whose granularity is at most 64 ticks."""
COARSE = range(0, 4096, 64)
"""What to add for longer ones: 512 ticks for a minute or two, 4,096 for five to fifteen."""
_ROUNDING_S = 0.006
ESTIMATOR_S = 504 / TICKS_PER_S
"""Two seconds of the estimator's own timer: 500 ticks, rounded up to the next multiple of 8."""
ESTIMATOR_PHASES = [step * 8 / TICKS_PER_S for step in range(1, 64)]
"""When its first tick after the start may fall."""


def retimed(scenario: Tree) -> Tree:
    """Return `scenario` with its times to the tick, where they are recorded to 10 ms.

    Every step took the recorder the same time, sleeps apart, so the times lie on a straight line;
    a scenario whose times do not is returned as it is.
    """
    slept, line = 0.0, []
    for step in scenario["steps"]:
        slept += step["do"].get("seconds", 0.0) if step["do"]["op"] == "sleep" else 0.0
        line.append((step["t"] - slept, slept))
    if len(line) < 2:
        return scenario
    slope, start = linear_regression(range(len(line)), [worked for worked, _ in line])
    if any(abs(start + slope * n - worked) > _ROUNDING_S for n, (worked, _) in enumerate(line)):
        return scenario
    steps = [
        {**step, "t": start + slope * n + slept}
        for n, (step, (_, slept)) in enumerate(zip(scenario["steps"], line, strict=True))
    ]
    return {**scenario, "steps": steps}


@dataclass(frozen=True)
class KernelClock:
    """How the recorded kernel's timers stood at the start.

    Attributes:
        jiffies: its tick count; None = timers exactly on time.
        estimator_s: when statistics were folded first.
    """

    jiffies: int | None = None
    estimator_s: float = 2.0

    def rule(self, director: Director) -> None:
        """Let this clock rule a new director's timers."""
        if self.jiffies is not None:
            director.wheel = KernelWheel(director, self.jiffies)
        director.next_tick, director.tick_s = self.estimator_s, ESTIMATOR_S


class KernelWheel(Wheel[Entry]):
    """A wheel that lets go of an entry when the kernel's timer would have fired.

    Args:
        director: whose entries they are.
        jiffies: the tick count at time 0.
    """

    def __init__(self, director: Director, jiffies: int) -> None:
        super().__init__(0.0)
        self._director = director
        self._jiffies = jiffies
        self._entries: dict[Entry, None] = {}
        self.soonest = -inf  # each has to be asked

    def schedule(self, entry: Entry) -> None:
        """Keep `entry`."""
        self._entries[entry] = None
        entry.slot = self

    def forget(self, entry: Entry) -> None:
        """Let go of `entry`."""
        self._entries.pop(entry, None)

    def due(self, now: float) -> Entry | None:
        """Return the entry whose timer fired first, at or before `now`, or None."""
        fired = [
            (self._fires(entry), self._interval(entry) - entry.deadline, -index, entry)
            for index, entry in enumerate(self._entries)
        ]
        if not fired or min(fired)[0] > now:
            return None
        at, _, _, entry = min(fired)  # of those that fire together, the one armed last
        del self._entries[entry]
        self.fired += 1
        entry.deadline = at  # a template is re-armed from there
        return entry

    def _fires(self, entry: Entry) -> float:
        expires = self._jiffies + round(entry.deadline * TICKS_PER_S)
        distance = round(self._interval(entry) * TICKS_PER_S)
        level = 0
        while distance >= 63 << 3 * level:
            level += 1
        shift = 3 * level
        return (((expires >> shift) + 1 << shift) - self._jiffies) / TICKS_PER_S

    def _interval(self, entry: Entry) -> float:
        """Return the seconds that the entry's timer was last set to."""
        if isinstance(entry, Template):
            return entry.timeout
        return entry.server.rules.machines[entry.protocol].timeouts[entry.state]
