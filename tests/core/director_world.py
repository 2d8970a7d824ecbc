"""A director in a small world, for tests of one rule at a time: no daemon, no network, no clock.

The forwarding methods here rewrite or wrap as little as shows what the director did; the real ones
are tested with their plugins. They stand in under the names that the director asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lvskit import (
    TCP,
    Counters,
    Director,
    ForwarderSpec,
    PluginError,
    Route,
    SchedulerSpec,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
    UnknownPlugin,
    Verdict,
    load_plugins,
)
from lvskit.core.connection import Connection, Template
from lvskit.core.service import RealServer, VirtualService
from lvskit.testing import packets
from lvskit.testing.packets import address
from lvskit.types import SCTP

VIP, OTHER_VIP, VIP6 = "192.168.1.176", "192.168.1.177", "2001:db8::176"
CLIENT, CLIENT6 = "10.0.0.1", "2001:db8:1::1"
HERE, HERE6 = address("192.168.1.175"), address("2001:db8::175")
ONE, TWO, THREE = (address(f"192.168.1.{last}") for last in (11, 12, 13))
ROUTE = Route(HERE, 1500)
LOCAL_ROUTE = Route(HERE, 65536, local=True)
WEB = ServiceKey.of(TCP, address(VIP), 80)
PLUGINS = load_plugins()

# SCTP's chunk types, RFC 9260 section 3.2.
DATA, INIT, INIT_ACK, SACK, HEARTBEAT, HEARTBEAT_ACK, ABORT, SHUTDOWN, SHUTDOWN_ACK = range(9)
ERROR, COOKIE_ECHO, COOKIE_ACK, ECNE, CWR, SHUTDOWN_COMPLETE = range(9, 15)


def sctp(
    src: str | bytes, sport: int, dst: str | bytes, dport: int, *chunks: int, ttl: int = 64
) -> bytes:
    """Return an SCTP packet with chunks of these types, of 8 bytes each; its checksum is 0."""
    head = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes(8)
    body = b"".join(bytes((kind, 0, 0, 8)) + bytes(4) for kind in chunks)
    return packets.ip(src, dst, SCTP, head + body, ttl=ttl)


# --- forwarding methods ---


class Straight:
    """Sends packets as they are, to the server's next hop: what `droute` does."""

    def __init__(self, server: Any, options: Any = None) -> None:
        self.server = server
        self.target = server.address  # as it is when this is made
        self.routes: list[Route] = []
        self.discoveries: list[bool] = []

    def transmit(self, connection: Any, packet: bytes) -> Verdict:
        return Transmit(packet, self.routes[-1], self.target)

    def route_changed(self, route: Route) -> None:
        self.routes.append(route)
        self.discoveries.append(self.server.pmtu_disc)


class Translating(Straight):
    """Puts the server's address and port into IPv4 packets, the virtual ones into answers."""

    def transmit(self, connection: Any, packet: bytes) -> Verdict:
        if packet[9] == 1:
            return Transmit(packet[:16] + self.target + packet[20:], self.routes[-1])
        at = (packet[0] & 15) * 4 + 2
        changed = packet[:16] + self.target + packet[20:at]
        changed += connection.dport.to_bytes(2, "big") + packet[at + 2 :]
        return Transmit(changed, self.routes[-1])

    def reply(self, connection: Any, packet: bytes) -> Verdict:
        flow = connection.flow
        if packet[9] == 1:
            return Transmit(packet[:12] + flow.vaddr + packet[16:], self.routes[-1])
        at = (packet[0] & 15) * 4
        changed = packet[:12] + flow.vaddr + packet[16:at]
        return Transmit(changed + flow.vport.to_bytes(2, "big") + packet[at + 2 :], self.routes[-1])


class Wrapping(Straight):
    """Wraps packets with a header of 24 bytes, and knows them again by its protocol."""

    PROTOCOL = 47
    SIGN = b"wrap"

    def transmit(self, connection: Any, packet: bytes) -> Verdict:
        wrapped = packets.ip(HERE, self.target, self.PROTOCOL, self.SIGN + packet)
        return Transmit(wrapped, self.routes[-1])

    def unwrap(self, quote: bytes) -> bytes | None:
        ours = quote[9] == self.PROTOCOL and quote[20:24] == self.SIGN
        return quote[24:] if ours else None


METHODS: Mapping[str, ForwarderSpec] = {
    "droute": ForwarderSpec(name="droute", factory=Straight, summary="-"),
    "masq": ForwarderSpec(name="masq", factory=Translating, summary="-", keeps_port=False),
    "wrap": ForwarderSpec(name="wrap", factory=Wrapping, summary="-"),
}


# --- the world ---


class Registry:
    """The installed plugins, but for those that the tests bring."""

    def __init__(
        self,
        forwarders: Mapping[str, ForwarderSpec],
        schedulers: Mapping[str, Callable[[Any, Any], Any]],
        observers: Iterable[Any],
    ) -> None:
        self._forwarders = forwarders
        self._schedulers = schedulers
        self._observers = list(observers)

    def scheduler(self, name: str) -> SchedulerSpec:
        if name in self._schedulers:
            return SchedulerSpec(name=name, factory=self._schedulers[name], summary="-")
        return PLUGINS.scheduler(name)

    def forwarder(self, name: str) -> ForwarderSpec:
        if name in self._forwarders:
            return self._forwarders[name]
        if name in METHODS:  # whatever is installed by that name
            raise UnknownPlugin(f"no {name}", kind="forwarder", name=name)
        return PLUGINS.forwarder(name)

    def observers(self, service: Any) -> list[Any]:
        return self._observers

    def notify(self, event: str, service: Any, server: Any = None) -> None:
        pass


class World:
    """A director, the routes of its host, and what its plugins were accused of."""

    def __init__(
        self,
        *,
        forwarders: Mapping[str, ForwarderSpec] = METHODS,
        schedulers: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        observers: Iterable[Any] = (),
        **arguments: Any,
    ) -> None:
        self.routes: dict[bytes, Route | None] = {}
        self.faults: list[PluginError] = []
        self.director = Director(
            Registry(forwarders, schedulers or {}, observers),
            lambda target: self.routes.get(target, ROUTE),
            report=self.faults.append,
            **arguments,
        )

    def serve(
        self, key: ServiceKey = WEB, *servers: bytes, method: str = "tunnel", **settings: Any
    ) -> VirtualService:
        """Add a service with these servers; the last one is the first that rr chooses."""
        made = self.director.add_service(key, ServiceSettings(**{"scheduler": "rr"} | settings))
        for server in servers:
            self.director.add_server(key, server, None, ServerSettings(method=method))
        return made

    def tune(self, key: ServiceKey | None = None, **changes: int | None) -> None:
        self.director.tune(changes, key)

    def receive(self, packet: bytes, now: float = 0.0, mark: int = 0) -> Verdict:
        return self.director.receive(packet, now, mark)

    def tcp(self, flags: str = "S", cport: int = 1024, now: float = 0.0, **more: Any) -> Verdict:
        """Let the client send a segment to the VIP's port 80."""
        return self.receive(packets.tcp(CLIENT, cport, VIP, 80, flags, **more), now)

    def tcps(self, letters: str, cport: int = 1024, now: float = 0.0) -> None:
        """Let the client send a segment with each of these flags."""
        for letter in letters:
            self.tcp(letter, cport, now)

    @property
    def connections(self) -> list[Connection]:
        return [entry for entry in self.director.table if isinstance(entry, Connection)]

    @property
    def connection(self) -> Connection:
        """The only one."""
        (found,) = self.connections
        return found

    @property
    def templates(self) -> list[Template]:
        return [entry for entry in self.director.table if isinstance(entry, Template)]


def target(verdict: Verdict) -> bytes | None:
    """Return where a packet in an IPv4 tunnel goes; None: it is not tunnelled."""
    if not isinstance(verdict, Transmit) or verdict.packet[9] != 4:
        return None
    return verdict.packet[16:20]


def loads(server: RealServer) -> tuple[int, int, int]:
    """Return active and inactive connections, and templates."""
    return server.activeconns, server.inactconns, server.persistconns


def counted(thing: Any) -> tuple[int, int, int, int, int]:
    """Return conns, packets in and out, bytes in and out."""
    found: Counters = thing.counters
    return found.conns, found.inpkts, found.outpkts, found.inbytes, found.outbytes
