"""Hosts on the simulated segment: what they take, answer, send on, split, put together, learn."""

from __future__ import annotations

import ipaddress

import pytest
from scapy.layers import inet, inet6

from lvskit import Refusal, Route, refuse
from lvskit.datapath.memory import Host, Network, stack
from lvskit.refusals import answer_v4
from lvskit.testing import packets
from lvskit.testing.packets import address
from lvskit.types import Reassembled

CLIENT, HOST, OTHER, GATEWAY = "10.0.0.1", "192.168.1.11", "192.168.1.12", "192.168.1.1"
CLIENT6, HOST6, OTHER6, GATEWAY6 = "2001:db8:1::1", "2001:db8::11", "2001:db8::12", "2001:db8::1"
QUIET = "192.168.1.176"
GATEWAYS = {4: address(GATEWAY), 6: address(GATEWAY6)}


class Wire:
    """A network, one host on it, and all that leaves for somebody who is not there."""

    def __init__(self, gateway: dict[int, bytes] | None = None, mtu: int = 1500) -> None:
        self.network = Network()
        self.seen: list[tuple[bytes, bytes]] = []
        self.network.stray = lambda packet, next_hop: self.seen.append((packet, next_hop))
        self.host = Host(
            self.network, [f"{HOST}/24", f"{HOST6}/64", "2001:db8::a/64"],
            gateway=GATEWAYS if gateway is None else gateway, mtu=mtu, quiet=[QUIET],
        )  # fmt: skip

    def sent(self) -> list[bytes]:
        """Return what was emitted, after everything has been carried."""
        self.network.run()
        found, self.seen = self.seen, []
        return [packet for packet, _ in found]

    def hops(self) -> list[bytes]:
        """Return the next hops of what was emitted."""
        self.network.run()
        found, self.seen = self.seen, []
        return [next_hop for _, next_hop in found]

    def answers(self, packet: bytes) -> list[bytes]:
        self.network.send(packet, address(HOST))
        return self.sent()


# --- the segment ---


def test_packets_go_in_the_order_of_sending_to_who_answers_for_the_next_hop() -> None:
    wire = Wire()
    got: list[bytes] = []
    wire.host.input = got.append  # type: ignore[method-assign]
    for number, target in enumerate((HOST, OTHER, HOST6, QUIET)):
        wire.network.send(bytes((number,)), address(target))
    assert got == []
    assert wire.sent() == [b"\1", b"\3"]  # for the quiet address nobody answers
    assert got == [b"\0", b"\2"]


def test_time_moves_when_told_to() -> None:
    network = Network()
    assert network.now == 0.0
    network.advance(1.5)
    network.advance(0.25)
    assert network.now == 1.75
    network.stray(b"", b"")  # by default, nobody looks


# --- what a host owns, and how it reaches others ---


def test_what_a_host_owns() -> None:
    host = Wire().host
    for mine in (HOST, HOST6, "2001:db8::a", QUIET, "127.0.0.1", "127.9.9.9", "::1"):
        assert host.owns(address(mine))
    for other in (OTHER, OTHER6, "192.168.1.0", "192.168.1.255", "10.0.0.1"):
        assert not host.owns(address(other))


def test_routes() -> None:
    wire = Wire(mtu=1400)
    host = wire.host
    # To itself by the loopback device, whose MTU of 65536 no IPv4 header can tell.
    assert host.routes(address(HOST)) == Route(address(HOST), 65535, local=True)
    assert host.routes(address(QUIET)) == Route(address(QUIET), 65535, local=True)
    assert host.routes(address(HOST6)) == Route(address(HOST6), 65536, local=True)
    assert host.routes(address(OTHER)) == Route(address(HOST), 1400)
    assert host.routes(address(CLIENT)) == Route(address(HOST), 1400)
    # Of several own addresses, the first for IPv4, for IPv6 the last.
    assert host.routes(address(OTHER6)) == Route(address("2001:db8::a"), 1400)
    host.paths[address(CLIENT)] = 600
    assert host.routes(address(CLIENT)) == Route(address(HOST), 600)
    host.unreachable.append(ipaddress.ip_network("10.0.0.0/8"))
    assert host.routes(address(CLIENT)) is None
    assert Wire(gateway={}).host.routes(address(CLIENT)) is None
    assert Wire(gateway={}).host.routes(address(OTHER)) == Route(address(HOST), 1500)
    assert Wire(gateway={4: GATEWAYS[4]}).host.routes(address(CLIENT6)) is None


def test_next_hops() -> None:
    wire = Wire()
    for target in (OTHER, CLIENT, OTHER6, CLIENT6):
        source = HOST6 if ":" in target else HOST
        wire.host.send(packets.udp(source, 1, target, 2))
    assert wire.hops() == [address(OTHER), GATEWAYS[4], address(OTHER6), GATEWAYS[6]]
    wire.host.transmit(packets.udp(HOST, 1, CLIENT, 2), via=address(OTHER))
    assert wire.hops() == [address(OTHER)]
    lonely = Wire(gateway={})
    lonely.host.send(packets.udp(HOST, 1, CLIENT, 2))
    assert lonely.hops() == []


# --- what a host answers ---


@pytest.mark.parametrize(
    "packet",
    [
        packets.tcp(CLIENT, 1, HOST, 80)[:30],
        packets.tcp(CLIENT, 1, HOST, 80)[:-1],
        packets.tcp(CLIENT, 1, HOST, 80, ttl=5).replace(b"\5\6", b"\4\6", 1),
        packets.tcp("127.0.0.1", 1, HOST, 80),
        packets.tcp("224.0.0.1", 1, HOST, 80),
        packets.tcp(HOST, 1, HOST, 80),
        packets.tcp(QUIET, 1, HOST, 80),
        packets.ip(CLIENT, HOST, 99, bytes(9), options=bytes.fromhex("83030400")),
        packets.tcp(CLIENT, 1, HOST, 80, "R"),
        packets.ip(CLIENT, HOST, 1, b"\5" + bytes(7)),
        packets.ip(CLIENT, HOST, 41, bytes(40)),
        packets.ip(CLIENT, HOST, 4, packets.tcp(CLIENT, 1, HOST, 80)),
    ],
    ids=["cut", "shorter than it says", "header checksum", "loopback", "multicast", "itself",
         "itself, quietly", "source route", "reset", "redirect", "6in4", "IP in IP"],
)  # fmt: skip
def test_what_is_not_answered(packet: bytes) -> None:
    assert Wire().answers(packet) == []


def test_closed_ports_unknown_protocols_and_pings() -> None:
    wire = Wire()
    for source, target in ((CLIENT, HOST), (CLIENT6, HOST6), (CLIENT, QUIET)):
        syn = packets.tcp(source, 1, target, 80)
        (answer,) = wire.answers(syn + b"padding")
        found = (inet6.IPv6 if ":" in source else inet.IP)(answer)
        assert (found.src, found.dst, str(found[inet.TCP].flags)) == (target, source, "RA")
        query = packets.udp(source, 1, target, 53)
        assert wire.answers(query) == [refuse(query, Refusal.PORT_UNREACHABLE).packet]
        strange = packets.ip(source, target, 99, bytes(9))
        at = 6 if ":" in source else 0  # where an IPv6 header names the protocol
        refusal = refuse(strange, Refusal.PROTOCOL_UNREACHABLE, mtu=at)
        assert wire.answers(strange) == [refusal.packet]
    ping = bytes(inet.IP(src=CLIENT, dst=HOST) / inet.ICMP(id=5))
    (answer,) = wire.answers(ping)
    assert inet.IP(answer)[inet.ICMP].type == 0
    ping6 = bytes(inet6.IPv6(src=CLIENT6, dst=HOST6) / inet6.ICMPv6EchoRequest(id=5))
    (answer,) = wire.answers(ping6)
    assert inet6.IPv6(answer)[inet6.ICMPv6EchoReply].id == 5


@pytest.mark.parametrize("build", [packets.tcp, packets.udp])
def test_a_wrong_checksum_is_not_answered(build: object) -> None:
    packet = bytearray(build(CLIENT, 1, HOST, 80))  # type: ignore[operator]
    packet[-1] ^= 1
    assert Wire().answers(bytes(packet)) == []


def test_what_a_host_sends_to_itself_stays_with_it() -> None:
    wire = Wire()
    wire.host.send(packets.udp(HOST, 1, QUIET, 53))
    assert wire.sent() == []


# --- unpacking ---


def test_a_host_that_unpacks_takes_what_is_inside_as_if_from_the_wire() -> None:
    wire = Wire()
    syn, syn6 = packets.tcp(CLIENT, 1, QUIET, 80), packets.tcp(CLIENT6, 1, HOST6, 80)
    tunnels = [packets.ip(OTHER, HOST, 4, syn), packets.ip(OTHER, HOST, 41, syn6)]
    assert [wire.answers(packet) for packet in tunnels] == [[], []]
    wire.host.unpacks = True
    answers = [wire.answers(packet) for packet in tunnels]
    assert [len(found) for found in answers] == [1, 1]
    assert inet.IP(answers[0][0]).src == QUIET
    assert inet6.IPv6(answers[1][0]).src == HOST6
    assert wire.answers(packets.ip(OTHER, HOST, 4, syn[:30])) == []
    # What is inside may be for somebody else, and then it is sent on.
    (passed,) = wire.answers(packets.ip(OTHER, HOST, 4, packets.tcp(CLIENT, 1, OTHER, 80)))
    assert (inet.IP(passed).dst, inet.IP(passed).ttl) == (OTHER, 63)


# --- sending on ---


@pytest.mark.parametrize(
    ("source", "target", "hop"), [(CLIENT, OTHER, OTHER), (OTHER, CLIENT, GATEWAY)]
)
def test_packets_for_others_are_sent_on(source: str, target: str, hop: str) -> None:
    wire = Wire()
    packet = packets.udp(source, 1, target, 2, ttl=9)
    wire.network.send(packet, address(HOST))
    wire.network.run()
    assert wire.seen == [(stack.decremented(packet), address(hop))]


def test_of_ipv6_likewise_and_no_packet_lives_for_ever() -> None:
    wire = Wire()
    packet = packets.udp(CLIENT6, 1, OTHER6, 2)
    assert wire.answers(packet) == [stack.decremented(packet)]
    assert wire.answers(packets.udp(CLIENT6, 1, OTHER6, 2, ttl=1)) == []
    assert wire.answers(packets.udp(CLIENT, 1, OTHER, 2, ttl=1)) == []


def test_fragments_for_others_are_sent_on_as_they_are() -> None:
    wire = Wire()
    part = packets.ip(CLIENT, OTHER, 17, bytes(16), df=False, more=True, offset=3)
    assert wire.answers(part) == [stack.decremented(part)]


# --- sizes ---


def sizes(parts: list[bytes]) -> list[int]:
    return [len(part) for part in parts]


def test_what_is_larger_than_the_link_is_split_if_it_may_be() -> None:
    wire = Wire(mtu=1000)
    for df, wanted in ((False, [996, 996, 76]), (True, [])):
        wire.host.transmit(packets.ip(HOST, OTHER, 17, bytes(2008), df=df))
        assert sizes(wire.sent()) == wanted
    wire.host.transmit(packets.udp(HOST6, 1, OTHER6, 2, payload=bytes(953)))
    assert wire.sent() == []
    for fits in (
        packets.udp(HOST6, 1, OTHER6, 2, payload=bytes(952)),
        packets.udp(HOST, 1, OTHER, 2, payload=bytes(972)),
    ):
        wire.host.transmit(fits)
        assert wire.sent() == [fits]


def test_a_path_may_be_narrower() -> None:
    wire = Wire()
    wire.host.paths[address(OTHER)] = 600
    packet = packets.ip(HOST, OTHER, 17, bytes(1000), df=False)
    wire.host.transmit(packet)
    assert sizes(wire.sent()) == [596, 444]
    wire.host.transmit(packets.ip(HOST, CLIENT, 17, bytes(1000), df=False), via=address(OTHER))
    assert sizes(wire.sent()) == [596, 444]
    wire.host.transmit(packets.ip(HOST, CLIENT, 17, bytes(1000), df=False))
    assert sizes(wire.sent()) == [1020]


@pytest.mark.parametrize(
    ("largest", "wanted"),
    [(1500, [1020]), (1020, [1020]), (1019, [1012, 28]), (300, [300] * 3 + [180])],
)
def test_what_came_in_fragments_goes_in_no_larger_ones(largest: int, wanted: list[int]) -> None:
    """Also with DF, which is then on every fragment."""
    wire = Wire()
    for df in (True, False):
        packet = packets.ip(HOST, OTHER, 17, bytes(1000), df=df)
        came = Reassembled(packet, largest, ())
        wire.host.transmit(packet, came=came)
        parts = wire.sent()
        assert sizes(parts) == wanted
        assert {part[6] & 0x40 for part in parts} == {0x40 * df}
    (again,) = inet.defragment([inet.IP(part) for part in parts])
    assert len(bytes(again)) == 1020


def test_options_are_split_with_the_header() -> None:
    wire = Wire()
    wire.host.transmit(packets.ip(HOST, OTHER, 17, bytes(2000), df=False, options=b"\1" * 4))
    parts = wire.sent()
    assert sizes(parts) == [1496, 552]
    assert all(stack.sane(part) for part in parts)


def test_of_ipv6_what_came_in_fragments_goes_in_fragments() -> None:
    wire = Wire()
    packet = packets.udp(HOST6, 1, OTHER6, 2, payload=bytes(2000))
    wire.host.transmit(packet, came=Reassembled(packet, 1400, ()))
    parts = [inet6.IPv6(part) for part in wire.sent()]
    assert all(len(bytes(part)) <= 1400 for part in parts)
    assert bytes(inet6.defragment6(parts)) == packet


def test_of_ipv6_what_came_in_fragments_is_split_where_it_was() -> None:
    wire = Wire()
    packet = packets.udp(HOST6, 1, OTHER6, 2, payload=bytes(292))
    came = Reassembled(packet, 252, (100, 200))
    wire.host.transmit(packet, came=came)
    assert sizes(wire.sent()) == [348]  # no multiple of 8, and the least path of IPv6 is 1280
    wire.host.transmit(packet, came=Reassembled(packet, 248, (104, 196)))
    assert sizes(wire.sent()) == [40 + 8 + 104, 40 + 8 + 196]
    inside = packet[40:]
    tunnel = packets.ip(HOST6, OTHER6, 41, packet)
    wire.host.transmit(tunnel, came=came)  # there is room for the whole tunnel
    assert sizes(wire.sent()) == [40 + 40 + len(inside)]


# --- putting together ---


def halves(target: str = HOST, number: int = 5) -> list[bytes]:
    """Return the two fragments of a datagram with this identification."""
    query = packets.udp(CLIENT, 1, target, 53, payload=bytes(100))
    ends = CLIENT, target, 17
    return [
        packets.ip(*ends, query[20:60], df=False, more=True, identification=number),
        packets.ip(*ends, query[60:], df=False, offset=5, identification=number),
    ]


def test_fragments_are_put_together_first() -> None:
    wire = Wire()
    first, second = halves()
    assert wire.answers(second) == []
    (answer,) = wire.answers(first)
    found = inet.IP(answer)
    assert (found[inet.ICMP].type, found[inet.ICMP].code) == (3, 3)
    assert found[inet.IPerror].len == 128


def test_what_is_no_packet_once_put_together_is_not_answered() -> None:
    wire = Wire()
    ends = CLIENT, HOST, 6
    assert wire.answers(packets.ip(*ends, bytes(16), df=False, more=True)) == []
    assert wire.answers(packets.ip(*ends, bytes(3), df=False, offset=2)) == []


def test_what_stays_incomplete_is_told_to_who_sent_the_first_fragment() -> None:
    """RFC 792: time exceeded, code 1; nobody is told where the first one is missing."""
    wire = Wire()
    first, _ = halves()
    _, second = halves(number=6)
    wire.answers(first)
    wire.answers(second)
    wire.network.advance(29.999)
    wire.host.expire()
    assert wire.sent() == []
    wire.network.advance(0.001)
    wire.host.expire()
    assert wire.sent() == [answer_v4(first, (11, 1), 0)]
    wire.host.expire()
    assert wire.sent() == []


def test_nobody_is_told_of_what_was_for_others_or_of_ipv6() -> None:
    wire = Wire()
    header = bytes((17, 0, 0, 1)) + bytes(4)
    six = packets.ip(CLIENT6, HOST6, 44, header + bytes(16))
    wire.answers(six)
    wire.host.reassembler.add(halves(OTHER)[0], 0.0)
    wire.network.advance(60.0)
    wire.host.expire()
    assert wire.sent() == []


# --- path MTUs ---

SENT = packets.udp(HOST, 1, OTHER, 2, payload=bytes(1400))


def too_big(quote: bytes = SENT, mtu: int = 1000, kind: int = 3, code: int = 4) -> bytes:
    return packets.icmp_error(GATEWAY, HOST, kind, code, quote, rest=mtu)


@pytest.mark.parametrize(
    ("mtu", "learnt"),
    [
        (1499, 1499),
        (1000, 1000),
        (553, 553),
        (552, 552),
        (551, 552),
        (0, 552),
        (0x102BC, 700),
    ],
)
def test_a_path_mtu_is_learnt_from_an_error(mtu: int, learnt: int) -> None:
    """Half of the field is for it; no less than 552 is believed."""
    host = Wire().host
    assert host.learn(too_big(mtu=mtu)) is True
    assert host.paths == {address(OTHER): learnt}
    assert host.routes(address(OTHER)) == Route(address(HOST), learnt)


def damaged() -> bytes:
    error = bytearray(too_big())
    error[-1] ^= 1
    return bytes(error)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        SENT,
        too_big(kind=3, code=3),
        too_big(kind=11, code=4),
        too_big(kind=5, code=4),
        too_big(SENT[:19]),
        too_big(packets.udp(OTHER, 1, HOST, 2)),
        too_big(mtu=1500),
        too_big(mtu=1501),
        packets.icmp_error(GATEWAY6, HOST6, 2, 0, packets.udp(HOST6, 1, OTHER6, 2), rest=1300),
        damaged(),
    ],
    ids=["nothing", "no error", "port", "time", "redirect", "short", "another's", "no less",
         "more", "IPv6", "checksum"],
)  # fmt: skip
def test_what_teaches_nothing(packet: bytes) -> None:
    host = Wire().host
    assert host.learn(packet) is False
    assert host.paths == {}


def test_only_a_smaller_mtu_is_news() -> None:
    host = Wire().host
    assert host.learn(too_big(SENT[:20], mtu=1200))
    assert not host.learn(too_big(mtu=1300))
    assert not host.learn(too_big(mtu=1200))
    assert host.learn(too_big(mtu=1199))
    assert host.paths == {address(OTHER): 1199}
    assert host.learn(too_big(packets.udp(QUIET, 1, CLIENT, 2), mtu=1400))
    assert host.paths == {address(OTHER): 1199, address(CLIENT): 1400}
