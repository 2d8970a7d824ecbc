"""What a forwarding method's tests need of others: a server, a connection, a scheduler.

The servers and connections are what a plugin sees (`lvskit.RealServer`, `lvskit.Connection`), and
everything in them can be set; no director is needed. For tests through one, `FirstServer` is a
plugin with a scheduler, so that none need be installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lvskit import Counters, Flow, RealServer, Route, SchedulerBase, SchedulerSpec, hookimpl


@dataclass
class StandInServer:
    """A real server; see `lvskit.RealServer`."""

    address: bytes
    port: int = 80
    weight: int = 1
    activeconns: int = 0
    inactconns: int = 0
    overloaded: bool = False
    available: bool = True
    route: Route | None = None
    pmtu_disc: bool = True
    counters: Counters = field(default_factory=Counters)

    @property
    def last_weight(self) -> int:
        """Its weight: it was never quiesced."""
        return self.weight

    @property
    def name(self) -> str:
        """Its address in hexadecimal digits, and its port."""
        return f"{self.address.hex()}:{self.port}"


@dataclass
class StandInConnection:
    """A connection of a client with a virtual service; see `lvskit.Connection`."""

    flow: Flow
    server: StandInServer
    dport: int = 80
    state_name: str = "ESTABLISHED"


class _First(SchedulerBase):
    def schedule(self, flow: Flow) -> RealServer | None:
        return self.servers[0] if self.servers else None


class FirstServer:
    """A plugin with the scheduler `first`: always the server that was added last.

    Example:
        >>> from lvskit import load_plugins
        >>> from lvskit.plugins import Source
        >>> plugins = load_plugins()
        >>> plugins.add(FirstServer(), Source("first", "a test", "1"))
        >>> plugins.scheduler("first").summary
        'the first of its servers'
    """

    @hookimpl
    def lvskit_register_schedulers(self) -> Iterable[SchedulerSpec]:
        """Register the scheduler."""
        summary = "the first of its servers"
        return [SchedulerSpec(name="first", factory=_First, summary=summary)]
