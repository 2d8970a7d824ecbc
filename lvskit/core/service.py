"""A virtual service and its real servers, and the rules about both.

Source: Linux net/netfilter/ipvs/ip_vs_ctl.c, by behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lvskit.core.rules import KERNEL, Rules
from lvskit.errors import ServerNotFound
from lvskit.estimator import Estimator
from lvskit.interfaces import ConnectionObserver, Forwarder, Scheduler, SchedulerBase
from lvskit.refusals import Refusal, refuse
from lvskit.settings import ServerSettings, ServiceKey, ServiceSettings, endpoint
from lvskit.types import Counters, Route, Verdict

Transmitter = Callable[[Any, bytes], Verdict]


class RealServer:
    """A real server of one virtual service, with its counters; see `lvskit.RealServer`.

    Attributes not named there: `service` it belongs to, `settings` it was given, `edited_at` (what
    it had been sent then), `persistconns` (templates that name it), `forwarders` by method and the
    options that they were `made` with, `rules` of its service, and what a new connection binds:
    `transmit`, and `reply` where the server answers through the director.
    """

    __slots__ = (
        "activeconns", "address", "available", "counters", "edited_at", "estimator", "forwarders",
        "idle_since", "inactconns", "last_weight", "made", "overloaded", "persistconns", "port",
        "reply", "route", "rules", "service", "settings", "transmit", "weight",
    )  # fmt: skip

    def __init__(self, service: VirtualService, address: bytes, port: int) -> None:
        self.service = service
        self.address = address
        self.port = port
        self.settings = ServerSettings()
        self.weight = self.last_weight = 1
        self.activeconns = self.inactconns = self.persistconns = 0
        self.overloaded = False
        self.available = True
        self.counters = Counters()
        self.edited_at = 0
        self.estimator = Estimator(self.counters)
        self.route: Route | None = None
        self.forwarders: dict[str, Forwarder] = {}
        self.made: dict[str, Mapping[str, Any]] = {}
        self.rules = service.rules
        self.transmit: Transmitter
        self.reply: Transmitter | None = None
        self.idle_since: float | None = None

    @property
    def name(self) -> str:
        """`address:port` for people."""
        return endpoint(self.address, self.port)

    @property
    def pmtu_disc(self) -> bool:
        """See `lvskit.RealServer`."""
        return bool(self.rules.settings.pmtu_disc)

    @property
    def referenced(self) -> bool:
        """Some connection or template names this server."""
        return self.activeconns + self.inactconns + self.persistconns > 0

    def take(self) -> None:
        """Judge overload after a connection was bound: it begins at the upper threshold."""
        if self.activeconns + self.inactconns == self.settings.upper:
            self.overloaded = True

    def release(self) -> None:
        """Judge overload after a connection was unbound: it ends below the lower threshold."""
        if self.activeconns + self.inactconns + 1 == self._recovered_below():
            self.overloaded = False

    def _recovered_below(self) -> int:
        return self.settings.lower or self.settings.upper - self.settings.upper // 4

    def apply(self, settings: ServerSettings) -> None:
        """Take `settings` over; other thresholds ask the question of overload anew."""
        old, self.settings = self.settings, settings
        self.edited_at = self.counters.inpkts
        self.weight = settings.weight
        self.last_weight = self.weight or self.last_weight
        if (settings.upper, settings.lower) != (old.upper, old.lower):
            conns = self.activeconns + self.inactconns
            if settings.upper and conns >= settings.upper:
                self.overloaded = True
            elif not settings.upper or conns < self._recovered_below():
                self.overloaded = False


class VirtualService:
    """A virtual service: its servers, newest first, its scheduler, its counters.

    Attributes:
        key: what identifies it; protocol, address, port, fwmark, name: see
            `lvskit.VirtualService`.
        settings: what it was told.
        servers: newest first, the kernel's order, which schedulers see.
        scheduler: the instance that chooses; choice: what it was made from; load_changed, tick: its
            methods, or None where it does not want to know.
        overrides: settings that are its own; rules: all that hold for it.
        beside: what stands for it where packets pass it by (the setting cache_bypass).
        opened, state_changed, closed: the bound methods of its connection observers.
    """

    def __init__(self, key: ServiceKey, rules: Rules = KERNEL) -> None:
        self.key = key
        self.protocol, self.address, self.port, self.fwmark, _ = key
        self.name = str(key)
        self.settings = ServiceSettings()
        self.servers: list[RealServer] = []
        self.scheduler: Scheduler
        self.choice: object = None
        self.load_changed: Callable[[RealServer], None] | None = None
        self.tick: Callable[[float], None] | None = None
        self.overrides: dict[str, int] = {}
        self.beside: VirtualService | None = None
        self.rules = rules
        self.opened: tuple[Callable[..., None], ...] = ()
        self.state_changed: tuple[Callable[..., None], ...] = ()
        self.closed: tuple[Callable[..., None], ...] = ()
        self._retired = Counters()  # of servers while they were here, less what they came with
        self.estimator = Estimator(Counters())

    @property
    def counters(self) -> Counters:
        """The sum over its servers, those that have left included, while they were here."""
        return sum((server.counters for server in self.servers), self._retired)

    def use(self, scheduler: Scheduler) -> None:
        """Let `scheduler` choose from now on."""

        def wanted(name: str) -> Any:
            kind = type(scheduler)
            there = getattr(kind, name, None) not in (None, getattr(SchedulerBase, name))
            return getattr(scheduler, name) if there else None

        self.scheduler = scheduler
        self.load_changed, self.tick = wanted("load_changed"), wanted("tick")

    def rule(self, rules: Rules) -> None:
        """Let `rules` hold for the service and its servers."""
        self.rules = rules
        for server in self.servers:
            server.rules = rules
        if self.beside is not None:
            self.beside.rule(rules)

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
        server.rules = self.rules
        server.available = True
        server.idle_since = None
        server.last_weight = server.weight
        self._retired -= server.counters
        self.servers.insert(0, server)

    def detach(self, server: RealServer) -> None:
        """Take `server` out of the list."""
        server.available = False
        self._retired += server.counters
        self.servers.remove(server)


def unreachable(connection: Any, packet: bytes) -> Verdict:
    """Answer for a server to which there was no route when the connection was bound to it."""
    transmit = connection.server.transmit
    if transmit is unreachable:
        return refuse(packet, Refusal.HOST_UNREACHABLE)
    connection.transmit = transmit  # the server has been removed, and is back with a route
    verdict: Verdict = transmit(connection, packet)
    return verdict
