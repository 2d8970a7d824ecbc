"""Every byte that the tunnel writes, against scapy; every refusal, against the rules."""

from __future__ import annotations

from typing import Any

import lvskit_fwd_tunnel
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lvskit_fwd_tunnel.ipip import Ipip
from lvskit_fwd_tunnel.options import Options
from lvskit_fwd_tunnel.outer import outer_tos
from scapy.layers import inet, inet6
from scapy.packet import Packet, Raw

from lvskit import (
    Drop,
    Reason,
    Refusal,
    Reply,
    Route,
    Transmit,
    load_plugins,
    refuse,
)
from lvskit.datapath.fragments import fragment
from lvskit.testing import packets
from lvskit.testing.packets import address
from lvskit.testing.standins import StandInConnection, StandInServer

HERE = {4: "192.168.1.175", 6: "2001:db8::175"}
SERVER = {4: "192.168.1.11", 6: "2001:db8::11"}
CLIENT = {4: "10.0.0.1", 6: "2001:db8:1::1"}
VIP = {4: "192.168.1.176", 6: "2001:db8::176"}
VERSIONS = st.sampled_from([4, 6])
BYTES = st.integers(0, 255)


class Wrapped:
    """A tunnel to one server over one route, and the connection that it is asked about."""

    def __init__(self, outer: int = 4, mtu: int = 1500) -> None:
        server = StandInServer(address(SERVER[outer]))
        self.tunnel = Ipip(server)
        self.route = Route(address(HERE[outer]), mtu)
        self.tunnel.route_changed(self.route)
        self.connection = StandInConnection(packets.flow(CLIENT[4], 1, VIP[4], 80), server)

    def send(self, packet: bytes) -> Transmit | Reply:
        verdict = self.tunnel.transmit(self.connection, packet)
        assert isinstance(verdict, Transmit | Reply)
        return verdict

    def sent(self, packet: bytes) -> bytes:
        verdict = self.send(packet)
        assert isinstance(verdict, Transmit), verdict
        assert verdict.route is self.route
        return verdict.packet


def inner_packet(version: int, *, ttl: int, tos: int, df: bool, payload: bytes, **v4: Any) -> bytes:
    """Return a client's packet as scapy builds it."""
    segment = inet.UDP(sport=1024, dport=80) / Raw(payload)
    if version == 6:
        head = inet6.IPv6(src=CLIENT[6], dst=VIP[6], hlim=ttl, tc=tos, fl=0x12345)
        return bytes(head / segment)
    head = inet.IP(src=CLIENT[4], dst=VIP[4], ttl=ttl, tos=tos, flags="DF" if df else 0, **v4)
    return bytes(head / segment)


def decremented(packet: bytes) -> bytes:
    """Return the packet with one hop less, its checksum computed by scapy from nothing."""
    if packet[0] >> 4 == 6:
        six = inet6.IPv6(packet)
        six.hlim -= 1
        return bytes(six)
    four = inet.IP(packet)
    four.ttl -= 1
    del four.chksum
    return bytes(four)


def expected_tos(tos: int) -> int:
    """DSCP as it is; ECN as it is, except that congestion experienced becomes ECT(0)."""
    return (tos & 0b11111100) | (0b10 if tos & 0b11 == 0b11 else tos & 0b11)


OPTIONS = st.lists(
    st.sampled_from([inet.IPOption_NOP, inet.IPOption_Router_Alert, inet.IPOption_Timestamp]),
    max_size=3,
).map(lambda kinds: [kind() for kind in kinds])


@given(
    inner=VERSIONS, outer=VERSIONS, ttl=st.integers(2, 255), tos=BYTES, df=st.booleans(),
    payload=st.binary(max_size=80), identification=st.integers(0, 65535), options=OPTIONS,
    again=st.booleans(),
)  # fmt: skip
def test_what_leaves_is_what_scapy_would_send(
    *,
    inner: int,
    outer: int,
    ttl: int,
    tos: int,
    df: bool,
    payload: bytes,
    identification: int,
    options: Any,
    again: bool,
) -> None:
    """IPv4 and IPv6 inside and outside; also the second time, from what was kept of the first."""
    more = {"id": identification, "options": options} if inner == 4 else {}
    packet = inner_packet(inner, ttl=ttl, tos=tos, df=df, payload=payload, **more)
    wrapped = Wrapped(outer)
    raw = wrapped.sent(packet)
    if again:
        raw = wrapped.sent(packet)
    within = decremented(packet)
    has_df = df and inner == 4
    head: Packet
    if outer == 4:
        head = inet.IP(
            src=HERE[4],
            dst=SERVER[4],
            tos=expected_tos(tos),
            ttl=ttl - 1,
            flags="DF" if has_df else 0,
            id=0 if has_df else 1 + again,
            proto=4 if inner == 4 else 41,
        )
    else:
        head = inet6.IPv6(
            src=HERE[6],
            dst=SERVER[6],
            tc=expected_tos(tos),
            hlim=ttl - 1,
            nh=4 if inner == 4 else 41,
        )
    assert raw == bytes(head / Raw(within))


@pytest.mark.parametrize("tos", range(256))
def test_every_tos(tos: int) -> None:
    assert outer_tos(tos) == expected_tos(tos)
    assert Wrapped().sent(packets.tcp(CLIENT[4], 1, VIP[4], 80, tos=tos))[1] == expected_tos(tos)
    six = Wrapped(6).sent(packets.tcp(CLIENT[6], 1, VIP[6], 80, tos=tos))
    assert (six[0] & 15) << 4 | six[1] >> 4 == expected_tos(tos)


@given(st.integers(0, 65535), st.integers(2, 255))
@example(0xFFFF, 64)
@example(0xFEFF, 64)
@example(0xFF00, 64)
def test_the_inner_checksum_is_right_for_every_header(identification: int, ttl: int) -> None:
    """The sum is adjusted, not computed anew: with carries, and to 0."""
    packet = packets.ip(CLIENT[4], VIP[4], 17, bytes(8), ttl=ttl, identification=identification)
    assert Wrapped().sent(packet)[20:] == decremented(packet)


def test_the_inner_checksum_where_it_wraps() -> None:
    """All the headers whose checksum lies where adding one hop's worth carries."""
    seen = set()
    for identification in range(0, 65536, 7):
        packet = packets.ip(CLIENT[4], VIP[4], 17, b"", ttl=64, identification=identification)
        total = int.from_bytes(packet[10:12], "big")
        if total >= 0xFE00:
            seen.add(total)
            assert Wrapped().sent(packet)[20:] == decremented(packet)
    assert len(seen) > 50
    zeroed = packets.ip(CLIENT[4], VIP[4], 17, b"", ttl=64)
    gap = 0xFEFF - int.from_bytes(zeroed[10:12], "big")
    packet = packets.ip(CLIENT[4], VIP[4], 17, b"", ttl=64, identification=(1 - gap) % 0xFFFF)
    assert packet[10:12] == b"\xfe\xff"
    assert Wrapped().sent(packet)[20:] == decremented(packet)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_at_the_end_of_its_life_is_answered(version: int, ttl: int) -> None:
    """Before anything else, its size included; the quote is the packet as it came."""
    packet = packets.udp(CLIENT[version], 1, VIP[version], 80, ttl=ttl, payload=bytes(3000))
    for outer in (4, 6):
        reply = Wrapped(outer).send(packet)
        assert reply == refuse(packet, Refusal.TIME_EXCEEDED)
        assert isinstance(reply, Reply)
        assert reply.reason is Reason.TTL_EXCEEDED


@pytest.mark.parametrize("mtu", [1400, 1500, 9000])
@pytest.mark.parametrize(
    ("inner", "outer", "overhead"), [(4, 4, 20), (4, 6, 40), (6, 4, 20), (6, 6, 40)]
)
def test_a_packet_that_fits_goes_and_a_larger_one_is_answered_with_the_size_that_fits(
    inner: int, outer: int, overhead: int, mtu: int
) -> None:
    wrapped = Wrapped(outer, mtu)
    fits = mtu - overhead
    header = (20 if inner == 4 else 40) + 20

    def of(size: int) -> bytes:
        payload = bytes(size - header)
        return packets.tcp(CLIENT[inner], 1, VIP[inner], 80, "A", payload=payload, df=True)

    assert len(wrapped.sent(of(fits))) == mtu
    reply = wrapped.send(of(fits + 1))
    assert isinstance(reply, Reply)
    assert reply.reason is Reason.TOO_BIG
    # As the kernel: the quote has lost the hop already.
    assert reply == refuse(decremented(of(fits + 1)), Refusal.TOO_BIG, mtu=fits)
    if inner == 4:
        answer = inet.IP(reply.packet)
        assert (answer[inet.ICMP].type, answer[inet.ICMP].code) == (3, 4)
        assert answer[inet.ICMP].nexthopmtu == fits
    else:
        six = inet6.IPv6(reply.packet)
        assert six[inet6.ICMPv6PacketTooBig].mtu == fits


@given(st.integers(0, 6000), st.sampled_from([576, 1400, 1500]), BYTES)
def test_without_df_the_outer_packet_is_split_and_put_together_again(
    size: int, mtu: int, tos: int
) -> None:
    """By scapy, at the real server's end."""
    packet = packets.udp(
        CLIENT[4], 1, VIP[4], 80, payload=bytes(i & 255 for i in range(size)), df=False, tos=tos
    )
    parts = fragment(Wrapped(4, mtu).sent(packet), mtu)
    assert all(len(part) <= mtu for part in parts)
    whole = inet.defragment([inet.IP(part) for part in parts])[0]
    assert bytes(whole)[20:] == decremented(packet)


@pytest.mark.parametrize(("outer", "largest"), [(4, 65515), (6, 65535)])
def test_the_largest_datagrams(outer: int, largest: int) -> None:
    """One that was put together from fragments may leave no room for another header."""
    wrapped = Wrapped(outer)
    packet = packets.udp(CLIENT[4], 1, VIP[4], 80, df=False, payload=bytes(largest - 28))
    raw = wrapped.sent(packet)
    assert raw[20 if outer == 4 else 40 :] == decremented(packet)
    if outer == 4:
        assert raw[2:4] == b"\xff\xff"
        longer = packets.udp(CLIENT[4], 1, VIP[4], 80, df=False, payload=bytes(largest - 27))
        assert wrapped.tunnel.transmit(wrapped.connection, longer) == Drop(Reason.TOO_BIG)


def test_packets_without_df_are_numbered_and_those_with_df_are_not() -> None:
    """RFC 6864: only what may be split needs an identification."""
    wrapped = Wrapped()
    numbers = []
    for df in (False, True, False, False, True):
        raw = wrapped.sent(packets.udp(CLIENT[4], 1, VIP[4], 80, df=df))
        numbers.append(inet.IP(raw).id)
    assert numbers == [1, 0, 2, 3, 0]
    for _ in range(65532):
        wrapped.tunnel.transmit(wrapped.connection, packets_of_six)
    assert inet.IP(wrapped.sent(packets.udp(CLIENT[4], 1, VIP[4], 80, df=False))).id == 0


packets_of_six = packets.udp(CLIENT[6], 1, VIP[6], 80)  # in IPv4 they have no DF either


@pytest.mark.parametrize("outer", [4, 6])
def test_a_changed_route_changes_what_was_kept(outer: int) -> None:
    """Source address and MTU, from the next packet on."""
    wrapped = Wrapped(outer)
    packet = packets.tcp(CLIENT[4], 1, VIP[4], 80, "A", payload=bytes(1000))
    before = wrapped.sent(packet)
    wrapped.route = Route(address({4: "192.168.1.174", 6: "2001:db8::174"}[outer]), 1400)
    wrapped.tunnel.route_changed(wrapped.route)
    after = wrapped.sent(packet)
    where = slice(12, 16) if outer == 4 else slice(8, 24)
    assert before[where] == address(HERE[outer])
    assert after[where] == wrapped.route.source
    if outer == 4:
        assert inet.IP(after).chksum != inet.IP(before).chksum
    assert isinstance(
        wrapped.send(packets.tcp(CLIENT[4], 1, VIP[4], 80, payload=bytes(1341))), Reply
    )


@given(st.lists(st.tuples(st.integers(2, 255), BYTES, st.integers(0, 40)), min_size=1, max_size=30))
def test_headers_that_are_kept_are_not_mixed_up(shapes: list[tuple[int, int, int]]) -> None:
    """TTL, TOS and length vary at once; each packet still gets its own header."""
    wrapped = Wrapped()
    for ttl, tos, size in shapes * 2:
        packet = packets.udp(CLIENT[4], 1, VIP[4], 80, ttl=ttl, tos=tos, payload=bytes(size))
        outer = inet.IP(wrapped.sent(packet))
        assert (outer.ttl, outer.tos, outer.len) == (ttl - 1, expected_tos(tos), len(packet) + 20)
        stated = outer.chksum
        del outer.chksum
        assert inet.IP(bytes(outer)).chksum == stated


def test_more_kinds_of_headers_than_are_kept() -> None:
    """The store is bounded; what falls out of it is built again."""
    wrapped = Wrapped(mtu=9000)
    for size in range(4200):
        packet = packets.udp(CLIENT[4], 1, VIP[4], 80, payload=bytes(size))
        raw = wrapped.sent(packet)
        assert raw[2:4] == (48 + size).to_bytes(2, "big")
    assert wrapped.sent(packets.udp(CLIENT[4], 1, VIP[4], 80))[2:4] == b"\0\x30"
    assert len(wrapped.tunnel._known) <= 4096


def test_records() -> None:
    (spec,) = lvskit_fwd_tunnel.lvskit_register_forwarders()
    assert (spec.name, spec.keeps_port, spec.options) == ("tunnel", True, Options)
    assert load_plugins().forwarder("tunnel").factory is spec.factory
