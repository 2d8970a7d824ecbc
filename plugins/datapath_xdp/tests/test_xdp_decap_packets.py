"""The decapsulator by a table: description, packet in, verdict, packet out."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lvskit_datapath_xdp.decapsulator import OBJECT, PROGRAM, Role, roles
from lvskit_datapath_xdp.loader import BpfObject, Loaded
from lvskit_fwd_tunnel.ipip import Ipip
from scapy.layers import inet, inet6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from test_xdp_program_compilers import COMPILERS, OPTIONS
from test_xdp_program_tunnel import datagrams
from xdp_kernel import VERDICTS, packed
from xdp_world import (
    CLIENT4,
    HERE4,
    HERE6,
    MAC_HERE,
    MAC_REAL,
    REAL4,
    REAL6,
    VIP4,
    VIP6,
    again,
    ip4,
    ip6,
    outer4,
    outer6,
    tcp,
    udp,
)  # fmt: skip

from lvskit import Route, Transmit
from lvskit.testing import packets
from lvskit.testing.standins import StandInConnection, StandInServer

OWN, VIPS, DIRECTORS = (REAL4, REAL6), (VIP4, VIP6), (HERE4, HERE6)
Run = Callable[[bytes], tuple[str, bytes]]


@pytest.fixture(scope="module")
def loaded(bpf: None) -> Iterator[Loaded]:
    with BpfObject.read(OBJECT).load() as program:
        yield program


def world(loaded: Loaded, directors: tuple[str, ...] = DIRECTORS) -> Run:
    """Tell the program what there is, and return what runs it on a frame."""
    wanted = roles(*([packed(a) for a in some] for some in (OWN, VIPS, directors)))
    addresses = loaded.maps["addresses"]
    for key, _ in list(addresses.items()):
        addresses.delete(key)
    for key, role in wanted.items():
        addresses.update(key, int(role))

    def run(frame: bytes) -> tuple[str, bytes]:
        done = loaded.programs[PROGRAM].test_run(frame)
        return VERDICTS[done.verdict], done.packet

    return run


def framed(packet: Packet, kind: int | None = None) -> bytes:
    head = Ether(dst=MAC_REAL, src=MAC_HERE)
    if kind is not None:
        head.type = kind
    return bytes(head / packet)


@dataclass
class Case:
    """A packet, what becomes of it, and what goes up the stack; unless told, the same bytes."""

    description: str
    frame: bytes
    verdict: str = "PASS"
    out: bytes | None = None


def taken(description: str, outer: Packet, inner: Packet, out: Packet | None = None) -> Case:
    return Case(description, framed(outer / inner), out=framed(inner if out is None else out))


def left(description: str, packet: Packet, kind: int | None = None) -> Case:
    return Case(description, framed(packet, kind))


def marked(packet: Packet) -> Packet:
    """The same, with the mark of congestion."""
    packet = again(packet)
    if packet.version == 4:
        packet.tos |= 3
        del packet.chksum
    else:
        packet.tc |= 3
    return packet


INNER4, INNER6 = ip4(tos=0x28) / tcp(), ip6(tc=0x28) / tcp()
IN4, IN6 = outer4(), outer6()  # IPv4 in either
SIX4, SIX6 = outer4(proto=41), outer6(nh=41)  # IPv6 in either
BAD_SUM = again(IN4 / INNER4)
BAD_SUM.chksum ^= 1

TAKEN = [
    taken("IPv4 in IPv4", IN4, INNER4),
    taken("IPv4 in IPv6", IN6, INNER4),
    taken("IPv6 in IPv4", SIX4, INNER6),
    taken("IPv6 in IPv6", SIX6, INNER6),
    taken("UDP", IN4, ip4() / udp()),
    taken("ICMP, for the server's stack", IN4, ip4() / inet.ICMP()),
    taken("a header and nothing else", IN4, ip4(proto=99)),
    taken("the same of IPv6", SIX6, ip6(nh=59)),
    taken("inner options", IN4, ip4(options=inet.IPOption_NOP()) / tcp()),
    taken("an inner fragment", IN4, ip4(flags="MF", frag=2) / Raw(bytes(64))),
    taken("an inner extension header", SIX6, ip6() / inet6.IPv6ExtHdrDestOpt() / tcp()),
    taken("the last hop, of which it is the end", IN4, ip4(ttl=1) / tcp()),
    taken("an outer header that may be split", outer4(flags=0, id=77), INNER4),
    taken("an outer DSCP, which stays outside", outer4(tos=0xB8), INNER4),
    taken("an outer flow label and DSCP", outer6(fl=0x12345, tc=0xB8), INNER4),
    taken("as long as an IPv4 packet is", IN4, ip4() / udp(65535 - 20 - 28)),
    Case(
        "padding behind",
        framed(IN4 / ip4(proto=99)) + bytes(6),
        out=framed(ip4(proto=99)) + bytes(6),
    ),
]

ECN = [
    Case("CE, and a flow without ECN", framed(outer4(tos=3) / INNER4), "DROP"),
    Case("the same in IPv6", framed(outer6(tc=3) / INNER4), "DROP"),
    Case("CE, and an IPv6 flow without ECN", framed(outer4(proto=41, tos=3) / INNER6), "DROP"),
    Case("the same in IPv6", framed(outer6(nh=41, tc=3) / INNER6), "DROP"),
    *(
        taken(f"CE outside, {ecn} inside: {name}", outer, inner, marked(inner))
        for ecn in (1, 2, 3)
        for name, outer, inner in (
            ("4 in 4", outer4(tos=3), ip4(tos=0xA8 | ecn) / tcp()),
            ("4 in 6", outer6(tc=3), ip4(tos=0xA8 | ecn) / tcp()),
            ("6 in 4", outer4(proto=41, tos=3), ip6(tc=0xA8 | ecn, fl=0xFFFFF) / tcp()),
            ("6 in 6", outer6(nh=41, tc=3), ip6(tc=0xA8 | ecn, fl=0) / tcp()),
        )
    ),
    *(
        taken(f"{out} outside, {ecn} inside", outer4(tos=out), ip4(tos=ecn) / tcp())
        for out in (0, 1, 2)
        for ecn in (0, 1, 2, 3)
    ),
]  # fmt: skip

OTHERS = [
    left("no IP", ARP()),
    left("a VLAN tag", Dot1Q(vlan=5) / IN4 / INNER4),
    left("IPv4 without a tunnel", ip4() / tcp()),
    left("IPv6 without a tunnel", ip6() / tcp()),
    left("another protocol within", outer4(proto=47) / INNER4),
    left("another protocol within IPv6", outer6(nh=47) / INNER4),
    left("to another host", outer4(dst="10.0.0.9") / INNER4),
    left("to another host, IPv6", outer6(dst="fd00::9") / INNER4),
    left("to the VIP itself", outer4(dst=VIP4) / INNER4),
    left("of another director", outer4(src="10.0.0.9") / INNER4),
    left("of another director, IPv6", outer6(src="fd00::9", nh=41) / INNER6),
    left("for no VIP", IN4 / ip4(dst=REAL4) / tcp()),
    left("for no IPv6 VIP", SIX6 / ip6(dst=REAL6) / tcp()),
    left("for the client", IN4 / ip4(dst=CLIENT4) / tcp()),
    left("an outer option", outer4(options=inet.IPOption_NOP()) / INNER4),
    left("outer options that look like an inner header", outer4(ihl=10) / INNER4),
    left("an outer extension header", outer6(nh=60) / inet6.IPv6ExtHdrDestOpt(nh=4) / INNER4),
    left("the first fragment", outer4(flags="MF") / INNER4),
    left("a later fragment", outer4(flags=0, frag=1) / INNER4),
    left("a fragment of IPv6", outer6(nh=44) / inet6.IPv6ExtHdrFragment(nh=4, m=1) / INNER4),
    left("a wrong outer checksum", BAD_SUM),
    left("outer version 5", outer4(version=5) / INNER4),
    left("outer version 5 of IPv6", outer6(version=5) / INNER4),
    left("an outer length below its header", outer4(len=19) / INNER4),
    left("an outer length of nothing inside", outer4(len=20) / INNER4),
    left("an IPv6 payload of nothing", outer6(plen=0) / INNER4),
    left("IPv6 as protocol 4", IN4 / INNER6),
    left("IPv4 as protocol 41", SIX4 / INNER4),
    left("inner version 5 of IPv6", SIX4 / ip6(version=5) / tcp()),
    left("the bytes of IPv6 under another type", SIX6 / INNER6, 0x88B5),
    left("inner version 5", IN4 / ip4(version=5) / tcp()),
    left("an inner header of 16 bytes", IN4 / ip4(ihl=4) / tcp()),
    left("an inner length below its header", IN4 / ip4(ihl=6, len=23) / tcp()),
    left("inner longer than outer", outer4(len=79) / again(INNER4)),
    left("the same of IPv6", outer6(nh=41, plen=79) / again(INNER6)),
    left("an outer payload shorter than a header", outer4(len=39) / INNER4),
    left("the same in IPv6", outer6(nh=41, plen=39) / INNER6),
    Case("Ethernet alone", framed(Raw(b""), 0x0800)),
    Case("IPv4 in the name alone", framed(Raw(bytes(19)), 0x0800)),
    Case("IPv6 in the name alone", framed(Raw(bytes(39)), 0x86DD)),
    Case("a frame without all of the inner header", framed(IN4 / INNER4)[: 14 + 39]),
    Case("the same of IPv6", framed(SIX4 / INNER6)[: 14 + 59]),
]  # fmt: skip

CASES = [*TAKEN, *ECN, *OTHERS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.description)
def test_what_becomes_of_a_packet(loaded: Loaded, case: Case) -> None:
    verdict, out = world(loaded)(case.frame)
    assert verdict == case.verdict
    if verdict == "PASS":
        wanted = case.frame if case.out is None else case.out
        assert out == wanted, f"{Ether(out)!r}\nis not\n{Ether(wanted)!r}"


@pytest.mark.parametrize(
    "inner",
    [IN4 / INNER4, IN6 / INNER4, SIX4 / INNER6, SIX6 / INNER6],
    ids=["44", "46", "64", "66"],
)
def test_without_directors_anybody_may_send(loaded: Loaded, inner: Packet) -> None:
    inner = again(inner)
    inner.src = "10.0.0.9" if inner.version == 4 else "fd00::9"
    if inner.version == 4:
        del inner.chksum
    run = world(loaded, ())
    assert run(framed(inner)) == ("PASS", framed(inner.payload))
    assert world(loaded)(framed(inner)) == ("PASS", framed(inner))


def test_the_checksum_is_right_whatever_it_was(loaded: Loaded) -> None:
    """One of any lower byte, before the mark: the sum carries for some."""
    run = world(loaded)
    for number in range(256):
        for ecn in (1, 2):
            inner = ip4(id=number, tos=ecn) / tcp()
            assert run(framed(outer4(tos=3, id=number) / inner)) == ("PASS", framed(marked(inner)))


def test_an_address_may_be_several_things() -> None:
    """A director that is a real server of another one, and a server with a VIP as its address."""
    assert roles([packed(REAL4)], [packed(REAL4)], [packed(REAL4)]) == {
        bytes(10) + b"\xff\xff" + packed(REAL4): Role.OWN | Role.VIP | Role.DIRECTOR
    }
    assert roles([], [packed(VIP6)], []) == {packed(VIP6): Role.VIP | Role.OF_ANY_DIRECTOR}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(packet=datagrams(), outer=st.sampled_from([4, 6]), padding=st.integers(0, 8))
def test_what_the_tunnel_makes_comes_out(
    loaded: Loaded, packet: bytes, outer: int, padding: int
) -> None:
    """Of any packet that `fwd_tunnel` wraps, the inner packet is what comes out."""
    source, target = (HERE4, REAL4) if outer == 4 else (HERE6, REAL6)
    server = StandInServer(packed(target), pmtu_disc=True)
    tunnel = Ipip(server)
    tunnel.route_changed(Route(packed(source), 65535))
    flow = packets.flow(CLIENT4, 1, VIP4, 80)
    wrapped = tunnel.transmit(StandInConnection(flow, server), packet)
    if not isinstance(wrapped, Transmit):
        return  # the last hop
    inner = wrapped.packet[20 if outer == 4 else 40 :]
    head, kinds = framed(Raw(b""))[:12], {4: b"\x08\x00", 6: b"\x86\xdd"}
    frame = head + kinds[outer] + wrapped.packet + bytes(padding)
    out = head + kinds[packet[0] >> 4] + inner + bytes(padding)
    assert world(loaded)(frame) == ("PASS", out)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_verifier_lets_it_in(bpf: None, compiler: str, tmp_path: Path) -> None:
    target = tmp_path / "program.o"
    assert shutil.which(compiler)
    command = [compiler, *OPTIONS, str(OBJECT.with_suffix(".c")), "-o", str(target)]
    subprocess.run(command, check=True)
    with BpfObject.read(target).load() as made:
        frame = framed(IN4 / INNER4)
        assert world(made)(frame) == ("PASS", framed(INNER4))
