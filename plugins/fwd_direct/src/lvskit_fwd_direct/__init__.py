"""Direct routing (LVS-DR): a packet goes to the real server as it is, by the server's next hop.

Source: Linux net/netfilter/ipvs/ip_vs_xmit.c (ip_vs_dr_xmit), by behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Any, Final

from lvskit import (
    Connection,
    ForwarderSpec,
    RealServer,
    Refusal,
    Route,
    Transmit,
    Verdict,
    checksum,
    hookimpl,
    must_fit,
    refuse,
)

_DF: Final = 0x40
_ICMP: Final = 1
_FRONT: Final = Struct("!8sHH")  # of an IPv4 header: TTL and protocol in one, and the checksum
_UNPACK: Final = _FRONT.unpack_from
_PACK: Final = _FRONT.pack


class Direct:
    """Sends packets, but for their TTL as they came, to one real server's next hop."""

    def __init__(self, server: RealServer, options: Any = None) -> None:
        self._via = server.address
        self._route: Route
        self._mtu = 0

    def route_changed(self, route: Route) -> None:
        """Take over the MTU."""
        self._route = route
        self._mtu = route.mtu

    def transmit(self, connection: Connection, packet: bytes) -> Verdict:
        """Return the packet with one hop less, or the ICMP error that it earns."""
        if packet[0] >> 4 != 4:
            return self._transmit_v6(packet)
        front, life, total = _UNPACK(packet)
        if life < 0x200:
            return refuse(packet, Refusal.TIME_EXCEEDED)
        # Decrementing the TTL adds 0x0100 to the checksum (RFC 1624), with end-around carry.
        total += 0x100
        if total >= 0xFFFF:
            total -= 0xFFFF
        passed = _PACK(front, life - 0x100, total) + packet[12:]
        if len(packet) > self._mtu and packet[6] & _DF:
            if packet[9] != _ICMP:
                return refuse(passed, Refusal.TOO_BIG, mtu=self._mtu)
            # Nobody may be told about an ICMP error, so the kernel splits it in spite of its DF.
            passed = _divisible(passed)
        return Transmit(passed, self._route, self._via)

    def _transmit_v6(self, packet: bytes) -> Verdict:
        hops = packet[7]
        if hops <= 1:
            return refuse(packet, Refusal.TIME_EXCEEDED)
        passed = b"%b%c%b" % (packet[:7], hops - 1, packet[8:])
        if must_fit(packet) > self._mtu:
            return refuse(passed, Refusal.TOO_BIG, mtu=self._mtu)
        return Transmit(passed, self._route, self._via)


def _divisible(packet: bytes) -> bytes:
    """Return an IPv4 packet without its DF."""
    size = (packet[0] & 15) * 4
    head = b"%b%c%b%b%b" % (packet[:6], packet[6] & ~_DF, packet[7:10], b"\0\0", packet[12:size])
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + packet[size:]


@hookimpl
def lvskit_register_forwarders() -> Iterable[ForwarderSpec]:
    """Register the method."""
    return [
        ForwarderSpec(
            name="droute",
            factory=Direct,
            same_version=True,
            summary="direct routing: on the server's own segment, packets as they are",
        )
    ]
