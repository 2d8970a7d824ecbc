"""Services whose new connections the program places by itself, as their schedulers would.

A ring is written anew when something has changed that its scheduler may go by. Nothing else is
allowed to have a say in a new connection of such a service: no persistence, no thresholds, no
packets dropped in defence, no full table; and the program must know all of its connections.

Rings by turn go on where `Scheduler.schedule` is, and the other way round. The program counts the
turns that it takes; each of them makes a record, and for each record the scheduler is asked once
more. What is placed without the program is a turn that it must skip. So its turns, and those
skipped, are the scheduler's choices, but for records that nobody has read yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from operator import is_
from typing import Any, Final

from lvskit import PluginError, Ring, ServiceKey
from lvskit_datapath_xdp.layout import RingKind
from lvskit_datapath_xdp.loader import Map
from lvskit_datapath_xdp.ring import RingMemory
from lvskit_datapath_xdp.servers import Servers
from lvskit_datapath_xdp.services import Services

_KINDS: Final = {"turn": RingKind.TURN, "sh": RingKind.SH, "mh": RingKind.MH}
_TIGHT, _ROOMY = 8, 4  # one entry in so many of the director's table is free

_log = logging.getLogger(__name__)
_Facts = tuple[object, ...] | None


class ServiceRing:
    """A service's ring, and how far its scheduler is.

    Attributes:
        memory: the ring itself.
        by_turn: whether it is by turn, or was when it had places last.
        choices: turns that the scheduler knows of.
    """

    def __init__(self) -> None:
        self.memory = RingMemory()
        self.by_turn = False
        self.choices = 0
        self._empty = True

    def write(self, ring: Ring, servers: list[int]) -> None:
        """Have the program place new connections by `ring`."""
        by_turn = ring.by == "turn"
        if not (by_turn and self.by_turn) or self.choices > self.memory.turns:
            self.choices = self.memory.turns  # records of other rings may have been read since
        self.by_turn, self._empty = by_turn, False
        self.memory.write(servers, _KINDS[ring.by], port=ring.port, first=self.choices)

    def clear(self) -> None:
        """Have the program place no more of them."""
        if not self._empty:
            self._empty = True
            self.memory.write([], RingKind.TURN, port=False, first=0)

    def placed(self, *, asked: bool) -> None:
        """Take note of a connection that the program has placed.

        Args:
            asked: so was the scheduler; else nothing came of it, and the turn is the next one's.
        """
        if self.by_turn and asked:
            self.choices += 1
        elif self.by_turn:
            self.memory.skip(-1)

    def decided(self) -> None:
        """Take note of a choice of the scheduler's that the program knows nothing of."""
        if self.by_turn:
            self.choices += 1
            self.memory.skip(1)


class Rings:
    """The rings of all services.

    Args:
        map_: ``rings``.
        services, servers: what the program knows of them.
        table: the director's connections.

    Attributes:
        by_id: the rings by their services' ids, those without places too.
    """

    def __init__(self, map_: Map, services: Services, servers: Servers, table: Any) -> None:
        self._map = map_
        self._services, self._servers = services, servers
        self._table = table
        self._tight = False
        self._lacking: set[ServiceKey] = set()
        self._facts: dict[int, _Facts] = {}
        self._faults: dict[int, str] = {}
        self.by_id: dict[int, ServiceRing] = {}

    def of(self, service: Any) -> ServiceRing | None:
        """Return a service's ring, if it has ever had one."""
        return self.by_id.get(self._services.ids.get(service.key, 0))

    def update(self, servers: Iterable[Any], lacking: Iterable[ServiceKey] = ()) -> None:
        """Write what has changed.

        Args:
            servers: all that the director has, and those that were removed and are remembered.
            lacking: services with connections that have lost their slots.
        """
        self._tight = self._tight and self._free() < self._table.size // _ROOMY
        self._find_lacking(servers, lacking)
        created = {}
        for number, service in self._services.by_id.items():
            facts = self._depends_on(service)
            if number in self._facts and _same(facts, self._facts[number]):
                continue
            self._facts[number] = facts
            made = self._ask(number, service) if facts is not None else None
            ring = self.by_id.get(number)
            if made is not None:
                if ring is None:
                    ring = created[number] = ServiceRing()
                entries = self._servers.entries
                ring.write(made, [entries[s].number if s else 0 for s in made.servers])
            elif ring is not None:
                ring.clear()
        for number in self._facts.keys() - self._services.by_id.keys():
            del self._facts[number]
            if number in self.by_id:
                self.by_id[number].clear()
        self._enter(created)

    def adopt(self) -> None:
        """Take away the rings of a former daemon, if there are any; `update` follows."""
        self._enter({int.from_bytes(key, "little"): ServiceRing() for key, _ in self._map.items()})

    def heed_room(self) -> None:
        """Leave new connections to the director while its table is nearly full."""
        if self._free() < self._table.size // _TIGHT and not self._tight:
            self._tight = True
            self._facts.clear()
            for ring in self.by_id.values():
                ring.clear()

    def close(self) -> None:
        """Let go of the memory."""
        for ring in self.by_id.values():
            ring.memory.close()

    def _enter(self, created: dict[int, ServiceRing]) -> None:
        """Let the program look these up: all at once, for it takes until no packet is under way."""
        if created:
            keys = b"".join(number.to_bytes(4, "little") for number in created)
            maps = b"".join(ring.memory.map.fd.to_bytes(4, "little") for ring in created.values())
            self._map.update_batch(keys, maps)
            self.by_id |= created

    def _free(self) -> int:
        return int(self._table.size - len(self._table))

    def _find_lacking(self, servers: Iterable[Any], lacking: Iterable[ServiceKey]) -> None:
        """Find services that may have connections without a slot, until they have none at all."""
        self._lacking.update(lacking)
        busy = set()
        for server in servers:
            if server.referenced:
                key, entry = server.service.key, self._servers.entries.get(server)
                busy.add(key)
                served = key in self._services.ids or not server.available
                if not served or entry is None or not entry.carried:
                    self._lacking.add(key)
        self._lacking &= busy

    def _depends_on(self, service: Any) -> _Facts:
        """Return all that a service's ring depends on; None where it can have none."""
        if (
            self._tight
            or service.key in self._lacking
            or service.settings.persistence_s
            or service.rules.settings.drop_packet
        ):
            return None
        entries = [self._servers.entries.get(server) for server in service.servers]
        if any(e is None or not e.carried or e.server.settings.upper for e in entries):
            return None
        # Settings are other objects after each edit, whether or not they say something else.
        return (service.scheduler, *entries, *(server.settings for server in service.servers))

    def _ask(self, number: int, service: Any) -> Ring | None:
        """Return a scheduler's ring; what is wrong with it is reported once."""
        ask = getattr(service.scheduler, "ring", None)
        made: Ring | None = None
        try:
            made = ask(service) if ask is not None else None
            fault = _fault(made, service)
        except Exception as err:
            fault = f"ring raised {err!r}"
        if fault and fault != self._faults.get(number):
            name = service.settings.scheduler
            text = f"scheduler {name!r} of {service.name}: {fault}"
            _log.error("%s", PluginError(text, plugin=name))
        self._faults[number] = fault
        return None if fault else made


def _fault(made: object, service: Any) -> str:
    """Return what is wrong with what a scheduler gave for a ring."""
    if made is None:
        return ""
    if not isinstance(made, Ring):
        return f"ring returned {made!r}, which is no ring"
    strangers = [s for s in made.servers if s is not None and s not in service.servers]
    if strangers:
        return f"ring has {strangers[0]!r} in it, which is none of its servers"
    return ""


def _same(one: _Facts, other: _Facts) -> bool:
    """Whether two rings depend on the same objects."""
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and all(map(is_, one, other))
