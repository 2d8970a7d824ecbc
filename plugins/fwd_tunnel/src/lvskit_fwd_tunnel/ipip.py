"""IP in IP, exactly as the kernel builds it: IPv4 or IPv6 inside, IPv4 or IPv6 outside.

Sources: RFC 2003, RFC 2473, RFC 6040 by the behaviour of Linux net/netfilter/ipvs/ip_vs_xmit.c
(ip_vs_tunnel_xmit): the inner TTL is decremented and copied outside; DSCP and ECN are copied,
except that CE becomes ECT(0); an IPv4 DF is copied, and the identification is 0 with DF, else
counted.
"""

from __future__ import annotations

from typing import Any, Final

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
    refuse,
)

_HEADER_V4: Final = 20
_HEADER_V6: Final = 40
_LARGEST: Final = 65535
_DF: Final = 0x40
_CE: Final = 3
_ECT0: Final = 2
_CACHED: Final = 4096


def outer_tos(inner: int) -> int:
    """Return the outer TOS or traffic class: the inner one, but CE is not copied.

    >>> hex(outer_tos(0xBB)), hex(outer_tos(0xB8))
    ('0xba', '0xb8')
    """
    return inner & 0xFC | _ECT0 if inner & 3 == _CE else inner


class Tunnel:
    """Wraps packets for one real server.

    An outer header depends on the server and on the inner TOS, length, DF and TTL alone, so each
    is built once and kept, up to a bound.
    """

    def __init__(self, server: RealServer, options: Any = None) -> None:
        self._target = server.address
        self._identification = 0
        self._headers: dict[bytes, bytes] = {}
        self._route: Route
        self._mtu = 0

    def route_changed(self, route: Route) -> None:
        """Take over the source address and the MTU."""
        self._route = route
        self._mtu = route.mtu - (_HEADER_V4 if len(self._target) == 4 else _HEADER_V6)
        self._headers.clear()

    def transmit(self, connection: Connection, packet: bytes) -> Verdict:
        """Return the packet in its tunnel, or the ICMP error that it earns."""
        if packet[0] >> 4 != 4:
            return self._transmit_v6(packet)
        ttl = packet[8]
        if ttl <= 1:
            return refuse(packet, Refusal.TIME_EXCEEDED)
        # Decrementing the TTL adds 0x0100 to the checksum (RFC 1624), with end-around carry.
        total = (packet[10] << 8 | packet[11]) + 0x100
        if total >= 0xFFFF:
            total -= 0xFFFF
        inner = b"%b%c%c%c%c%b" % (
            packet[:8], ttl - 1, packet[9], total >> 8, total & 0xFF, packet[12:]
        )  # fmt: skip
        if len(packet) > self._mtu:
            if packet[6] & _DF:
                return refuse(inner, Refusal.TOO_BIG, mtu=self._mtu)
            if len(packet) + _HEADER_V4 > _LARGEST and len(self._target) == 4:
                return Drop(Reason.TOO_BIG)  # no header can say how long it is
        # Bytes 1 to 4 are TOS and length; 6 to 7 hold DF.
        known = packet[1:4] + packet[6:9]
        header = self._headers.get(known)
        if header is None:
            header = self._header(packet[1], len(inner), packet[6] & _DF, ttl - 1, 4, known)
        return Transmit(header + inner, self._route)

    def _transmit_v6(self, packet: bytes) -> Verdict:
        hops = packet[7]
        if hops <= 1:
            return refuse(packet, Refusal.TIME_EXCEEDED)
        inner = packet[:7] + bytes((hops - 1,)) + packet[8:]
        if len(packet) > self._mtu:
            return refuse(inner, Refusal.TOO_BIG, mtu=self._mtu)
        traffic_class = (packet[0] << 4 | packet[1] >> 4) & 0xFF
        header = self._header(traffic_class, len(inner), 0, hops - 1, 41, b"")
        return Transmit(header + inner, self._route)

    def _header(
        self, tos: int, length: int, df: int, ttl: int, protocol: int, known: bytes
    ) -> bytes:
        """Return an outer header, and keep it under `known` where it can serve again."""
        tos = outer_tos(tos)
        if len(self._target) == 16:
            word = 6 << 28 | tos << 20
            header = b"%b%b%c%c%b%b" % (
                word.to_bytes(4, "big"), length.to_bytes(2, "big"), protocol, ttl,
                self._route.source, self._target,
            )  # fmt: skip
            return self._keep(known, header)
        if not df:
            self._identification = self._identification + 1 & 0xFFFF
        header = b"%c%c%b%b%c%c%c%c%b%b%b" % (
            0x45, tos, (length + _HEADER_V4).to_bytes(2, "big"),
            (0 if df else self._identification).to_bytes(2, "big"), df, 0, ttl, protocol, b"\0\0",
            self._route.source, self._target,
        )  # fmt: skip
        header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
        return self._keep(known, header) if df else header

    def _keep(self, known: bytes, header: bytes) -> bytes:
        if known:
            if len(self._headers) >= _CACHED:
                self._headers.clear()
            self._headers[known] = header
        return header
