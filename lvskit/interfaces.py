"""What a plugin implements, and what it sees of the director.

A plugin implements `Scheduler` or `Forwarder` (`SchedulerBase` supplies the optional methods) and
registers it with a record of `lvskit.records`. The model is the kernel's
``struct ip_vs_scheduler``: a name, one function that must be there, a few that may be; state
lives per virtual service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from lvskit.types import Counters, Flow, Route, Verdict


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
    def last_weight(self) -> int:
        """Its weight before it was quiesced; the weight where it is not."""

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
    def pmtu_disc(self) -> bool:
        """Clients are told the MTU of the way there; False: what is too large is fragmented.

        The service's setting of that name; a forwarder hears of a change by `route_changed`.
        """

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A scheduler as a table of places, where a datapath finds servers without asking it.

    Attributes:
        servers: by place, `LONGEST` at most; None = `schedule` is asked.
        by: how the place of a new connection is found: `turn`, the next one each time, beginning
            with the first; `sh` or `mh`, by the hash of its client that the scheduler of this name
            has in the kernel, of 256 places or as many as there are.
        port: the client's port counts for the hash.

    Raises:
        ValueError: no places, too many, or another number than the hash needs.
    """

    LONGEST: ClassVar[int] = 8192

    servers: Sequence[RealServer | None]
    by: Literal["turn", "sh", "mh"] = "turn"
    port: bool = False

    def __post_init__(self) -> None:
        if self.by not in ("turn", "sh", "mh"):
            raise ValueError(f"a ring by {self.by!r}; allowed: turn, sh, mh")
        count = len(self.servers)
        if self.by == "sh" and count != 256:
            raise ValueError(f"a ring by sh of {count} places; allowed: 256")
        if not 1 <= count <= self.LONGEST:
            raise ValueError(f"a ring of {count} places; allowed: 1 to {self.LONGEST}")
        if self.port and self.by == "turn":
            raise ValueError("a ring by turn, for which the client's port cannot count")


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

    def load_changed(self, server: RealServer) -> None:
        """Take note that the connections that a server has, or its overload, have changed.

        Called for each such change of a server in the sequence, a new connection being one, in the
        state that its first packet leads to. A scheduler that keeps the least loaded in order needs
        it; others do not pay for it.
        """

    def tick(self, now: float) -> None:
        """Take note of the time, monotonic seconds: before each choice, and every two seconds."""

    def ring(self, service: VirtualService) -> Ring | None:
        """Return the table that `schedule` chooses by from now on, None where there is none.

        A datapath that can look it up by itself asks for it after each change of `service` or its
        servers; until the next change it must hold whatever the load and the time. Of a ring by
        `turn`, `schedule` is called for each connection all the same, once it has been placed, so
        that the next ring begins where this one was left; a call that returns None takes no turn.
        """

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

    def load_changed(self, server: RealServer) -> None:
        """Do nothing."""

    def tick(self, now: float) -> None:
        """Do nothing."""

    def ring(self, service: VirtualService) -> Ring | None:
        """Return None: every new connection is `schedule`'s."""
        return None

    def close(self) -> None:
        """Do nothing."""


class Forwarder(Protocol):
    """Carries a connection's packets to its real server; one instance per real server."""

    def transmit(self, connection: Connection, packet: bytes) -> Verdict:
        """Return what to do with `packet`; called for every packet, so bind early."""

    def route_changed(self, route: Route) -> None:
        """Take note of a new route, or of new values in it; called before the first packet."""


class TwoWayForwarder(Forwarder, Protocol):
    """A forwarder whose server answers through the director, which undoes what it did."""

    def reply(self, connection: Connection, packet: bytes) -> Verdict:
        """Return what to do with a packet from the server to the client."""


class TunnelForwarder(Forwarder, Protocol):
    """A forwarder that wraps packets, about which routers on the way may send errors."""

    def unwrap(self, quote: bytes) -> bytes | None:
        """Return what one of its wrapped packets carries; None where `quote` is none of them.

        Args:
            quote: the beginning of an IP datagram, as an ICMP error quotes it.
        """


class ConnectionObserver(Protocol):
    """Follows the connections of one service; define any of the three methods.

    They run while the packet waits: be quick, raise nothing.
    """

    def opened(self, connection: Connection) -> None:
        """The connection is in the table, in the state that its first packet has led to."""

    def state_changed(self, connection: Connection, old: str, new: str) -> None:
        """A later packet has changed the state."""

    def closed(self, connection: Connection, reason: str) -> None:
        """The connection has left the table.

        `reason` is "expired", "rescheduled", "shed", "dropped" or "server removed".
        """


class Decapsulator(Protocol):
    """Takes packets out of tunnels on one interface of a real server.

    It works on when the process that started it has ended; each command makes an object of its own.
    """

    @property
    def running(self) -> bool:
        """It is at work."""

    def serve(
        self, own: Sequence[bytes], vips: Sequence[bytes], directors: Sequence[bytes]
    ) -> None:
        """Take packets for these VIPs out of the tunnel, and no others, from now on.

        Args:
            own: the host's addresses, at which tunnels end, packed.
            vips: the addresses that packets inside are for, packed.
            directors: whose packets are taken, packed; empty: anybody's.

        Raises:
            DatapathError: it cannot; if it was not running, nothing has changed.
        """

    def stop(self) -> None:
        """End it, and remove what there is of it, even if it is not running any more."""


class Datapath(Protocol):
    """Carries packets between the network and the director."""

    def routes(self, address: bytes) -> Route | None:
        """Return the way to `address`, None where there is none."""

    async def run(self) -> None:
        """Carry packets until cancelled; undo every change made to the host on the way out."""
