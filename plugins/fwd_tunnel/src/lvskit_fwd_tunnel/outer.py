"""What all tunnels have in common: the outer header, and who may not pass.

Sources: RFC 2003, RFC 2473, RFC 6040 by the behaviour of Linux net/netfilter/ipvs/ip_vs_xmit.c
(ip_vs_tunnel_xmit): the inner TTL is decremented and copied outside; DSCP and ECN are copied,
except that CE becomes ECT(0); an IPv4 DF is copied where the service discovers path MTUs; the
identification is 0 with DF, else counted.
"""

from __future__ import annotations

from struct import Struct
from typing import ClassVar, Final

from lvskit import (
    Connection,
    Drop,
    RealServer,
    Reason,
    Refusal,
    Route,
    Transmit,
    Verdict,
    checksum,
    must_fit,
    refuse,
)

_LARGEST: Final = 65535
_DF: Final = 0x40
_LATER: Final = 0x1F  # a fragment's offset, as far as byte 6 has it
_ICMP: Final = 1
_CE: Final = 3
_ECT0: Final = 2
_CACHED: Final = 4096
_make: Final = tuple.__new__  # makes a named tuple in a third of the time
_FRONT: Final = Struct("!8sHH")  # of an IPv4 header: TTL and protocol in one, and the checksum
_UNPACK: Final = _FRONT.unpack_from
_PACK: Final = _FRONT.pack
_TOO_BIG: Final = Drop(Reason.TOO_BIG)


def outer_tos(inner: int) -> int:
    """Return the outer TOS or traffic class: the inner one, but CE is not copied.

    >>> hex(outer_tos(0xBB)), hex(outer_tos(0xB8))
    ('0xba', '0xb8')
    """
    return inner & 0xFC | _ECT0 if inner & 3 == _CE else inner


class Tunnel:
    """Wraps packets for one real server; each kind says what stands between the two headers.

    What precedes the inner packet depends on the server and on the inner TOS, length, DF and TTL
    alone, so it is built once for each of these and kept, up to a bound. What depends on more, a
    kind fills in afterwards.

    Attributes:
        protocols: number of the outer header's payload, by IP version of the inner packet.
        overhead: bytes between the outer header and the inner packet.
    """

    protocols: ClassVar[dict[int, int]]
    overhead = 0

    def __init__(self, server: RealServer) -> None:
        self._server = server
        self._target = server.address
        self._size = 20 if len(self._target) == 4 else 40  # of the outer header
        # ip_vs_xmit.c, __ip_vs_get_out_rt: below this no packet is sent, whatever its size.
        self._floor = 68 if len(self._target) == 4 else 1280
        self._identification = 0
        self._known: dict[bytes, bytes] = {}
        self._route: Route
        self._mtu = -1
        self._copied = _DF

    def route_changed(self, route: Route) -> None:
        """Take over the source address, the MTU, and whether clients are told of it."""
        self._route = route
        mtu = route.mtu - self._size - self.overhead
        self._mtu = mtu if mtu >= self._floor else -1
        self._copied = _DF if self._server.pmtu_disc else 0
        self._known.clear()

    # --- packets to the server ---

    def transmit(self, connection: Connection, packet: bytes) -> Verdict:
        """Return the packet in its tunnel, or the ICMP error that it earns."""
        if packet[0] >> 4 != 4:
            return self._transmit_v6(packet)
        front, life, total = _UNPACK(packet)
        if life < 0x200:
            return refuse(packet, Refusal.TIME_EXCEEDED)
        # Decrementing the TTL adds 0x0100 to the checksum (RFC 1624), with end-around carry.
        total += 0x100
        if total >= 0xFFFF:
            total -= 0xFFFF
        inner = _PACK(front, life - 0x100, total) + packet[12:]
        if len(packet) > self._mtu:
            return self._too_large(packet, inner)
        # Bytes 1 to 4 are TOS and length; 6 to 7 hold DF.
        known = packet[1:4] + packet[6:9]
        head = self._known.get(known)
        if head is None:
            df = packet[6] & self._copied
            ttl = packet[8] - 1
            head = self._head(4, packet[1], len(inner), ttl, known, df, number=not df)
        return _make(Transmit, (head + inner, self._route, b""))

    def _too_large(self, packet: bytes, inner: bytes) -> Verdict:
        """Return what becomes of an IPv4 packet that the tunnel's MTU has no room for."""
        df = packet[6] & self._copied
        if df and packet[9] != _ICMP and self._mtu >= 0:
            return refuse(inner, Refusal.TOO_BIG, mtu=self._mtu)
        if self._mtu < 0 or not self._expressible(packet):
            return _TOO_BIG
        # Nobody may be told about an ICMP error, so the kernel splits it in spite of its DF.
        head = self._head(4, packet[1], len(inner), packet[8] - 1, b"", 0, number=not df)
        return Transmit(head + inner, self._route)

    def _expressible(self, packet: bytes) -> bool:
        """Whether an outer header can say how long it is with `packet` in it."""
        length = len(packet) + self.overhead
        return length <= _LARGEST - (20 if len(self._target) == 4 else 0)

    def _transmit_v6(self, packet: bytes) -> Verdict:
        hops = packet[7]
        if hops <= 1:
            return refuse(packet, Refusal.TIME_EXCEEDED)
        inner = b"%b%c%b" % (packet[:7], hops - 1, packet[8:])
        if must_fit(packet) > self._mtu:
            # In IPv6 only the sender splits packets, whatever the service says of path MTUs.
            return refuse(inner, Refusal.TOO_BIG, mtu=self._mtu) if self._mtu >= 0 else _TOO_BIG
        if len(packet) > self._mtu and not self._expressible(packet):
            return _TOO_BIG
        # Bytes 0 and 1 hold the traffic class; 4 and 5 the length.
        known = packet[:2] + packet[4:6] + packet[7:8]
        head = self._known.get(known)
        if head is None:
            traffic_class = (packet[0] << 4 | packet[1] >> 4) & 0xFF
            head = self._head(6, traffic_class, len(inner), hops - 1, known, 0, number=True)
        return Transmit(head + inner, self._route)

    def _head(
        self, version: int, tos: int, length: int, ttl: int, known: bytes, df: int, *, number: bool
    ) -> bytes:
        """Return what precedes an inner packet; keep it under `known` if it can serve again.

        Args:
            version: of the inner packet; so are `tos`, `length` and `ttl`.
            known: what it depends on; empty = do not keep it.
            df: the outer DF bit.
            number: the outer identification is counted, and not 0.
        """
        tos, length = outer_tos(tos), length + self.overhead
        if len(self._target) == 16:
            head = b"%b%b%c%c%b%b" % (
                (6 << 28 | tos << 20).to_bytes(4, "big"), length.to_bytes(2, "big"),
                self.protocols[version], ttl, self._route.source, self._target,
            )  # fmt: skip
        else:
            identification = 0
            if number:
                identification = self._identification = self._identification + 1 & 0xFFFF
                known = b""
            head = b"%c%c%b%b%c%c%c%c%b%b%b" % (
                0x45, tos, (length + 20).to_bytes(2, "big"), identification.to_bytes(2, "big"),
                df, 0, ttl, self.protocols[version], b"\0\0", self._route.source, self._target,
            )  # fmt: skip
            head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
        head += self._between(version, length)
        if known:
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[known] = head
        return head

    def _between(self, version: int, length: int) -> bytes:
        """Return what stands between the headers, `overhead` bytes.

        Args:
            version: of the inner packet.
            length: of it and of what stands before it.
        """
        return b""

    # --- errors about those packets ---

    def unwrap(self, quote: bytes) -> bytes | None:
        """Return what one of this server's tunnel packets carries; None for any other packet.

        As in the kernel (ip_vs_core.c, ip_vs_in_icmp), only IPv4 within IPv4 is known again.

        Args:
            quote: the beginning of an IPv4 or IPv6 datagram, as an ICMP error quotes it.
        """
        if len(quote) < 20 or quote[0] >> 4 != 4 or quote[16:20] != self._target:
            return None
        size = (quote[0] & 15) * 4
        later = quote[6] & _LATER or quote[7]
        if size < 20 or later or quote[9] != self.protocols[4]:
            return None
        return self._inside(quote[size:]) or None

    def _inside(self, payload: bytes) -> bytes:
        """Return the inner packet of an outer one's payload; empty where there is none."""
        return payload
