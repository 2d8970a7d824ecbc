"""Generic UDP encapsulation: a UDP header and 4 bytes, whose source port tells flows apart.

Source: draft-ietf-intarea-gue (variant 0), by the behaviour of ip_vs_xmit.c (ipvs_gue_encap).
A remote checksum (``remcsum``) is the ordinary one unless the network card was to compute the
inner packet's, which it never is for packets that a director forwards.
"""

from __future__ import annotations

import zlib
from typing import ClassVar, Final

from lvskit import SCTP, TCP, UDP, Connection, RealServer, Route, Transmit, Verdict, checksum
from lvskit_fwd_tunnel.options import Options
from lvskit_fwd_tunnel.outer import Tunnel

_LOWEST_PORT: Final = 32768
_PORTS: Final = 60999 - _LOWEST_PORT  # Linux's local ports, but for the last one
_INNER: Final = {4: 4, 6: 41}
_WITH_PORTS: Final = frozenset({TCP, UDP, SCTP})


def source_port(packet: bytes) -> int:
    """Return the UDP source port for the flow that `packet` belongs to, 32768 to 60998.

    The kernel's hash has a random seed; this one is the same on every director.
    """
    if packet[0] == 0x45 and packet[9] in _WITH_PORTS:
        return _LOWEST_PORT + (zlib.crc32(packet[12:24]) * _PORTS >> 32)
    if packet[0] >> 4 == 4:
        at, protocol, flow = (packet[0] & 15) * 4, packet[9], packet[12:20]
    else:
        at, protocol, flow = 40, packet[6], packet[8:40]
    if protocol in _WITH_PORTS:
        flow += packet[at : at + 4]
    return _LOWEST_PORT + (zlib.crc32(flow) * _PORTS >> 32)


class Gue(Tunnel):
    """GUE to one port of the server."""

    protocols: ClassVar = {4: UDP, 6: UDP}
    overhead = 12

    def __init__(self, server: RealServer, options: Options) -> None:
        super().__init__(server)
        self._port = options.port.to_bytes(2, "big")
        self._summed = options.checksum != "nocsum"
        self._pseudo = b""

    def route_changed(self, route: Route) -> None:
        """Take over the source address and the MTU."""
        super().route_changed(route)
        # The lengths of both kinds of pseudo-header come to the same sum.
        self._pseudo = route.source + self._target + bytes((0, UDP))

    def transmit(self, connection: Connection, packet: bytes) -> Verdict:
        """Return the packet in its tunnel, or the ICMP error that it earns."""
        verdict = super().transmit(connection, packet)
        if type(verdict) is not Transmit:
            return verdict
        raw, at = verdict.packet, self._size
        port = source_port(packet).to_bytes(2, "big")
        if not self._summed:
            return Transmit(b"%b%b%b" % (raw[:at], port, raw[at + 2 :]), self._route)
        rest = raw[at + 2 :]
        # RFC 768: the length counts twice, and a sum of 0 is sent as 0xffff.
        total = checksum(self._pseudo + rest[2:4] + port + rest) or 0xFFFF
        return Transmit(
            b"%b%b%b%b%b" % (raw[:at], port, rest[:4], total.to_bytes(2, "big"), rest[6:]),
            self._route,
        )

    def _between(self, version: int, length: int) -> bytes:
        udp = bytes(2) + self._port + length.to_bytes(2, "big") + bytes(2)
        return udp + bytes((0, _INNER[version], 0, 0))

    def _inside(self, payload: bytes) -> bytes:
        # Version 0, a data packet, IPv4 within: ip_vs_core.c, ipvs_udp_decap.
        if payload[2:4] != self._port or len(payload) < self.overhead:
            return b""
        if payload[8] & 0xE0 or payload[9] != _INNER[4]:
            return b""
        return payload[self.overhead + (payload[8] & 0x1F) * 4 :]
