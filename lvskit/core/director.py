"""The Director: one packet in, one verdict out; services and servers as told.

`receive` is the pipeline. The packet of a known connection takes the few lines at its top; all
else, malformed packets included, goes down `_receive_any`. Source of the rules: Linux
net/netfilter/ipvs/ip_vs_core.c, by behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from lvskit.core import persistence, states
from lvskit.core.connection import Connection, ConnectionTable
from lvskit.core.icmp import Refusal, refuse
from lvskit.core.packet import Parsed, parse
from lvskit.core.persistence import Template
from lvskit.core.service import RealServer, VirtualService
from lvskit.core.services import Administration
from lvskit.core.stats import PERIOD_S
from lvskit.core.timers import Wheel
from lvskit.errors import PluginError
from lvskit.interfaces import Registry
from lvskit.types import NOT_OURS, TCP, UDP, Drop, Reason, Route, Verdict

DEFAULT_SIZE: Final = 65536
_FTP_DATA: Final = 20
_WHOLE: Final = frozenset({b"\0\0", b"\x40\0"})  # flags and offset: no fragment, with or without DF
_MALFORMED: Final = Drop(Reason.MALFORMED)
_FRAGMENT: Final = Drop(Reason.FRAGMENT)
_REMOVED: Final = Drop(Reason.SERVER_REMOVED)
_FULL: Final = Drop(Reason.TABLE_FULL)
_FAULT: Final = Drop(Reason.PLUGIN_FAULT)


class Director(Administration):
    """A Linux Virtual Server director without any I/O: the brain that datapaths carry.

    It has no clock: every method that needs the time is given `now`, monotonic seconds, and `now`
    must never go back. Services and servers are managed by the methods of `Administration`.

    Args:
        registry: where schedulers and forwarding methods are found: `lvskit.load_plugins()`.
        routes: tells the way to a packed address, or None; supplied by the datapath.
        size: the most connections and templates that the table holds.
        now: the time.
        report: called with each `PluginError` when a plugin breaks its contract.

    Example:
        >>> from lvskit import Director, Route, load_plugins
        >>> here = bytes([192, 168, 1, 175])
        >>> director = Director(load_plugins(), routes=lambda address: Route(here, 1500))
        >>> director.receive(b"junk", now=0.0)
        Drop(reason=<Reason.MALFORMED: 'malformed'>)
    """

    def __init__(
        self,
        registry: Registry,
        routes: Callable[[bytes], Route | None],
        *,
        size: int = DEFAULT_SIZE,
        now: float = 0.0,
        report: Callable[[PluginError], None] = lambda error: None,
    ) -> None:
        super().__init__(registry, routes, now)
        self.timeouts = states.Timeouts()
        self.table = ConnectionTable(size)
        self.wheel = Wheel(now)
        self._report = report
        self._next_tick = now + PERIOD_S

    # --- packets ---

    def receive(self, packet: bytes, now: float, mark: int = 0) -> Verdict:
        """Return what to do with a packet that is addressed to this host.

        Args:
            packet: one IPv4 or IPv6 datagram; nothing in it is trusted.
            now: the time.
            mark: the firewall mark that the packet carries; 0 = none.
        """
        connection = None
        try:
            # Bytes 12 to 24 of an IPv4 header without options and of the ports behind it are the
            # flow's key; 33 are the TCP flags.
            if packet[0] == 0x45 and packet[9] == TCP:
                found = self.table.tcp.get(packet[12:24])
                if (
                    found is not None
                    and states.STEADY[found.state][packet[33]]
                    and packet[6:8] in _WHOLE
                    and len(packet) == packet[2] << 8 | packet[3]
                    and len(packet) >= 40
                    and now < found.deadline
                    and found.server.available
                    and not found.two_way
                    and len(self.services)
                ):
                    connection = found
        except IndexError:
            return _MALFORMED
        if connection is None:
            return self._receive_any(packet, now, mark)
        connection.deadline = now + self.timeouts.tcp[connection.state]
        counters = connection.server.counters
        counters.inpkts += 1
        counters.inbytes += len(packet)
        try:
            return connection.transmit(connection, packet)
        except Exception as err:  # a stranger's forwarder must not stop the director
            return self._forwarder_fault(connection, err)

    def _receive_any(self, packet: bytes, now: float, mark: int) -> Verdict:
        """Do the same for any packet at all."""
        parsed = parse(packet)
        if parsed is None:
            return _MALFORMED
        table = self.table.connections.get(parsed.protocol)
        if not len(self.services) or table is None:
            return NOT_OURS
        if parsed.fragment:
            return _FRAGMENT
        if len(packet) > parsed.length:
            packet = packet[: parsed.length]
        connection = self._find(table, parsed.flow.key, now)
        if connection is not None and parsed.flags & states.SYN and _is_over(connection):
            # A new connection of the same client reuses the ports of one that has ended.
            self._close(connection, "rescheduled")
            connection = None
        if connection is None:
            made = self._schedule(parsed, packet, now, mark)
            if not isinstance(made, Connection):
                return made
            connection = made
        elif not connection.server.available:
            return _REMOVED
        server = connection.server
        server.counters.inpkts += 1
        server.counters.inbytes += len(packet)
        inward = states.INPUT if connection.two_way else states.INPUT_ONLY
        self._advance(connection, inward, parsed.flags, now)
        try:
            return connection.transmit(connection, packet)
        except Exception as err:
            return self._forwarder_fault(connection, err)
        finally:
            if connection.slot is None:  # one packet, or a first one: not on the wheel yet
                self._settle(connection)

    def replied(self, packet: bytes, now: float) -> None:
        """Take note of a packet that this host's own sockets send to a client.

        A local real server's answers pass the director, so they count, and drive the state.
        """
        parsed = parse(packet)
        if parsed is None or parsed.fragment or parsed.protocol not in self.table.connections:
            return
        key = parsed.dst + parsed.src + (parsed.dport << 16 | parsed.sport).to_bytes(4, "big")
        connection = self._find(self.table.connections[parsed.protocol], key, now)
        if connection is None or not len(self.services):
            return
        if connection.server.available:
            counters = connection.server.counters
            counters.outpkts += 1
            counters.outbytes += parsed.length
        connection.two_way = True
        if parsed.protocol == UDP and connection.template:
            connection.template.assured = True
        self._advance(connection, states.OUTPUT, parsed.flags, now)

    def _find(self, table: dict[bytes, Connection], key: bytes, now: float) -> Connection | None:
        """Return the connection of `key`, unless its time has come."""
        connection = table.get(key)
        if connection is not None and now >= connection.deadline:
            self.expire(now)
            return table.get(key)
        return connection

    # --- new connections ---

    def _schedule(
        self, parsed: Parsed, packet: bytes, now: float, mark: int
    ) -> Connection | Verdict:
        """Return the connection that `packet` opens, or the verdict that it opens none."""
        if parsed.protocol == TCP and (not parsed.flags & states.SYN or parsed.flags & states.RST):
            return NOT_OURS
        service = self.services.match(
            parsed.protocol, parsed.dst, parsed.dport, mark, parsed.version
        )
        if service is None or parsed.sport == _FTP_DATA:
            return NOT_OURS
        self.expire(now)  # schedulers see the counts of this moment
        try:
            if service.settings.persistence_s:
                return self._schedule_persistent(service, parsed, packet, now)
            server = self._choose(service, parsed, parsed.dport == service.port)
            if server is None:
                return refuse(packet, Refusal.PORT_UNREACHABLE)
            if not self._make_room(1, now):
                return _FULL
            return self._open(service, parsed, server, server.port or parsed.dport)
        except PluginError as err:
            self._report(err)
            return _FAULT

    def _schedule_persistent(
        self, service: VirtualService, parsed: Parsed, packet: bytes, now: float
    ) -> Connection | Verdict:
        """Do the same by the client's template, making one where there is none."""
        flow = persistence.template_flow(service, parsed)
        template = self.table.templates[flow.protocol].get(flow.key)
        own_port = parsed.dport == service.port
        if template is not None and not template.server.available:
            persistence.retire(self.table, template)
            template = None
        if template is None:
            server = self._choose(service, parsed, True)
            if server is None:
                return refuse(packet, Refusal.PORT_UNREACHABLE)
            if not self._make_room(2, now):
                return _FULL
            named = own_port and service.port != persistence.FTP
            template = Template(flow.protocol, flow.key, server, server.port if named else 0)
            template.timeout = float(service.settings.persistence_s)
            self.table.templates[flow.protocol][flow.key] = template
            server.persistconns += 1
            server.take()
        elif not self._make_room(1, now):
            return _FULL
        server = template.server
        dport = server.port if own_port and server.port else parsed.dport
        connection = self._open(service, parsed, server, dport)
        connection.template = template
        template.children += 1
        template.deadline = now + template.timeout
        self.wheel.schedule(template)
        return connection

    def _choose(self, service: VirtualService, parsed: Parsed, allowed: bool) -> RealServer | None:
        """Ask the service's scheduler; `PluginError` where it breaks its contract."""
        if not allowed and not service.fwmark:
            return None  # port 0 serves every port only with persistence
        name = service.settings.scheduler
        try:
            server = service.scheduler.schedule(parsed.flow)
        except Exception as err:
            raise PluginError(
                f"scheduler {name!r} of {service.name} raised {err!r}", plugin=name
            ) from err
        if server is None:
            return None
        if (
            not isinstance(server, RealServer)
            or server.service is not service
            or not server.available
        ):
            raise PluginError(
                f"scheduler {name!r} of {service.name} returned {server!r}, which is none of its "
                "servers",
                plugin=name,
            )
        return server

    def _open(
        self, service: VirtualService, parsed: Parsed, server: RealServer, dport: int
    ) -> Connection:
        connection = Connection(parsed.protocol, parsed.flow.key, server, dport)
        server.inactconns += 1  # until its state says that it is active
        server.counters.conns += 1
        server.take()
        if not (service.settings.one_packet and parsed.protocol == UDP):
            self.table.add(connection)
        self._tell(service.opened, connection)
        return connection

    def _settle(self, connection: Connection) -> None:
        """File a new connection's end; a one-packet connection ends at once."""
        if self.table.connections[connection.protocol].get(connection.key) is connection:
            self.wheel.schedule(connection)
        else:
            self._close(connection, "expired")

    def _make_room(self, wanted: int, now: float) -> bool:
        """Shed half-open connections, oldest first, until `wanted` entries fit; or say no."""
        table = self.table
        while len(table) + wanted > table.size:
            if not table.half_open:
                table.refused += 1
                return False
            table.shed += 1
            self._close(next(iter(table.half_open)), "shed")
        return True

    # --- the life of a connection ---

    def _advance(
        self, connection: Connection, transitions: states.Transitions, flags: int, now: float
    ) -> None:
        """Move the state as `flags` say, keep the counts, and restart the deadline."""
        if connection.protocol == UDP:
            connection.deadline = now + self.timeouts.udp
            return
        old, new = connection.state, transitions[connection.state][flags]
        earlier = connection.deadline
        connection.deadline = now + self.timeouts.tcp[new]
        if new == old:
            return
        connection.state = new
        server, active = connection.server, new in states.ACTIVE
        if active != connection.active:
            connection.active = active
            change = 1 if active else -1
            server.activeconns += change
            server.inactconns -= change
        if new == states.ESTABLISHED and connection.template:
            connection.template.assured = True
        if new in states.HALF_OPEN:
            self.table.half_open[connection] = None
        else:
            self.table.half_open.pop(connection, None)
        if connection.slot is not None and connection.deadline < earlier:
            self.wheel.schedule(connection)
        self._tell(server.service.state_changed, connection, states.NAMES[old], states.NAMES[new])

    def _close(self, connection: Connection, reason: str) -> None:
        """Take a connection out of the table and of every count."""
        self.wheel.forget(connection)
        self.table.remove(connection)
        server = connection.server
        if connection.active:
            server.activeconns -= 1
        else:
            server.inactconns -= 1
        server.release()
        if connection.template:
            connection.template.children -= 1
        self._tell(server.service.closed, connection, reason)

    def expire(self, now: float) -> None:
        """End everything whose time has come; fold the statistics on their two-second grid."""
        while (entry := self.wheel.due(now)) is not None:
            if isinstance(entry, Connection):
                self._close(entry, "expired")
            elif isinstance(entry, Template):
                if entry.children:  # it outlives its connections, in steps
                    entry.timeout = persistence.RENEWAL_S
                    entry.deadline += persistence.RENEWAL_S
                    self.wheel.schedule(entry)
                    continue
                persistence.drop(self.table, entry)
                entry.server.persistconns -= 1
                entry.server.release()
        while now >= self._next_tick:
            self.tick()
            self._next_tick += PERIOD_S
        self.services.sweep(now)

    def next_timer(self) -> float | None:
        """Return a time before which `expire` has nothing to end; None when nothing is kept."""
        return self.wheel.next()

    def connections(self, now: float) -> Iterator[Connection | Template]:
        """Iterate over a snapshot of the table: connections, then persistence templates."""
        self.expire(now)
        return iter(self.table)

    def routes_changed(self) -> None:
        """Ask for the way to every server again; call it when the host's routes have changed."""
        moved = set()
        for service in self.services:
            for server in service.servers:
                old = server.transmit
                self._bind(server, server.settings)
                if server.transmit != old:
                    moved.add(server)
        if moved:
            for entry in self.table:
                if isinstance(entry, Connection) and entry.server in moved:
                    entry.transmit = entry.server.transmit

    def _tell(self, observers: tuple[Callable[..., None], ...], *facts: object) -> None:
        for observer in observers:
            try:
                observer(*facts)
            except Exception as err:
                name = getattr(observer, "__qualname__", repr(observer))
                self._report(PluginError(f"observer {name} raised {err!r}", plugin=name))

    def _forwarder_fault(self, connection: Connection, err: Exception) -> Verdict:
        name = connection.server.settings.method
        text = f"forwarder {name!r} of {connection.server.name} raised {err!r}"
        self._report(PluginError(text, plugin=name))
        return _FAULT


def _is_over(connection: Connection) -> bool:
    """Whether a SYN on this connection opens another one (the kernel's conn_reuse_mode 1)."""
    ended = connection.state in (states.TIME_WAIT, states.CLOSE)
    return ended and connection.template is None
