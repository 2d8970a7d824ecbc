"""A former daemon's connections, brought back into the director from the program's memory.

The program goes on meanwhile: a slot may get another state or time after it was read here, which
the records in the ring buffer tell, or the slot itself when the connection's end comes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from lvskit import Director
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.clock import Clock
from lvskit_datapath_xdp.names import Name, Names, start_rates
from lvskit_datapath_xdp.neighbours import Hop
from lvskit_datapath_xdp.servers import Servers
from lvskit_datapath_xdp.services import Services
from lvskit_datapath_xdp.slots import Slots
from lvskit_datapath_xdp.templates import TemplateRestorer, Templates

_NO_PORT: Final = bytes(2)
_BUSY4: Final = layout.BUSY.to_bytes(4, "little")
_INSERTED_S: Final = 0.001  # an insertion by the program takes 0.1 µs


class Restorer(TemplateRestorer, Protocol):
    """What enters connections and templates into a director."""

    def templates(self, server: Any, protocol: int, address: bytes, port: int) -> Any:
        """Return what finds the template of a client's connection to a virtual address and port."""

    def connections(self, server: Any, protocol: int, dport: int) -> Any:
        """Return what enters connections to a server; it returns None where one cannot be."""


class Adopted(NamedTuple):
    """What became of a former daemon's connections.

    Attributes:
        restored: they go on.
        ended: their time was over, or their server or service is no more.
    """

    restored: int
    ended: int


class _Target(NamedTuple):
    """What connections to a server have in common."""

    enter: Any
    template: Any
    address: bytes
    port: bytes
    timeouts: list[float]
    established: int


class Adoption:
    """Brings a former daemon's connections back.

    Args:
        director: with its services and servers.
        slots, servers, services, names, templates: the program's.
        hops: takes the ways over the link that the program knows.
    """

    def __init__(
        self,
        director: Director,
        slots: Mapping[int, Slots],
        servers: Servers,
        services: Services,
        names: Names,
        templates: Templates,
        hops: dict[bytes, Hop],
    ) -> None:
        self._director = director
        self._slots, self._servers, self._services = slots, servers, services
        self._names, self._templates = names, templates
        self._hops = hops

    def run(self, restorer: Restorer, clock: Clock, now: float) -> Adopted:
        """Do it.

        Args:
            restorer: the director's.
            clock: the program's.
            now: the time.
        """
        self._services.adopt()
        self._adopt_servers()
        there = {Name.of(server): server for server in self._present()}
        self._templates.restore(restorer, there)
        restored = ended = 0
        busy = []
        for version, slots in self._slots.items():
            gone, written = self._adopt_slots(restorer, clock, now, version, slots)
            restored += sum(1 for _ in slots.known())
            ended += gone
            busy += [(slots, number) for number in written]
        self._free(busy)
        for server in self._present():
            upper = server.settings.upper
            if upper and server.activeconns + server.inactconns >= upper:
                server.overloaded = True
        return Adopted(restored, ended)

    def _present(self) -> Iterator[Any]:
        return (server for service in self._director.services for server in service.servers)

    def _adopt_servers(self) -> None:
        """Give the director's servers their ids and counts; free the ids of all others."""
        there = {Name.of(server): server for server in self._present()}
        for number, noted in self._names:
            server = there.pop(noted.name, None)
            if server is None:
                self._names.clear(number)
                continue
            hop = self._servers.adopt(number, server, noted)
            if hop is not None:
                self._hops[server.address] = hop
            if 0 < server.settings.upper <= noted.upper:
                server.overloaded = noted.overloaded
        for service in self._director.services:
            start_rates(service)
        self._director.estimator = type(self._director.estimator)(self._director.services.counters)

    def _adopt_slots(
        self, restorer: Restorer, clock: Clock, now: float, version: int, slots: Slots
    ) -> tuple[int, list[int]]:
        """Enter the connections of one IP version.

        Returns:
            How many have ended; and the numbers of slots that somebody is writing, or was.
        """
        targets: dict[tuple[int, int], _Target | None] = {}
        last: dict[int, float] = {}  # by what slots have as the time of the last packet
        owners: dict[int, Any] = {}
        gone, written = 0, []
        for number, (caddr, cport, service, server, state, _, seen) in slots.contents():
            if not service:
                if (cport != _NO_PORT or caddr == _BUSY4) and slots.busy(number):
                    written.append(number)
                continue
            try:
                target = targets[server, service]
            except KeyError:
                target = self._target(restorer, version, server, service)
                targets[server, service] = target
            made = None
            if target is not None and state < len(target.timeouts):
                if seen not in last:
                    last[seen] = clock.until(seen, now)
                deadline = last[seen] + target.timeouts[state]
                if deadline > now:
                    key = caddr + target.address + cport + target.port
                    template = None
                    if target.template is not None:
                        template = target.template(caddr)
                        if template is not None and state == target.established:
                            template.assured = True
                    made = target.enter(key, deadline, state, template, False, deadline)
            if made is not None:
                owners[number] = made
            else:
                slots.clear(number)
                gone += 1
        slots.adopt(owners)
        return gone, written

    def _target(
        self, restorer: Restorer, version: int, number: int, service: int
    ) -> _Target | None:
        """Return what slots of a server and service id stand for; None: nothing any more."""
        server = self._servers.by_number.get(number)
        if server is None:
            return None
        key = server.service.key
        if key.version != version or not self._services.knows(key, service):
            return None
        machine, template = server.rules.machines[key.protocol], None
        if server.service.settings.persistence_s:
            template = restorer.templates(server, key.protocol, key.address, key.port)
        enter = restorer.connections(server, key.protocol, server.port or key.port)
        port = key.port.to_bytes(2, "big")
        established = machine.tables.established
        return _Target(enter, template, key.address, port, machine.timeouts, established)

    def _free(self, busy: list[tuple[Slots, int]]) -> None:
        """Free the slots that the former daemon was writing when it was killed."""
        if busy:
            time.sleep(_INSERTED_S)  # the program may be writing, too
        for slots, number in busy:
            if slots.busy(number):
                slots.clear(number)
