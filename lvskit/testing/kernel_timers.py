"""Timers that run as late as the kernel's, to explain what a recording shows.

Linux's timer wheel (kernel/time/timer.c) rounds a timer up to the granularity of its distance:
1 tick below 63 ticks, then eight times as coarse for every eight times the distance. So an entry
stays in the table for a while after its seconds have run out, and a packet still revives it. How
long depends on the tick count when the recording began, which nobody knows; but one count must
explain all of a recording.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from lvskit.core.connection import Connection, Template
from lvskit.core.director import Director
from lvskit.core.services import TRASH_S, ServiceTable
from lvskit.core.timers import Wheel
from lvskit.testing.wire import Tree

TICKS_PER_S = 250
Entry = Connection | Template
_ROUNDING_S = 0.006
ESTIMATOR_S = 504 / TICKS_PER_S
"""Two seconds of the estimator's own timer: 500 ticks, rounded up to the next multiple of 8."""
_STEP_S = 0.02
_COSTS_S = {"ipvsadm": 68.4e-6, "send": 58.3e-6, "sysctl": 57.0e-6, "sleep": 107.3e-6}
_PACKET_S = -0.8e-6
"""What a step took beyond what it slept and settled, measured: a sleep wakes 50 µs late, and
waiting in vain for a packet takes longer than finding one."""
_NUDGE_S = 1e-6
SETUP_S = 0.050194
"""From the making of the director's namespace to the first step: the recorder waits 50 ms."""
_INITIAL_JIFFIES = 2**32 - 300 * TICKS_PER_S


def retimed(scenario: Tree, phase_s: float = 0.0) -> Tree:
    """Return `scenario` with its times to the tick, where they are recorded to 10 ms.

    Each step took the recorder a known time, sleeps apart; a scenario whose times say otherwise is
    returned as it is.

    Args:
        scenario: a recording.
        phase_s: how much of a tick had passed at its start.
    """
    at, steps = 0.0, []
    for step in scenario["steps"]:
        do = step["do"]
        at += _slept_s(step)
        if abs(at - step["t"]) > _ROUNDING_S:
            return scenario
        settled = at + _STEP_S + 50e-6
        steps.append({**step, "t": _tick(at + phase_s), "settled": _tick(settled + phase_s)})
        # What is read is read just before the tick ends, so that whole seconds stay whole.
        steps[-1]["settled"] -= _NUDGE_S
        if do["op"] == "ipvsadm" and do["argv"][:1] in (["-L"], ["-Ln"], ["-Lnc"], ["-l"]):
            steps[-1]["t"] -= _NUDGE_S
        at += _worked_s(step)
    return {**scenario, "steps": steps}


def duration_s(scenario: Tree) -> float:
    """Return the seconds that a recording took, first step to last."""
    return sum(_slept_s(step) + _worked_s(step) for step in scenario["steps"])


def _slept_s(step: Tree) -> float:
    do = step["do"]
    return float(do["seconds"]) if do["op"] == "sleep" else 0.0


def _worked_s(step: Tree) -> float:
    out = step.get("expect", {}).get("out", ())
    packets = 1 if isinstance(out, str) else len(out)
    return _STEP_S + _COSTS_S.get(step["do"]["op"], 0.0) + packets * _PACKET_S


def _tick(seconds: float) -> float:
    """Return the time of the last tick."""
    return math.floor(seconds * TICKS_PER_S) / TICKS_PER_S


@dataclass(frozen=True)
class KernelClock:
    """How the recorded kernel's timers stood at the start.

    Attributes:
        jiffies: its tick count; None = timers exactly on time.
        estimator_s: when statistics were folded first.
        phase_s: how much of that tick had passed.
    """

    jiffies: int | None = None
    estimator_s: float = 2.0
    phase_s: float = 0.0

    @classmethod
    def started(cls, uptime_s: float) -> KernelClock:
        """Return the clock of a recording that began when the kernel had run for `uptime_s`.

        The estimator's timer is as old as the director's network namespace (ip_vs_est.c,
        ip_vs_estimator_net_init).
        """
        ticks = math.floor(uptime_s * TICKS_PER_S)
        made = _INITIAL_JIFFIES + math.floor((uptime_s - SETUP_S) * TICKS_PER_S)
        first = ((made + 2 * TICKS_PER_S >> 3) + 1 << 3) - _INITIAL_JIFFIES - ticks
        phase = uptime_s - ticks / TICKS_PER_S
        return cls(_INITIAL_JIFFIES + ticks, first / TICKS_PER_S, phase)

    def due(self, now: float, seconds: float) -> float:
        """Return when a timer fires that is set at `now` for some `seconds`."""
        if self.jiffies is None:
            return now + seconds
        at = _fires(now + seconds, round(seconds * TICKS_PER_S), self.jiffies)
        return at - 2 * _NUDGE_S

    def rule(self, director: Director) -> None:
        """Let this clock rule a new director's timers."""
        if self.jiffies is not None:
            director.wheel = KernelWheel(self.jiffies)
            director.services = _LateTable(self.jiffies)
        director.next_tick, director.tick_s = self.estimator_s, ESTIMATOR_S


class KernelWheel(Wheel[Entry]):
    """A wheel that lets go of an entry when the kernel's timer would have fired.

    Args:
        jiffies: the tick count at time 0.
    """

    def __init__(self, jiffies: int) -> None:
        super().__init__(0.0)
        self._jiffies = jiffies
        self._entries: dict[Entry, _Timer] = {}
        self._now = 0.0  # since when nothing but a packet or a command has happened
        self._serial = 0
        self.soonest = -math.inf  # each has to be asked

    def schedule(self, entry: Entry) -> None:
        """Keep `entry`."""
        self._entries[entry] = self._armed(entry, self._entries.get(entry))
        entry.slot = self

    def forget(self, entry: Entry) -> None:
        """Let go of `entry`."""
        self._entries.pop(entry, None)

    def due(self, now: float) -> Entry | None:
        """Return the entry whose timer fired first, at or before `now`, or None."""
        fired = []
        for entry, timer in self._entries.items():
            if entry.deadline != timer.deadline:  # a packet has set it since
                timer = self._entries[entry] = self._armed(entry, timer)  # noqa: PLW2901
            if timer.fires <= now + 2 * _NUDGE_S:
                fired.append((timer.fires, -timer.level, -timer.serial, entry))
        if not fired:
            self._now = now
            return None
        # Of those that fire together, first the long ones, then those filed last
        # (kernel/time/timer.c, __run_timers, collect_expired_timers, enqueue_timer).
        at, _, _, entry = min(fired)
        del self._entries[entry]
        self.fired += 1
        entry.deadline = self._now = at  # a template is re-armed from there
        return entry

    def _armed(self, entry: Entry, before: _Timer | None) -> _Timer:
        """Return the timer of an entry whose deadline was just set; `before`: as it stood."""
        distance = round((entry.deadline - self._now) * TICKS_PER_S)
        fires, level = _fires(entry.deadline, distance, self._jiffies), _level(distance)
        if before is not None and (before.fires, before.level) == (fires, level):
            return before._replace(deadline=entry.deadline)  # it stays where it was filed
        self._serial += 1
        return _Timer(entry.deadline, fires, level, self._serial)


class _LateTable(ServiceTable):
    """Services whose trash is looked through when the kernel's timer would have fired."""

    def __init__(self, jiffies: int) -> None:
        self._jiffies = jiffies
        self._sweep = math.inf
        super().__init__()

    @property
    def next_sweep(self) -> float:
        """When the trash is looked through next."""
        return self._sweep

    @next_sweep.setter
    def next_sweep(self, at: float) -> None:
        half = round(TRASH_S / 2 * TICKS_PER_S)
        self._sweep = _fires(at, half, self._jiffies) - _NUDGE_S if at < math.inf else at


def _fires(deadline: float, distance: int, jiffies: int) -> float:
    """Return when a timer for `deadline`, set `distance` ticks ahead, fires."""
    expires = jiffies + round(deadline * TICKS_PER_S)
    shift = 3 * _level(distance)
    return (((expires >> shift) + 1 << shift) - jiffies) / TICKS_PER_S


def _level(distance: int) -> int:
    """Return the level of the timer wheel for a timer set `distance` ticks ahead."""
    level = 0
    while distance >= 63 << 3 * level:
        level += 1
    return level


class _Timer(NamedTuple):
    """A timer of the kernel's.

    Attributes:
        deadline: what it was set to.
        fires: when it fires.
        level: of the timer wheel; serial: when it was filed there.
    """

    deadline: float
    fires: float
    level: int
    serial: int


Seen = TypeVar("Seen")
_STEPS = (64, 8, 1)
"""Tick counts to try, coarse to fine: the granularity of timers of a minute is 512 ticks and of
fifteen 4,096, that of timers of seconds 64."""
_COUNTS = (64, 8, 8)
_PHASES_S = [step / 8 / TICKS_PER_S for step in (4, 1, 6, 3, 0, 7, 2, 5)]
_BEAM = 3


def fitted(
    replay: Callable[[KernelClock], Seen], progress: Callable[[Seen], float]
) -> tuple[Seen, KernelClock]:
    """Return what a replay shows with the clock that explains most of a recording, and that clock.

    Args:
        replay: plays the recording with a clock.
        progress: how far what was seen agrees; infinite: all of it.
    """
    seen: dict[tuple[int, float], tuple[Seen, KernelClock]] = {}
    found = [(0, _PHASES_S[0])]
    for _ in range(4):
        for step, count in zip((*_STEPS, 0), (*_COUNTS, len(_PHASES_S)), strict=True):
            guesses = [
                ((ticks + step * k) % 4096, phase if step else _PHASES_S[k])
                for ticks, phase in found
                for k in range(count)
            ]
            for guess in guesses:
                if guess not in seen:
                    ticks, phase = guess
                    clock = KernelClock.started(1 + ticks / TICKS_PER_S + phase)
                    seen[guess] = (replay(clock), clock)
                if progress(seen[guess][0]) == math.inf:
                    return seen[guess]
            furthest = max(progress(seen[guess][0]) for guess in guesses)
            best = [guess for guess in guesses if progress(seen[guess][0]) == furthest]
            found = best[len(best) // (2 * _BEAM) :: max(len(best) // _BEAM, 1)][:_BEAM]
    return seen[found[0]]
