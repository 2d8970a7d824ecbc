"""Hosts on one segment, and time that moves when told to.

A packet is handed from host to host as bytes, in the order of sending, when `Network.run` is
called; nothing is lost, and nothing takes time unless `Network.advance` says so.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Iterable

from lvskit.core.icmp import Refusal, refuse
from lvskit.core.packet import Parsed, checksum, parse
from lvskit.datapath.fragments import fragment
from lvskit.datapath.memory import stack
from lvskit.types import ICMP, ICMPV6, TCP, UDP, Route

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
_IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
_DF = 0x40
_HANDLED = frozenset({ICMP, ICMPV6, TCP, UDP, 4, 41})  # protocols that are not refused


class Network:
    """A segment that hosts are attached to, and the clock they share.

    Attributes:
        now: monotonic seconds.
        default: gets the packets whose next hop no host has.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.default: Host | None = None
        self._neighbours: dict[bytes, Host] = {}
        self._wire: deque[tuple[Host, bytes]] = deque()

    def attach(self, host: Host, addresses: Iterable[bytes]) -> None:
        """Let `host` answer on the segment for `addresses` (packed)."""
        for address in addresses:
            self._neighbours[address] = host

    def send(self, packet: bytes, next_hop: bytes) -> None:
        """Put `packet` on the wire towards the host that has `next_hop`."""
        host = self._neighbours.get(next_hop, self.default)
        if host is not None:
            self._wire.append((host, packet))

    def run(self) -> None:
        """Carry packets until the wire is empty."""
        while self._wire:
            host, packet = self._wire.popleft()
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
        self.addresses = [i.ip.packed for i in interfaces]
        network.attach(self, self.addresses)

    def owns(self, address: bytes) -> bool:
        """Whether `address` (packed) is this host's own."""
        value = ipaddress.ip_address(address)
        return value.is_loopback or any(value in net for net in self.local)

    def routes(self, address: bytes) -> Route | None:
        """Return the way to `address` (packed), None where there is none."""
        if self.owns(address):
            return Route(address, self.mtu, local=True)
        if self._next_hop(address) is None:
            return None
        same = [own for own in self.addresses if len(own) == len(address)]
        # As Linux chooses: for IPv4 the first address, for IPv6 the one added last.
        return Route(same[0 if len(address) == 4 else -1], self.mtu)

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
        if not stack.plausible_source(parsed.src) or self.owns(parsed.src):
            return
        if stack.source_routed(packet):
            return
        if self.owns(parsed.dst):
            self.deliver(packet)
        else:
            self._forward(packet)

    def deliver(self, packet: bytes) -> None:
        """Hand a packet that is addressed to this host to its own sockets."""
        self.answer(packet)

    def answer(self, packet: bytes) -> None:
        """Be the host's sockets: here all ports are closed, and pings are answered."""
        parsed = parse(packet)
        if parsed is None or parsed.fragment:
            return
        reply: bytes | None = None
        if parsed.protocol == TCP and stack.transport_intact(packet, parsed):
            reply = self.tcp(packet, parsed)
        elif parsed.protocol == UDP and stack.transport_intact(packet, parsed):
            reply = self.udp(packet, parsed)
        elif parsed.protocol in (ICMP, ICMPV6):
            reply = stack.echo_reply(packet, parsed)
        elif parsed.protocol not in _HANDLED:
            reply = refuse(packet, Refusal.PROTOCOL_UNREACHABLE).packet
        if reply is not None:
            self.send(reply)

    def tcp(self, packet: bytes, parsed: Parsed) -> bytes | None:
        """Answer a TCP segment: a closed port's reset."""
        return stack.reset(packet, parsed)

    def udp(self, packet: bytes, parsed: Parsed) -> bytes | None:
        """Answer a UDP datagram: a closed port's ICMP error."""
        return refuse(packet, Refusal.PORT_UNREACHABLE).packet

    def _forward(self, packet: bytes) -> None:
        if packet[0] >> 4 != 4 or packet[8] <= 1:
            return
        head = bytearray(packet)
        head[8] -= 1
        head[10:12] = b"\0\0"
        head[10:12] = checksum(bytes(head[: (head[0] & 15) * 4])).to_bytes(2, "big")
        self.send(bytes(head))

    # --- packets out ---

    def send(self, packet: bytes) -> None:
        """Route a packet and put it on the wire, in fragments where it must and may be split."""
        version = packet[0] >> 4
        target = packet[16:20] if version == 4 else packet[24:40]
        if self.owns(target):
            self.deliver(packet)
            return
        next_hop = self._next_hop(target)
        if next_hop is None:
            return
        if len(packet) > self.mtu and (version == 6 or packet[6] & _DF):
            return
        for part in fragment(packet, self.mtu):
            self.network.send(part, next_hop)
