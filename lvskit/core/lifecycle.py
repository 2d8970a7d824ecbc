"""The life of connections: opened, moved from state to state, kept while packets come, ended.

Keeps the table, the servers' counts and the timer wheel in step with each other. Source: Linux
net/netfilter/ipvs/ip_vs_conn.c and ip_vs_proto_tcp.c (set_tcp_state), by behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from lvskit.core import defence, persistence, states
from lvskit.core.administration import Administration
from lvskit.core.connection import Connection, Template
from lvskit.core.packet import Parsed
from lvskit.core.rules import Rules
from lvskit.core.service import RealServer, VirtualService
from lvskit.core.timers import Wheel
from lvskit.errors import PluginError
from lvskit.estimator import PERIOD_S
from lvskit.records import Registry
from lvskit.types import TCP, UDP, Route

DEFAULT_SIZE: Final = 65536
FIRST_S: Final = 3.0  # of a connection that no packet of its own has moved to a state


class Lifecycle(Administration):
    """The part of the Director that keeps connections.

    Attributes:
        wheel: when each ends.
        next_tick, tick_s: when statistics are folded next, and how often.
        defence: what drops entries and packets while it is on.
        expired: all that was due by then has been done.
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
        super().__init__(registry, routes, size, report)
        self.wheel: Wheel[Connection | Template] = Wheel(now)
        self.tick_s = PERIOD_S
        self.next_tick = now + self.tick_s
        self.defence = defence.Defence(now)
        self.expired = now
        self._superseded: Connection | None = None

    def _open(
        self, service: VirtualService, parsed: Parsed, server: RealServer, dport: int, now: float
    ) -> Connection:
        connection = Connection(parsed.protocol, parsed.key, server, dport)
        connection.deadline = now + FIRST_S
        server.inactconns += 1  # until its state says that it is active
        server.counters.conns += 1
        if server.settings.upper:
            server.take()
        if self._superseded is not None:
            self._give_way(self._superseded)
        if not (service.settings.one_packet and parsed.protocol == UDP):
            self.table.add(connection)
        return connection

    def _give_way(self, old: Connection) -> None:
        """End the connection whose ports a new one has: the server counted both for a moment."""
        self._superseded = None
        self._close(old, "rescheduled" if old.server.available else "server removed")

    def _settle(self, connection: Connection) -> None:
        """Tell of a new connection, and file its end; a one-packet connection ends at once."""
        service = connection.server.service
        if service.load_changed is not None:
            self._load_changed(connection.server)
        if service.opened:
            self._tell(service.opened, connection)
        if self.table.connections[connection.protocol].get(connection.key) is connection:
            self.wheel.schedule(connection)
        else:
            if connection.template:
                connection.template.packets += 1
            self._close(connection, "expired")

    def _make_room(self, wanted: int) -> bool:
        """Shed half-open connections, oldest first, until `wanted` entries fit; or say no."""
        table = self.table
        while table.count + wanted > table.size:
            if self._superseded is not None:
                self._give_way(self._superseded)
            elif table.half_open:
                table.shed += 1
                self._close(next(iter(table.half_open)), "shed")
            else:
                table.refused += 1
                return False
        return True

    def follow(
        self, connection: Connection, flags: int, now: float, *, inward: bool = True
    ) -> None:
        """Move the state as a forwarded packet's `flags` say; keep counts, restart the deadline."""
        server = connection.server
        machine = server.rules.machines[connection.protocol]
        tables = machine.tables
        client = tables.input if connection.two_way else tables.input_only
        transitions = client if inward else tables.output
        old, new = connection.state, transitions[connection.state][flags]
        connection.state = new
        self._keep_until(connection, now + machine.timeouts[new])
        if new == old:
            return
        active = new in tables.active
        if active != (old in tables.active):
            change = 1 if active else -1
            server.activeconns += change
            server.inactconns -= change
            if connection.slot is not None:  # else it is new, and told of when all is done
                self._load_changed(server)
        if new == tables.established and connection.template:
            connection.template.assured = True
        if connection.protocol == TCP:
            if new in states.HALF_OPEN:
                self.table.half_open[connection] = None
            else:
                self.table.half_open.pop(connection, None)
        if server.service.state_changed and connection.slot is not None:
            names = tables.names[old], tables.names[new]
            self._tell(server.service.state_changed, connection, *names)

    def _load_changed(self, server: RealServer) -> None:
        """Tell the scheduler, if it wants to know, that a server's connections have changed."""
        tell = server.service.load_changed
        if tell is not None and server.available:
            try:
                tell(server)
            except Exception as err:
                self._scheduler_raised(server.service, "load_changed", err)

    def _find(self, table: dict[bytes, Connection], key: bytes, now: float) -> Connection | None:
        """Return the connection of `key`, unless its time has come."""
        connection = table.get(key)
        if connection is not None and now >= connection.deadline:
            self.expire(now)
            return table.get(key)
        return connection

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
        self._load_changed(server)
        if connection.template:
            connection.template.children -= 1
        if server.service.closed:
            self._tell(server.service.closed, connection, reason)

    def _drop_template(self, template: Template) -> None:
        self.wheel.forget(template)
        self.table.remove_template(template)
        template.server.persistconns -= 1

    def _removed(self, rules: Rules) -> None:
        """End the connections of removed servers, and templates without any, if `rules` say so."""
        if not rules.settings.expire_nodest_conn:
            return
        for entry in self.table:  # connections, and then templates
            server = entry.server
            if server.available or not server.rules.settings.expire_nodest_conn:
                continue
            if isinstance(entry, Connection):
                self._close(entry, "server removed")
            else:
                self._drop_template(entry)

    def expire(self, now: float) -> None:
        """End everything whose time has come; fold the statistics on their two-second grid."""
        while now >= self.wheel.soonest and (entry := self.wheel.due(now)) is not None:
            self.services.sweep(entry.deadline)  # by then, its server was referred to
            if isinstance(entry, Connection):
                self._close(entry, "expired")
            elif entry.children:  # it outlives its connections, in steps
                entry.timeout = persistence.RENEWAL_S
                entry.deadline += persistence.RENEWAL_S
                self.wheel.schedule(entry)
            else:
                self._drop_template(entry)
        while now >= self.next_tick:
            self.tick(self.next_tick)
            self.next_tick += self.tick_s
        if now >= self.services.next_sweep:
            self.services.sweep(now)
        while now >= self.defence.due:
            self._defend(self.defence.due)
        self.expired = now

    def _defend(self, now: float) -> None:
        """Do what the defences do every second."""
        self.defence.due = now + defence.PERIOD_S
        if self.rules.automatic or any(service.rules.automatic for service in self.services):
            self.bind_rules()
        if any(service.rules.drop_entry for service in self.services):
            for entry in self.defence.condemned(self.table, now):
                self.table.dropped_entries += 1
                if isinstance(entry, Template):
                    self._drop_template(entry)
                    continue
                self._close(entry, "dropped")
                # What none of its connections has assured is not worth keeping for the next.
                if entry.template and not entry.template.children and not entry.template.assured:
                    self._drop_template(entry.template)

    def next_timer(self) -> float | None:
        """Return a time before which `expire` has nothing to end; None when nothing is kept."""
        return self.wheel.next()

    def connections(self, now: float) -> Iterator[Connection | Template]:
        """Iterate over a snapshot of the table: connections, then persistence templates."""
        self.expire(now)
        return iter(self.table)

    def routes_changed(self) -> None:
        """Ask for the way to every server again; call it when the host's routes have changed."""
        moved = {}
        for service in self.services:
            for server in service.servers:
                old = server.transmit
                self._rebind(server)
                if server.transmit != old:
                    moved[server] = old
        if moved:
            for entry in self.table:
                # One of another method, which the server had before, goes its own way on.
                if isinstance(entry, Connection) and entry.transmit == moved.get(entry.server):
                    entry.transmit = entry.server.transmit

    def _tell(self, observers: tuple[Callable[..., None], ...], *facts: object) -> None:
        for observer in observers:
            try:
                observer(*facts)
            except Exception as err:
                name = getattr(observer, "__qualname__", repr(observer))
                self._report(PluginError(f"observer {name} raised {err!r}", plugin=name))
