"""The datapath in simulated time, for the recordings that `lvskit.testing` replays.

The program, its maps and its packets are the real ones. It dates connections by the kernel's clock,
which nobody can set; so whatever it has dated is dated again, by the simulated time, before that
goes on.
"""

from __future__ import annotations

from lvskit_datapath_xdp.brain import Brain
from lvskit_datapath_xdp.clock import Clock
from lvskit_datapath_xdp.datapath import XdpDatapath
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.options import XdpOptions


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
        super().__init__(brain, XdpOptions(interface=interface, mode="generic", pins=""))
        self._dates = Dates()

    def _ticks(self, engine: Engine) -> Clock:
        return self._dates

    def settled(self) -> None:
        """Date what the program has dated since the last time, and count what it has counted."""
        self.refresh(deadlines=False)
        for slots in self._slots.values():
            for connection in slots.known():
                if not self._dates.knows(slots.seen(connection.place)):
                    slots.date(connection.place, self._dates.units(self._clock()))

    def carried(self) -> dict[str, int]:
        """Return how many packets were carried in which way so far."""
        figures = self.figures()
        ways = {
            "forwarded": "by the program", "misses": "from its records",
            "portable": "the portable way",
        }  # fmt: skip
        return {way: figures.get(name, 0) for name, way in ways.items()}
