"""Every byte of a translated packet, both ways, against scapy."""

from __future__ import annotations

from typing import Any

import lvskit_fwd_masq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lvskit_fwd_masq.crc32c import crc32c
from lvskit_fwd_masq.headers import transport
from lvskit_fwd_masq.masq import Masq
from scapy.layers import inet, inet6
from scapy.layers.sctp import SCTP as SCTPPacket
from scapy.layers.sctp import SCTPChunkData
from scapy.packet import Packet, Raw

from lvskit import (
    SCTP,
    TCP,
    UDP,
    Deliver,
    Director,
    Drop,
    Flow,
    Reason,
    Refusal,
    Reply,
    Route,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    Transmit,
    load_plugins,
    refuse,
)
from lvskit.plugins import Source
from lvskit.testing import packets
from lvskit.testing.packets import address
from lvskit.testing.standins import FirstServer, StandInConnection, StandInServer

HERE = {4: "192.168.1.175", 6: "2001:db8::175"}
SERVER = {4: "192.168.1.11", 6: "2001:db8::11"}
CLIENT = {4: "10.0.0.1", 6: "2001:db8:1::1"}
VIP = {4: "192.168.1.176", 6: "2001:db8::176"}
PORTS = st.integers(0, 65535)
EACH_VERSION = pytest.mark.parametrize("version", [4, 6])
EACH_PROTOCOL = pytest.mark.parametrize("protocol", [TCP, UDP, SCTP])


def pair(
    version: int, dport: int = 8080, vport: int = 80, cport: int = 1024, protocol: int = TCP
) -> tuple[Masq, StandInConnection]:
    """Return a forwarder with a route, and a connection of its server."""
    server = StandInServer(address(SERVER[version]), dport)
    flow = Flow(protocol, address(CLIENT[version]), cport, address(VIP[version]), vport)
    masq = Masq(server)
    masq.route_changed(Route(address(HERE[version]), 1500))
    return masq, StandInConnection(flow, server, dport)


def to_server(packet: bytes, dport: int = 8080) -> bytes:
    """Return the packet as the server gets it."""
    masq, connection = pair(packet[0] >> 4, dport)
    verdict = masq.transmit(connection, packet)
    assert isinstance(verdict, Transmit), verdict
    assert verdict.route is masq._route
    assert not verdict.via
    return verdict.packet


def to_client(packet: bytes, dport: int = 8080, vport: int = 80) -> bytes:
    """Return the packet as the client gets it."""
    masq, connection = pair(packet[0] >> 4, dport, vport)
    verdict = masq.reply(connection, packet)
    assert isinstance(verdict, Transmit), verdict
    assert not verdict.via
    return verdict.packet


def built(
    version: int, protocol: int, src: str, dst: str, sport: int, dport: int, *,
    ttl: int = 64, payload: bytes = b"", **head: Any,
) -> bytes:  # fmt: skip
    """Return a packet as scapy builds it, with all the checksums it has."""
    segment: Packet
    if protocol == TCP:
        segment = inet.TCP(sport=sport, dport=dport, flags="PA", seq=7, ack=9) / Raw(payload)
    elif protocol == UDP:
        segment = inet.UDP(sport=sport, dport=dport) / Raw(payload)
    else:
        segment = SCTPPacket(sport=sport, dport=dport, tag=5) / SCTPChunkData(data=payload)
    if version == 4:
        return bytes(inet.IP(src=src, dst=dst, ttl=ttl, proto=protocol, **head) / segment)
    return bytes(inet6.IPv6(src=src, dst=dst, hlim=ttl, **head) / segment)


@EACH_VERSION
@EACH_PROTOCOL
@given(
    sport=PORTS, vport=PORTS, dport=PORTS, ttl=st.integers(2, 255), payload=st.binary(max_size=70),
    tos=st.integers(0, 255), number=st.integers(0, 65535), df=st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_to_the_server_and_back(
    version: int, protocol: int, *, sport: int, vport: int, dport: int, ttl: int, payload: bytes,
    tos: int, number: int, df: bool,
) -> None:  # fmt: skip
    """As if the client had spoken to the server, and the virtual service to the client."""
    four = {"tos": tos, "id": number, "flags": "DF" if df else 0}
    head = four if version == 4 else {"tc": tos, "fl": number}
    client, vip, server = CLIENT[version], VIP[version], SERVER[version]
    more: dict[str, Any] = {"payload": payload, **head}
    sent = built(version, protocol, client, vip, sport, vport, ttl=ttl, **more)
    expected = built(version, protocol, client, server, sport, dport, ttl=ttl - 1, **more)
    assert to_server(sent, dport) == expected
    answer = built(version, protocol, server, client, dport, sport, ttl=ttl, **more)
    expected = built(version, protocol, vip, client, vport, sport, ttl=ttl, **more)
    assert to_client(answer, dport, vport) == expected


@EACH_PROTOCOL
@given(st.lists(st.sampled_from([inet.IPOption_NOP, inet.IPOption_Timestamp]), max_size=3))
@settings(max_examples=30)
def test_ipv4_options_stay(protocol: int, kinds: list[Any]) -> None:
    more: dict[str, Any] = {"options": [kind() for kind in kinds], "payload": b"odd"}
    sent = built(4, protocol, CLIENT[4], VIP[4], 1024, 80, **more)
    assert to_server(sent) == built(4, protocol, CLIENT[4], SERVER[4], 1024, 8080, ttl=63, **more)
    answer = built(4, protocol, SERVER[4], CLIENT[4], 8080, 1024, **more)
    assert to_client(answer) == built(4, protocol, VIP[4], CLIENT[4], 80, 1024, **more)


def extended(src: str, dst: str, sport: int, dport: int, chain: list[Packet], **head: Any) -> bytes:
    """Return an IPv6 datagram with extension headers as scapy builds it."""
    packet = inet6.IPv6(src=src, dst=dst, **head)
    for each in chain:
        packet /= each.copy()
    return bytes(packet / inet.UDP(sport=sport, dport=dport) / Raw(b"?"))


CHAINS = st.lists(
    st.sampled_from(
        [
            inet6.IPv6ExtHdrHopByHop(options=[inet6.PadN(optdata=bytes(12))]),
            inet6.IPv6ExtHdrDestOpt(options=[inet6.Pad1()]),
            inet6.IPv6ExtHdrFragment(id=7),
        ]
    ),
    max_size=4,
)


@given(CHAINS)
def test_ipv6_extension_headers_stay(chain: list[Packet]) -> None:
    client, vip, server = CLIENT[6], VIP[6], SERVER[6]
    sent = extended(client, vip, 1024, 80, chain, hlim=9)
    assert to_server(sent) == extended(client, server, 1024, 8080, chain, hlim=8)
    answer = extended(server, client, 8080, 1024, chain)
    assert to_client(answer) == extended(vip, client, 80, 1024, chain)


def test_an_authentication_header_counts_in_units_of_four() -> None:
    segment = packets.udp(CLIENT[6], 1024, VIP[6], 80)[40:]
    header = bytes([UDP, 4]) + bytes(22)
    sent = packets.ip(CLIENT[6], VIP[6], 51, header + segment)
    assert transport(sent) == (UDP, 64)
    assert to_server(sent)[40:64] == header
    plain = to_server(packets.udp(CLIENT[6], 1024, VIP[6], 80))
    assert to_server(sent)[64:] == plain[40:]
    # A chain that leads out of the packet ends there.
    assert transport(packets.ip(CLIENT[6], VIP[6], 60, bytes([60, 255])))[1] > 40


# --- checksums ---


@EACH_VERSION
@given(word=st.integers(0, 0xFFFF))
def test_a_udp_checksum_is_never_zero(version: int, word: int) -> None:
    """RFC 768: 0 says that there is none, so a sum of 0 is sent as its twin. So is the server's."""

    def total(filler: int, *, back: bool) -> tuple[int, int]:
        payload = bytes(2) + filler.to_bytes(2, "big")
        at = (20 if version == 4 else 40) + 6
        ends = [(CLIENT[version], 1024), (VIP[version], 80), (SERVER[version], 8080)]
        (src, sport), (dst, dport) = (ends[2], ends[0]) if back else (ends[0], ends[1])
        packet = packets.udp(src, sport, dst, dport, payload=payload)
        raw = (to_client if back else to_server)(packet)
        return int.from_bytes(packet[at : at + 2], "big"), int.from_bytes(raw[at : at + 2], "big")

    for back in (False, True):
        before, after = total(word, back=back)
        assert before
        assert after
        zero = (word + after) % 0xFFFF  # the payload with which the new sum is 0
        assert total(zero, back=back)[1] == 0xFFFF
        zero = (word + before) % 0xFFFF  # and with which the old one is
        before, after = total(zero, back=back)
        assert (before, after) == (0xFFFF, after)
        assert after not in (0, 0xFFFF)


@EACH_VERSION
@given(payload=st.binary(max_size=50))
def test_a_udp_datagram_without_a_checksum_gets_one(version: int, payload: bytes) -> None:
    at = (20 if version == 4 else 40) + 6
    client, vip, server = CLIENT[version], VIP[version], SERVER[version]
    sent = packets.udp(client, 1024, vip, 80, payload=payload)
    bare = sent[:at] + bytes(2) + sent[at + 2 :]
    assert to_server(bare) == packets.udp(client, 1024, server, 8080, payload=payload, ttl=63)
    answer = packets.udp(server, 8080, client, 1024, payload=payload)
    bare = answer[:at] + bytes(2) + answer[at + 2 :]
    assert to_client(bare) == packets.udp(vip, 80, client, 1024, payload=payload)


@EACH_VERSION
@pytest.mark.parametrize(("build", "offset"), [(packets.tcp, 16), (packets.udp, 6)])
@given(wrong=st.integers(1, 0xFFFE))
def test_a_wrong_checksum_stays_as_wrong_as_it_is(
    version: int, build: Any, offset: int, *, wrong: int
) -> None:
    """The server is to notice what the network broke."""
    at = (20 if version == 4 else 40) + offset
    sent = build(CLIENT[version], 1024, VIP[version], 80)
    right = int.from_bytes(sent[at : at + 2], "big")
    total = (right + wrong) % 0xFFFF or 0xFFFF
    raw = to_server(sent[:at] + total.to_bytes(2, "big") + sent[at + 2 :])
    should = int.from_bytes(to_server(sent)[at : at + 2], "big")
    assert (int.from_bytes(raw[at : at + 2], "big") - should) % 0xFFFF == wrong % 0xFFFF


def test_a_tcp_checksum_of_zero_is_zero() -> None:
    """Only UDP avoids it. One payload in 65,535 has it."""
    found = to_server(packets.tcp(CLIENT[4], 1024, VIP[4], 80, payload=bytes(2)))
    word = int.from_bytes(found[36:38], "big")
    sent = packets.tcp(CLIENT[4], 1024, VIP[4], 80, payload=word.to_bytes(2, "big"))
    assert to_server(sent)[36:38] == bytes(2)
    with_options = sent[:20] + bytes([1, 1, 1, 1]) + sent[20:]
    with_options = bytes([0x46]) + with_options[1:]
    assert to_server(with_options)[40:42] == bytes(2)


def test_a_checksum_of_sctp_is_made_right_where_the_port_changes_and_else_let_be() -> None:
    """It covers no addresses."""
    sent = built(4, SCTP, CLIENT[4], VIP[4], 1024, 80, payload=b"data")
    broken = sent[:28] + bytes(4) + sent[32:]
    assert to_server(broken) == to_server(sent)
    assert to_server(broken, 80)[28:32] == bytes(4)
    assert to_server(sent, 80)[28:32] == sent[28:32]
    answer = built(4, SCTP, SERVER[4], CLIENT[4], 80, 1024)
    assert to_client(answer, 80)[28:32] == answer[28:32]


@given(st.binary(max_size=300))
def test_crc32c(data: bytes) -> None:
    """Bit by bit, as the polynomial says."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    assert crc32c(data) == value ^ 0xFFFFFFFF


# --- what does not go ---


@EACH_VERSION
@EACH_PROTOCOL
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_at_the_end_of_its_life_is_answered(version: int, protocol: int, ttl: int) -> None:
    masq, connection = pair(version)
    body = bytes(3000)
    sent = built(version, protocol, CLIENT[version], VIP[version], 1, 80, ttl=ttl, payload=body)
    assert masq.transmit(connection, sent) == refuse(sent, Refusal.TIME_EXCEEDED)


def test_the_ttl_of_an_answer_is_the_hosts_affair() -> None:
    """The host that passes it on has decremented it: ip_forward comes before the hook."""
    for version, at in ((4, 8), (6, 7)):
        answer = packets.tcp(SERVER[version], 8080, CLIENT[version], 1024, ttl=1)
        assert to_client(answer)[at] == 1


@EACH_VERSION
@EACH_PROTOCOL
def test_what_does_not_fit_is_answered(version: int, protocol: int) -> None:
    """The quote names the VIP, and has lost the hop already."""
    client, vip = CLIENT[version], VIP[version]
    masq, connection = pair(version)
    empty = len(built(version, protocol, client, vip, 1, 80))
    for size in (1500, 1504):
        more: dict[str, Any] = {"flags": "DF"} if version == 4 else {}
        sent = built(version, protocol, client, vip, 1, 80, payload=bytes(size - empty), **more)
        assert len(sent) == size
        verdict = masq.transmit(connection, sent)
        if size == 1500:
            assert isinstance(verdict, Transmit)
            continue
        more |= {"payload": bytes(size - empty), "ttl": 63}
        quoted = built(version, protocol, client, vip, 1, 80, **more)
        assert verdict == refuse(quoted, Refusal.TOO_BIG, mtu=1500)


@EACH_PROTOCOL
def test_what_may_be_split_goes(protocol: int) -> None:
    sent = built(4, protocol, CLIENT[4], VIP[4], 1024, 80, payload=bytes(3000))
    expected = built(4, protocol, CLIENT[4], SERVER[4], 1024, 8080, payload=bytes(3000), ttl=63)
    assert to_server(sent) == expected


def test_a_changed_route_counts_from_the_next_packet_on() -> None:
    masq, connection = pair(4)
    sent = packets.tcp(CLIENT[4], 1, VIP[4], 80, payload=bytes(1400))
    for mtu, kind in ((1400, Reply), (1440, Transmit), (1439, Reply)):
        masq.route_changed(Route(address(HERE[4]), mtu))
        assert isinstance(masq.transmit(connection, sent), kind)


# --- a server that is the director ---


@EACH_VERSION
@EACH_PROTOCOL
@pytest.mark.parametrize("ttl", [0, 1, 64])
@pytest.mark.parametrize("size", [0, 3000])
def test_the_local_socket_gets_the_rewritten_packet(
    version: int, protocol: int, ttl: int, size: int
) -> None:
    """Whatever its TTL, which stays, and its size."""
    masq, connection = pair(version)
    masq.route_changed(Route(address(SERVER[version]), 1280, local=True))
    client, vip, server = CLIENT[version], VIP[version], SERVER[version]
    more: dict[str, Any] = {"payload": bytes(size), "ttl": ttl}
    more |= {"flags": "DF"} if version == 4 else {}
    sent = built(version, protocol, client, vip, 1024, 80, **more)
    expected = built(version, protocol, client, server, 1024, 8080, **more)
    assert masq.transmit(connection, sent) == Deliver(expected)
    answer = built(version, protocol, server, client, 8080, 1024, **more)
    verdict = masq.reply(connection, answer)
    assert isinstance(verdict, Transmit)
    assert verdict.packet == built(version, protocol, vip, client, 80, 1024, **more)


@pytest.mark.parametrize("loopback", ["127.0.0.1", "127.255.0.9", "::1"])
def test_a_loopback_address_gets_nothing_from_the_network(loopback: str) -> None:
    version = 6 if ":" in loopback else 4
    server = StandInServer(address(loopback))
    masq = Masq(server)
    masq.route_changed(Route(address(loopback), 65535, local=True))
    connection = StandInConnection(packets.flow(CLIENT[version], 1, VIP[version], 80), server)
    sent = packets.tcp(CLIENT[version], 1, VIP[version], 80)
    assert masq.transmit(connection, sent) == Drop(Reason.SERVER_UNREACHABLE)


# --- through a director ---


@EACH_VERSION
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_through_a_director(version: int, protocol: int) -> None:
    plugins = load_plugins()
    plugins.add(FirstServer(), Source("first", "lvskit-test", "1"))
    route = Route(address(HERE[version]), 1500)
    director = Director(plugins, lambda target: route)
    key = ServiceKey.of(protocol, address(VIP[version]), 80)
    director.add_service(key, ServiceSettings(scheduler="first"))
    director.add_server(key, address(SERVER[version]), 8080, ServerSettings(method="masq"))
    build = packets.tcp if protocol == TCP else packets.udp
    verdict = director.receive(build(CLIENT[version], 1024, VIP[version], 80), 0.0)
    expected = build(CLIENT[version], 1024, SERVER[version], 8080, ttl=63)
    assert verdict == Transmit(expected, route)


def test_records() -> None:
    (spec,) = lvskit_fwd_masq.lvskit_register_forwarders()
    assert (spec.name, spec.keeps_port, spec.same_version) == ("masq", False, True)
    assert spec.options is None
    assert load_plugins().forwarder("masq").factory is spec.factory
