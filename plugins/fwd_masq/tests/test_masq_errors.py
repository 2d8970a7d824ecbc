"""ICMP errors about translated packets, both ways: the error, what it quotes, their checksums."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lvskit_fwd_masq.masq import Masq
from scapy.layers import inet, inet6
from scapy.packet import Packet, Raw

from lvskit import (
    TCP,
    UDP,
    Deliver,
    Drop,
    Flow,
    Reason,
    Refusal,
    Route,
    Transmit,
    refuse,
)
from lvskit.datapath.fragments import fragment
from lvskit.testing import packets
from lvskit.testing.packets import address
from lvskit.testing.standins import StandInConnection, StandInServer

SERVER = {4: "192.168.1.11", 6: "2001:db8::11"}
CLIENT = {4: "10.0.0.1", 6: "2001:db8:1::1"}
VIP = {4: "192.168.1.176", 6: "2001:db8::176"}
ROUTER = {4: "10.9.9.9", 6: "2001:db8:9::9"}
EACH_VERSION = pytest.mark.parametrize("version", [4, 6])
KINDS = {4: [(3, 1), (3, 4), (4, 0), (11, 0)], 6: [(1, 3), (2, 0), (3, 0), (4, 1)]}
MALFORMED = Drop(Reason.MALFORMED)


def pair(version: int, *, local: bool = False, mtu: int = 1500) -> tuple[Masq, StandInConnection]:
    """Return a forwarder with a route, and a connection of its server."""
    server = StandInServer(address(SERVER[version]), 8080)
    masq = Masq(server)
    masq.route_changed(Route(address(SERVER[version]), mtu, local=local))
    flow = Flow(TCP, address(CLIENT[version]), 1024, address(VIP[version]), 80)
    return masq, StandInConnection(flow, server, 8080)


def segment(protocol: int, sport: int, dport: int) -> Packet:
    """Return the transport header whose checksum nobody who translates an error touches."""
    if protocol == TCP:
        return inet.TCP(sport=sport, dport=dport, chksum=0x1234)
    return inet.UDP(sport=sport, dport=dport, chksum=0x1234)


def error(
    version: int, src: str, dst: str, kind: tuple[int, int], inner: Packet, cut: int, ttl: int = 64
) -> bytes:
    """Return an error as scapy builds it; `cut`: bytes quoted behind the inner IP header."""
    raw = bytes(inner)
    quote = raw[: (20 if version == 4 else 40) + cut]
    if version == 4:
        icmp = inet.ICMP(type=kind[0], code=kind[1], unused=1300)
        return bytes(inet.IP(src=src, dst=dst, ttl=ttl) / icmp / Raw(quote))
    head = bytes(kind) + bytes(2) + (1300).to_bytes(4, "big")
    plain = inet6.IPv6(src=src, dst=dst, hlim=ttl, nh=58)
    total = inet6.in6_chksum(58, plain, head + quote)
    return bytes(plain / Raw(head[:2] + total.to_bytes(2, "big") + head[4:] + quote))


def quoted(version: int, protocol: int, src: str, sport: int, dst: str, dport: int) -> Packet:
    """Return the packet that an error is about."""
    body = segment(protocol, sport, dport) / Raw(b"as much as the router quotes")
    if version == 4:
        return inet.IP(src=src, dst=dst, ttl=7, id=77) / body
    return inet6.IPv6(src=src, dst=dst, hlim=7) / body


@EACH_VERSION
@pytest.mark.parametrize("protocol", [TCP, UDP])
@given(data=st.data(), cut=st.integers(4, 40), ttl=st.integers(2, 255))
def test_an_error_about_an_answer_goes_to_the_server_that_gave_it(
    version: int, protocol: int, *, data: Any, cut: int, ttl: int
) -> None:
    kind = data.draw(st.sampled_from(KINDS[version]))
    client, vip, server, router = (m[version] for m in (CLIENT, VIP, SERVER, ROUTER))
    about = quoted(version, protocol, vip, 80, client, 1024)
    masq, connection = pair(version)
    verdict = masq.transmit(connection, error(version, router, vip, kind, about, cut, ttl))
    about = quoted(version, protocol, server, 8080, client, 1024)
    expected = error(version, router, server, kind, about, cut, ttl - 1)
    assert verdict == Transmit(expected, masq._route)


@EACH_VERSION
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("by", [SERVER, ROUTER], ids=["server", "router"])
@given(data=st.data(), cut=st.integers(4, 40))
def test_an_error_about_a_clients_packet_goes_to_the_client_from_the_vip(
    version: int, protocol: int, by: dict[int, str], *, data: Any, cut: int
) -> None:
    """Whoever sent it: the kernel lets no address from behind the director be seen."""
    kind = data.draw(st.sampled_from(KINDS[version]))
    client, vip, server = (m[version] for m in (CLIENT, VIP, SERVER))
    about = quoted(version, protocol, client, 1024, server, 8080)
    masq, connection = pair(version)
    verdict = masq.reply(connection, error(version, by[version], client, kind, about, cut))
    about = quoted(version, protocol, client, 1024, vip, 80)
    expected = error(version, vip, client, kind, about, cut)
    assert verdict == Transmit(expected, masq._route)


@EACH_VERSION
def test_a_local_server_gets_it_as_it_is_rewritten(version: int) -> None:
    """On the director itself, so that it loses no hop."""
    client, vip, server, router = (m[version] for m in (CLIENT, VIP, SERVER, ROUTER))
    about = quoted(version, TCP, vip, 80, client, 1024)
    masq, connection = pair(version, local=True)
    sent = error(version, router, vip, KINDS[version][0], about, 8, ttl=1)
    about = quoted(version, TCP, server, 8080, client, 1024)
    expected = error(version, router, server, KINDS[version][0], about, 8, ttl=1)
    assert masq.transmit(connection, sent) == Deliver(expected)


def test_options_of_both_headers_are_minded() -> None:
    masq, connection = pair(4)
    about = inet.IP(src=VIP[4], dst=CLIENT[4], options=[inet.IPOption_NOP()] * 4)
    raw = bytes(about / segment(TCP, 80, 1024))
    outer = inet.IP(src=ROUTER[4], dst=VIP[4], ttl=9, options=[inet.IPOption_NOP()] * 8)
    sent = bytes(outer / inet.ICMP(type=3, code=1) / Raw(raw))
    verdict = masq.transmit(connection, sent)
    about.src, outer.dst, outer.ttl = SERVER[4], SERVER[4], 8
    raw = bytes(about / segment(TCP, 8080, 1024))
    expected = bytes(outer / inet.ICMP(type=3, code=1) / Raw(raw))
    assert verdict == Transmit(expected, masq._route)


def test_extension_headers_in_the_quote_are_minded() -> None:
    def about(src: str, sport: int) -> Packet:
        chain = inet6.IPv6ExtHdrDestOpt(options=[inet6.PadN(optdata=bytes(4))])
        return inet6.IPv6(src=src, dst=CLIENT[6]) / chain / segment(UDP, sport, 1024)

    masq, connection = pair(6)
    sent = error(6, ROUTER[6], VIP[6], (1, 3), about(VIP[6], 80), 40)
    verdict = masq.transmit(connection, sent)
    expected = error(6, ROUTER[6], SERVER[6], (1, 3), about(SERVER[6], 8080), 40, 63)
    assert verdict == Transmit(expected, masq._route)


def test_a_wrong_checksum_of_the_quoted_header_is_made_right() -> None:
    """The kernel computes it anew; routers are known to quote stale ones."""
    masq, connection = pair(4)
    about = quoted(4, TCP, VIP[4], 80, CLIENT[4], 1024)
    about.chksum = 0x4242
    verdict = masq.transmit(connection, error(4, ROUTER[4], VIP[4], (3, 1), about, 8))
    about = quoted(4, TCP, SERVER[4], 8080, CLIENT[4], 1024)
    expected = error(4, ROUTER[4], SERVER[4], (3, 1), about, 8, 63)
    assert verdict == Transmit(expected, masq._route)


@given(st.integers(0, 0xFFFF))
def test_a_checksum_of_icmpv6_is_never_zero(word: int) -> None:
    """As the kernel completes it; that of ICMP may be."""

    def total(filler: int, version: int) -> int:
        about = bytes(quoted(version, UDP, VIP[version], 80, CLIENT[version], 1024))
        quote = about[: 48 if version == 6 else 28] + filler.to_bytes(2, "big")
        kind = KINDS[version][0]
        sent = packets.icmp_error(ROUTER[version], VIP[version], *kind, quote)
        masq, connection = pair(version)
        verdict = masq.transmit(connection, sent)
        assert isinstance(verdict, Transmit)
        at = (20 if version == 4 else 40) + 2
        return int.from_bytes(verdict.packet[at : at + 2], "big")

    found = total(word, 6)
    assert found
    assert total((word + found) % 0xFFFF, 6) == 0xFFFF
    assert total((word + total(word, 4)) % 0xFFFF, 4) == 0


# --- what does not go ---


@EACH_VERSION
@given(at=st.integers(0, 60), bit=st.integers(0, 7))
def test_an_error_with_a_wrong_checksum_is_dropped(version: int, at: int, bit: int) -> None:
    client, vip, server, router = (m[version] for m in (CLIENT, VIP, SERVER, ROUTER))
    masq, connection = pair(version)
    start = 20 if version == 4 else 40

    def broken(raw: bytes) -> bytes:
        where = start + at % (len(raw) - start)
        return raw[:where] + bytes([raw[where] ^ 1 << bit]) + raw[where + 1 :]

    about = quoted(version, TCP, vip, 80, client, 1024)
    inward = error(version, router, vip, KINDS[version][0], about, 20)
    assert masq.transmit(connection, broken(inward)) == MALFORMED
    about = quoted(version, TCP, client, 1024, server, 8080)
    outward = error(version, server, client, KINDS[version][0], about, 20)
    assert masq.reply(connection, broken(outward)) == MALFORMED


@EACH_VERSION
@given(cut=st.integers(0, 80))
def test_an_error_that_quotes_too_little_is_dropped(version: int, cut: int) -> None:
    """The ports of the quoted packet must be there: four bytes behind its IP header."""
    about = bytes(quoted(version, TCP, VIP[version], 80, CLIENT[version], 1024))
    kind = KINDS[version][0]
    sent = packets.icmp_error(ROUTER[version], VIP[version], *kind, about[:cut])
    masq, connection = pair(version)
    enough = cut >= (24 if version == 4 else 44)
    assert (masq.transmit(connection, sent) != MALFORMED) == enough


@EACH_VERSION
@given(st.binary(max_size=90))
def test_junk_quotes_raise_nothing(version: int, junk: bytes) -> None:
    kind = KINDS[version][0]
    sent = packets.icmp_error(ROUTER[version], VIP[version], *kind, junk)
    masq, connection = pair(version)
    assert isinstance(masq.transmit(connection, sent), Transmit | Drop)
    assert isinstance(masq.reply(connection, sent), Transmit | Drop)


@EACH_VERSION
def test_at_the_end_of_its_life(version: int) -> None:
    """The director answers no error with an error, so it drops this."""
    about = quoted(version, TCP, VIP[version], 80, CLIENT[version], 1024)
    sent = error(version, ROUTER[version], VIP[version], KINDS[version][0], about, 8, ttl=1)
    masq, connection = pair(version)
    assert masq.transmit(connection, sent) == refuse(sent, Refusal.TIME_EXCEEDED)


def test_a_large_error_is_split_in_spite_of_its_df() -> None:
    """IPv4's; one in IPv6 is refused, which the director drops. ip_vs_xmit.c."""
    for version in (4, 6):
        size = 2000
        about = packets.udp(VIP[version], 80, CLIENT[version], 1024, payload=bytes(size))
        sent = packets.icmp_error(ROUTER[version], VIP[version], *KINDS[version][0], about)
        masq, connection = pair(version)
        verdict = masq.transmit(connection, sent)
        if version == 6:
            assert verdict == refuse(sent[:7] + b"\x3f" + sent[8:], Refusal.TOO_BIG, mtu=1500)
            continue
        assert isinstance(verdict, Transmit)
        raw = verdict.packet
        whole = inet.defragment([inet.IP(part) for part in fragment(raw, 1500)])[0]
        assert bytes(whole) == raw
        shown = inet.IP(raw)
        assert (shown.flags, shown.ttl, shown.dst) == (0, 63, SERVER[4])
        del shown.chksum, shown[inet.ICMP].chksum
        assert bytes(shown) == raw
