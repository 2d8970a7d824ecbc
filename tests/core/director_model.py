"""The director again, slow and obvious: plain lists, everything recomputed by looking at all of it.

Written from the rules of IPVS as documented (states, timeouts, persistence, thresholds, the trash
of deleted servers), not from the code under test, of which it imports nothing. Where a scheduler
would choose, the model is told the choice and only judges it.

Addresses are packed, times are seconds, a verdict is a tuple: ("transmit", address of the server),
("deliver",), ("drop", reason), ("reply", reason), ("not ours",).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kernel_tables import SCTP, SETTINGS, TCP, TIMEOUT_OF, TIMEOUTS, UDP, after_sctp, after_tcp

ICMP, ICMPV6 = 1, 58
FTP, FTP_DATA = 21, 20
FIN, SYN, RST, ACK = 1, 2, 4, 16
INIT, ABORT = 1, 6
DELIVER, NOT_OURS = ("deliver",), ("not ours",)
DEFAULTS = SETTINGS | {name: seconds for name, (_, _, seconds) in TIMEOUTS.items()}
ACTIVE = {
    TCP: ("ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK"),
    UDP: (),
    SCTP: ("ESTABLISHED",),
}
HALF_OPEN = ("SYN_RECV", "SYNACK")
Flow = tuple[int, bytes, int, bytes, int]
"""Protocol, source and its port, destination and its port."""


@dataclass(frozen=True)
class Packet:
    """What is in a packet that arrives; `length` by its IP header."""

    protocol: int
    src: bytes
    sport: int
    dst: bytes
    dport: int
    length: int
    flags: int | None = 0  # TCP's flags, or the type of SCTP's first chunk; None: there is none
    mark: int = 0
    ttl: int = 64
    malformed: bool = False
    fragment: bool = False
    quoted: Packet | None = None
    """In an ICMP error: the packet that it is about."""

    @property
    def flow(self) -> Flow:
        return self.protocol, self.src, self.sport, self.dst, self.dport

    @property
    def is_first(self) -> bool:
        """Whether it begins a connection, whatever there was before."""
        if self.protocol == SCTP:
            return self.flags == INIT
        return self.protocol == TCP and bool((self.flags or 0) & SYN)


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
    two_way: bool = False  # it answers through the director, which rewrites packets
    weight: int = 1
    upper: int = 0
    lower: int = 0
    overloaded: bool = False
    available: bool = True
    idle_since: float | None = None
    rules: Mapping[str, int] = field(default_factory=lambda: DEFAULTS)
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
    own: dict[str, int] = field(default_factory=dict)
    rules: Mapping[str, int] = field(default_factory=lambda: DEFAULTS)
    nobody: Server | None = None  # stands for whoever gets what passes the service by
    tally: Tally = field(default_factory=Tally)

    @property
    def key(self) -> tuple[int, bytes, int, int, int]:
        return self.protocol, self.address, self.port, self.mark, self.version


@dataclass(eq=False)
class Entry:
    """A connection, or a template: the same thing with client port 0, as in the kernel."""

    flow: Flow
    server: Server
    dport: int
    deadline: float = 0.0
    state: str = "NONE"
    how: tuple[Any, ...] = ()
    two_way: bool = False
    rewrites: bool = False
    bypassed: bool = False
    template: Entry | None = None
    half_open_since: int = 0
    is_template: bool = False
    timeout: float = 0.0
    assured: bool = False
    retired: bool = False


def is_active(entry: Entry) -> bool:
    return entry.state in ACTIVE[entry.flow[0]]


def opens(packet: Packet, rules: Mapping[str, int]) -> bool:
    """Whether a packet is the first of a connection."""
    if packet.protocol == TCP:
        flags = packet.flags or 0
        return not flags & RST and bool(flags & SYN or rules["sloppy_tcp"])
    if packet.protocol == SCTP:
        return packet.flags != ABORT and (packet.flags == INIT or bool(rules["sloppy_sctp"]))
    return True


def usable(server: Server) -> bool:
    """Whether a template may bring clients to `server`."""
    quiesced = server.weight == 0 and server.rules["expire_quiescent_template"]
    return server.available and not quiesced


class Model:
    """The director, obviously."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.now = 0.0
        self.services: list[Service] = []
        self.entries: list[Entry] = []
        self.trash: list[Server] = []
        self.next_sweep: float | None = None
        self.settings: dict[str, int] = {}
        self.packets_until_drop = 0
        self.total = Tally()
        self.shed = 0
        self.refused = 0
        self.dropped_packets = 0
        self._serial = 0
        self._one_packet: list[Entry] = []  # emptied within each packet
        self._giving_way: Entry | None = None  # likewise

    # --- what there is, by looking at everything ---

    def connections(self) -> list[Entry]:
        return [e for e in self.entries if not e.is_template]

    def templates(self) -> list[Entry]:
        return [e for e in self.entries if e.is_template]

    def children(self, template: Entry) -> list[Entry]:
        return [e for e in self.entries if e.template is template]

    def active(self, server: Server) -> int:
        return sum(e.server is server and is_active(e) for e in self.connections())

    def inactive(self, server: Server) -> int:
        return sum(e.server is server and not is_active(e) for e in self.connections())

    def persistent(self, server: Server) -> int:
        return sum(e.server is server for e in self.templates())

    def find(self, flow: Flow, is_template: bool = False) -> Entry | None:
        there = [e for e in self.entries if e.is_template == is_template and not e.retired]
        found = [e for e in there if e.flow == flow]
        assert len(found) <= 1
        return found[0] if found else None

    def answered(self, flow: Flow) -> Entry | None:
        """Return whose request an answer to `flow` answers, where `flow` is as the server saw it.

        Of connections whose servers' packets are rewritten, the newest that fits.
        """
        protocol, client, cport, target, port = flow
        for entry in reversed(self.connections()):
            seen = (protocol, client, cport) == entry.flow[:3]
            if entry.rewrites and seen and (entry.server.address, entry.dport) == (target, port):
                return entry
        found = self.find(flow)
        return None if found is None or found.rewrites else found

    def service(self, key: tuple[int, bytes, int, int, int]) -> Service | None:
        for s in self.services:
            if s.key == key:
                return s
        return None

    def usable(self, service: Service) -> list[Server]:
        return [s for s in service.servers if s.weight > 0 and not s.overloaded]

    # --- commands ---

    def add_service(self, service: Service) -> None:
        self.services.append(service)
        service.rules = DEFAULTS | self.settings

    def remove_service(self, service: Service) -> None:
        servers = list(service.servers)
        for server in servers:
            self._detach(server)
        self.services.remove(service)
        if servers:
            self._end_removed(service.rules)

    def tune(self, changes: Mapping[str, int | None], service: Service | None = None) -> None:
        """Change settings, of one service or of all; None takes a value back."""
        values = self.settings if service is None else service.own
        for name, value in changes.items():
            values.pop(name, None)
            if value is not None:
                values[name] = value
        for each in self.services:
            each.rules = DEFAULTS | self.settings | each.own
            for server in [*each.servers, *([each.nobody] if each.nobody else [])]:
                server.rules = each.rules
        for server in self.trash:
            there = self.service(server.service.key)
            server.rules = there.rules if there else DEFAULTS | self.settings

    def add_server(self, service: Service, address: bytes, port: int) -> Server:
        """Add a server, which `edit_server` must then tell the rest."""
        server = self._from_trash(service, address, port) or Server(service, address, port)
        server.service, server.available, server.idle_since = service, True, None
        server.rules = service.rules
        service.servers.insert(0, server)
        return server

    def _from_trash(self, service: Service, address: bytes, port: int) -> Server | None:
        for server in self.trash:
            same = (server.address, server.port) == (address, port)
            if same and server.service.key == service.key:
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
        self._detach(server)
        self._end_removed(server.service.rules)

    def _detach(self, server: Server) -> None:
        server.service.servers.remove(server)
        server.available = False
        if not self.trash:
            self.next_sweep = self.now + 60
        self.trash.append(server)

    def _end_removed(self, rules: Mapping[str, int]) -> None:
        """End what belongs to removed servers, where the setting says so."""
        if not rules["expire_nodest_conn"]:
            return
        for entry in [*self.connections(), *self.templates()]:
            if not entry.server.available and entry.server.rules["expire_nodest_conn"]:
                self.close(entry)

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

    def _claims(self, packet: Packet) -> bool:
        """Whether there is any service of the packet's IP version."""
        version = 4 if len(packet.dst) == 4 else 6
        return any(service.version == version for service in self.services)

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
        if not self._claims(packet):
            return NOT_OURS
        if packet.protocol in (ICMP, ICMPV6):
            return self._icmp(packet, choice)
        if packet.protocol not in (TCP, UDP, SCTP):
            return NOT_OURS
        if packet.fragment:
            return "drop", "FRAGMENT"
        entry = self.find(packet.flow)
        if entry is not None and packet.is_first and self._begins_anew(entry):
            self._giving_way, entry = entry, None
        elif entry is not None and not entry.server.available:
            if not entry.server.rules["expire_nodest_conn"]:
                return "drop", "SERVER_REMOVED"
            self._giving_way, entry = entry, None
        if entry is None:
            made = self._schedule(packet, choice)
            if not isinstance(made, Entry):
                self._outlive(packet, made)
                return made
            self._end_giving_way()
            entry = made
        self._count_in(entry.server, packet)
        self._advance(entry, "input" if entry.two_way else "input_only", packet.flags)
        verdict = self._forward(entry, packet)
        if verdict[0] == "reply" and entry not in self._one_packet:
            self._count_told(entry, packet)
        self._end_one_packet(entry)
        return verdict

    def _outlive(self, packet: Packet, made: tuple[Any, ...]) -> None:
        """Let what was to give way to a connection that is none end with the next timer tick."""
        old, self._giving_way = self._giving_way, None
        if old is None:
            return
        if made[0] == "reply":
            self._count_told(old, packet)
        old.deadline = min(old.deadline, self.now + 0.004)

    def _count_told(self, entry: Entry, packet: Packet) -> None:
        """Count an ICMP error of the director itself about a client's packet."""
        own = (entry.server.address, entry.dport) == entry.flow[3:]
        if entry in self.entries and (own or not entry.rewrites):
            most, headers = (576, 28) if len(packet.src) == 4 else (1280, 48)
            self._count_out(entry.server, min(most, headers + packet.length))

    def _begins_anew(self, entry: Entry) -> bool:
        rules = entry.server.rules
        if rules["expire_nodest_conn"] and entry.server.weight == 0:
            return True
        if not rules["conn_reuse_mode"] or entry.template is not None:
            return False
        if entry.state == "FIN_WAIT":
            return bool(rules["conn_reuse_mode"] & 2) and not entry.two_way
        return entry.state in ("TIME_WAIT", "CLOSE", "CLOSED")

    def _end_giving_way(self) -> None:
        """End a connection that has given its ports to a new one, which has its server by now."""
        if self._giving_way is not None:
            self.close(self._giving_way)
            self._giving_way = None

    def _end_one_packet(self, entry: Entry) -> None:
        if entry in self._one_packet:
            self._one_packet.remove(entry)
            self.close(entry)

    def replied(self, packet: Packet) -> tuple[Any, ...]:
        """Return what becomes of a packet that the director's own sockets send, or a server."""
        if packet.malformed or packet.fragment or not self._claims(packet):
            return NOT_OURS
        if packet.protocol in (ICMP, ICMPV6):
            return self._error_about_request(packet) or NOT_OURS
        if packet.protocol not in (TCP, UDP, SCTP):
            return NOT_OURS
        flow = (packet.protocol, packet.dst, packet.dport, packet.src, packet.sport)
        entry = self.answered(flow)
        if entry is None:
            return NOT_OURS
        self._count_out(entry.server, packet.length)
        entry.two_way = True
        if packet.protocol == UDP and entry.template:
            entry.template.assured = True
        self._advance(entry, "output", packet.flags)
        return ("transmit", entry.flow[3]) if entry.rewrites else NOT_OURS

    def _icmp(self, packet: Packet, choice: Callable[[Service], Server | None]) -> tuple[Any, ...]:
        quoted = packet.quoted
        if quoted is None or packet.fragment:
            return NOT_OURS
        answered = self._error_about_request(packet)
        if answered is not None:
            return answered
        asked = replace(
            quoted, src=quoted.dst, sport=quoted.dport, dst=quoted.src, dport=quoted.sport
        )
        entry = self.find(asked.flow)
        if entry is None:
            made = self._schedule(replace(asked, mark=packet.mark), choice, related=True)
            if not isinstance(made, Entry):
                return made
            entry = made
            entry.deadline = self.now + 3
        self._count_in(entry.server, packet)
        verdict = self._forward(entry, packet)
        self._end_one_packet(entry)
        return ("drop", verdict[1]) if verdict[0] == "reply" else verdict  # no error about errors

    def _error_about_request(self, packet: Packet) -> tuple[Any, ...] | None:
        """Carry an error about what a client has sent; None where it is about nothing known."""
        entry = None if packet.quoted is None else self.answered(packet.quoted.flow)
        if entry is None:
            return None
        self._count_out(entry.server, packet.length)
        return ("transmit", entry.flow[3]) if entry.rewrites else NOT_OURS

    def _schedule(
        self,
        packet: Packet,
        choice: Callable[[Service], Server | None],
        *,
        related: bool = False,
    ) -> Entry | tuple[Any, ...]:
        if packet.flags is None and not related:
            return "drop", "MALFORMED"
        service = self._match(packet)
        if service is None:
            return NOT_OURS
        if not (service.rules["schedule_icmp"] if related else opens(packet, service.rules)):
            return NOT_OURS
        if service.rules["drop_packet"] and self._drops(service.rules["am_droprate"]):
            return "drop", "DEFENCE"
        if packet.sport == FTP_DATA:
            return NOT_OURS
        template: Entry | None = None
        template_is_new = False
        own_port = packet.dport == service.port
        if service.persistence:
            flow = self._template_flow(service, packet)
            template = self.find(flow, is_template=True)
            if template is not None and not usable(template.server):
                template.retired = True
                template.flow = (*flow[:4], 0xFFFF)
                template.dport = 0xFFFF
                template = None
            if template is None:
                server = self._choose(service, choice)
                if server is None:
                    return self._leave(service, packet, related=related)
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
                return self._leave(service, packet, related=related)
            server = chosen
        if not self._make_room(2 if template_is_new else 1):
            return "drop", "TABLE_FULL"
        if template is not None:
            if template_is_new:
                self.entries.append(template)
            template.deadline = self.now + template.timeout
        port = server.port if own_port or not service.persistence else 0
        entry = self._open(service, packet, server, port or packet.dport)
        entry.template = template
        for tally in (server.tally, server.service.tally, self.total):
            tally.conns += 1
        self._check_upper(server)
        return entry

    def _open(self, service: Service, packet: Packet, server: Server, dport: int) -> Entry:
        entry = Entry(packet.flow, server, dport, how=server.how)
        entry.two_way = entry.rewrites = server.two_way
        entry.state = "UDP" if packet.protocol == UDP else "NONE"
        self.entries.append(entry)
        if service.one_packet and packet.protocol == UDP:
            self._one_packet.append(entry)
        return entry

    def _drops(self, rate: int) -> bool:
        self.packets_until_drop -= 1
        if self.packets_until_drop > 0:
            return False
        self.packets_until_drop = rate
        self.dropped_packets += 1
        return True

    def _leave(self, service: Service, packet: Packet, *, related: bool) -> Entry | tuple[Any, ...]:
        """Return what becomes of a packet without a server; here, every VIP is another host's."""
        if service.mark and service.rules["cache_bypass"] and not related and self._make_room(1):
            if service.nobody is None:
                service.nobody = Server(service, bytes(len(packet.dst)), 0, rules=service.rules)
            entry = self._open(service, packet, service.nobody, 0)
            entry.how, entry.two_way, entry.bypassed = ("transmit", packet.dst), True, True
            return entry
        if service.port == FTP and packet.dport != FTP:
            return NOT_OURS
        return "drop" if related else "reply", "NO_SERVER"

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

    def _template_flow(self, service: Service, packet: Packet) -> Flow:
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
            if self._giving_way is not None:
                self._end_giving_way()
                continue
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

    def _advance(self, entry: Entry, direction: str, flags: int | None) -> None:
        protocol, rules = entry.flow[0], entry.server.rules
        new = entry.state
        if protocol == TCP:
            secure = rules["secure_tcp"] == 3
            new = after_tcp(direction, entry.state, flags or 0, secure=secure)
        elif protocol == SCTP:
            new = after_sctp(direction, entry.state, flags)
        if protocol == TCP and new in HALF_OPEN and entry.state not in HALF_OPEN:
            self._serial += 1
            entry.half_open_since = self._serial
        if new == "ESTABLISHED" != entry.state and entry.template:
            entry.template.assured = True
        entry.state = new
        entry.deadline = self.now + rules[TIMEOUT_OF[protocol, new]]

    def _count_in(self, server: Server, packet: Packet) -> None:
        if not server.available or server is server.service.nobody:
            return
        for tally in (server.tally, server.service.tally, self.total):
            tally.inpkts += 1
            tally.inbytes += packet.length

    def _count_out(self, server: Server, length: int) -> None:
        if not server.available or server is server.service.nobody:
            return
        for tally in (server.tally, server.service.tally, self.total):
            tally.outpkts += 1
            tally.outbytes += length

    def _forward(self, entry: Entry, packet: Packet) -> tuple[Any, ...]:
        tunnelled = entry.how[0] == "transmit" and not entry.rewrites and not entry.bypassed
        if tunnelled and packet.ttl <= 1:
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
