"""Which quoted packets are a tunnel's own, and what they carry: errors of routers on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_fwd_tunnel import make
from lvskit_fwd_tunnel.options import Options
from lvskit_fwd_tunnel.outer import Tunnel
from scapy.layers import inet, l2
from scapy.packet import Packet, Raw

from lvskit import Route, Transmit
from lvskit.testing import packets
from lvskit.testing.packets import address
from lvskit.testing.standins import StandInConnection, StandInServer

HERE, SERVER, OTHER = "192.168.1.175", "192.168.1.11", "192.168.1.12"
CLIENT, VIP = "10.0.0.1", "192.168.1.176"
OPTIONS = {
    "ipip": Options(),
    "gre": Options(type="gre"),
    "gre+c": Options(type="gre", checksum="csum"),
    "gue": Options(type="gue", port=6080),
    "gue+c": Options(type="gue", port=6080, checksum="csum"),
}
EACH_KIND = pytest.mark.parametrize("kind", OPTIONS)
INNER = packets.tcp(CLIENT, 1024, VIP, 80, "A", payload=bytes(range(100)))


def tunnel(kind: str, server: str = SERVER) -> tuple[Tunnel, StandInConnection]:
    """Return a tunnel and a connection to ask it about."""
    there = StandInServer(address(server))
    made = make(there, OPTIONS[kind])
    made.route_changed(Route(address(HERE), 1500))
    return made, StandInConnection(packets.flow(CLIENT, 1024, VIP, 80), there)


def outer(kind: str, packet: bytes = INNER) -> bytes:
    """Return what the tunnel sends for `packet`."""
    made, connection = tunnel(kind)
    verdict = made.transmit(connection, packet)
    assert isinstance(verdict, Transmit)
    return verdict.packet


@EACH_KIND
@given(df=st.booleans(), payload=st.binary(max_size=60), quoted=st.integers(0, 200))
def test_what_was_sent_is_known_again_however_short_the_quote(
    kind: str, *, df: bool, payload: bytes, quoted: int
) -> None:
    packet = packets.udp(CLIENT, 1024, VIP, 80, payload=payload, df=df)
    raw = outer(kind, packet)
    inner = raw[-len(packet) :]
    assert tunnel(kind)[0].unwrap(raw) == inner
    quote = raw[:quoted]
    kept = max(len(quote) - (len(raw) - len(packet)), 0)
    assert tunnel(kind)[0].unwrap(quote) == (inner[:kept] or None)


@EACH_KIND
def test_options_of_the_outer_header_are_skipped(kind: str) -> None:
    """A router on the way may have added to a record route option."""
    raw = inet.IP(outer(kind))
    raw.options = [inet.IPOption_NOP()] * 8
    del raw.ihl, raw.len, raw.chksum
    unwrapped = tunnel(kind)[0].unwrap(bytes(raw))
    assert unwrapped == outer(kind)[-len(INNER) :]


@EACH_KIND
def test_only_packets_to_this_server(kind: str) -> None:
    assert tunnel(kind, OTHER)[0].unwrap(outer(kind)) is None


@EACH_KIND
@pytest.mark.parametrize("kind_of_packet", OPTIONS)
def test_only_packets_of_this_kind(kind: str, kind_of_packet: str) -> None:
    """The kernel takes GRE and GUE with a checksum or without, whatever was asked for."""
    found = tunnel(kind)[0].unwrap(outer(kind_of_packet))
    assert (found is not None) == (kind.removesuffix("+c") == kind_of_packet.removesuffix("+c"))


@EACH_KIND
def test_a_first_fragment_is_known_and_a_later_one_is_not(kind: str) -> None:
    raw = inet.IP(outer(kind, packets.udp(CLIENT, 1024, VIP, 80, payload=bytes(800), df=False)))
    first, later = inet.fragment(raw, 400)[:2]
    assert tunnel(kind)[0].unwrap(bytes(first)) is not None
    assert tunnel(kind)[0].unwrap(bytes(later)) is None
    far = bytes(later)[:6] + bytes([0x01, 0x00]) + bytes(later)[8:]  # 256 * 8 bytes on
    assert tunnel(kind)[0].unwrap(far) is None


def quote(carried: Packet, protocol: int) -> bytes:
    """Return an outer packet as scapy builds it."""
    return bytes(inet.IP(src=HERE, dst=SERVER, proto=protocol) / carried)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("gue", quote(inet.UDP(dport=6081) / Raw(bytes([0, 4, 0, 0]) + INNER), 17)),
        ("gue", quote(inet.UDP(dport=6080) / Raw(bytes([0x40, 4, 0, 0]) + INNER), 17)),  # version
        ("gue", quote(inet.UDP(dport=6080) / Raw(bytes([0x20, 4, 0, 0]) + INNER), 17)),  # control
        ("gue", quote(inet.UDP(dport=6080) / Raw(bytes([0, 41, 0, 0]) + INNER), 17)),
        ("gre", quote(l2.GRE(proto=0x86DD) / Raw(INNER), 47)),
        ("gre", quote(l2.GRE(key_present=1, key=7) / Raw(INNER), 47)),
        ("gre", quote(l2.GRE(seqnum_present=1) / Raw(INNER), 47)),
        ("gre", quote(l2.GRE(version=1) / Raw(INNER), 47)),
        ("ipip", quote(Raw(INNER), 41)),
    ],
)
def test_what_the_kernel_does_not_know_again(kind: str, raw: bytes) -> None:
    assert tunnel(kind)[0].unwrap(raw) is None


def test_fields_of_gue_before_the_packet_are_skipped() -> None:
    """Its header says how long they are, in units of 4 bytes."""
    raw = quote(inet.UDP(dport=6080) / Raw(bytes([2, 4, 0, 0]) + bytes(8) + INNER), 17)
    assert tunnel("gue")[0].unwrap(raw) == INNER


@EACH_KIND
def test_a_server_with_an_ipv6_address(kind: str) -> None:
    """The kernel knows IPv4 tunnels again, and no others."""
    there = StandInServer(address("2001:db8::11"))
    made = make(there, OPTIONS[kind])
    made.route_changed(Route(address("2001:db8::175"), 1500))
    connection = StandInConnection(packets.flow(CLIENT, 1024, VIP, 80), there)
    verdict = made.transmit(connection, INNER)
    assert isinstance(verdict, Transmit)
    assert made.unwrap(verdict.packet) is None


@EACH_KIND
@given(st.binary(max_size=80))
def test_junk_is_nobodys(kind: str, junk: bytes) -> None:
    assert tunnel(kind)[0].unwrap(junk) is None or junk[16:20] == address(SERVER)
    # As much of it as can be is made to look right.
    head = outer(kind)[:20]
    found = tunnel(kind)[0].unwrap(head + junk)
    assert found is None or junk.endswith(found)
