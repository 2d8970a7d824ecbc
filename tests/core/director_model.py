"""The director again, slow and obvious: plain lists, everything recomputed by looking at all of it.

Written from the rules of IPVS as documented (states, timeouts, persistence, thresholds, the trash
of deleted servers), not from the code under test, of which it imports nothing. Where a scheduler
would choose, the model is told the choice and only judges it.

Addresses are packed, times are seconds, a verdict is a tuple: ("transmit", address of the server),
("deliver",), ("drop", reason), ("reply", reason), ("not ours",).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
FTP, FTP_DATA = 21, 20
FIN, SYN, RST, ACK = 1, 2, 4, 16
DELIVER, NOT_OURS = ("deliver",), ("not ours",)

TIMEOUTS = {
    "NONE": 2, "ESTABLISHED": 900, "SYN_SENT": 120, "SYN_RECV": 60, "FIN_WAIT": 120,
    "TIME_WAIT": 120, "CLOSE": 10, "CLOSE_WAIT": 60, "LAST_ACK": 30, "LISTEN": 120, "SYNACK": 120,
    "UDP": 300,
}  # fmt: skip
ACTIVE = ("ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK")
HALF_OPEN = ("SYN_RECV", "SYNACK")

# Rows: state before; columns: SYN, FIN, ACK, RST. By state, not by event as in the code.
ONE_WAY = {
    "NONE":        ("SYN_RECV",    "CLOSE",      "ESTABLISHED", "CLOSE"),
    "ESTABLISHED": ("ESTABLISHED", "FIN_WAIT",   "ESTABLISHED", "CLOSE"),
    "SYN_SENT":    ("ESTABLISHED", "SYN_SENT",   "SYN_SENT",    "CLOSE"),
    "SYN_RECV":    ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "SYN_RECV"),
    "FIN_WAIT":    ("SYN_RECV",    "FIN_WAIT",   "FIN_WAIT",    "CLOSE"),
    "TIME_WAIT":   ("SYN_RECV",    "TIME_WAIT",  "TIME_WAIT",   "CLOSE"),
    "CLOSE":       ("SYN_RECV",    "CLOSE",      "CLOSE",       "CLOSE"),
    "CLOSE_WAIT":  ("SYN_RECV",    "CLOSE_WAIT", "CLOSE_WAIT",  "CLOSE"),
    "LAST_ACK":    ("SYN_RECV",    "LAST_ACK",   "CLOSE",       "LAST_ACK"),
    "LISTEN":      ("SYN_RECV",    "LISTEN",     "LISTEN",      "LISTEN"),
    "SYNACK":      ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "CLOSE"),
}  # fmt: skip
FROM_CLIENT = ONE_WAY | {
    "ESTABLISHED": ("ESTABLISHED", "CLOSE_WAIT", "ESTABLISHED", "CLOSE"),
    "FIN_WAIT":    ("SYN_RECV",    "TIME_WAIT",  "FIN_WAIT",    "CLOSE"),
    "SYNACK":      ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "SYN_RECV"),
}  # fmt: skip
FROM_SERVER = {
    "NONE":        ("SYN_SENT",    "TIME_WAIT",  "ESTABLISHED", "CLOSE"),
    "ESTABLISHED": ("ESTABLISHED", "FIN_WAIT",   "ESTABLISHED", "CLOSE"),
    "SYN_SENT":    ("SYN_SENT",    "SYN_SENT",   "SYN_SENT",    "SYN_SENT"),
    "SYN_RECV":    ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "CLOSE"),
    "FIN_WAIT":    ("SYN_SENT",    "FIN_WAIT",   "FIN_WAIT",    "CLOSE"),
    "TIME_WAIT":   ("SYN_SENT",    "TIME_WAIT",  "TIME_WAIT",   "TIME_WAIT"),
    "CLOSE":       ("SYN_SENT",    "CLOSE",      "CLOSE",       "CLOSE"),
    "CLOSE_WAIT":  ("SYN_SENT",    "TIME_WAIT",  "CLOSE_WAIT",  "CLOSE"),
    "LAST_ACK":    ("SYN_SENT",    "LAST_ACK",   "LAST_ACK",    "CLOSE"),
    "LISTEN":      ("LISTEN",      "LISTEN",     "ESTABLISHED", "CLOSE"),
    "SYNACK":      ("SYN_RECV",    "TIME_WAIT",  "ESTABLISHED", "CLOSE"),
}  # fmt: skip


def next_state(table: dict[str, tuple[str, str, str, str]], state: str, flags: int) -> str:
    """Return the state after a packet with these TCP flags; without any that count, CLOSE."""
    for bit, column in ((RST, 3), (SYN, 0), (FIN, 1), (ACK, 2)):
        if flags & bit:
            return table[state][column]
    return "CLOSE"


@dataclass(frozen=True)
class Packet:
    """What is in a packet that arrives; `length` by its IP header."""

    protocol: int
    src: bytes
    sport: int
    dst: bytes
    dport: int
    length: int
    flags: int = 0
    mark: int = 0
    ttl: int = 64
    malformed: bool = False
    fragment: bool = False
    quoted: Packet | None = None
    """In an ICMP error: the packet that it is about."""

    @property
    def flow(self) -> tuple[int, bytes, int, bytes, int]:
        return self.protocol, self.src, self.sport, self.dst, self.dport


@dataclass
class Tally:
    """Conns, packets and bytes in, packets and bytes out."""

    conns: int = 0
    inpkts: int = 0
    outpkts: int = 0
    inbytes: int = 0
    outbytes: int = 0


@dataclass(eq=False)
class Server:
    service: Service
    address: bytes
    port: int
    how: tuple[Any, ...] = ()
    weight: int = 1
    upper: int = 0
    lower: int = 0
    overloaded: bool = False
    available: bool = True
    idle_since: float | None = None
    tally: Tally = field(default_factory=Tally)


@dataclass(eq=False)
class Service:
    protocol: int
    address: bytes
    port: int
    mark: int
    version: int
    persistence: int = 0
    mask: bytes | None = None
    one_packet: bool = False
    servers: list[Server] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


@dataclass(eq=False)
class Entry:
    """A connection, or a template: the same thing with client port 0, as in the kernel."""

    flow: tuple[int, bytes, int, bytes, int]
    server: Server
    dport: int
    deadline: float = 0.0
    state: str = "NONE"
    how: tuple[Any, ...] = ()
    two_way: bool = False
    template: Entry | None = None
    half_open_since: int = 0
    is_template: bool = False
    timeout: float = 0.0
    assured: bool = False
    retired: bool = False


class Model:
    """The director, obviously."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.now = 0.0
        self.services: list[Service] = []
        self.entries: list[Entry] = []
        self.trash: list[Server] = []
        self.next_sweep: float | None = None
        self.timeouts: dict[str, float] = dict(TIMEOUTS)
        self.total = Tally()
        self.shed = 0
        self.refused = 0
        self._serial = 0
        self._one_packet: list[Entry] = []  # emptied within each packet

    # --- what there is, by looking at everything ---

    def connections(self) -> list[Entry]:
        return [e for e in self.entries if not e.is_template]

    def templates(self) -> list[Entry]:
        return [e for e in self.entries if e.is_template]

    def children(self, template: Entry) -> list[Entry]:
        return [e for e in self.entries if e.template is template]

    def active(self, server: Server) -> int:
        return sum(e.server is server and e.state in ACTIVE for e in self.connections())

    def inactive(self, server: Server) -> int:
        return sum(e.server is server and e.state not in ACTIVE for e in self.connections())

    def persistent(self, server: Server) -> int:
        return sum(e.server is server for e in self.templates())

    def find(
        self, flow: tuple[int, bytes, int, bytes, int], is_template: bool = False
    ) -> Entry | None:
        there = [e for e in self.entries if e.is_template == is_template and not e.retired]
        found = [e for e in there if e.flow == flow]
        assert len(found) <= 1
        return found[0] if found else None

    def service(self, key: tuple[int, bytes, int, int, int]) -> Service | None:
        for s in self.services:
            if (s.protocol, s.address, s.port, s.mark, s.version) == key:
                return s
        return None

    def usable(self, service: Service) -> list[Server]:
        return [s for s in service.servers if s.weight > 0 and not s.overloaded]

    # --- commands ---

    def add_service(self, service: Service) -> None:
        self.services.append(service)

    def remove_service(self, service: Service) -> None:
        for server in list(service.servers):
            self.remove_server(server)
        self.services.remove(service)

    def add_server(self, service: Service, address: bytes, port: int) -> Server:
        """Add a server, which `edit_server` must then tell the rest."""
        server = self._from_trash(service, address, port) or Server(service, address, port)
        server.service, server.available, server.idle_since = service, True, None
        service.servers.insert(0, server)
        return server

    def _from_trash(self, service: Service, address: bytes, port: int) -> Server | None:
        def key(s: Service) -> tuple[object, ...]:
            return s.protocol, s.address, s.port, s.mark, s.version

        for server in self.trash:
            same = (server.address, server.port) == (address, port)
            if same and key(server.service) == key(service):
                self.trash.remove(server)
                return server
        return None

    def edit_server(
        self, server: Server, how: tuple[Any, ...], weight: int, *, upper: int, lower: int
    ) -> None:
        same = (upper, lower) == (server.upper, server.lower)
        server.how, server.weight, server.upper, server.lower = how, weight, upper, lower
        if not same:
            self._check_lower(server)
            self._check_upper(server)

    def remove_server(self, server: Server) -> None:
        server.service.servers.remove(server)
        server.available = False
        if not self.trash:
            self.next_sweep = self.now + 60
        self.trash.append(server)

    def set_timeouts(self, tcp: float, fin: float, udp: float) -> None:
        for name, value in (("ESTABLISHED", tcp), ("FIN_WAIT", fin), ("UDP", udp)):
            if value:
                self.timeouts[name] = value

    # --- time ---

    def advance(self, now: float, template_stays: Callable[[Entry], bool]) -> None:
        """Let time pass: everything that ends by `now` ends, in its order.

        `template_stays` is asked when a template and the last of its connections end at the same
        instant: which goes first is not ours to say.
        """
        while True:
            ends = sorted(e.deadline for e in self.entries if e.deadline <= now)
            if self.next_sweep is not None and self.next_sweep <= min([now, *ends]):
                self.now = self.next_sweep
                self._sweep()
            elif ends:
                self.now = ends[0]
                self._end(ends[0], template_stays)
            else:
                break
        self.now = now

    def _end(self, at: float, template_stays: Callable[[Entry], bool]) -> None:
        due = [e for e in self.entries if e.deadline == at]
        had_children = [e for e in due if e.is_template and self.children(e)]
        for entry in due:
            if not entry.is_template:
                self.close(entry)
        for entry in due:
            if not entry.is_template:
                continue
            tied = entry in had_children and not self.children(entry)
            if self.children(entry) or (tied and template_stays(entry)):
                entry.timeout = 60.0
                entry.deadline = at + 60
            else:
                self.entries.remove(entry)

    def _sweep(self) -> None:
        assert self.next_sweep is not None
        for server in list(self.trash):
            if any(e.server is server for e in self.entries):
                continue
            if server.idle_since is None:
                server.idle_since = self.now
            elif self.now >= server.idle_since + 120:
                self.trash.remove(server)
        self.next_sweep = self.now + 60 if self.trash else None

    # --- packets ---

    def receive(
        self, packet: Packet, choice: Callable[[Service], Server | None]
    ) -> tuple[Any, ...]:
        """Return the verdict; `choice` tells what the scheduler chose, where one was asked."""
        if packet.malformed:
            return "drop", "MALFORMED"
        if not self.services:
            return NOT_OURS
        if packet.protocol in (ICMP, ICMPV6):
            return self._icmp(packet)
        if packet.protocol not in (TCP, UDP):
            return NOT_OURS
        if packet.fragment:
            return "drop", "FRAGMENT"
        entry = self.find(packet.flow)
        over = entry is not None and entry.state in ("TIME_WAIT", "CLOSE")
        if entry is not None and over and packet.flags & SYN and entry.template is None:
            self.close(entry)
            entry = None
        if entry is not None and not entry.server.available:
            return "drop", "SERVER_REMOVED"
        if entry is None:
            made = self._schedule(packet, choice)
            if not isinstance(made, Entry):
                return made
            entry = made
        self._count_in(entry.server, packet)
        self._advance(entry, FROM_CLIENT if entry.two_way else ONE_WAY, packet.flags)
        verdict = self._forward(entry, packet)
        if verdict[0] == "reply" and entry not in self._one_packet:
            most, headers = (576, 28) if len(packet.src) == 4 else (1280, 48)
            self._count_out(entry.server, min(most, headers + packet.length))
        if packet.protocol == UDP and entry in self._one_packet:
            self._one_packet.remove(entry)
            self.close(entry)
        return verdict

    def replied(self, packet: Packet) -> None:
        """A packet that the director's own sockets send."""
        if packet.malformed or packet.fragment or packet.protocol not in (TCP, UDP):
            return
        entry = self.find((packet.protocol, packet.dst, packet.dport, packet.src, packet.sport))
        if entry is None or not self.services:
            return
        self._count_out(entry.server, packet.length)
        entry.two_way = True
        if packet.protocol == UDP and entry.template:
            entry.template.assured = True
        self._advance(entry, FROM_SERVER, packet.flags)

    def _icmp(self, packet: Packet) -> tuple[Any, ...]:
        quoted = packet.quoted
        if quoted is None or packet.fragment:
            return NOT_OURS
        entry = self.find((quoted.protocol, quoted.dst, quoted.dport, quoted.src, quoted.sport))
        if entry is None:
            return NOT_OURS
        self._count_in(entry.server, packet)
        verdict = self._forward(entry, packet)
        return ("drop", verdict[1]) if verdict[0] == "reply" else verdict  # no error about errors

    def _schedule(
        self, packet: Packet, choice: Callable[[Service], Server | None]
    ) -> Entry | tuple[Any, ...]:
        if packet.protocol == TCP and (not packet.flags & SYN or packet.flags & RST):
            return NOT_OURS
        service = self._match(packet)
        if service is None or packet.sport == FTP_DATA:
            return NOT_OURS
        template: Entry | None = None
        template_is_new = False
        own_port = packet.dport == service.port
        if service.persistence:
            flow = self._template_flow(service, packet)
            template = self.find(flow, is_template=True)
            if template is not None and not template.server.available:
                template.retired = True
                template.flow = (*flow[:4], 0xFFFF)
                template.dport = 0xFFFF
                template = None
            if template is None:
                server = self._choose(service, choice)
                if server is None:
                    ftp_data = service.port == FTP and not own_port
                    return NOT_OURS if ftp_data else ("reply", "NO_SERVER")
                named = own_port and service.port != FTP
                template = Entry(flow, server, server.port if named else 0, is_template=True)
                template.timeout = service.persistence
                template_is_new = True
            server = template.server
        elif service.port == FTP and not own_port:
            return NOT_OURS  # without persistence nobody knows the server
        else:
            chosen = self._choose(service, choice)
            if chosen is None:
                return "reply", "NO_SERVER"
            server = chosen
        if not self._make_room(2 if template_is_new else 1):
            return "drop", "TABLE_FULL"
        if template is not None:
            if template_is_new:
                self.entries.append(template)
            template.deadline = self.now + template.timeout
        port = server.port if own_port or not service.persistence else 0
        entry = Entry(packet.flow, server, port or packet.dport, how=server.how, template=template)
        entry.state = "NONE" if packet.protocol == TCP else "UDP"
        self.entries.append(entry)
        if service.one_packet and packet.protocol == UDP:
            self._one_packet.append(entry)
        for tally in (server.tally, server.service.tally, self.total):
            tally.conns += 1
        self._check_upper(server)
        return entry

    def _match(self, packet: Packet) -> Service | None:
        version = 4 if len(packet.dst) == 4 else 6
        wanted = [
            (0, b"", 0, packet.mark, version),
            (packet.protocol, packet.dst, packet.dport, 0, version),
            (packet.protocol, packet.dst, 0, 0, version),
        ]
        if packet.protocol == TCP and (packet.dport == FTP_DATA or packet.dport >= 1024):
            wanted.insert(2, (TCP, packet.dst, FTP, 0, version))  # its data connections
        for key in wanted if packet.mark else wanted[1:]:
            found = self.service(key)
            if found is not None:
                return found
        return None

    def _template_flow(
        self, service: Service, packet: Packet
    ) -> tuple[int, bytes, int, bytes, int]:
        mask = service.mask or b"\xff" * len(packet.src)
        client = bytes(a & b for a, b in zip(packet.src, mask, strict=True))
        if packet.dport == service.port:
            port = 0 if service.port == FTP else service.port
            return packet.protocol, client, 0, packet.dst, port
        if service.mark:
            address = service.mark.to_bytes(4, "big") + bytes(len(packet.dst) - 4)
            return 0, client, 0, address, 0
        return packet.protocol, client, 0, packet.dst, 0

    def _choose(
        self, service: Service, choice: Callable[[Service], Server | None]
    ) -> Server | None:
        usable = self.usable(service)
        if not usable:
            return None
        chosen = choice(service)
        assert chosen is not None, "a server was available, but none was chosen"
        assert chosen in usable, f"server {chosen.address.hex()} must not be chosen"
        return chosen

    def _make_room(self, wanted: int) -> bool:
        while len(self.entries) + wanted > self.size:
            half_open = [e for e in self.connections() if e.state in HALF_OPEN]
            if not half_open:
                self.refused += 1
                return False
            self.shed += 1
            self.close(min(half_open, key=lambda e: e.half_open_since))
        return True

    # --- connections ---

    def close(self, entry: Entry) -> None:
        self.entries.remove(entry)
        self._check_lower(entry.server)

    def _advance(
        self, entry: Entry, table: dict[str, tuple[str, str, str, str]], flags: int
    ) -> None:
        if entry.state != "UDP":
            new = next_state(table, entry.state, flags)
            if new in HALF_OPEN and entry.state not in HALF_OPEN:
                self._serial += 1
                entry.half_open_since = self._serial
            if new == "ESTABLISHED" != entry.state and entry.template:
                entry.template.assured = True
            entry.state = new
        entry.deadline = self.now + self.timeouts[entry.state]

    def _count_in(self, server: Server, packet: Packet) -> None:
        if not server.available:
            return
        for tally in (server.tally, server.service.tally, self.total):
            tally.inpkts += 1
            tally.inbytes += packet.length

    def _count_out(self, server: Server, length: int) -> None:
        if not server.available:
            return
        for tally in (server.tally, server.service.tally, self.total):
            tally.outpkts += 1
            tally.outbytes += length

    def _forward(self, entry: Entry, packet: Packet) -> tuple[Any, ...]:
        if entry.how[0] == "transmit" and packet.ttl <= 1:
            return "reply", "TTL_EXCEEDED"
        return entry.how

    def _total(self, server: Server) -> int:
        return self.active(server) + self.inactive(server)

    def _check_upper(self, server: Server) -> None:
        if server.upper and self._total(server) >= server.upper:
            server.overloaded = True

    def _check_lower(self, server: Server) -> None:
        limit = server.lower or 0.75 * server.upper
        if not limit or self._total(server) < limit:
            server.overloaded = False
