"""When connections end, by what the program has seen of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from lvskit import TCP, UDP, Defence, ServiceKey, Wheel
from lvskit_datapath_xdp.clock import Clock
from lvskit_datapath_xdp.slots import Slots, slots_of


class Deadlines:
    """When connections end, by their last packets in the program.

    Args:
        ticks: the program's clock.
        slots: by IP version.
    """

    def __init__(self, ticks: Clock, slots: dict[int, Slots]) -> None:
        self._ticks = ticks
        self._slots = slots
        self._machines: dict[Any, Any] = {}  # states and timeouts that services had last
        self._served: set[ServiceKey] = set()  # those whose packets the program saw last

    def until(self, entry: Any, now: float) -> float:
        """Return an entry's deadline by its last packet in the program.

        It is 0 where it has no slot, or where that packet counts no more.
        """
        slots = slots_of(entry, self._slots)
        number = getattr(entry, "place", None)  # templates have none
        if number is None or slots.tells(number):
            return 0.0
        machines = self._machines.get(entry.server.service) or entry.server.rules.machines
        timeouts = machines[entry.protocol].timeouts
        return float(self._ticks.until(slots.seen(number), now) + timeouts[entry.state])

    def keep(self, connection: Any, now: float) -> None:
        """Move a connection's deadline to where the program's packets have moved it."""
        connection.deadline = max(connection.deadline, self.until(connection, now))

    def keep_all(self, now: float) -> None:
        """Do so with every connection."""
        for slots in self._slots.values():
            for connection in slots.known():
                self.keep(connection, now)

    def freshen(self, entry: Any, now: float) -> None:
        """Have an entry show what the program has forwarded of it."""
        slots = slots_of(entry, self._slots)
        number = getattr(entry, "place", None)
        if number is not None:
            self.keep(entry, now)
            entry.packets += slots.counted(number)

    def watch(self, services: Iterable[Any], served: Collection[ServiceKey], now: float) -> None:
        """Take note of the services that there are, and of those that the program serves.

        Where timeouts have changed, what was seen so far counts by the former ones, and no more: a
        packet sets a timeout (Linux net/netfilter/ipvs/ip_vs_proto_tcp.c, set_tcp_state). So it
        does where the director alone sees the packets from now on.
        """
        before, there = self._machines, {s: s.rules.machines for s in services}
        changed = before.keys() - there.keys()
        for service, machines in there.items():
            old = before.get(service)
            retimed = old and any(machines[p].timeouts != old[p].timeouts for p in (TCP, UDP))
            if retimed or service.key in self._served.difference(served):
                changed.add(service)
        for slots in self._slots.values() if changed else ():
            for connection in slots.known():
                if connection.server.service in changed:
                    self.keep(connection, now)
                    slots.tell(connection.place)
        self._machines, self._served = there, set(served)


class SeenDefence(Defence):
    """Defences that ask what the program has seen of an entry, before they condemn it.

    Args:
        now: the time.
        freshen: called with an entry before it is judged.
    """

    def __init__(self, now: float, freshen: Callable[[Any, float], None]) -> None:
        super().__init__(now)
        self._freshen = freshen

    def condemns(self, entry: Any, now: float) -> bool:
        """Whether an entry, in this turn, is to be dropped."""
        self._freshen(entry, now)
        return super().condemns(entry, now)


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
