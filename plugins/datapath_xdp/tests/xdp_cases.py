"""The table of packets: what comes in, what is known, what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lvskit_datapath_xdp.layout import NO_SLOT, Reason, RecordKind
from scapy.layers import inet, inet6
from scapy.layers.l2 import ARP, Dot1Q
from scapy.packet import Packet, Raw
from xdp_world import (
    ASKED,
    CL,
    CLIENT4,
    CW,
    ELSEWHERE,
    ES,
    FW,
    HERE4,
    HERE6,
    IN4,
    IN6,
    NARROW,
    PASSED,
    REMOVED,
    SLOPPY,
    SPLIT,
    SR,
    TCP,
    TCP4,
    TCP6,
    TW,
    UDP,
    UDP4,
    UDP6,
    UNKNOWN,
    VIP4,
    VIP6,
    ether,
    ip4,
    ip6,
    outer4,
    outer6,
    raw,
    sent,
    tcp,
    udp,
)  # fmt: skip


@dataclass
class Case:
    """A packet, what is known of its connection, and what comes of it.

    Attributes:
        frame: what comes in, from the Ethernet header on.
        verdict: `TX`, `PASS`, `DROP` or `REDIRECT`.
        known: server and state of its connection, if there is one.
        out: what leaves; unless told, the frame as it came.
        reasons: what it is counted as.
        record: the fields of the record of it, if there is one.
        state: of the connection afterwards; unless told, as before.
    """

    description: str
    frame: bytes
    verdict: str
    known: tuple[int, int] | None = None
    out: bytes | None = None
    reasons: dict[Reason, int] = field(default_factory=dict)
    record: dict[str, Any] | None = None
    state: int | None = None


def passed(description: str, frame: bytes, reason: Reason, **more: Any) -> Case:
    return Case(description, frame, "PASS", reasons={reason: 1}, **more)


def forwarded(description: str, packet: Packet, outer: Packet, server: int = IN4) -> Case:
    state = ES if packet.haslayer(inet.TCP) else 0
    out = sent(outer, packet)
    return Case(description, raw(packet), "TX", known=(server, state), out=out)


def told(description: str, packet: Packet, **more: Any) -> Case:
    """A packet that Python gets."""
    known = more.pop("known", None)
    opens = known is None and packet.version == 4 and "S" in str(packet.sprintf("%TCP.flags%"))
    kind = RecordKind.SYN if opens else RecordKind.MISS
    fields = {"kind": kind, "packet": bytes(packet), "length": len(packet), **more}
    if known:
        fields |= {"server": known[0], "state": known[1], "old_state": known[1]}
    else:
        fields |= {"server": 0, "slot": NO_SLOT}
    reasons = {Reason.MISS: 1}
    return Case(description, raw(packet), "DROP", known, reasons=reasons, record=fields)


def moved(
    description: str, flags: str, old: int, new: int, packet: Callable[..., Packet] = ip4
) -> Case:
    """A packet that changes a connection's state."""
    inner = packet() / tcp(flags)
    version = inner.version
    record = {
        "kind": RecordKind.STATE,
        "version": version,
        "tcp_flags": int(inner[inet.TCP].flags),
        "old_state": old,
        "state": new,
        "server": IN4,
        "protocol": TCP,
    }
    out = sent(outer4() if version == 4 else outer4(proto=41, flags=0, id=1), inner)
    reasons = {Reason.STATE: 1}
    return Case(description, raw(inner), "TX", (IN4, old), out, reasons, record, new)


FORWARDED = [
    forwarded("TCP over IPv4 in IPv4", ip4() / tcp(), outer4()),
    forwarded("UDP over IPv4 in IPv4", ip4() / udp(), outer4()),
    forwarded("an empty UDP datagram", ip4() / udp(0), outer4()),
    forwarded("TCP over IPv4 in IPv6", ip4() / tcp(), outer6(), IN6),
    forwarded("UDP over IPv4 in IPv6", ip4() / udp(), outer6(), IN6),
    forwarded("TCP over IPv6 in IPv4", ip6() / tcp(), outer4(proto=41, flags=0, id=1)),
    forwarded("UDP over IPv6 in IPv4", ip6() / udp(), outer4(proto=41, flags=0, id=1)),
    forwarded("TCP over IPv6 in IPv6", ip6() / tcp(), outer6(nh=41), IN6),
    forwarded("UDP over IPv6 in IPv6", ip6() / udp(), outer6(nh=41), IN6),
    forwarded("DSCP is copied", ip4(tos=0xB8) / tcp(), outer4(tos=0xB8)),
    forwarded("ECT is copied", ip4(tos=0x01) / tcp(), outer4(tos=0x01)),
    forwarded("CE becomes ECT(0)", ip4(tos=0xBB) / tcp(), outer4(tos=0xBA)),
    forwarded("CE becomes ECT(0) in IPv6", ip6(tc=0xBB) / tcp(), outer6(nh=41, tc=0xBA), IN6),
    forwarded("a flow label stays inside", ip6(fl=0x12345) / tcp(), outer6(nh=41), IN6),
    forwarded("without DF it is numbered", ip4(flags=0) / tcp(), outer4(flags=0, id=1)),
    forwarded("no DF outside without pmtu_disc", ip4() / tcp(), outer4(flags=0, id=1), SPLIT),
    forwarded("the last hop but one", ip4(ttl=2) / tcp(), outer4(ttl=1)),
    forwarded("as long as the tunnel takes", ip4() / tcp(size=1440), outer4()),
    forwarded("IPv6 as long as the tunnel takes", ip6() / tcp(size=1400), outer6(nh=41), IN6),
    forwarded("TCP options are nothing special", ip4() / tcp(options=[("NOP", None)]), outer4()),
    Case(
        "a server behind another interface",
        raw(ip4() / tcp()),
        "REDIRECT",
        (ELSEWHERE, ES),
        sent(outer4(), ip4() / tcp()),
    ),
    Case(
        "the padding of a short frame is removed",
        raw(ip4() / tcp(size=0)) + bytes(6),
        "TX",
        (IN4, ES),
        sent(outer4(), ip4() / tcp(size=0)),
    ),
    Case(
        "and of a short IPv6 one",
        raw(ip6() / udp(size=0)) + b"pad",
        "TX",
        (IN6, 0),
        sent(outer6(nh=41), ip6() / udp(size=0)),
    ),
]

NO_IP = [
    passed("ARP", raw(ARP()), Reason.NOT_IP),
    passed("an unknown Ethernet type", bytes(ether(Raw(bytes(40)), 0x88B5)), Reason.NOT_IP),
    passed("a VLAN tag", raw(Dot1Q(vlan=5) / ip4() / tcp()), Reason.NOT_IP),
    passed("only an Ethernet header", raw(ip4())[:14], Reason.MALFORMED),
    *(
        passed(
            f"to {whose} hardware address",
            bytes.fromhex(to) + raw(ip4() / tcp("S"))[6:],
            Reason.NOT_HERE,
        )
        for whose, to in (
            ("another", "020000000001"),
            ("a far", "030000000002"),
            ("every", "ffffffffffff"),
        )
    ),
    passed("ICMP", raw(ip4() / inet.ICMP()), Reason.PROTOCOL),
    passed("ICMPv6", raw(ip6() / inet6.ICMPv6EchoRequest()), Reason.PROTOCOL),
    passed("SCTP", raw(ip4(proto=132) / Raw(bytes(20))), Reason.PROTOCOL),
    passed("GRE", raw(ip4(proto=47) / Raw(bytes(20))), Reason.PROTOCOL),
    passed(
        "IPv6 extension headers", raw(ip6() / inet6.IPv6ExtHdrDestOpt() / tcp()), Reason.PROTOCOL
    ),
    passed("an IPv6 fragment", raw(ip6() / inet6.IPv6ExtHdrFragment(m=1) / tcp()), Reason.PROTOCOL),
    passed(
        "IPv4 options", raw(ip4(options=[inet.IPOption_Router_Alert()]) / tcp()), Reason.OPTIONS
    ),
    passed("a first fragment", raw(ip4(flags="MF") / udp()), Reason.FRAGMENT),
    passed("a later fragment", raw(ip4(flags=0, frag=5) / Raw(bytes(40))), Reason.FRAGMENT),
    passed("the evil bit", raw(ip4(flags="evil") / tcp()), Reason.NOT_OPENING),
]

MALFORMED = [
    passed(description, frame, Reason.MALFORMED)
    for description, frame in (
        ("IPv4 in the name alone", raw(ip4() / tcp())[:30]),
        ("IPv4 with a wrong checksum", raw(ip4(chksum=1) / tcp())),
        ("IPv4 with a checksum of 0", raw(ip4(chksum=0) / tcp())),
        ("IPv4 that says it is version 5", raw(ip4(version=5) / tcp())),
        ("an IPv4 header of 16 bytes", raw(ip4(ihl=4) / tcp())),
        ("IPv4 longer than the frame", raw(ip4(len=61) / tcp())),
        ("IPv4 shorter than its header", raw(ip4(len=19) / tcp())),
        ("IPv4 without a whole TCP header", raw(ip4(len=39) / tcp())),
        ("a frame without a whole TCP header", raw(ip4() / tcp(size=0))[:-1]),
        ("IPv4 without a whole UDP header", raw(ip4(len=27) / udp())),
        ("a frame without a whole UDP header", raw(ip4() / udp(size=0))[:-1]),
        ("IPv6 in the name alone", raw(ip6() / tcp())[:50]),
        ("IPv6 that says it is version 4", raw(ip6(version=4) / tcp())),
        ("IPv6 longer than the frame", raw(ip6(plen=41) / tcp())),
        ("IPv6 without a whole TCP header", raw(ip6(plen=19) / tcp())),
        ("IPv6 without a whole UDP header", raw(ip6(plen=7) / udp())),
        ("a frame without a whole UDP header in IPv6", raw(ip6() / udp(size=0))[:-1]),
    )
]

MARTIANS = [
    passed(f"from {source}", raw(packet(src=source) / tcp("S")), Reason.SOURCE)
    for packet, sources in (
        (ip4, ("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", VIP4, HERE4)),
        (ip6, ("::", "::1", "ff02::1", VIP6, HERE6)),
    )
    for source in sources
]

NOT_OURS = [
    passed(description, raw(packet), Reason.NOT_OURS)
    for description, packet in (
        ("another address", ip4(dst="192.0.2.2") / tcp("S")),
        ("another port", ip4() / tcp("S", dport=8080)),
        ("another protocol", ip4() / udp(dport=80)),
        ("another IPv6 address", ip6(dst="2001:db8::2") / tcp("S")),
        ("from the server to the client", ip4(src=VIP4, dst=CLIENT4) / tcp(sport=80, dport=1024)),
    )
]

KNOWN_BUT_PASSED = [
    passed("a local server", raw(ip4() / tcp()), Reason.SERVER, known=(PASSED, ES)),
    passed("its FIN too", raw(ip4() / tcp("FA")), Reason.SERVER, known=(PASSED, ES)),
    passed("the last hop", raw(ip4(ttl=1) / tcp()), Reason.TTL, known=(IN4, ES)),
    passed("no hop at all", raw(ip4(ttl=0) / tcp()), Reason.TTL, known=(IN4, ES)),
    passed("the last hop of IPv6", raw(ip6(hlim=1) / tcp()), Reason.TTL, known=(IN4, ES)),
    passed("the FIN of the last hop", raw(ip4(ttl=1) / tcp("FA")), Reason.TTL, known=(IN4, ES)),
    passed("too long", raw(ip4() / tcp(size=1441)), Reason.TOO_BIG, known=(IN4, ES)),
    passed(
        "too long though it may be split",
        raw(ip4(flags=0) / udp(size=1473)),
        Reason.TOO_BIG,
        known=(SPLIT, 0),
    ),
    passed("IPv6 too long", raw(ip6() / tcp(size=1401)), Reason.TOO_BIG, known=(IN6, ES)),
    passed("a narrow tunnel", raw(ip4() / tcp(size=41)), Reason.TOO_BIG, known=(NARROW, ES)),
    Case(
        "a removed server",
        raw(ip4() / tcp()),
        "DROP",
        known=(REMOVED, ES),
        reasons={Reason.REMOVED: 1},
    ),
    Case(
        "a SYN of an open connection to a removed server",
        raw(ip4() / tcp("S")),
        "DROP",
        known=(REMOVED, ES),
        reasons={Reason.REMOVED: 1},
    ),
    Case(
        "the FIN to a removed server",
        raw(ip4() / tcp("FA")),
        "DROP",
        known=(REMOVED, ES),
        reasons={Reason.REMOVED: 1},
    ),
]

OPENING = [
    told("a SYN", ip4() / tcp("S"), version=4, service=TCP4, protocol=TCP, tcp_flags=2),
    told("a SYN of IPv6", ip6() / tcp("S"), version=6, service=TCP6, protocol=TCP, tcp_flags=2),
    told("SYN and ACK, of active FTP", ip4() / tcp("SA"), tcp_flags=0x12),
    told("SYN and FIN", ip4() / tcp("SF"), tcp_flags=3),
    told("a datagram", ip4() / udp(), version=4, service=UDP4, protocol=UDP, tcp_flags=0),
    told("a datagram of IPv6", ip6() / udp(), version=6, service=UDP6, protocol=UDP),
    told("one that just fits a short record", ip4() / udp(52)),
    told("one that does not", ip4() / udp(53)),
    told("one that just fits a long record", ip4() / udp(1972)),
    passed("one that does not fit that", raw(ip4() / udp(1973)), Reason.TOO_BIG),
    Case(
        "a SYN in a short frame, of which the padding is not told",
        raw(ip4() / tcp("S", size=0)) + bytes(6),
        "DROP",
        reasons={Reason.MISS: 1},
        record={"packet": bytes(ip4() / tcp("S", size=0)), "length": 40},
    ),
    told("a last hop, on which Python decides", ip4(ttl=1) / tcp("S")),
    told("sloppy_tcp: an ACK", ip4() / tcp("A", dport=81), service=SLOPPY, tcp_flags=0x10),
    passed("an RST though sloppy_tcp", raw(ip4() / tcp("R", dport=81)), Reason.NOT_OPENING),
    passed("an ACK", raw(ip4() / tcp("A")), Reason.NOT_OPENING),
    passed("a FIN", raw(ip4() / tcp("FA")), Reason.NOT_OPENING),
    passed("an RST", raw(ip4() / tcp("R")), Reason.NOT_OPENING),
    passed("SYN and RST", raw(ip4() / tcp("SR")), Reason.NOT_OPENING),
    passed("no flags at all", raw(ip4() / tcp("")), Reason.NOT_OPENING),
    passed("an FTP server's connection", raw(ip4() / tcp("S", sport=20)), Reason.NOT_OPENING),
    passed("a datagram from port 20", raw(ip4() / udp(sport=20)), Reason.NOT_OPENING),
]

KNOWN_BUT_TOLD = [
    told("a server that Python alone knows", ip4() / tcp(), known=(UNKNOWN, ES)),
    told("no server", ip4() / tcp(), known=(0, ES)),
    told("no such server", ip4() / tcp(), known=(65535, ES)),
    told("a SYN in TIME_WAIT", ip4() / tcp("S"), known=(IN4, TW)),
    told("a SYN in CLOSE", ip4() / tcp("S"), known=(IN4, CL)),
    told("a SYN in FIN_WAIT", ip4() / tcp("S"), known=(IN4, FW)),
    told("SYN and RST in CLOSE", ip4() / tcp("SR"), known=(IN4, CL)),
    told("a SYN of IPv6 in TIME_WAIT", ip6() / tcp("S"), known=(IN4, TW)),
    told("a SYN in TIME_WAIT at a removed server", ip4() / tcp("S"), known=(REMOVED, TW)),
    told("a SYN where weight 0 matters", ip4() / tcp("S"), known=(ASKED, ES)),
    Case(
        "an ACK there",
        raw(ip4() / tcp()),
        "TX",
        known=(ASKED, ES),
        out=sent(outer4(), ip4() / tcp()),
    ),
]

STATES = [
    moved("the handshake's ACK", "A", SR, ES),
    moved("the same in IPv6", "A", SR, ES, ip6),
    moved("a FIN", "FA", ES, FW),
    moved("an RST", "R", ES, CL),
    moved("RST before SYN, FIN and ACK", "RSFA", ES, CL),
    moved("a SYN after CLOSE_WAIT", "S", CW, SR),
    moved("no flags close", "", ES, CL),
]

UNKNOWN_CONNECTION = [*NO_IP, *MALFORMED, *MARTIANS, *NOT_OURS, *OPENING]
KNOWN_CONNECTION = [*FORWARDED, *KNOWN_BUT_PASSED, *KNOWN_BUT_TOLD, *STATES]
