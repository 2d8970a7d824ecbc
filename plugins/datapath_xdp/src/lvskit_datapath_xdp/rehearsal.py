"""The datapath in simulated time, for the recordings that `lvskit.testing` replays.

The program, its maps and its packets are the real ones. It dates connections by the kernel's clock,
which nobody can set; so whatever it has dated is dated again, by the simulated time, before that
goes on.
"""

from __future__ import annotations

from lvskit_datapath_xdp.datapath import Brain, XdpDatapath
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.layout import COUNTERS
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.timing import Clock


class Dates(Clock):
    """A clock whose units are the numbers of moments.

    There are never so many of them as the kernel's clock has counted since its start.
    """

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self._moments: list[float] = []

    def units(self, now: float) -> int:
        """Return the number of a moment."""
        if not self._moments or self._moments[-1] != now:
            self._moments.append(now)
        return len(self._moments) - 1

    def knows(self, seen: int) -> bool:
        """Whether a date is a moment's number, and not by the kernel's clock."""
        return seen < len(self._moments)

    def until(self, seen: int, now: float) -> float:
        """Return the moment; `now` for what the program has dated itself, which is since then."""
        return self._moments[seen] if self.knows(seen) else now


class Rehearsed(XdpDatapath):
    """The datapath with such a clock.

    Args:
        brain: its clock is the simulated one.
        interface: where all packets come in and leave.
    """

    def __init__(self, brain: Brain, interface: str) -> None:
        super().__init__(brain, XdpOptions(interface=interface, mode="generic"))
        self._dates = Dates()

    def _ticks(self, engine: Engine) -> Clock:
        return self._dates

    def settled(self) -> None:
        """Date what the program has dated since the last time, and count what it has counted."""
        self.refresh(deadlines=False)
        for slots in self._slots.values():
            for number in slots.owners:
                if not self._dates.knows(slots.seen(number)):
                    slots.date(number, self._dates.units(self._clock()))

    def carried(self) -> dict[str, int]:
        """Return how many packets were carried in which way so far."""
        forwarded = 0
        if self._engine is not None:
            counters = self._engine.maps["service_counters"]
            for number in range(1, self._services.count + 1):
                values = counters.lookup(number) or b""
                forwarded += sum(packets for packets, _ in COUNTERS.iter_unpack(values))
        return {
            "by the program": forwarded,
            "from its records": self._bridge.received,
            "the portable way": self._live.received,
        }
