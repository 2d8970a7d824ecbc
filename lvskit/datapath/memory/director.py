"""A simulated host that is a director: what is addressed to it passes the Director first."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from lvskit.core.director import Director
from lvskit.core.packet import Parsed, parse
from lvskit.datapath.memory import stack
from lvskit.datapath.memory.network import Host, Network
from lvskit.datapath.memory.server import Services
from lvskit.types import Deliver, NotOurs, Reason, Reply, Transmit

IPIP, GRE = 4, 47
_TUNNEL_ERROR = Reason.TUNNEL_ERROR


@dataclass(frozen=True)
class Mark:
    """A firewall rule that marks arriving packets, as iptables' mangle PREROUTING does.

    Attributes:
        network: destinations, as text.
        mark: what they get.
        protocol: only this IP protocol; 0 = any.
        ports: only these destination ports; empty = any.
    """

    network: str
    mark: int
    protocol: int = 0
    ports: frozenset[int] = field(default_factory=frozenset)

    def matches(self, address: bytes, protocol: int, port: int) -> bool:
        """Whether a packet to this packed address, with this protocol and port, gets the mark."""
        if ipaddress.ip_address(address) not in ipaddress.ip_network(self.network):
            return False
        return protocol == (self.protocol or protocol) and (not self.ports or port in self.ports)


class DirectorHost(Host):
    """A host whose packets a Director looks at before its own sockets do.

    Attributes:
        director: set it before packets come: it needs this host's `routes` to be made.
        marks: firewall rules that mark arriving packets; the last that matches counts.
        services: TCP services of its own sockets, or None: all ports are closed.
    """

    director: Director

    def __init__(
        self,
        network: Network,
        addresses: Iterable[str],
        *,
        gateway: dict[int, bytes] | None = None,
        mtu: int = 1500,
        marks: Iterable[Mark] = (),
        services: Services | None = None,
    ) -> None:
        super().__init__(network, addresses, gateway=gateway, mtu=mtu)
        self.marks = list(marks)
        self.services = services

    def deliver(self, packet: bytes) -> None:
        """Ask the Director what to do with a packet that is addressed to this host."""
        verdict = self.director.receive(packet, self.network.now, self._mark(packet))
        if isinstance(verdict, Transmit):
            self.transmit(verdict.packet, verdict.via, packet)
        elif isinstance(verdict, Reply):
            self.transmit(verdict.packet)
        elif isinstance(verdict, Deliver | NotOurs):
            self.answer(getattr(verdict, "packet", b"") or packet)
        # Linux net/ipv4/ip_gre.c (gre_err) heeds an error about GRE at all times, ipip.c where the
        # host unpacks IP in IP.
        if getattr(verdict, "reason", 0) is _TUNNEL_ERROR:
            learnt = self.learn(packet)
        else:
            tunnels = (GRE, IPIP) if self.unpacks else (GRE,)
            learnt = isinstance(verdict, NotOurs) and self.learn(packet, tunnels)
        if learnt:
            self.director.routes_changed()

    def forward(self, packet: bytes) -> None:
        """Send a packet for somebody else on its way; it may be a server's answer to a client."""
        parsed = parse(packet)
        if parsed is not None and parsed.fragment and self.director.services.by_key:
            whole = self.reassembler.add(packet, self.network.now)
            if whole is None:
                return
            packet = whole
        passed = stack.decremented(packet)
        if passed is not None:
            self._answer(passed, packet)

    def send(self, packet: bytes) -> None:
        """Send a packet of this host's own sockets, which the Director gets to know."""
        self._answer(packet)

    def _answer(self, packet: bytes, came: bytes = b"") -> None:
        verdict = self.director.replied(packet, self.network.now)
        if isinstance(verdict, Transmit):
            self.transmit(verdict.packet, verdict.via, came)
        elif isinstance(verdict, NotOurs):
            self.transmit(packet, came=came)

    def tcp(self, packet: bytes, parsed: Parsed) -> bytes | None:
        """Answer as the host's own services say."""
        if self.services is None:
            return super().tcp(packet, parsed)
        return self.services.answer(packet, parsed)

    def _mark(self, packet: bytes) -> int:
        parsed = parse(packet)
        if parsed is None:
            return 0
        marks = [
            rule.mark
            for rule in self.marks
            if rule.matches(parsed.dst, parsed.protocol, parsed.dport)
        ]
        return marks[-1] if marks else 0
