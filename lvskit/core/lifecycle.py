"""The life of connections: opened, moved from state to state, kept while packets come, ended.

Keeps the table, the servers' counts and the timer wheel in step with each other. Source: Linux
net/netfilter/ipvs/ip_vs_conn.c and ip_vs_proto_tcp.c (set_tcp_state), by behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lvskit.core import persistence, states
from lvskit.core.administration import Administration
from lvskit.core.connection import Connection, ConnectionTable, Template
from lvskit.core.packet import Parsed
from lvskit.core.service import RealServer, VirtualService
from lvskit.core.stats import PERIOD_S
from lvskit.core.timers import Wheel
from lvskit.errors import ConfigError, PluginError
from lvskit.records import Registry
from lvskit.types import UDP, Route


class Lifecycle(Administration):
    """The part of the Director that keeps connections.

    Attributes:
        timeouts: how long an idle connection is kept.
        table: connections and templates.
        wheel: when each ends.
        next_tick, tick_s: when statistics are folded next, and how often.
    """

    def __init__(
        self,
        registry: Registry,
        routes: Callable[[bytes], Route | None],
        size: int,
        now: float,
        report: Callable[[PluginError], None],
    ) -> None:
        super().__init__(registry, routes, report)
        self.timeouts = states.Timeouts()
        self.table = ConnectionTable(size)
        self.wheel: Wheel[Connection | Template] = Wheel(now)
        self.tick_s = PERIOD_S
        self.next_tick = now + self.tick_s

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

    def _make_room(self, wanted: int) -> bool:
        """Shed half-open connections, oldest first, until `wanted` entries fit; or say no."""
        table = self.table
        while len(table) + wanted > table.size:
            if not table.half_open:
                table.refused += 1
                return False
            table.shed += 1
            self._close(next(iter(table.half_open)), "shed")
        return True

    def _advance(
        self, connection: Connection, transitions: states.Transitions, flags: int, now: float
    ) -> None:
        """Move the state as `flags` say, keep the counts, and restart the deadline."""
        if connection.protocol == UDP:
            self._keep_until(connection, now + self.timeouts.udp)
            return
        old, new = connection.state, transitions[connection.state][flags]
        connection.state = new
        self._keep_until(connection, now + self.timeouts.tcp[new])
        if new == old:
            return
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
        self._tell(server.service.state_changed, connection, states.NAMES[old], states.NAMES[new])

    def _keep_until(self, connection: Connection, deadline: float) -> None:
        """Move the deadline; the wheel must hear of it only when it comes nearer."""
        nearer = deadline < connection.deadline
        connection.deadline = deadline
        if nearer and connection.slot is not None:
            self.wheel.schedule(connection)

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
            self.services.sweep(entry.deadline)  # by then, its server was referred to
            if isinstance(entry, Connection):
                self._close(entry, "expired")
            elif entry.children:  # it outlives its connections, in steps
                entry.timeout = persistence.RENEWAL_S
                entry.deadline += persistence.RENEWAL_S
                self.wheel.schedule(entry)
            else:
                persistence.drop(self.table, entry)
                entry.server.persistconns -= 1
                entry.server.release()
        while now >= self.next_tick:
            self.tick()
            self.next_tick += self.tick_s
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
                try:
                    self._bind(server, server.settings)
                except ConfigError as err:  # what carried its packets goes on
                    self._report(PluginError(str(err), plugin=server.settings.method))
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
