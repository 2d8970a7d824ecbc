"""Carries a connection's packets to its real server, and the server's answers to the client.

Source: Linux net/netfilter/ipvs/ip_vs_xmit.c (ip_vs_nat_xmit, ip_vs_icmp_xmit) and ip_vs_core.c
(handle_response, handle_response_icmp), by behaviour.
"""

from __future__ import annotations

from typing import Any, Final

from lvskit import (
    Connection,
    Deliver,
    Drop,
    RealServer,
    Reason,
    Refusal,
    Reply,
    Route,
    Transmit,
    Verdict,
    must_fit,
    refuse,
)
from lvskit_fwd_masq.errors import ICMP, ICMPV6, translate_error
from lvskit_fwd_masq.headers import DF, LEAST, one_hop_less, translate, transport
from lvskit_fwd_masq.quick import to_client, to_server

_SOURCE: Final = {4: 12, 6: 8}
_TARGET: Final = {4: 16, 6: 24}
_ERRORS: Final = frozenset({ICMP, ICMPV6})
_UNLIMITED: Final = 1 << 20
_MALFORMED: Final = Drop(Reason.MALFORMED)
_LOST: Final = Drop(Reason.SERVER_UNREACHABLE)


class Masq:
    """Translates addresses and ports for one real server.

    A server that is the director itself gets its packets on the local socket that the rewritten
    ones name.
    """

    def __init__(self, server: RealServer, options: Any = None) -> None:
        self._address = server.address
        self._number = int.from_bytes(server.address, "big")
        self._version = 4 if len(server.address) == 4 else 6
        self._loopback = server.address[:1] == b"\x7f" or server.address == bytes(15) + b"\x01"
        self._route: Route
        self._mtu = 0
        self._hops = 1  # that a packet loses on the way
        self._lost = False

    def route_changed(self, route: Route) -> None:
        """Take over the MTU, and whether the server is this host itself."""
        self._route = route
        self._hops = 0 if route.local else 1
        self._mtu = _UNLIMITED if route.local else route.mtu
        # ip_vs_nat_xmit: what came from the network never gets to a loopback address.
        self._lost = route.local and self._loopback

    def transmit(self, connection: Connection, packet: bytes) -> Verdict:
        """Return the packet as the server gets it, or the ICMP error that it earns.

        Args:
            connection: whose packet it is, or, for an ICMP error, whose answer the error quotes.
            packet: one IPv4 or IPv6 datagram.
        """
        if self._lost:
            return _LOST
        if len(packet) <= self._mtu:
            quick = to_server(packet, self._number, connection.dport, self._hops)
            if quick is not None:
                return Transmit(quick, self._route) if self._hops else Deliver(quick)
        protocol, at = transport(packet)
        if self._hops:
            if packet[8 if self._version == 4 else 7] <= 1:
                return refuse(packet, Refusal.TIME_EXCEEDED)
            if (must_fit(packet) if self._version == 6 else len(packet)) > self._mtu:
                if protocol == ICMP:
                    # Nobody may be told about it, so the kernel splits it in spite of its DF.
                    packet = b"%b%c%b" % (packet[:6], packet[6] & ~DF, packet[7:])
                elif self._version == 6 or packet[6] & DF:
                    return self._too_large(packet)
        where, address, port = _TARGET[self._version], self._address, connection.dport
        if protocol in _ERRORS:
            rewritten = translate_error(packet, at, address, port, self._hops, inward=True)
            if rewritten is None:
                return _MALFORMED
        elif len(packet) < at + LEAST[protocol]:
            return _MALFORMED
        else:
            rewritten = translate(packet, protocol, at, where, address, at + 2, port, self._hops)
        return Transmit(rewritten, self._route) if self._hops else Deliver(rewritten)

    def _too_large(self, packet: bytes) -> Reply:
        return refuse(one_hop_less(packet), Refusal.TOO_BIG, mtu=self._mtu)

    def reply(self, connection: Connection, packet: bytes) -> Verdict:
        """Return a packet of the server, or an ICMP error about the client's, for the client.

        Its TTL stays: the host that passes it on has decremented it.

        Args:
            connection: whose packet it is, or, for an ICMP error, whose packet the error quotes.
            packet: one IPv4 or IPv6 datagram.
        """
        flow = connection.flow
        quick = to_client(packet, int.from_bytes(flow.vaddr, "big"), flow.vport)
        if quick is not None:
            return Transmit(quick, self._route)
        protocol, at = transport(packet)
        where, address, port = _SOURCE[self._version], flow.vaddr, flow.vport
        if protocol in _ERRORS:
            rewritten = translate_error(packet, at, address, port, 0, inward=False)
            if rewritten is None:
                return _MALFORMED
        elif len(packet) < at + LEAST[protocol]:
            return _MALFORMED
        else:
            rewritten = translate(packet, protocol, at, where, address, at, port, 0)
        return Transmit(rewritten, self._route)
