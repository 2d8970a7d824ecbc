"""Between the program and the director: records in; connections, slots and first packets out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lvskit import TCP, Director, ServiceKey, Transmit, Verdict
from lvskit_datapath_xdp.clock import Clock
from lvskit_datapath_xdp.frames import ROOM, FrameSender
from lvskit_datapath_xdp.layout import (
    CLIENT_BEGINS,
    MISS4,
    MISS6,
    NO_SLOT,
    RECORD,
    RECORD_LENGTH,
    RECORD_SERVICE,
    RecordKind,
)
from lvskit_datapath_xdp.loader import RingBuffer
from lvskit_datapath_xdp.placed import Placed
from lvskit_datapath_xdp.rings import Rings
from lvskit_datapath_xdp.servers import Servers
from lvskit_datapath_xdp.services import Services
from lvskit_datapath_xdp.slots import Known, Slots, slots_of
from lvskit_datapath_xdp.timing import Deadlines

_BATCH: Final = 256  # records to one turn of the event loop
_LONGEST: Final = ROOM - 14  # bytes behind the Ethernet header
_LATE_S: Final = 5.0
_WORD: Final = 0xFFFFFFFF
_PLACED, _STATE, _SYN = RecordKind.PLACED, RecordKind.STATE, RecordKind.SYN

Record = tuple[Any, ...]
"""A record, as `layout.RECORD` has it."""


class Bridge:
    """Carries records to the director, and what it decides to the program.

    Args:
        director: decides.
        clock: its time; ticks: the program's.
        ring: ``misses``.
        slots: by IP version.
        services, servers, rings: what the program knows of them.
        send: carries out a verdict the portable way; False where it cannot.
        decided: called when connections have been opened, before their slots are written and
            their packets leave.

    Attributes:
        deadlines: of connections, by what the program has seen of them.
        received: packets taken from the program.
        lost: verdicts that could not be carried out.
        late: packets that had waited too long for this daemon to start.
    """

    def __init__(
        self,
        director: Director,
        clock: Callable[[], float],
        ticks: Clock,
        ring: RingBuffer,
        slots: dict[int, Slots],
        services: Services,
        servers: Servers,
        rings: Rings,
        send: Callable[[Verdict, bytes], bool],
        decided: Callable[[], None] = lambda: None,
    ) -> None:
        self._director = director
        self._clock, self._ticks = clock, ticks
        self._ring = ring
        self._slots = slots
        self.deadlines = Deadlines(ticks, slots)
        self._services, self._servers, self._rings = services, servers, rings
        self._send = send
        self._decided = decided
        self._placed = Placed(director, clock, slots, services, servers, rings, self._give_slot)
        self._frames: dict[int, FrameSender] = {}
        self._watched: set[Any] = set()
        self._tables = director.table.tcp, director.table.udp
        self._following = False
        self.received = 0
        self.lost = 0
        self.late = 0

    # --- records ---

    def read(self) -> bool:
        """Handle what waits, up to a batch; True where there was a whole one."""
        offsets = self._ring.offsets(_BATCH)
        if not offsets:
            return False
        self._take(offsets)
        self._rings.heed_room()
        return len(offsets) == _BATCH

    def _take(self, offsets: list[int]) -> None:
        """Handle records, and give the program back the room of all that were looked at."""
        try:
            self._handle(offsets)
        finally:
            self._ring.release()
            for sender in self._frames.values():
                sender.flush()

    def _handle(self, offsets: list[int]) -> None:
        """Handle records: decisions first, for all, then slots and frames.

        Each of these alone keeps to fewer instructions and less memory than a processor's caches
        have room for; record by record, the same takes a third more time.
        """
        now, memory, halves = self._clock(), self._ring.memory, self._ring.halves
        begin, receive, size = self._director.begin, self._director.receive, RECORD.size
        by_id, heard = self._services.by_id, (_PLACED, _STATE)
        decided = []
        for at in offsets:
            kind = memory[at]
            if kind in heard:
                self._heard(RECORD.unpack_from(memory, at), now)
                continue
            start = at + size
            packet = memory[start : start + halves[at + RECORD_LENGTH >> 1]]
            service = by_id.get(halves[at + RECORD_SERVICE >> 1]) if kind == _SYN else None
            verdict = receive(packet, now) if service is None else begin(service, packet, now)
            decided.append((at, packet, verdict))
        self._decided()
        self.received += len(decided)
        self._carry(decided)

    def _carry(self, decided: list[tuple[int, bytes, Verdict]]) -> None:
        """Give connections their slots, and let their packets leave."""
        memory, entries, frames = self._ring.memory, self._servers.entries, self._frames
        (tcp, udp), slots4, slots6 = self._tables, self._slots[4], self._slots[6]
        for at, packet, verdict in decided:
            if type(verdict) is not Transmit:
                self.lost += not self._send(verdict, packet)
                self._leave(RECORD.unpack_from(memory, at))
                continue
            key: Any
            if packet[0] >> 4 == 4:
                protocol, seen, one, other, key = MISS4.unpack_from(memory, at)
                slots, name = slots4, packet[12:24]  # Flow.key
            else:
                protocol, seen, one, other, *key = MISS6.unpack_from(memory, at)
                slots, name = slots6, packet[8:44]
            connection = (tcp if protocol == TCP else udp).get(name)
            entry = entries.get(connection.server) if connection is not None else None
            if connection is None or entry is None or connection.transmit != entry.way:
                self._send(verdict, packet)
                continue
            if entry.carried:
                binding = entry.number | connection.state << 16
                slots.place(connection, one, other, key, binding, seen)
            made, head = verdict.packet, entry.head
            if head and len(made) <= verdict.route.mtu and len(made) <= _LONGEST:
                sender = frames.get(entry.ifindex) or self._sender(entry.ifindex)
                sender.waiting.append(head + made)
            else:
                self._send(verdict, packet)

    def _sender(self, ifindex: int) -> FrameSender:
        sender = self._frames[ifindex] = FrameSender(ifindex)
        return sender

    def _heard(self, record: Record, now: float) -> None:
        """Follow what the program has done by itself."""
        if record[0] == _PLACED:
            self._placed.take(record, now)
            return
        connection = self._owner(record)
        if connection is None:
            return  # it has ended since
        self._following = True
        try:
            self._director.follow(connection, record[2], now)
        finally:
            self._following = False

    def _owner(self, record: Record) -> Known | None:
        """Return the connection that has a record's slot, if it is its client's."""
        _, version, _, _, _, _, _, slot, *_, address, port, _ = record
        known = self._slots[version].owners[slot] if slot != NO_SLOT else None
        client = address[CLIENT_BEGINS[version] :]
        if known is None or known.key[: len(client)] != client or known.key[-4:-2] != port:
            return None
        return known

    def _leave(self, record: Record) -> None:
        """Let a connection end when the director says, if that is sooner than its packets would.

        So it is with one that was to give way to another, of which nothing came.
        """
        connection = self._owner(record)
        if connection and connection.deadline < self.deadlines.until(connection, self._clock()):
            self._slots[record[1]].release(connection)

    def catch_up(self) -> None:
        """Handle the records that a former daemon has left, once its connections are back.

        They had reached their slots, so what a record says of one may have been done already. A
        packet that has waited long is not sent on: its client has sent it again, or given up.
        """
        now, ring, packets = self._clock(), self._ring, []
        oldest = self._ticks.units(now - _LATE_S)
        for at in ring.offsets():
            record = RECORD.unpack_from(ring.memory, at)
            kind, version, _, _, _, protocol, old, slot, seen, *_ = record
            known = self._owner(record)
            if kind == _PLACED and known is not None:
                known.server.counters.conns += 1  # nobody had heard of it
            elif kind == _PLACED:
                self._placed.take(record, now)
            elif kind == _STATE:
                if known is not None and known.state == old:
                    self._heard(record, now)
            elif seen < oldest:
                self.late += 1
            elif slot != NO_SLOT or protocol != TCP or not self._answered(at, version):
                packets.append(at)
        self._take(packets)

    def _answered(self, at: int, version: int) -> bool:
        """Whether a record's packet has opened a connection that has moved on since."""
        start, size = (12, 12) if version == 4 else (8, 36)  # Flow.key
        start += at + RECORD.size
        connection = self._tables[0].get(self._ring.memory[start : start + size])
        return connection is not None and connection.state_name != "SYN_RECV"

    # --- what the director tells ---

    def watch(self) -> None:
        """Hear of the connections of every service, and note by what they end."""
        services = list(self._director.services)
        for service in services:
            if service not in self._watched:
                service.closed += (self._ended,)
                service.state_changed += (self._advanced,)
        self._watched = set(services)
        self.deadlines.watch(services, self._services.ids, self._clock())
        self._placed.watch()

    def _ended(self, connection: Known, reason: str) -> None:
        slots_of(connection, self._slots).release(connection)

    def _advanced(self, connection: Known, old: str, new: str) -> None:
        """Have the program go on from a state that a packet on the portable way has led to."""
        number = connection.place
        if number is not None and not self._following:
            slots_of(connection, self._slots).set_state(number, connection.state)

    # --- what the program knows ---

    def place_known(self) -> None:
        """Give slots to the connections that the director has from before."""
        for table in (self._director.table.tcp, self._director.table.udp):
            for connection in table.values():
                timeouts = connection.server.rules.machines[connection.protocol].timeouts
                self._give_slot(connection, connection.deadline - timeouts[connection.state])

    def _give_slot(self, connection: Known, seen: float) -> None:
        """Give a connection its slot, unless it has one or shall have none.

        Args:
            connection: the connection.
            seen: when its last packet came.
        """
        slots = slots_of(connection, self._slots)
        entry = self._servers.entries.get(connection.server)
        service = self._services.ids.get(connection.server.service.key)
        if (
            entry is None
            or service is None
            or not entry.carried
            or connection.transmit != entry.way
            or connection.place is not None
        ):
            return
        flow = connection.flow
        key = slots.key(flow.caddr, flow.cport.to_bytes(2, "big"), service)
        binding, at = entry.number | connection.state << 16, self._ticks.units(seen) & _WORD
        slots.place(connection, *slots.buckets(key), key, binding, at)

    def let_go(self, servers: list[Any]) -> set[ServiceKey]:
        """Take their slots from the connections of `servers` that the program carries no longer.

        Returns:
            Their services.
        """
        now, services = self._clock(), set()
        for slots in self._slots.values() if servers else ():
            for connection in slots.known():
                server = connection.server
                if server not in servers:
                    continue
                entry = self._servers.entries.get(server)
                if entry is None or not entry.carried or connection.transmit != server.transmit:
                    self.deadlines.keep(connection, now)
                    slots.release(connection)
                    services.add(server.service.key)
        return services

    def losses(self) -> dict[str, int]:
        """Return packets lost on the way, by the place where they were."""
        failed = sum(sum(sender.failed.values()) for sender in self._frames.values())
        return {"not_framed": failed, "not_given_back": self.lost, "late": self.late}

    def close(self) -> None:
        """Close the sockets and the ring."""
        self._ring.close()
        for sender in self._frames.values():
            sender.close()
