"""What the director is told of a connection that the program has placed by itself.

It receives a packet like the one that opened it, while the scheduler answers with the server that
the program has chosen. So every rule about new connections holds for these too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from lvskit import TCP, Director, Drop, Flow, SchedulerBase, ServiceKey
from lvskit_datapath_xdp.layout import CLIENT_BEGINS
from lvskit_datapath_xdp.rings import Rings
from lvskit_datapath_xdp.servers import Servers
from lvskit_datapath_xdp.services import Services
from lvskit_datapath_xdp.slots import Known, Slots

_IPV4: Final = struct.Struct("!BBHHHBBH")
_IPV6: Final = struct.Struct("!IHBB")
_TTL: Final = 64
_SYN: Final = 0x02


def opening(service: ServiceKey, key: bytes, flags: int) -> bytes:
    """Return a packet without content from a client to a service.

    Args:
        service: the service.
        key: the flow; see `Flow.key`.
        flags: of TCP.
    """
    addresses, ports = key[:-4], key[-4:]
    if service.protocol == TCP:
        transport = ports + struct.pack("!IIBBHHH", 0, 0, 0x50, flags, 0, 0, 0)
    else:
        transport = ports + struct.pack("!HH", 8, 0)
    if service.version == 4:
        head = (0x45, 0, 20 + len(transport), 0, 0, _TTL, service.protocol, 0)
        return _IPV4.pack(*head) + addresses + transport
    return _IPV6.pack(6 << 28, len(transport), service.protocol, _TTL) + addresses + transport


class Recorded(SchedulerBase):
    """A scheduler that stands in for a service's own and answers with one server.

    Used as a context manager.

    Args:
        service: the service.

    Attributes:
        server: the one that the program has chosen.
        by_turn: the service's own is asked too, so that it knows whose turn is next.
        asked: whether it was asked for a server.
    """

    def __init__(self, service: Any) -> None:
        super().__init__(service.servers)
        self._service = service
        self._own: Any = None
        self.server: Any = None
        self.by_turn = self.asked = False

    def schedule(self, flow: Flow) -> Any:
        """Return the server."""
        self.asked = True
        if self.by_turn:
            self._own.schedule(flow)
        return self.server

    def __enter__(self) -> None:
        self.asked = False
        self._own, self._service.scheduler = self._service.scheduler, self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._service.scheduler = self._own


class Placed:
    """Has the director open what the program has placed; tells rings of all other connections.

    Args:
        director: whose connections they are.
        clock: its time.
        slots: by IP version.
        services, servers, rings: what the program knows of them.
        give_slot: gives a connection that may have one its slot; the time of its last packet.
    """

    def __init__(
        self,
        director: Director,
        clock: Callable[[], float],
        slots: dict[int, Slots],
        services: Services,
        servers: Servers,
        rings: Rings,
        give_slot: Callable[[Known, float], None],
    ) -> None:
        self._director, self._clock = director, clock
        self._slots = slots
        self._services, self._servers, self._rings = services, servers, rings
        self._give_slot = give_slot
        self._heard: set[Any] = set()
        self._recorded: dict[Any, Recorded] = {}
        self._placing = False

    def take(self, record: tuple[Any, ...], now: float) -> None:
        """Have the director open the connection of a record, as `layout.RECORD` has it."""
        _, version, flags, _, server_number, _, _, slot, *_, address, port, number = record
        slots, ring = self._slots[version], self._rings.by_id.get(number)
        service = self._services.by_id.get(number)
        server = self._servers.by_number.get(server_number)
        if (
            service is None
            or server is None
            or server.service is not service
            or not server.available
        ):
            slots.clear(slot)
            if ring is not None:
                ring.placed(asked=False)
            return
        recorded = self._recorded.get(service)
        if recorded is None:
            recorded = self._recorded[service] = Recorded(service)
        recorded.server, recorded.by_turn = server, ring is not None and ring.by_turn
        table = self._director.table
        known = table.tcp if service.protocol == TCP else table.udp
        client, vip, vport = address[CLIENT_BEGINS[version] :], service.address, service.key.port
        key = client + vip + port + vport.to_bytes(2, "big")  # Flow.key
        before = known.get(key)
        self._placing = True
        try:
            with recorded:
                connection = self._open(service, known, key, flags, now)
        finally:
            self._placing = False
        if ring is not None:
            ring.placed(asked=recorded.asked)
        other = slots.owners[slot]
        if other is not None:
            # Both took it at the same time. Nobody writes it any more, so what is in it goes.
            slots.forget(other)
            slots.clear(slot)
            for each in (other, connection):
                if each is not None:
                    self._give_slot(each, now)
        elif connection is not None and connection is not before and connection.server is server:
            slots.placed(slot, connection)
        else:  # there was no room, or the director had it already, without a slot
            slots.clear(slot)
            if connection is not None:
                self._give_slot(connection, now)

    def _open(
        self, service: Any, known: dict[bytes, Known], key: bytes, flags: int, now: float
    ) -> Known | None:
        """Have the director open a connection; return the one that has its key then, if any."""
        if service.protocol == TCP and service.key.version == 4 and flags & _SYN:
            made = self._director.open(service, key, now)
            if made is not None:
                return None if isinstance(made, Drop) else made
        packet = opening(service.key, key, flags)
        self._director.receive(packet, now)
        connection = known.get(key)
        if connection is not None:  # the program counts the packet itself
            connection.server.counters.inpkts -= 1
            connection.server.counters.inbytes -= len(packet)
            connection.packets -= 1
        return connection

    def watch(self) -> None:
        """Hear of the connections of services with a ring, and of those opened elsewhere."""
        served = set(self._services.by_id.values())
        for service in served - self._heard:
            if self._rings.of(service) is not None or self._services.opens(service):
                self._heard.add(service)
                service.opened += (self._opened,)
        self._heard &= served
        self._recorded = {s: each for s, each in self._recorded.items() if s in served}

    def _opened(self, connection: Known) -> None:
        """Take note of a connection of a service with a ring: the program must know it.

        It would place the next packet of one that the portable path has opened.
        """
        if self._placing:
            return
        ring = self._rings.of(connection.server.service)
        if ring is not None:
            ring.decided()
        self._give_slot(connection, self._clock())
