"""A virtual service and its real servers, and the rules about both.

Source: Linux net/netfilter/ipvs/ip_vs_ctl.c, by behaviour.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lvskit.core.stats import Estimator
from lvskit.errors import (
    ConfigError,
    NotUnicast,
    OutOfRange,
    ServerNotFound,
)
from lvskit.interfaces import ConnectionObserver, Forwarder, Scheduler
from lvskit.types import PROTOCOL_NAMES, TCP, UDP, Counters, Route, Verdict

MAX_WEIGHT: Final = 2**31 - 1
MAX_THRESHOLD: Final = 2**31 - 1
MAX_MARK: Final = 2**32 - 1
Transmitter = Callable[[Any, bytes], Verdict]


def endpoint(address: bytes, port: int) -> str:
    """Return `address:port` for people.

    >>> endpoint(bytes([10, 0, 0, 1]), 80)
    '10.0.0.1:80'
    """
    text = str(ipaddress.ip_address(address))
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"


def check_endpoint(address: bytes, port: int) -> None:
    """Raise `ConfigError` where `address` is no packed one, `OutOfRange` where `port` is none."""
    if len(address) not in (4, 16):
        raise ConfigError(f"address of {len(address)} bytes; allowed: 4 (IPv4), 16 (IPv6)")
    if not 0 <= port <= 65535:
        raise OutOfRange(f"port {port}; allowed: 0 to 65535")


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """What identifies a virtual service: protocol, address and port, or a firewall mark.

    Attributes:
        protocol: `TCP` or `UDP`; 0 with a mark.
        address: packed; empty with a mark.
        port: 0 to 65535.
        fwmark: 1 to 2^32-1; 0 = by address.
        version: IP version of its packets, 4 or 6.
    """

    protocol: int = 0
    address: bytes = b""
    port: int = 0
    fwmark: int = 0
    version: int = 4

    @classmethod
    def of(cls, protocol: int, address: bytes, port: int) -> ServiceKey:
        """Return the key of a service by address; `ConfigError` where there can be none."""
        if protocol not in (TCP, UDP):
            raise ConfigError(f"protocol {protocol} cannot be balanced; allowed: TCP (6), UDP (17)")
        check_endpoint(address, port)
        return cls(protocol, address, port, 0, 4 if len(address) == 4 else 6)

    @classmethod
    def mark(cls, fwmark: int, version: int = 4) -> ServiceKey:
        """Return the key of a service by firewall mark; `ConfigError` where there can be none."""
        if not 1 <= fwmark <= MAX_MARK:
            raise OutOfRange(f"fwmark {fwmark}; allowed: 1 to {MAX_MARK}")
        return cls(fwmark=fwmark, version=version)

    def __str__(self) -> str:
        if self.fwmark:
            return f"FWM {self.fwmark}" + (" IPv6" if self.version == 6 else "")
        return f"{PROTOCOL_NAMES[self.protocol]} {endpoint(self.address, self.port)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What a virtual service can be told, and edited to.

    Attributes:
        scheduler: name of the scheduler.
        options: for the scheduler, by name.
        flags: numbers, 1 to 3, of the scheduler's flags that are on; as in the kernel, every
            scheduler has three, and what they mean is its own affair (`SchedulerSpec.flags`).
        persistence_s: seconds that a template lasts; 0 = not persistent.
        netmask: granularity of persistence, a packed mask; None = the whole address.
        one_packet: every UDP datagram is scheduled for itself.
    """

    scheduler: str = "wlc"
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: frozenset[int] = frozenset()
    persistence_s: int = 0
    netmask: bytes | None = None
    one_packet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What a real server can be told, and edited to.

    Attributes:
        weight: 0 to 2^31-1; 0 = quiesced.
        method: name of the forwarding method.
        options: for the forwarder, by name.
        upper: connections at which it takes no more; 0 = no limit.
        lower: connections below which it takes some again; 0 = three quarters of `upper`.
    """

    weight: int = 1
    method: str = "tunnel"
    options: Mapping[str, Any] = field(default_factory=dict)
    upper: int = 0
    lower: int = 0

    def check(self, server: str) -> None:
        """Raise `OutOfRange` for a value outside its range."""
        if not 0 <= self.weight <= MAX_WEIGHT:
            raise OutOfRange(f"weight {self.weight} of {server}; allowed: 0 to {MAX_WEIGHT}")
        if not 0 <= self.upper <= MAX_THRESHOLD:
            raise OutOfRange(
                f"upper threshold {self.upper} of {server}; allowed: 0 to {MAX_THRESHOLD}"
            )
        if not 0 <= self.lower <= self.upper:
            raise OutOfRange(
                f"lower threshold {self.lower} of {server}; allowed: 0 to its upper threshold, "
                f"{self.upper}"
            )


class RealServer:
    """A real server of one virtual service, with its counters; see `lvskit.RealServer`.

    Attributes not named there: `service` it belongs to, `settings` it was given, `persistconns`
    (templates that name it), `forwarders` by method, and `transmit`, what a new connection binds.
    """

    __slots__ = (
        "activeconns",
        "address",
        "available",
        "counters",
        "estimator",
        "forwarders",
        "idle_since",
        "inactconns",
        "overloaded",
        "persistconns",
        "port",
        "route",
        "service",
        "settings",
        "transmit",
        "weight",
    )

    def __init__(self, service: VirtualService, address: bytes, port: int) -> None:
        self.service = service
        self.address = address
        self.port = port
        self.settings = ServerSettings()
        self.weight = 1
        self.activeconns = self.inactconns = self.persistconns = 0
        self.overloaded = False
        self.available = True
        self.counters = Counters()
        self.estimator = Estimator(self.counters)
        self.route: Route | None = None
        self.forwarders: dict[str, Forwarder] = {}
        self.transmit: Transmitter
        self.idle_since: float | None = None

    @property
    def name(self) -> str:
        """`address:port` for people."""
        return endpoint(self.address, self.port)

    @property
    def pmtu_disc(self) -> bool:
        """See `lvskit.RealServer`."""
        return True

    @property
    def referenced(self) -> bool:
        """Some connection or template names this server."""
        return self.activeconns + self.inactconns + self.persistconns > 0

    def take(self) -> None:
        """Check the upper threshold after a connection or template was bound to this server."""
        upper = self.settings.upper
        if upper and self.activeconns + self.inactconns >= upper:
            self.overloaded = True

    def release(self) -> None:
        """Check the lower threshold after a connection or template was unbound."""
        settings, conns = self.settings, self.activeconns + self.inactconns
        if settings.lower:
            recovered = conns < settings.lower
        elif settings.upper:
            recovered = conns * 4 < settings.upper * 3
        else:
            recovered = True
        if recovered:
            self.overloaded = False

    def apply(self, settings: ServerSettings) -> None:
        """Take `settings` over; a changed upper threshold asks the question of overload anew."""
        if settings.upper == 0 or settings.upper > self.settings.upper:
            self.overloaded = False
        self.settings = settings
        self.weight = settings.weight


class VirtualService:
    """A virtual service: its servers, newest first, its scheduler, its counters.

    Attributes:
        key: what identifies it.
        settings: what it was told.
        servers: newest first, the kernel's order, which schedulers see.
        scheduler: the instance that chooses.
        opened, state_changed, closed: the bound methods of its connection observers.
    """

    def __init__(self, key: ServiceKey) -> None:
        self.key = key
        self.settings = ServiceSettings()
        self.servers: list[RealServer] = []
        self.scheduler: Scheduler
        self.opened: tuple[Callable[..., None], ...] = ()
        self.state_changed: tuple[Callable[..., None], ...] = ()
        self.closed: tuple[Callable[..., None], ...] = ()
        self._retired = Counters()  # of servers while they were here, less what they came with
        self.estimator = Estimator(Counters())

    @property
    def protocol(self) -> int:
        """`TCP`, `UDP`, or 0 for a fwmark service."""
        return self.key.protocol

    @property
    def address(self) -> bytes:
        """The virtual address, packed."""
        return self.key.address

    @property
    def port(self) -> int:
        """The virtual port."""
        return self.key.port

    @property
    def fwmark(self) -> int:
        """The firewall mark, or 0."""
        return self.key.fwmark

    @property
    def name(self) -> str:
        """`TCP address:port` or `FWM mark` for people."""
        return str(self.key)

    @property
    def counters(self) -> Counters:
        """The sum over its servers, those that have left included, while they were here."""
        return sum((server.counters for server in self.servers), self._retired)

    def observe(self, observers: list[ConnectionObserver]) -> None:
        """Bind the methods that each of `observers` has."""

        def bound(name: str) -> tuple[Callable[..., None], ...]:
            return tuple(getattr(o, name) for o in observers if hasattr(o, name))

        self.opened, self.closed = bound("opened"), bound("closed")
        self.state_changed = bound("state_changed")

    def find(self, address: bytes, port: int) -> RealServer:
        """Return the server; `ServerNotFound` where there is none."""
        for server in self.servers:
            if server.address == address and server.port == port:
                return server
        there = ", ".join(server.name for server in self.servers) or "none"
        raise ServerNotFound(
            f"no real server {endpoint(address, port)} in {self.name}; there are: {there}"
        )

    def attach(self, server: RealServer) -> None:
        """Put `server` at the head of the list."""
        server.service = self
        server.available = True
        server.idle_since = None
        self._retired -= server.counters
        self.servers.insert(0, server)

    def detach(self, server: RealServer) -> None:
        """Take `server` out of the list."""
        server.available = False
        self._retired += server.counters
        self.servers.remove(server)


def check_address(address: bytes) -> None:
    """Raise `NotUnicast` where `address` can be no real server's, as the kernel judges it."""
    value = ipaddress.ip_address(address)
    refused = value.is_unspecified or value.is_multicast or address == b"\xff" * 4
    if isinstance(value, ipaddress.IPv6Address):
        refused = refused or value.is_link_local or value.ipv4_mapped is not None
    if refused:
        raise NotUnicast(f"{value} is not unicast, so it cannot be a real server")
