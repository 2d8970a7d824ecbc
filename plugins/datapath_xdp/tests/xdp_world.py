"""A small world for the program: services, servers of each kind, and frames by scapy."""

from __future__ import annotations

from typing import Any

from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import ServerFlag, ServerKind
from scapy.layers import inet, inet6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from xdp_kernel import INGRESS, Kernel, packed

TCP, UDP = 6, 17
VIP4, VIP6 = "192.0.2.1", "2001:db8::1"
CLIENT4, CLIENT6 = "198.51.100.7", "2001:db8:7::7"
HERE4, HERE6 = "10.0.0.1", "fd00::1"
REAL4, REAL6 = "10.0.0.2", "fd00::2"
MAC_ROUTER, MAC_HERE, MAC_REAL = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
TCP4, UDP4, TCP6, UDP6, SLOPPY = 1, 2, 3, 4, 5  # services
(IN4, IN6, PASSED, UNKNOWN, REMOVED, ELSEWHERE, NARROW, SPLIT, ASKED) = range(1, 10)  # servers
NONE, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA = range(11)
SEEN = 77  # of connections; long ago


def macs(target: str) -> bytes:
    return bytes(Ether(dst=target, src=MAC_HERE))[:12]


USUAL = ServerFlag.AVAILABLE | ServerFlag.PMTU_DISC


def tunnel(version: int, flags: ServerFlag = USUAL, **more: Any) -> bytes:
    source, target = (HERE4, REAL4) if version == 4 else (HERE6, REAL6)
    arguments = {"ifindex": INGRESS, "mtu": 1500, "ethernet": macs(MAC_REAL), "flags": flags}
    return layout.server(packed(source), packed(target), **{**arguments, **more})


def other(kind: ServerKind) -> bytes:
    return bytes([kind, ServerFlag.AVAILABLE]) + bytes(62)


SERVERS = {
    IN4: tunnel(4),
    IN6: tunnel(6),
    PASSED: other(ServerKind.PASS),
    UNKNOWN: other(ServerKind.NONE),
    REMOVED: tunnel(4, ServerFlag.PMTU_DISC),
    ELSEWHERE: tunnel(4, ifindex=99),
    NARROW: tunnel(4, mtu=100),
    SPLIT: tunnel(4, ServerFlag.AVAILABLE),
    ASKED: tunnel(4, USUAL | ServerFlag.ASK_SYN),
}


def populate(kernel: Kernel) -> None:
    """Enter services of both families and protocols, and servers of each kind."""
    kernel.service(TCP4, VIP4, 80, TCP)
    kernel.service(UDP4, VIP4, 53, UDP)
    kernel.service(TCP6, VIP6, 80, TCP)
    kernel.service(UDP6, VIP6, 53, UDP)
    kernel.service(SLOPPY, VIP4, 81, TCP, flags=layout.ServiceFlag.SLOPPY_TCP)
    for address in (VIP4, VIP6, HERE4, HERE6):  # the host's own
        kernel.service(0, address, 0, 0)
    for number, value in SERVERS.items():
        kernel.server(number, value)


# --- frames ---


def ip4(**more: Any) -> Packet:
    return inet.IP(**{"src": CLIENT4, "dst": VIP4, "flags": "DF", "ttl": 60, "id": 7, **more})


def ip6(**more: Any) -> Packet:
    return inet6.IPv6(**{"src": CLIENT6, "dst": VIP6, "hlim": 60, **more})


def tcp(flags: str = "A", size: int = 20, **more: Any) -> Packet:
    return inet.TCP(**{"sport": 1024, "dport": 80, "flags": flags, **more}) / Raw(bytes(size))


def udp(size: int = 20, **more: Any) -> Packet:
    return inet.UDP(**{"sport": 1024, "dport": 53, **more}) / Raw(bytes(size))


def ether(packet: Packet, kind: int | None = None) -> Packet:
    head = Ether(dst=MAC_HERE, src=MAC_ROUTER)
    if kind is not None:
        head.type = kind
    return head / packet


def raw(packet: Packet) -> bytes:
    return bytes(ether(packet))


def again(packet: Packet) -> Packet:
    """A packet with its lengths and checksums filled in."""
    return packet.__class__(bytes(packet))


def routed(packet: Packet) -> Packet:
    """One hop later."""
    packet = again(packet)
    if packet.version == 4:
        packet.ttl -= 1
        del packet.chksum
    else:
        packet.hlim -= 1
    return packet


def sent(outer: Packet, inner: Packet) -> bytes:
    """What leaves for a server."""
    return bytes(Ether(dst=MAC_REAL, src=MAC_HERE) / outer / routed(inner))


def outer4(**more: Any) -> Packet:
    base = {"src": HERE4, "dst": REAL4, "proto": 4, "ttl": 59, "flags": "DF", "id": 0}
    return inet.IP(**{**base, **more})


def outer6(**more: Any) -> Packet:
    return inet6.IPv6(**{"src": HERE6, "dst": REAL6, "nh": 4, "hlim": 59, **more})
