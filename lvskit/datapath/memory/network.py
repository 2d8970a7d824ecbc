"""Hosts on one segment, and time that moves when told to.

A packet is handed from host to host as bytes, in the order of sending, when `Network.run` is
called; nothing is lost, and nothing takes time unless `Network.advance` says so.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable, Container, Iterable
from itertools import count

from lvskit.core.icmp import read_error
from lvskit.core.packet import Parsed, parse
from lvskit.datapath.extensions import behind_options
from lvskit.datapath.fragments import split
from lvskit.datapath.memory import stack
from lvskit.datapath.reassembly import Reassembler, bare
from lvskit.refusals import Refusal, answer_v4, refuse
from lvskit.types import ICMP, ICMPV6, TCP, UDP, Route

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
_IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
_LOOPBACK_MTU = {4: 65535, 16: 65536}
_LEAST_PATH_MTU = 552  # Linux net.ipv4.route.min_pmtu
_REASSEMBLY_TIME_EXCEEDED = (11, 1)
_IP_IN_IP = frozenset({4, 41})
_HANDLED = frozenset({ICMP, ICMPV6, TCP, UDP, 4, 41})  # protocols that are not refused


class Network:
    """A segment that hosts are attached to, and the clock they share.

    Attributes:
        now: monotonic seconds.
        stray: gets each packet whose next hop no host has, and the next hop.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.stray: Callable[[bytes, bytes], None] = lambda packet, next_hop: None
        self._neighbours: dict[bytes, Host] = {}
        self._wire: deque[tuple[bytes, bytes]] = deque()

    def attach(self, host: Host, addresses: Iterable[bytes]) -> None:
        """Let `host` answer on the segment for `addresses` (packed)."""
        for address in addresses:
            self._neighbours[address] = host

    def send(self, packet: bytes, next_hop: bytes) -> None:
        """Put `packet` on the wire towards the host that has `next_hop`."""
        self._wire.append((packet, next_hop))

    def run(self) -> None:
        """Carry packets until the wire is empty."""
        while self._wire:
            packet, next_hop = self._wire.popleft()
            host = self._neighbours.get(next_hop)
            if host is None:
                self.stray(packet, next_hop)
            else:
                host.input(packet)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class Host:
    """A host with an IP stack: it checks packets, answers pings, refuses closed ports.

    Args:
        network: the segment.
        addresses: of its interface, with prefix lengths; an address that shall not be answered
            for on the segment (a non-ARP VIP) goes into `quiet`.
        gateway: packed next hops for everything off the segment, by IP version.
        mtu: of its link, bytes.
        quiet: addresses that it has but does not answer for.

    Attributes:
        local: networks whose every address is the host's own.
        unreachable: networks to which there is no way.
        paths: path MTUs that differ from the link's, by destination.
        unpacks: IP in IP is unpacked, and the packet inside taken as if from the wire.
    """

    def __init__(
        self,
        network: Network,
        addresses: Iterable[str],
        *,
        gateway: dict[int, bytes] | None = None,
        mtu: int = 1500,
        quiet: Iterable[str] = (),
    ) -> None:
        self.network = network
        self.gateway = gateway or {}
        self.mtu = mtu
        interfaces: list[Interface] = [ipaddress.ip_interface(a) for a in addresses]
        self._onlink: list[_IPNetwork] = [i.network for i in interfaces]
        self.local: list[_IPNetwork] = [ipaddress.ip_network(i.ip) for i in interfaces]
        self.local += [ipaddress.ip_network(address) for address in quiet]
        self.unreachable: list[_IPNetwork] = []
        self.paths: dict[bytes, int] = {}
        self.unpacks = False
        self.reassembler = Reassembler()
        # Of IPv6 fragments; nobody else counts from there.
        self._identifications = count((1 << 16) + 1)
        self.addresses = [i.ip.packed for i in interfaces]
        network.attach(self, self.addresses)

    def owns(self, address: bytes) -> bool:
        """Whether `address` (packed) is this host's own."""
        value = ipaddress.ip_address(address)
        return value.is_loopback or any(value in net for net in self.local)

    def routes(self, address: bytes) -> Route | None:
        """Return the way to `address` (packed), None where there is none."""
        if self.owns(address):
            return Route(address, _LOOPBACK_MTU[len(address)], local=True)
        if self._next_hop(address) is None:
            return None
        same = [own for own in self.addresses if len(own) == len(address)]
        # As Linux chooses: for IPv4 the first address, for IPv6 the one added last.
        mtu = self.paths.get(address, self.mtu)
        return Route(same[0 if len(address) == 4 else -1], mtu)

    def _next_hop(self, address: bytes) -> bytes | None:
        value = ipaddress.ip_address(address)
        if any(value in net for net in self.unreachable):
            return None
        if any(value in net and net.prefixlen < net.max_prefixlen for net in self._onlink):
            return address
        return self.gateway.get(4 if len(address) == 4 else 6)

    # --- packets in ---

    def input(self, packet: bytes) -> None:
        """Take a packet from the wire."""
        if not stack.sane(packet):
            return
        parsed = parse(packet)
        if parsed is None:
            return
        packet = packet[: parsed.length]
        if packet[0] >> 4 == 6:
            packet = bare(packet)
        if not stack.plausible_source(parsed.src) or self.owns(parsed.src):
            return
        if stack.source_routed(packet):
            return
        if not self.owns(parsed.dst):
            self.forward(packet)
        elif not parsed.fragment:
            self.deliver(packet)
        else:
            whole = self.reassembler.add(packet, self.network.now)
            if whole is not None:
                self.deliver(whole)

    def deliver(self, packet: bytes) -> None:
        """Hand a whole packet that is addressed to this host to its own sockets."""
        self.answer(packet)

    def answer(self, packet: bytes) -> None:
        """Be the host's sockets: here all ports are closed, and pings are answered."""
        parsed = parse(packet)
        if parsed is None:
            return
        if self.unpacks and parsed.protocol in _IP_IN_IP:
            self.input(packet[parsed.offset :])
            return
        reply: bytes | None = None
        if parsed.protocol == TCP and stack.transport_intact(packet, parsed):
            reply = self.tcp(packet, parsed)
        elif parsed.protocol == UDP and stack.transport_intact(packet, parsed):
            reply = self.udp(packet, parsed)
        elif parsed.protocol in (ICMP, ICMPV6):
            reply = stack.echo_reply(packet, parsed)
        elif parsed.protocol not in _HANDLED:
            at = behind_options(packet)[0] if parsed.version == 6 else 0  # where that is named
            reply = refuse(packet, Refusal.PROTOCOL_UNREACHABLE, mtu=at).packet
        if reply is not None:
            self.send(reply)

    def tcp(self, packet: bytes, parsed: Parsed) -> bytes | None:
        """Answer a TCP segment: a closed port's reset."""
        return stack.reset(packet, parsed)

    def udp(self, packet: bytes, parsed: Parsed) -> bytes | None:
        """Answer a UDP datagram: a closed port's ICMP error."""
        return refuse(packet, Refusal.PORT_UNREACHABLE).packet

    def forward(self, packet: bytes) -> None:
        """Send a packet for somebody else on its way, if it may live on."""
        passed = stack.decremented(packet)
        if passed is not None:
            self.transmit(passed)

    def expire(self) -> None:
        """Give up datagrams whose fragments have not all come; tell those who sent the first."""
        for first in self.reassembler.expired(self.network.now):
            if first[0] >> 4 == 4 and self.owns(first[16:20]):
                self.send(answer_v4(first, _REASSEMBLY_TIME_EXCEEDED, 0))

    def learn(self, packet: bytes, about: Container[int] | None = None) -> bool:
        """Take over the path MTU that an ICMP error tells (RFC 1191); True where it is news.

        Args:
            packet: what may be an ICMP error.
            about: heed only those about packets of these protocols; None = of any.
        """
        parsed = parse(packet)
        error = None if parsed is None or parsed.protocol != ICMP else read_error(packet, parsed)
        if error is None or not error.intact or len(error.quote) < 20:
            return False
        if error.kind != Refusal.TOO_BIG.value[0]:
            return False
        if about is not None and error.quoted_protocol not in about:
            return False
        target, told = error.quote[16:20], max(error.rest & 0xFFFF, _LEAST_PATH_MTU)
        if not self.owns(error.quote[12:16]) or told >= self.paths.get(target, self.mtu):
            return False
        self.paths[target] = told
        return True

    # --- packets out ---

    def send(self, packet: bytes) -> None:
        """Send a packet of this host's own sockets."""
        self.transmit(packet)

    def transmit(self, packet: bytes, via: bytes = b"", came: bytes = b"") -> None:
        """Route a packet and put it on the wire, in fragments where it must and may be split.

        Args:
            packet: a whole datagram.
            via: packed address whose next hop carries it; empty = its destination.
            came: what it was before the director looked at it; see `split`.
        """
        version = packet[0] >> 4
        target = via or (packet[16:20] if version == 4 else packet[24:40])
        if self.owns(target):
            self.deliver(packet)
            return
        next_hop = self._next_hop(target)
        if next_hop is None:
            return
        mtu = self.paths.get(target, self.mtu)
        for part in split(packet, came, mtu, self._identifications):
            self.network.send(part, next_hop)
