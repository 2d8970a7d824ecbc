"""Connections, persistence templates, and the hash table that remembers both.

The table is keyed by the bytes of a packet that name its flow (addresses and ports, 12 bytes for
IPv4 and 36 for IPv6), one dictionary per protocol, so that a packet's look-up is one slice and
one hash. Source: Linux net/netfilter/ipvs/ip_vs_conn.c, by behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from lvskit.core import states
from lvskit.core.service import RealServer, Transmitter
from lvskit.types import IP, SCTP, TCP, UDP, Flow


class Template:
    """What a client network's next connection will be given.

    Attributes:
        protocol: as the service's; `IP` for a fwmark service, whose templates span protocols.
        key: masked client address, virtual address, client port 0, virtual port.
        server: the server it names; dport its port.
        timeout: seconds that each new connection restarts the deadline with.
        children: connections that hang on it; it outlives them.
        assured: one of its connections has been established.
        packets: of its one-packet connections.
        deadline, slot: as a connection's.
    """

    __slots__ = (
        "assured", "children", "deadline", "dport", "key", "packets", "protocol", "server", "slot",
        "timeout",
    )  # fmt: skip

    def __init__(self, protocol: int, key: bytes, server: RealServer, dport: int) -> None:
        self.protocol = protocol
        self.key = key
        self.server = server
        self.dport = dport
        self.timeout = 0.0
        self.children = 0
        self.assured = False
        self.packets = 0
        self.deadline = 0.0
        self.slot: object = None

    @property
    def flow(self) -> Flow:
        """Client network and virtual address; both ports as listings show them."""
        return unpack(self.protocol, self.key)

    @property
    def state_name(self) -> str:
        """The state as listings name it."""
        return "ASSURED" if self.assured else "NONE"


class Connection:
    """One connection: where its packets go, its state, and when it ends.

    Attributes:
        protocol: `TCP`, `UDP` or `SCTP`.
        key: the flow as it lies in a packet; see `Flow.key`.
        server: the real server chosen for it.
        dport: the real server's port.
        transmit: the forwarder's bound method; reply: that for answers, or None.
        template: the persistence template that it hangs on, or None.
        state: index into the names of its protocol's `states.Tables`; always 0 for UDP.
        two_way: the server's packets pass here, so both directions drive the state.
        packets: a client's, so far.
        deadline: when it ends unless a packet comes.
        slot: for the timer wheel; place: for the datapath, which may keep it elsewhere as well.
    """

    __slots__ = (
        "deadline", "dport", "key", "packets", "place", "protocol", "reply", "server", "slot",
        "state", "template", "transmit", "two_way",
    )  # fmt: skip

    def __init__(self, protocol: int, key: bytes, server: RealServer, dport: int) -> None:
        self.protocol = protocol
        self.key = key
        self.server = server
        self.dport = dport
        self.transmit: Transmitter = server.transmit
        self.reply = server.reply
        self.template: Template | None = None
        self.state = states.NONE
        self.two_way = server.reply is not None
        self.packets = 0
        self.deadline = 0.0
        self.slot: object = None
        self.place: int | None = None

    @property
    def flow(self) -> Flow:
        """Client and virtual address and port."""
        return unpack(self.protocol, self.key)

    @property
    def active(self) -> bool:
        """Counted in the server's `activeconns`, else in `inactconns`."""
        return self.state in states.TABLES[self.protocol].active

    @property
    def state_name(self) -> str:
        """The state as listings name it."""
        return states.TABLES[self.protocol].names[self.state]


def unpack(protocol: int, key: bytes) -> Flow:
    """Return the flow that `key` stands for; the inverse of `Flow.key`."""
    size = (len(key) - 4) // 2
    cport, vport = key[-4] << 8 | key[-3], key[-2] << 8 | key[-1]
    return Flow(protocol, key[:size], cport, key[size : 2 * size], vport)


class ConnectionTable:
    """Connections and templates by key; bounded.

    Attributes:
        size: the most entries it holds, templates included; count: those that it does.
        tcp, udp, sctp: connections by key; `connections`: those by protocol.
        reverse: by protocol, those whose servers' answers are rewritten; the key is that of the
            server's packets, which two connections to two VIPs may share: newest first.
        shed: half-open connections that gave way to new ones since the start.
        refused: new connections that found no room since the start.
        dropped_entries, dropped_packets: what the defences have given up since the start.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.tcp: dict[bytes, Connection] = {}
        self.udp: dict[bytes, Connection] = {}
        self.sctp: dict[bytes, Connection] = {}
        self.connections = {TCP: self.tcp, UDP: self.udp, SCTP: self.sctp}
        self.reverse: dict[int, dict[bytes, tuple[Connection, ...]]] = {
            protocol: {} for protocol in self.connections
        }
        self.templates: dict[int, dict[bytes, Template]] = {
            protocol: {} for protocol in (IP, *self.connections)
        }
        self.retired: set[Template] = set()  # invalid templates that wait for their end
        self.half_open: dict[Connection, None] = {}  # an ordered set: the oldest is shed first
        self.count = 0
        self.shed = 0
        self.refused = 0
        self.dropped_entries = 0
        self.dropped_packets = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Connection | Template]:
        """Iterate over a snapshot of everything in the table."""
        tables: Iterable[Mapping[bytes, Connection | Template]]
        tables = (*self.connections.values(), *self.templates.values())
        return iter([*(entry for table in tables for entry in table.values()), *self.retired])

    def add(self, connection: Connection) -> None:
        """Enter `connection` under its key."""
        self.count += 1
        self.connections[connection.protocol][connection.key] = connection
        if connection.reply is not None:
            reverse, key = self.reverse[connection.protocol], _answer_key(connection)
            reverse[key] = connection, *reverse.get(key, ())

    def add_template(self, template: Template) -> None:
        """Enter `template` under its key."""
        self.count += 1
        self.templates[template.protocol][template.key] = template

    def remove_template(self, template: Template) -> None:
        """Take `template` out, retired or not."""
        self.count -= 1
        if template in self.retired:
            self.retired.remove(template)
        else:
            del self.templates[template.protocol][template.key]

    def remove(self, connection: Connection) -> None:
        """Take `connection` out."""
        table = self.connections[connection.protocol]
        if table.get(connection.key) is connection:
            del table[connection.key]
            self.count -= 1
        if connection.reply is not None:
            reverse, key = self.reverse[connection.protocol], _answer_key(connection)
            rest = tuple(each for each in reverse.pop(key, ()) if each is not connection)
            if rest:
                reverse[key] = rest
        self.half_open.pop(connection, None)


def _answer_key(connection: Connection) -> bytes:
    """Return the key of the packets that a connection's server sends."""
    flow, server = connection.flow, connection.server
    ports = connection.dport << 16 | flow.cport
    return server.address + flow.caddr + ports.to_bytes(4, "big")
