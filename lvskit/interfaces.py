"""What a plugin implements, what it registers, and what it sees of the director.

A plugin implements `Scheduler` or `Forwarder` (the ``Base`` classes supply the optional methods),
describes it in a frozen record (`SchedulerSpec`, `ForwarderSpec`, `DatapathSpec`) and hands the
record over in a hook of `lvskit.hookspecs`. The model is the kernel's ``struct ip_vs_scheduler``:
a name, one function that must be there, a few that may be; state lives per virtual service.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Protocol

from lvskit.types import Counters, Flow, Route, Verdict

API = 1
"""The version of these interfaces; a record made for another one is refused at load."""


class RealServer(Protocol):
    """What a plugin sees of a real server. Read it; only the core writes it."""

    @property
    def address(self) -> bytes:
        """Packed address."""

    @property
    def port(self) -> int:
        """Its port; 0 where each connection keeps the port that the client asked for."""

    @property
    def weight(self) -> int:
        """Share of new connections, 0 to 2^31-1; 0 = quiesced."""

    @property
    def activeconns(self) -> int:
        """Connections in an active TCP state (SYN_RECV and ESTABLISHED among them)."""

    @property
    def inactconns(self) -> int:
        """All other connections; every UDP connection is one of these."""

    @property
    def overloaded(self) -> bool:
        """The upper threshold was reached: no new connections until the lower one is passed."""

    @property
    def available(self) -> bool:
        """False once the server has been removed from its service."""

    @property
    def route(self) -> Route | None:
        """The way there, None while there is none."""

    @property
    def counters(self) -> Counters:
        """What it has been sent."""

    @property
    def name(self) -> str:
        """`address:port` for people."""


class VirtualService(Protocol):
    """What a plugin sees of a virtual service."""

    @property
    def protocol(self) -> int:
        """`lvskit.types.TCP` or `UDP`; 0 for a fwmark service."""

    @property
    def address(self) -> bytes:
        """The virtual address (VIP), packed; empty for a fwmark service."""

    @property
    def port(self) -> int:
        """The virtual port; 0 = every port of the address that no other service claims."""

    @property
    def fwmark(self) -> int:
        """The firewall mark that selects its packets; 0 = not a fwmark service."""

    @property
    def servers(self) -> Sequence[RealServer]:
        """Its real servers, newest first: the kernel's order."""

    @property
    def name(self) -> str:
        """`TCP address:port` or `FWM mark` for people."""


class Connection(Protocol):
    """What a plugin sees of a connection."""

    @property
    def flow(self) -> Flow:
        """Client and virtual address and port."""

    @property
    def server(self) -> RealServer:
        """The real server chosen for it."""

    @property
    def dport(self) -> int:
        """The real server's port for this connection."""

    @property
    def state_name(self) -> str:
        """The state as `lvsadm -Lc` prints it."""


class Scheduler(Protocol):
    """Chooses the real server of a new connection; one instance per virtual service."""

    def schedule(self, flow: Flow) -> RealServer | None:
        """Return a server with weight > 0 that is not overloaded, or None to refuse."""

    def server_added(self, server: RealServer) -> None:
        """Take note of a new server (already in the sequence)."""

    def server_removed(self, server: RealServer) -> None:
        """Take note of a removed server (already out of the sequence)."""

    def server_updated(self, server: RealServer) -> None:
        """Take note of an edited weight or threshold."""

    def close(self) -> None:
        """Let go of everything: the service is removed, or gets another scheduler."""


class SchedulerBase:
    """A scheduler with every optional method: subclass it and write `schedule`.

    Args:
        servers: the service's servers, newest first; a live read-only view.
        options: the record's options object, or None.

    Example:
        >>> class First(SchedulerBase):
        ...     def schedule(self, flow):
        ...         for server in self.servers:
        ...             if server.weight and not server.overloaded:
        ...                 return server
    """

    def __init__(self, servers: Sequence[RealServer], options: Any = None) -> None:
        self.servers = servers

    def server_added(self, server: RealServer) -> None:
        """Do nothing."""

    def server_removed(self, server: RealServer) -> None:
        """Do nothing."""

    def server_updated(self, server: RealServer) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Forwarder(Protocol):
    """Carries a connection's packets to its real server; one instance per real server."""

    def transmit(self, connection: Connection, packet: bytes) -> Verdict:
        """Return what to do with `packet`; called for every packet, so bind early."""

    def route_changed(self, route: Route) -> None:
        """Take note of a new route, or of new values in it; called before the first packet."""


class ConnectionObserver(Protocol):
    """Follows the connections of one service; define any of the three methods.

    They run while the packet waits: be quick, raise nothing.
    """

    def opened(self, connection: Connection) -> None:
        """The connection is in the table; its first packet is about to be forwarded."""

    def state_changed(self, connection: Connection, old: str, new: str) -> None:
        """The TCP state changed."""

    def closed(self, connection: Connection, reason: str) -> None:
        """The connection has left the table: "expired", "rescheduled" or "shed"."""


class Datapath(Protocol):
    """Carries packets between the network and the director."""

    def routes(self, address: bytes) -> Route | None:
        """Return the way to `address`, None where there is none."""

    async def run(self) -> None:
        """Carry packets until cancelled; undo every change made to the host on the way out."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a scheduler promises, for checks and for choosing among schedulers.

    Attributes:
        weighted: connections are shared in proportion to weights.
        total: it refuses only when no server is available.
        flow_consistent: the same flow gets the same server while the servers stay the same.
    """

    weighted: bool = False
    total: bool = True
    flow_consistent: bool = False


_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MAX_FLAGS = 3  # the kernel has three scheduler flag bits


@dataclass(frozen=True, kw_only=True)
class _Spec:
    """What every record has.

    Attributes:
        name: what people type to choose it; lower case.
        summary: one line for `lvskit plugins`.
        options: a frozen dataclass that the plugin owns, or None; an unknown key, a value of
            another type and a ValueError raised by it become clear errors of the command that
            gave them.
        api: version of these interfaces that it was written for.
    """

    name: str
    summary: str
    options: type[Any] | None = None
    api: int = API

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} does not match [a-z][a-z0-9_]*")
        options: object = self.options  # whatever it was declared, an untyped plugin may differ
        if not (options is None or (isinstance(options, type) and is_dataclass(options))):
            raise ValueError(f"options of {self.name!r}: {options!r} is no dataclass")

    @property
    def option_names(self) -> tuple[str, ...]:
        """The options that it takes, in their order."""
        return tuple(f.name for f in dataclasses.fields(self.options)) if self.options else ()


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec(_Spec):
    """A scheduler that users choose with ``-s NAME``.

    Attributes:
        factory: called with the service's servers and the options object for each service.
        flags: names of boolean options, at most three, that ``-b NAME-option`` (or flag-1,
            flag-2, flag-3) switches on, in the order of the kernel's scheduler flag bits.
        traits: what it promises.
    """

    factory: Callable[[Sequence[RealServer], Any], Scheduler]
    flags: tuple[str, ...] = ()
    traits: Traits = field(default_factory=Traits)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [flag for flag in self.flags if flag not in self.option_names]
        if unknown or len(self.flags) > _MAX_FLAGS:
            raise ValueError(
                f"flags of {self.name!r}: {self.flags}; allowed: at most {_MAX_FLAGS}, out of its "
                f"options ({', '.join(self.option_names) or 'none'})"
            )


@dataclass(frozen=True, kw_only=True)
class ForwarderSpec(_Spec):
    """A forwarding method: `tunnel`, `local`, `droute`, `masq` are ipvsadm's.

    Attributes:
        factory: called with the real server and the options object once per server.
        keeps_port: the packet's ports stay as they are, so a server takes its service's port.
    """

    factory: Callable[[RealServer, Any], Forwarder]
    keeps_port: bool = True


@dataclass(frozen=True, kw_only=True)
class DatapathSpec(_Spec):
    """A datapath that operators choose with ``lvskit run --datapath NAME``.

    Attributes:
        factory: called with the Director's `receive`-side (see `lvskit.control.daemon`) and the
            options object once, at start.
    """

    factory: Callable[[Any, Any], Datapath]


class Registry(Protocol):
    """Where the director finds plugins by name; `lvskit.load_plugins()` returns one."""

    def scheduler(self, name: str) -> SchedulerSpec:
        """Return the record; `UnknownPlugin`, naming what is installed, where there is none."""

    def forwarder(self, name: str) -> ForwarderSpec:
        """Return the record; `UnknownPlugin`, naming what is installed, where there is none."""

    def observers(self, service: VirtualService) -> Iterable[ConnectionObserver]:
        """Return those that want to follow the connections of `service`."""

    def notify(self, event: str, service: VirtualService, server: RealServer | None = None) -> None:
        """Tell every plugin of a ``service_added`` … ``server_removed`` event."""


def build_options(
    spec: SchedulerSpec | ForwarderSpec | DatapathSpec, given: Mapping[str, Any]
) -> Any:
    """Return the options object of `spec` made from `given`, or None where it takes none.

    Raises:
        ValueError: an unknown key, a value of another type than the plugin's dataclass says, or
            one that it refuses.
    """
    unknown = [key for key in given if key not in spec.option_names]
    if unknown:
        allowed = ", ".join(spec.option_names) or "none"
        raise ValueError(f"unknown option {unknown[0]!r}; options of {spec.name}: {allowed}")
    if spec.options is None:
        return None
    import msgspec  # 30 ms, which a program without options saves

    try:
        return msgspec.convert(dict(given), type=spec.options)
    except msgspec.ValidationError as err:
        # "Expected `int`, got `str` - at `$.seed`", or the words of the dataclass itself.
        what, _, where = str(err).replace("`", "").partition(" - at $.")
        raise ValueError(
            f"option {where!r}: {what[0].lower()}{what[1:]}" if where else what
        ) from err
