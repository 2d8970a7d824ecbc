"""The connection table as plain records: out of one director, into the next.

Kept: connections and persistence templates, each with its server by name and the seconds that it
had left. Not kept: statistics, and what a scheduler remembers for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

from lvskit.core import persistence, states
from lvskit.core.connection import Connection, Template
from lvskit.core.director import Director
from lvskit.core.packet import Parsed
from lvskit.core.service import RealServer
from lvskit.types import TCP

_NONE: Final = -1
_KEY_SIZES: Final = (12, 36)
_LONGEST_S: Final = 2.0**32


class ServerRecord(NamedTuple):
    """A real server: the fields of its service's key, its address and port, and its overload."""

    service: tuple[int, bytes, int, int, int]
    address: bytes
    port: int
    upper: int
    overloaded: bool


class TemplateRecord(NamedTuple):
    """A persistence template; `server` is the number of a server record, from 0."""

    server: int
    protocol: int
    key: bytes
    dport: int
    remaining_s: float
    timeout_s: float
    assured: bool
    retired: bool


class ConnectionRecord(NamedTuple):
    """A connection; `template` is the number of a record or -1, `rank` its turn to be shed or 0."""

    server: int
    protocol: int
    key: bytes
    dport: int
    remaining_s: float
    template: int
    state: int
    two_way: bool
    rank: int


@dataclass(slots=True)
class Part:
    """A piece of a snapshot; the numbers of records go on from one part to the next."""

    servers: list[ServerRecord] = field(default_factory=list)
    templates: list[TemplateRecord] = field(default_factory=list)
    connections: list[ConnectionRecord] = field(default_factory=list)


def export(
    director: Director,
    now: float,
    size: int = 1000,
    deadline: Callable[[Connection], float | None] = attrgetter("deadline"),
) -> Iterator[Part]:
    """Yield what `director` remembers, `size` entries at a time, templates first.

    The director may work between two parts: an entry that ends meanwhile is left out, a new one
    is not looked for, and `remaining_s` counts from `now` all the time.

    Args:
        director: whose entries.
        now: the time.
        size: entries to a part.
        deadline: returns when a connection really ends, by all that the datapath knows; None
            leaves it out.
    """
    director.expire(now)
    table = director.table
    entries: list[Connection | Template] = [*table.retired]
    for templates in table.templates.values():
        entries += templates.values()
    for connections in table.connections.values():
        entries += connections.values()
    ranks = {connection: rank for rank, connection in enumerate(table.half_open, 1)}
    servers: dict[RealServer, int] = {}
    numbers: dict[Template | None, int] = {}
    rest = iter(entries)
    while batch := list(islice(rest, size)):
        part = Part()
        for entry in batch:
            if entry.slot is None:
                continue  # it has ended since
            end = entry.deadline if isinstance(entry, Template) else deadline(entry)
            if end is None:
                continue
            server = servers.get(entry.server)
            if server is None:
                server = servers[entry.server] = len(servers)
                upper, overloaded = entry.server.settings.upper, entry.server.overloaded
                part.servers.append(ServerRecord(*_name(entry.server), upper, overloaded))
            common = (server, entry.protocol, entry.key, entry.dport, end - now)
            if isinstance(entry, Template):
                numbers[entry] = len(numbers)
                more = (entry.timeout, entry.assured, entry in table.retired)
                part.templates.append(TemplateRecord(*common, *more))
            else:
                template, rank = numbers.get(entry.template, _NONE), ranks.get(entry, 0)
                part.connections.append(
                    ConnectionRecord(*common, template, entry.state, entry.two_way, rank)
                )
        yield part


class Enter(Protocol):
    """Enters connections that have their server, protocol and server's port in common."""

    def __call__(
        self,
        key: bytes,
        deadline: float,
        state: int,
        template: Template | None = None,
        two_way: bool = False,
        rank: float = 0,
    ) -> Connection | None:
        """Enter a connection; None where there is no room, or another one of this key.

        Args:
            key, state, template, two_way: of the connection.
            deadline: its end, later than now.
            rank: its turn to be shed, of those that are half open.
        """


class Restorer:
    """Brings connections back: a snapshot's, part by part, or one by one, as a datapath has them.

    Only for those servers that the director has again.

    An entry is left out whose server is no more, whose time is over, that the table has no room
    for, or that cannot be: records are not trusted. Observers hear of each as of a new one.

    Args:
        director: with its services and servers.
        start: when the snapshot was made, in the seconds that `now` counts.
        now: the time.
    """

    def __init__(self, director: Director, start: float, now: float) -> None:
        self._director, self._start, self._now = director, start, now
        self._table = director.table
        servers = [server for service in director.services for server in service.servers]
        self._there = {_name(server): server for server in servers}
        self._servers: list[RealServer | None] = []
        self._templates: list[Template | None] = []
        self._enter: dict[tuple[RealServer, int, int], Enter] = {}
        self._ranked: list[tuple[float, Connection]] = []

    def add(self, part: Part) -> None:
        """Bring back the next part."""
        for named in part.servers:
            server = self._there.get(named[:3])
            self._servers.append(server)
            if server is not None and 0 < server.settings.upper <= named.upper:
                server.overloaded = named.overloaded  # as an edit would leave it
        self._templates += [self._template(record) for record in part.templates]
        for record in part.connections:
            self._connection(record)

    def _server(self, record: TemplateRecord | ConnectionRecord) -> RealServer | None:
        """Return the server of an entry that can be; None for one to leave out."""
        possible = (
            len(record.key) in _KEY_SIZES
            and 0 <= record.dport <= 0xFFFF
            and 0 < record.remaining_s < _LONGEST_S
            and 0 <= record.server < len(self._servers)
        )
        fits = len(self._table) < self._table.size
        return self._servers[record.server] if possible and fits else None

    def _template(self, record: TemplateRecord) -> Template | None:
        server, table = self._server(record), self._table.templates.get(record.protocol)
        if server is None or table is None or not 0 <= record.timeout_s < _LONGEST_S:
            return None
        there = table.get(record.key)
        if there is not None:  # as the datapath has brought it back
            return there if there.server is server else None
        deadline = self._start + record.remaining_s
        timeout, assured = record.timeout_s, record.assured
        template = self.template(
            server, record.protocol, record.key, record.dport, deadline, timeout, assured
        )
        if template is not None and record.retired:
            del table[record.key]
            self._table.retired.add(template)
        return template

    def template(
        self,
        server: RealServer,
        protocol: int,
        key: bytes,
        dport: int,
        deadline: float,
        timeout_s: float,
        assured: bool,
    ) -> Template | None:
        """Enter a template; None where there is no room, or another one of this key."""
        table = self._table
        if key in table.templates[protocol] or len(table) >= table.size:
            return None
        template = Template(protocol, key, server, dport)
        template.deadline = deadline
        template.timeout, template.assured = timeout_s, assured
        table.add_template(template)
        server.persistconns += 1
        self._director.wheel.schedule(template)
        return template

    def templates(
        self, server: RealServer, protocol: int, address: bytes, port: int
    ) -> Callable[[bytes], Template | None]:
        """Return what finds the templates of connections to a virtual address and port.

        It takes a client's address, and returns None where there is none that names `server`.
        """
        service, netmask = server.service, server.service.settings.netmask
        client, version = bytes(len(address)), 4 if len(address) == 4 else 6
        first = Parsed(version, protocol, client, address, 0, 0, False, dport=port)
        named = persistence.template_flow(service, first)
        entered, rest = self._table.templates[named.protocol], named.key[len(client) :]

        def find(client: bytes) -> Template | None:
            if netmask is not None:
                client = persistence.masked(client, netmask)
            found = entered.get(client + rest)
            return found if found is not None and found.server is server else None

        return find

    def _connection(self, record: ConnectionRecord) -> None:
        server, table = self._server(record), self._table.connections.get(record.protocol)
        deadline = self._start + record.remaining_s
        if server is None or table is None or deadline <= self._now:
            return
        if not 0 <= record.state < len(states.TABLES[record.protocol].names):
            return
        template = None
        if 0 <= record.template < len(self._templates):
            template = self._templates[record.template]
        alike = server, record.protocol, record.dport
        enter = self._enter.get(alike)
        if enter is None:
            enter = self._enter[alike] = self.connections(*alike)
        enter(record.key, deadline, record.state, template, record.two_way, record.rank)

    def connections(self, server: RealServer, protocol: int, dport: int) -> Enter:
        """Return what enters connections to a server, which counts them."""
        table, wheel, ranked = self._table, self._director.wheel, self._ranked
        entered, opened = table.connections[protocol], server.service.opened
        active = states.TABLES[protocol].active
        half_open = states.HALF_OPEN if protocol == TCP else frozenset()

        def enter(
            key: bytes,
            deadline: float,
            state: int,
            template: Template | None = None,
            two_way: bool = False,
            rank: float = 0,
        ) -> Connection | None:
            if key in entered or len(table) >= table.size:
                return None
            connection = Connection(protocol, key, server, dport)
            connection.deadline, connection.two_way = deadline, two_way
            connection.state = state
            if state in active:
                server.activeconns += 1
            else:
                server.inactconns += 1
            if template is not None:
                connection.template = template
                template.children += 1
            if state in half_open:
                ranked.append((rank, connection))
            table.add(connection)
            wheel.schedule(connection)
            if opened:
                self._director._tell(opened, connection)
            return connection

        return enter

    def finish(self) -> int:
        """End what has run out, and return how many entries the table has."""
        for _, connection in sorted(self._ranked, key=lambda pair: pair[0]):
            self._table.half_open[connection] = None
        self._director.expire(self._now)
        return len(self._table)


def _name(server: RealServer) -> tuple[tuple[int, bytes, int, int, int], bytes, int]:
    key = server.service.key
    service = (key.protocol, key.address, key.port, key.fwmark, key.version)
    return service, server.address, server.port
