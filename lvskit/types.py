"""The values that cross every border of lvskit: flows, verdicts, routes, counters.

Units and shapes, everywhere in lvskit: an address is packed, 4 or 16 bytes in network order;
a port is an int in host order, 0 to 65535; a packet is one IPv4 or IPv6 datagram from its first
header byte; a time is monotonic seconds as a float. This module imports nothing of lvskit.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple

IP: Final = 0
"""Protocol of a persistence template of a fwmark service: it spans protocols."""
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
SCTP: Final = 132

PROTOCOL_NAMES: Final = {IP: "IP", TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}


class Flow(NamedTuple):
    """The identity of a connection as the director sees it: client and virtual address.

    Attributes:
        protocol: `TCP`, `UDP` or `SCTP`.
        caddr: client address, packed.
        cport: client port; 0 in the flow of a persistence template.
        vaddr: virtual address, packed: the destination of the client's packets.
        vport: virtual port.
    """

    protocol: int
    caddr: bytes
    cport: int
    vaddr: bytes
    vport: int

    @property
    def destination(self) -> bytes:
        """What the packet is addressed to for which a server is chosen: the virtual address."""
        return self.vaddr

    @property
    def key(self) -> bytes:
        """The addresses and ports as they lie in a packet: the key of the connection table.

        >>> Flow(TCP, bytes([10, 0, 0, 1]), 1024, bytes([10, 0, 0, 2]), 80).key.hex()
        '0a0000010a00000204000050'
        """
        ports = self.cport << 16 | self.vport
        return self.caddr + self.vaddr + ports.to_bytes(4, "big")


class RelatedFlow(Flow):
    """The flow of a connection that an ICMP error opens, which is about a packet to the client."""

    __slots__ = ()

    @property
    def destination(self) -> bytes:
        """What the packet was addressed to that the error is about: the client."""
        return self.caddr


@dataclass(slots=True)
class Route:
    """How the director's host reaches one address; supplied, and kept current, by the datapath.

    Attributes:
        source: the director's own address towards it, packed.
        mtu: path MTU in bytes.
        local: the address is the director's own, so its local sockets answer.
    """

    source: bytes
    mtu: int
    local: bool = False


@dataclass(slots=True)
class Counters:
    """What has passed: connections, packets and bytes of IP (before encapsulation)."""

    conns: int = 0
    inpkts: int = 0
    outpkts: int = 0
    inbytes: int = 0
    outbytes: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.conns + other.conns,
            self.inpkts + other.inpkts,
            self.outpkts + other.outpkts,
            self.inbytes + other.inbytes,
            self.outbytes + other.outbytes,
        )

    def __sub__(self, other: Counters) -> Counters:
        return Counters(
            self.conns - other.conns,
            self.inpkts - other.inpkts,
            self.outpkts - other.outpkts,
            self.inbytes - other.inbytes,
            self.outbytes - other.outbytes,
        )


@dataclass(slots=True)
class Rates:
    """Connections, packets and bytes per second."""

    cps: int = 0
    inpps: int = 0
    outpps: int = 0
    inbps: int = 0
    outbps: int = 0


class Reason(enum.Enum):
    """Why a packet was dropped or refused."""

    MALFORMED = "malformed"
    NO_SERVER = "no server available"
    SERVER_REMOVED = "the connection's server was removed"
    SERVER_UNREACHABLE = "no route to the server"
    TABLE_FULL = "connection table full"
    DEFENCE = "dropped by the defence drop_packet"
    TTL_EXCEEDED = "time to live exceeded"
    TOO_BIG = "larger than the tunnel's MTU"
    FRAGMENT = "a fragment"
    TUNNEL_ERROR = "an ICMP error about a tunnel, told to the client; the host may learn from it"
    PLUGIN_FAULT = "a plugin broke its contract"


class Reassembled(bytes):
    """A datagram that came in fragments, put together.

    Attributes:
        largest: of its fragments, bytes with their headers; the tunnel or path of an IPv6 datagram
            must have room for that, and not for the whole, which is split again as it came.
        pieces: of the payload behind the headers that every fragment repeats, bytes each.
    """

    largest: int
    pieces: tuple[int, ...]

    def __new__(cls, packet: bytes, largest: int, pieces: tuple[int, ...]) -> Reassembled:
        """Make one of `packet`, the whole datagram."""
        self = super().__new__(cls, packet)
        self.largest, self.pieces = largest, pieces
        return self


def must_fit(packet: bytes) -> int:
    """Return how many bytes a path must carry for `packet`, IPv6, not to be too big for it.

    Source: Linux net/netfilter/ipvs/ip_vs_xmit.c (__mtu_check_toobig_v6), by behaviour.
    """
    return packet.largest if isinstance(packet, Reassembled) else len(packet)


class Transmit(NamedTuple):
    """Send `packet`, a complete IP datagram, along `route` (fragmented if it may be and must).

    Attributes:
        via: packed address whose next hop carries the packet, whatever destination it names;
            empty = the packet's own destination.
    """

    packet: bytes
    route: Route
    via: bytes = b""


class Deliver(NamedTuple):
    """Hand the packet to the director's own local socket: as it came, or as `packet`."""

    packet: bytes = b""


class Drop(NamedTuple):
    """Forget the packet silently."""

    reason: Reason


class Reply(NamedTuple):
    """Answer the client with `packet`, a complete ICMP(v6) datagram; drop the original."""

    packet: bytes
    reason: Reason


class NotOurs(NamedTuple):
    """No virtual service has a claim: the packet is the host's, as if lvskit were not there."""


Verdict = Transmit | Deliver | Drop | Reply | NotOurs

DELIVER: Final = Deliver()
NOT_OURS: Final = NotOurs()
