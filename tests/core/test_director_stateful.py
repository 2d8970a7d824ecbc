"""The director against the slow model in `director_model`, by sequences that hypothesis invents.

Two machines: one lives through everything that operators, clients and time can do; one has a table
of six entries, and is short of room all the time. After every step all of the director's state is
compared with the model's, and what must always be true of the connection table is checked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from director_model import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Entry,
    Flow,
    Model,
    Packet,
    Server,
    Service,
    is_active,
)
from director_world import sctp
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lvskit import (
    Deliver,
    Director,
    Drop,
    ForwarderSpec,
    NotOurs,
    PluginError,
    Reply,
    Route,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
    Verdict,
    load_plugins,
)
from lvskit.core.connection import Connection
from lvskit.testing import packets


def address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


HERE = {4: address("192.168.1.175"), 16: address("2001:db8::175")}
VIP, OTHER_VIP, VIP6 = map(address, ("192.168.1.176", "192.168.1.177", "2001:db8::176"))
CLIENTS = {
    4: [address(a) for a in ("10.0.0.1", "10.0.0.2", "10.0.1.1")],
    16: [address(a) for a in ("2001:db8:1::1", "2001:db8:1::2", "2001:db8:2::1")],
}
UNREACHABLE = address("10.250.0.1")
TRANSLATED = [address("192.168.1.21"), address("192.168.1.22")]
"""Servers by the method `masq`, with a port of their own; all others are by the tunnel."""
TRANSLATED_PORT = 8080
SERVERS = [
    *map(address, ("192.168.1.11", "192.168.1.12", "192.168.1.13", "2001:db8::11")),
    HERE[4],
    UNREACHABLE,
    *TRANSLATED,
]
# Protocol, virtual address, port, mark, version: overlapping on purpose.
KEYS = [
    (TCP, VIP, 80, 0, 4),
    (TCP, VIP, 21, 0, 4),
    (TCP, VIP, 0, 0, 4),
    (UDP, VIP, 53, 0, 4),
    (UDP, VIP, 0, 0, 4),
    (SCTP, VIP, 80, 0, 4),
    (TCP, VIP6, 80, 0, 6),
    (UDP, VIP6, 0, 0, 6),
    (0, b"", 0, 7, 4),
    (0, b"", 0, 7, 6),
]
# What clients ask for: protocol, virtual address, port, mark.
TARGETS = [
    (TCP, VIP, 80, 0),
    (TCP, VIP, 80, 7),
    (TCP, VIP, 21, 0),
    (TCP, VIP, 2000, 0),
    (TCP, VIP, 0, 7),
    (UDP, VIP, 53, 0),
    (UDP, VIP, 53, 7),
    (UDP, VIP, 99, 0),
    (SCTP, VIP, 80, 0),
    (SCTP, VIP, 80, 7),
    (TCP, OTHER_VIP, 80, 0),
    (TCP, OTHER_VIP, 80, 7),
    (TCP, VIP6, 80, 0),
    (TCP, VIP6, 80, 7),
    (UDP, VIP6, 53, 0),
    (UDP, VIP6, 53, 9),
]
MASKS = {
    4: [None, address("255.255.255.0"), address("255.255.254.0"), address("0.0.0.0")],
    6: [None, address("ffff:ffff:ffff::"), address("ffff:ffff::"), address("::")],
}
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "sed", "nq")
SYN = 0x02
COMMON_FLAGS = [packets.FLAGS[f] for f in "SARFP"] + [0, 0x12, 0x11, 0x03, 0x06, 0x14, 0x13, 0x18]
CHUNKS = [1, 1, 0, 2, 3, 6, 7, 8, 9, 10, 10, 11, 14, 200, None]
"""First chunks of SCTP packets; None: without any."""
PLUGINS = load_plugins()
# What the director is told, and what it is told to take back.
SETTINGS = [
    ("sloppy_tcp", (1, 0)),
    ("sloppy_sctp", (1,)),
    ("conn_reuse_mode", (0, 2, 3)),
    ("expire_nodest_conn", (1, 1, 0)),
    ("expire_quiescent_template", (1, 1, 0)),
    ("schedule_icmp", (1, 1, 0)),
    ("cache_bypass", (1, 1, 0)),
    ("secure_tcp", (3, 0)),
    ("drop_packet", (3, 0)),
    ("am_droprate", (2, 3)),
    ("timeout_established", (5, 100, 2000)),
    ("timeout_finwait", (1, 300)),
    ("timeout_synrecv", (7, 90)),
    ("timeout_udp", (3, 600)),
    ("timeout_sctp_established", (5, 120)),
    ("timeout_sctp_closed", (3,)),
]


def route(target: bytes) -> Route | None:
    """Return the way to a server, as the director's host knows it."""
    if target == UNREACHABLE:
        return None
    return Route(HERE[len(target)], 1500, local=target in HERE.values())


def how(target: bytes) -> tuple[Any, ...]:
    """Return what the model should expect of a server's new connections."""
    found = route(target)
    if found is None:
        return "reply", "SERVER_UNREACHABLE"
    return ("deliver",) if found.local else ("transmit", target)


class Labelled:
    """Sends packets as they are, and says by `via` who is to have them."""

    def __init__(self, server: Any, options: Any = None) -> None:
        self._target = server.address
        self._route = Route(HERE[4], 1500)

    def transmit(self, connection: Any, packet: bytes) -> Verdict:
        return Transmit(packet, self._route, self._target)

    def route_changed(self, route: Route) -> None:
        pass


class Rewriting(Labelled):
    """Has the answers pass the director; they are from the virtual address then."""

    def reply(self, connection: Any, packet: bytes) -> Verdict:
        return Transmit(packet, self._route, connection.flow.vaddr)


METHODS = {
    "droute": ForwarderSpec(name="droute", factory=Labelled, summary="-"),
    "masq": ForwarderSpec(name="masq", factory=Rewriting, summary="-", keeps_port=False),
}


class Events:
    """An observer that holds what it was told against itself."""

    def __init__(self) -> None:
        self.states: dict[Any, str] = {}

    def opened(self, connection: Any) -> None:
        assert connection not in self.states
        self.states[connection] = connection.state_name

    def state_changed(self, connection: Any, old: str, new: str) -> None:
        assert self.states[connection] == old != new == connection.state_name
        self.states[connection] = new

    def closed(self, connection: Any, reason: str) -> None:
        assert reason in ("expired", "rescheduled", "shed", "dropped", "server removed")
        del self.states[connection]


class Registry:
    """The installed plugins, two methods of these tests, and one observer for every service."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.scheduler = PLUGINS.scheduler

    def forwarder(self, name: str) -> ForwarderSpec:
        return METHODS[name] if name in METHODS else PLUGINS.forwarder(name)

    def observers(self, service: Any) -> list[Any]:
        return [self._events]

    def notify(self, event: str, service: Any, server: Any = None) -> None:
        pass


def plain(verdict: Verdict) -> tuple[Any, ...]:
    """Return a verdict as the model names it."""
    match verdict:
        case Transmit(packet, _, via):
            target = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
            return "transmit", via or target
        case Deliver():
            return ("deliver",)
        case NotOurs():
            return ("not ours",)
        case Drop(reason):
            return "drop", reason.name
        case Reply(_, reason):
            return "reply", reason.name


def built(packet: Packet) -> bytes:
    """Return the bytes of a TCP, UDP or SCTP packet."""
    ends = packet.src, packet.sport, packet.dst, packet.dport
    if packet.protocol == TCP:
        make = packets.tcp(*ends, packet.flags or 0, ttl=packet.ttl)
    elif packet.protocol == UDP:
        make = packets.udp(*ends, ttl=packet.ttl)
    else:
        make = sctp(*ends, *(() if packet.flags is None else (packet.flags,)), ttl=packet.ttl)
    assert len(make) == packet.length
    return make


def client_packet(flow: Flow, flags: int | None, mark: int = 0, ttl: int = 64) -> Packet:
    """Return a packet of a flow; `flags` are TCP's, or the first chunk of SCTP."""
    protocol, *_ = flow
    transport = {TCP: 20, UDP: 8, SCTP: 12 if flags is None else 20}[protocol]
    length = (20 if len(flow[3]) == 4 else 40) + transport
    if protocol != SCTP:
        flags = (flags or 0) if protocol == TCP else 0
    return Packet(*flow, length, flags, mark, ttl)


def back(flow: Flow) -> Flow:
    """Return the flow of the packets the other way."""
    protocol, src, sport, dst, dport = flow
    return protocol, dst, dport, src, sport


class Both:
    """A director and a model of it that are told the same."""

    def __init__(self, size: int) -> None:
        self.events = Events()
        self.faults: list[PluginError] = []
        registry: Any = Registry(self.events)
        self.director = Director(registry, route, size=size, report=self.faults.append)
        self.director.tick_s = 1e9  # statistics have tests of their own
        self.director.next_tick = 1e9
        self.model = Model(size)
        self.now = 0.0
        self.twins: dict[Server, Any] = {}
        self.service_twins: dict[Service, Any] = {}
        self.known: list[Flow] = []

    # --- time ---

    def wait(self, seconds: float, late: bool = False) -> None:
        """Let time pass; `late`: and let nobody call `expire`."""
        until = self.now + seconds
        # Where a template and a connection of its end at the same instant, either may go first:
        # stop there, and let the model follow the director.
        instants = {
            child.deadline
            for template in self.model.templates()
            for child in self.model.children(template)
            if child.deadline <= until and (child.deadline - template.deadline) % 60 == 0
        }
        for instant in sorted(instants):
            self.now = instant
            self.model.advance(instant, self._template_stays)
            self.director.expire(instant)
        self.now = until
        self.model.advance(until, self._template_stays)
        if not late:
            self.director.expire(until)

    def _template_stays(self, template: Entry) -> bool:
        self.director.expire(self.now)
        there = [e for e in templates_of(self.director) if e.deadline == self.now + 60]
        server = self.twins[template.server]  # several retired ones may have the same flow
        return any(flow_of(e) == template.flow and e.server is server for e in there)

    # --- commands ---

    def key(self, number: int) -> tuple[int, bytes, int, int, int]:
        return KEYS[number % len(KEYS)]

    def set_service(
        self, number: int, scheduler: str, seconds: int, mask: int, one_packet: bool
    ) -> None:
        """Add a service, or edit the one that is there."""
        key = self.key(number)
        if key[2] == 0 and not key[3]:
            seconds = seconds or 300
        netmask = MASKS[key[4]][mask]
        told = ServiceSettings(
            scheduler=scheduler, persistence_s=seconds, netmask=netmask, one_packet=one_packet
        )
        service = self.model.service(key)
        if service is None:
            service = Service(*key)
            self.model.add_service(service)
            self.service_twins[service] = self.director.add_service(ServiceKey(*key), told)
        else:
            self.director.edit_service(ServiceKey(*key), told)
        service.persistence, service.mask, service.one_packet = seconds, netmask, one_packet

    def remove_service(self, service: Service) -> None:
        self.director.expire(self.now)
        self.director.remove_service(self.service_twins[service].key, self.now)
        self.model.remove_service(service)

    def set_server(
        self, service: Service, target: bytes, weight: int, upper: int, lower: int
    ) -> None:
        """Add a server, or edit the one that is there."""
        self.director.expire(self.now)
        key = self.service_twins[service].key
        lower = min(lower, upper)
        method, port = ("masq", TRANSLATED_PORT) if target in TRANSLATED else ("tunnel", None)
        told = ServerSettings(weight=weight, upper=upper, lower=lower, method=method)
        found = [s for s in service.servers if s.address == target]
        if found:
            server = found[0]
            self.director.edit_server(key, target, port, told)
        else:
            server = self.model.add_server(service, target, port or service.port)
            server.two_way = method == "masq"
            twin = self.director.add_server(key, target, port, told)
            assert self.twins.setdefault(server, twin) is twin, "not the server that was here"
        self.model.edit_server(server, how(target), weight, upper=upper, lower=lower)

    def tune(self, changes: dict[str, int | None], service: Service | None) -> None:
        key = None if service is None else self.service_twins[service].key
        self.director.tune(changes, key)
        self.model.tune(changes, service)

    def remove_server(self, server: Server) -> None:
        # An odd fraction of a second: a sweep of the trash never meets a connection's end.
        self.wait(1 / 64)
        self.director.remove_server(
            self.service_twins[server.service].key, server.address, server.port, self.now
        )
        self.model.remove_server(server)
        self.wait(1 / 64)

    # --- packets ---

    def receive(self, packet: Packet, raw: bytes) -> tuple[Any, ...]:
        """Let both have a packet; they must agree on the verdict."""
        verdict = self.director.receive(raw, self.now, packet.mark)
        got = plain(verdict)
        if isinstance(verdict, Transmit) and not verdict.via:
            inner = verdict.packet[20 if verdict.packet[0] >> 4 == 4 else 40 :]
            hops = 8 if raw[0] >> 4 == 4 else 7
            assert inner[hops] == raw[hops] - 1
            assert len(inner) == packet.length

        def choice(service: Service) -> Server | None:
            # Where an error opens a connection, what would answer it is dropped.
            signs = (got, ("reply", got[1])) if got[0] == "drop" else (got,)
            chosen = [s for s in service.servers if s.how in signs]
            if got == ("drop", "TABLE_FULL"):
                return self.model.usable(service)[0]  # whichever it was, it was for nothing
            return chosen[0] if chosen else None

        expected = self.model.receive(packet, choice)
        assert got == expected, f"{got} instead of {expected} for {packet}"
        if packet.protocol in (TCP, UDP, SCTP) and packet.flow not in self.known:
            self.known.append(packet.flow)
        return got

    def replied(self, packet: Packet, raw: bytes) -> None:
        """Let both have a packet that leaves the director's host, or crosses it."""
        got = plain(self.director.replied(raw, self.now))
        expected = self.model.replied(packet)
        assert got == expected, f"{got} instead of {expected} for {packet}"

    def knock(self, target: int, client: int, cport: int, flags: int | None) -> tuple[Any, ...]:
        """A client's packet, as likely as not the first of its connection."""
        claimed = [t for t in TARGETS if self.claimed(*t)] if target % 8 else TARGETS
        protocol, virtual, port, mark = (claimed or TARGETS)[target % len(claimed or TARGETS)]
        if protocol == SCTP:  # INIT and COOKIE ECHO
            flags = {SYN: 1, 0x10: 10}.get(flags or 0, flags)
        flow = protocol, CLIENTS[len(virtual)][client], cport, virtual, port
        packet = client_packet(flow, flags, mark)
        return self.receive(packet, built(packet))

    def claimed(self, protocol: int, virtual: bytes, port: int, mark: int) -> bool:
        """Return whether some service has a place for such a packet."""
        services = self.model.services
        mine = [s for s in services if mark and s.mark == mark]
        mine += [s for s in services if (s.protocol, s.address) == (protocol, virtual)]
        mine = [s for s in mine if s.mark or s.port in (0, port)]
        return any(s.servers or (s.mark and s.rules["cache_bypass"]) for s in mine)

    def flow(self, number: int, rewritten: bool = False) -> Flow:
        """Return a flow that was seen before, preferring those that have a connection.

        Or those with a server whose answers are rewritten.
        """
        live = [flow for flow in self.known if self.model.find(flow)]
        if rewritten:
            live = [e.flow for e in self.model.connections() if e.rewrites] or live
        chosen = live if live and number % 4 else self.known
        return chosen[number % len(chosen)]

    def go_on(self, number: int, flags: int | None, ttl: int = 64) -> None:
        """One more packet of a flow that was seen before."""
        flow = self.flow(number)
        packet = client_packet(flow, flags, ttl=ttl)
        if self.model.find(flow) is None or packet.is_first:
            packet = replace(packet, ttl=64)  # the scheduler's choice must show
        self.receive(packet, built(packet))

    def seen_by_server(self, flow: Flow) -> Flow:
        """Return a client's flow as the server of its connection sees it."""
        entry = self.model.find(flow)
        if entry is None or not entry.rewrites or len(flow[1]) != len(entry.server.address):
            return flow
        return (*flow[:3], entry.server.address, entry.dport)

    # --- comparison ---

    def check(self) -> None:
        """Compare everything there is."""
        director, model = self.director, self.model
        assert not self.faults
        entries = entries_of(director)
        self._check_table(entries)
        behind = any(e.deadline <= self.now for e in entries)
        twins: dict[tuple[Flow, bool], list[Entry]] = {}
        for entry in model.entries:
            twins.setdefault((entry.flow, entry.is_template), []).append(entry)
        there = set()
        for entry in entries:
            name = flow_of(entry), not isinstance(entry, Connection)
            there.add(name)
            if entry.deadline > self.now:
                assert name in twins, f"{name} should not be there"
                self._compare(entry, self._twin(entry, twins[name]))
        assert there >= set(twins), "something should be there"
        if behind:
            return  # nobody has called `expire`: the counts are those of some time ago
        assert len(director.table) == len(model.entries) <= director.table.size
        assert (director.table.shed, director.table.refused) == (model.shed, model.refused)
        assert director.table.dropped_packets == model.dropped_packets
        told = {c for c in connections_of(director) if c.server in self.twins.values()}
        assert set(self.events.states) == told
        self._check_counts()

    def _twin(self, entry: Any, found: list[Entry]) -> Entry:
        """Return the model's entry: of one network's retired templates several have one name."""
        return max(
            found,
            key=lambda e: (e.deadline == entry.deadline, self.twins.get(e.server) is entry.server),
        )

    def _check_table(self, entries: list[Any]) -> None:
        """Check what must be true of the table whatever the model says."""
        table = self.director.table
        rewritten = set()
        for protocol, connections in table.connections.items():
            for key, connection in connections.items():
                assert connection.key == key == connection.flow.key
                assert connection.protocol == protocol == connection.flow.protocol
                if connection.reply is not None:
                    rewritten.add(connection)
        for protocol, templates in table.templates.items():
            for key, template in templates.items():
                assert template.key == key == template.flow.key
                assert template.protocol == protocol
                assert template not in table.retired
        half_open = {c for c in connections_of(self.director) if "SYN" in c.state_name}
        assert set(table.half_open) == {c for c in half_open if c.state_name != "SYN_SENT"}
        assert len(table) <= table.size
        answered = [c for keys in table.reverse.values() for found in keys.values() for c in found]
        assert len(answered) == len(rewritten)
        assert set(answered) == rewritten
        assert len(table) == len(entries) == len(set(entries)) == len(list(table))
        earliest = min((e.deadline for e in entries), default=None)
        if earliest is not None:
            upcoming = self.director.next_timer()
            assert upcoming is not None
            assert upcoming <= earliest

    def _compare(self, entry: Any, twin: Entry) -> None:
        assert entry.deadline == twin.deadline, (flow_of(entry), twin.state)
        assert entry.dport == twin.dport
        if twin.bypassed:
            assert not any(entry.server.address)
        else:
            assert entry.server is self.twins[twin.server], "the flow has changed its server"
        if isinstance(entry, Connection):
            assert entry.state_name == twin.state
            assert entry.active == is_active(twin)
            assert (entry.two_way, entry.reply is not None) == (twin.two_way, twin.rewrites)
            assert (entry.template is None) == (twin.template is None)
            if entry.template is not None and twin.template is not None:
                assert flow_of(entry.template) == twin.template.flow
        else:
            assert entry.assured == twin.assured
            assert entry.state_name == ("ASSURED" if twin.assured else "NONE")
            assert entry.timeout == twin.timeout
            assert (entry in self.director.table.retired) == twin.retired

    def _check_counts(self) -> None:
        model, director = self.model, self.director
        assert [s.key for s in director.services] == [
            ServiceKey(s.protocol, s.address, s.port, s.mark, s.version) for s in model.services
        ]
        attached = [server for service in model.services for server in service.servers]
        for server in attached + model.trash:
            twin = self.twins[server]
            assert twin.activeconns == model.active(server)
            assert twin.inactconns == model.inactive(server)
            assert twin.persistconns == model.persistent(server)
            assert twin.overloaded == server.overloaded
            assert twin.available == server.available == (server in attached)
            compare_tally(twin.counters, server.tally)
        for service in model.services:
            there = self.service_twins[service]
            assert there.servers == [self.twins[s] for s in service.servers]
            compare_tally(there.counters, service.tally)
        compare_tally(director.services.counters, model.total)
        assert sorted(template.children for template in templates_of(director)) == sorted(
            len(model.children(template)) for template in model.templates()
        )


def compare_tally(counters: Any, tally: Any) -> None:
    for name in ("conns", "inpkts", "outpkts", "inbytes", "outbytes"):
        assert getattr(counters, name) == getattr(tally, name) >= 0, name


def connections_of(director: Director) -> list[Any]:
    return [c for found in director.table.connections.values() for c in found.values()]


def templates_of(director: Director) -> list[Any]:
    found = [t for templates in director.table.templates.values() for t in templates.values()]
    return [*found, *director.table.retired]


def entries_of(director: Director) -> list[Any]:
    return connections_of(director) + templates_of(director)


def flow_of(entry: Any) -> Flow:
    return tuple(entry.flow)


INDEX = st.integers(0, 40)
FLAGS = st.sampled_from(COMMON_FLAGS) | st.integers(0, 255) | st.sampled_from(CHUNKS)
JUNK = [b"", b"E", b"\x45" * 19, b"\x55" * 60, b"\x60" * 39, b"\0" * 40]
STRANGERS = [4, 47, 50, 89]
VALUES = [(name, value) for name, values in SETTINGS for value in values]
CHANGES = st.lists(
    st.sampled_from(VALUES) | st.sampled_from([(name, None) for name, _ in SETTINGS]), max_size=6
).map(dict)
SECONDS = st.sampled_from(
    [0.125, 1, 2, 9.875, 10, 30, 59.875, 60, 61, 119, 120, 300, 301, 900, 1000]
)
WEIGHTS = st.sampled_from([0, 1, 1, 1, 2, 3, 100, 2**31 - 1])
THRESHOLDS = st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5])


class DirectorMachine(RuleBasedStateMachine):
    """All that may happen to a director with room enough."""

    SIZE = 10_000

    @initialize(
        services=st.lists(
            st.tuples(
                INDEX,
                st.sampled_from([0, 60, 300]),
                st.booleans(),
                st.sampled_from([True, True, True, False]),
            ),
            min_size=1,
            max_size=5,
        ),
        scheduler=st.sampled_from(SCHEDULERS),
        settings=st.lists(st.sampled_from(VALUES), max_size=12).map(dict),
    )
    def begin(
        self,
        services: Iterable[tuple[int, int, bool, bool]],
        scheduler: str,
        settings: dict[str, int | None],
    ) -> None:
        self.both = Both(self.SIZE)
        self.both.tune(settings, None)
        for number, persistence, one_packet, served in services:
            self.both.set_service(number, scheduler, persistence, 0, one_packet)
            for target in (*SERVERS[:2], TRANSLATED[0]) if served else ():
                self.both.set_server(self.both.model.services[-1], target, 1, 0, 0)

    # --- commands ---

    @rule(
        number=INDEX,
        scheduler=st.sampled_from(SCHEDULERS),
        seconds=st.sampled_from([0, 1, 60, 120, 300]),
        mask=st.integers(0, 3),
        one_packet=st.booleans(),
    )
    def service(
        self, number: int, scheduler: str, seconds: int, mask: int, one_packet: bool
    ) -> None:
        self.both.set_service(number, scheduler, seconds, mask, one_packet)

    @precondition(lambda self: len(self.both.model.services) > 1)
    @rule(number=INDEX, all_of_them=st.sampled_from([False] * 7 + [True]))
    def no_service(self, number: int, all_of_them: bool) -> None:
        services = list(self.both.model.services)
        for service in services if all_of_them else [services[number % len(services)]]:
            self.both.remove_service(service)

    @precondition(lambda self: self.both.model.services)
    @rule(number=INDEX, aim=INDEX, weight=WEIGHTS, upper=THRESHOLDS, lower=THRESHOLDS)
    def server(self, number: int, aim: int, weight: int, upper: int, lower: int) -> None:
        services = self.both.model.services
        service = services[number % len(services)]
        self.both.set_server(service, SERVERS[aim % len(SERVERS)], weight, upper, lower)

    @precondition(lambda self: any(s.servers for s in self.both.model.services))
    @rule(
        number=INDEX,
        back_after=st.sampled_from([None, None, 0, 50, 130, 200]),
        meanwhile=st.booleans(),
    )
    def no_server(self, number: int, back_after: float | None, meanwhile: bool) -> None:
        """Remove a server; its clients come again; it may be back while it is remembered."""
        model = self.both.model
        servers = [server for s in model.services for server in s.servers]
        busy = [server for server in servers if model.persistent(server)] if number % 2 else []
        server = (busy or servers)[number % len(busy or servers)]
        flows = [e.flow for e in model.connections() if e.server is server]
        self.both.remove_server(server)
        for protocol, src, sport, dst, dport in flows[:3] if meanwhile else []:
            flow = protocol, src, sport ^ 0x4000, dst, dport
            packet = client_packet(flow, 1 if protocol == SCTP else SYN)
            self.both.receive(packet, built(packet))
        if back_after is not None:
            self.both.wait(back_after)
            self.both.set_server(server.service, server.address, 1, 0, 0)

    @rule(changes=CHANGES, number=INDEX)
    def settings(self, changes: dict[str, int | None], number: int) -> None:
        """Change some settings and take others back: of a service, or of the director."""
        services = self.both.model.services
        service = services[number % len(services)] if number % 3 and services else None
        self.both.tune(changes, service)

    # --- time ---

    @rule(seconds=SECONDS, late=st.booleans())
    def wait(self, seconds: float, late: bool) -> None:
        self.both.wait(seconds, late)

    # --- packets ---

    @rule(
        aim=INDEX,
        client=st.integers(0, 2),
        cport=st.sampled_from([0, 20, 1024, 1025, 1026, 65535]),
        flags=st.sampled_from([SYN, SYN, SYN, SYN, SYN, 0x12, 0x03, 0x06, 0x10, None]),
    )
    def knock(self, aim: int, client: int, cport: int, flags: int | None) -> None:
        self.both.knock(aim, client, cport, flags)

    @rule(aim=INDEX, clients=st.integers(1, 9), handshake=st.booleans())
    def crowd(self, aim: int, clients: int, handshake: bool) -> None:
        """Several connections at once, half-open or established."""
        for number in range(clients):
            self.both.knock(aim, number % 3, 2000 + number, SYN)
            if handshake:
                self.both.knock(aim, number % 3, 2000 + number, 0x10)

    @precondition(lambda self: self.both.known)
    @rule(
        number=INDEX,
        flags=st.lists(FLAGS, min_size=1, max_size=4),
        ttl=st.sampled_from([64, 64, 2, 1, 0]),
    )
    def go_on(self, number: int, flags: list[int | None], ttl: int) -> None:
        for one in flags:
            self.both.go_on(number, one, ttl)

    @precondition(lambda self: self.both.known)
    @rule(number=INDEX, flags=FLAGS, translated=st.sampled_from([True, True, False]))
    def reply(self, number: int, flags: int | None, translated: bool) -> None:
        """A server answers, or the director's own socket; of another's connection, a stray."""
        flow = self.both.flow(number, rewritten=translated)
        flow = self.both.seen_by_server(flow) if translated else flow
        packet = client_packet(back(flow), flags)
        self.both.replied(packet, built(packet))

    @precondition(lambda self: self.both.known)
    @rule(
        number=INDEX,
        kind=st.sampled_from([(3, 1), (3, 4), (4, 1), (11, 3), (5, None), (12, 4), (8, None)]),
        quote=st.sampled_from([28, 48, 1000, 27, 23]),
        about=st.sampled_from(["answer", "answer", "request", "translated", "stranger"]),
        way=st.sampled_from(["in", "in", "out"]),
        mark=st.sampled_from([0, 0, 7]),
        ttl=st.sampled_from([64, 64, 1]),
    )
    def icmp_error(
        self, number: int, kind: tuple[int, int | None], quote: int, about: str, way: str,
        mark: int, ttl: int,
    ) -> None:  # fmt: skip
        """Somebody complains about a packet of a server, or of a client."""
        flow = self.both.flow(number, rewritten=about == "translated")
        _, src, _, dst, _ = flow
        if about != "answer" or not self.both.model.find(flow):
            ttl = 64  # the scheduler's choice must show
        if about == "stranger":  # a client that has no connection yet
            flow = (*flow[:2], flow[2] ^ 0x2000, *flow[3:])
            self.both.tune({"schedule_icmp": 1} if number % 4 else {}, None)
        if about in ("answer", "stranger"):
            quoted = client_packet(back(flow), 0x10)
        else:
            seen = flow if about == "request" else self.both.seen_by_server(flow)
            quoted = client_packet(seen, 0x10)
        six = len(dst) == 16
        whole = built(quoted)[: quote + (20 if six else 0)]
        enough = len(whole) >= (44 if six else 24) and (kind[1] if six else kind[0] in (3, 4, 11))
        raw = packets.icmp_error(src, dst, (kind[1] or 137) if six else kind[0], 0, whole)
        raw = raw[:7] + bytes((ttl,)) + raw[8:] if six else raw[:8] + bytes((ttl,)) + raw[9:]
        protocol = ICMPV6 if six else ICMP
        packet = Packet(
            protocol, src, 0, dst, 0, len(raw), 0, mark, ttl, quoted=quoted if enough else None
        )
        if way == "out":
            self.both.replied(packet, raw)
            return
        self.both.receive(packet, raw)

    @precondition(lambda self: self.both.known)
    @rule(
        number=INDEX,
        flags=FLAGS,
        what=st.sampled_from(["cut", "padded", "fragment", "junk", "stranger"]),
        size=st.integers(1, 60),
    )
    def odd(self, number: int, flags: int | None, what: str, size: int) -> None:
        """A packet of a known flow with something about it, or no packet of anything."""
        flow = self.both.flow(number)
        protocol, src, _, dst, _ = flow
        packet = client_packet(flow, flags)
        raw = built(packet)
        malformed = Packet(0, src, 0, dst, 0, 0, malformed=True)
        if what == "cut":  # it ends before its header says
            self.both.receive(malformed, raw[:-size])
        elif what == "junk":
            self.both.receive(malformed, JUNK[size % len(JUNK)])
        elif what == "padded":  # with bytes of the link behind it
            self.both.receive(packet, raw + bytes(size))
        elif what == "stranger":  # a protocol that the director has nothing to do with
            other = STRANGERS[size % len(STRANGERS)]
            raw = packets.ip(src, dst, other, bytes(8))
            self.both.receive(replace(packet, protocol=other, length=len(raw)), raw)
        elif len(dst) == 4:  # the flags of a fragment sit in the header that all packets have
            offset = size // 30
            raw = packets.ip(src, dst, protocol, raw[20:28], df=False, more=True, offset=offset)
            self.both.receive(replace(packet, length=len(raw), fragment=True), raw)

    # --- always ---

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "both"):
            self.both.check()


class FullTableMachine(RuleBasedStateMachine):
    """A director whose table holds six entries, for persistent and other services: never enough."""

    SIZE = 6

    @initialize(persistence=st.sampled_from([0, 100]))
    def begin(self, persistence: int) -> None:
        self.both = Both(self.SIZE)
        for number in (0, 3):
            self.both.set_service(number, "wlc", persistence if number == 0 else 0, 0, False)
        self.both.set_service(2, "rr", 100, 0, False)
        for service in self.both.model.services:
            for target in SERVERS[:2]:
                self.both.set_server(service, target, 1, 0, 0)

    @rule(aim=st.sampled_from([0, 0, 3, 5]), cport=st.integers(1, 12), client=st.integers(0, 2))
    def knock(self, aim: int, cport: int, client: int) -> None:
        """A new connection: nobody else's established one may go for it."""
        model = self.both.model
        kept = [e for e in model.connections() if e.state not in ("SYN_RECV", "SYNACK")]
        verdict = self.both.knock(aim, client, cport, SYN)
        assert all(e in model.entries for e in kept if not e.state.startswith(("TIME", "CLOSE")))
        if verdict == ("drop", "TABLE_FULL"):
            assert not [e for e in model.connections() if e.state == "SYN_RECV"]

    @precondition(lambda self: self.both.known)
    @rule(number=INDEX, flags=st.sampled_from([0x10, 0x10, 0x11, 0x04, SYN]))
    def go_on(self, number: int, flags: int) -> None:
        self.both.go_on(number, flags)

    @rule(seconds=st.sampled_from([0.5, 1, 30, 61, 125]), late=st.booleans())
    def wait(self, seconds: float, late: bool) -> None:
        self.both.wait(seconds, late)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "both"):
            self.both.check()


def test_director_agrees_with_the_model() -> None:
    run_state_machine_as_test(
        DirectorMachine,
        settings=settings(max_examples=400, stateful_step_count=40, report_multiple_bugs=False),
    )


def test_full_table_agrees_with_the_model() -> None:
    run_state_machine_as_test(
        FullTableMachine,
        settings=settings(max_examples=100, stateful_step_count=40, report_multiple_bugs=False),
    )
