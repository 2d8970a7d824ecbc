"""Clients, a director and real servers on the simulated network, with the bundled methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from scapy.layers import inet

from lvskit import (
    TCP,
    UDP,
    Director,
    Refusal,
    ServerSettings,
    ServiceKey,
    ServiceSettings,
    load_plugins,
    refuse,
)
from lvskit.core.connection import Connection
from lvskit.datapath.memory import (
    ClientHost,
    DirectorHost,
    Mark,
    Network,
    RealServerHost,
    Services,
    stack,
)
from lvskit.testing import packets
from lvskit.testing.packets import address

DIP, VIP, OTHER_VIP = "192.168.1.175", "192.168.1.176", "192.168.1.177"
GATEWAY, SERVER, CLIENT, NEAR = "192.168.1.1", "192.168.1.11", "10.0.0.1", "192.168.1.50"
CLIENT6, VIP6, GATEWAY6 = "2001:db8:1::1", "2001:db8::176", "2001:db8::1"
WEB = ServiceKey.of(TCP, address(VIP), 80)
DNS = ServiceKey.of(UDP, address(VIP), 53)
PLUGINS = load_plugins(strict=True)


class Site:
    """A director's host facing a wire, and what it emits."""

    def __init__(self, *, local: Services | None = None, **host: Any) -> None:
        self.network = Network()
        self.seen: list[tuple[bytes, bytes]] = []
        self.network.stray = lambda packet, next_hop: self.seen.append((packet, next_hop))
        addresses = [f"{DIP}/24", f"{VIP}/32", f"{OTHER_VIP}/32", "2001:db8::175/64", f"{VIP6}/128"]
        gateway = {4: address(GATEWAY), 6: address(GATEWAY6)}
        self.host = DirectorHost(self.network, addresses, gateway=gateway, services=local, **host)
        self.director = self.host.director = Director(PLUGINS, self.host.routes)

    def serve(
        self, key: ServiceKey, *servers: str, method: str = "tunnel", port: int | None = None
    ) -> None:
        self.director.add_service(key, ServiceSettings(scheduler="rr"))
        for server in servers:
            told = ServerSettings(method=method)
            self.director.add_server(key, address(server), port, told)

    def arrive(self, packet: bytes) -> list[bytes]:
        """Let a packet arrive; return what the host emits."""
        self.host.input(packet)
        return [sent for sent, _ in self.emitted()]

    def emitted(self) -> list[tuple[bytes, bytes]]:
        """Return what was emitted, with the next hops."""
        self.network.run()
        found, self.seen = self.seen, []
        return found

    @property
    def connection(self) -> Connection:
        (found,) = self.director.table
        assert isinstance(found, Connection)
        return found


# --- marks ---


@pytest.mark.parametrize(
    ("mark", "matches"),
    [
        (Mark("192.168.1.176", 7), True),
        (Mark("192.168.1.0/24", 7), True),
        (Mark("192.168.2.0/24", 7), False),
        (Mark("192.168.1.176", 7, TCP), True),
        (Mark("192.168.1.176", 7, UDP), False),
        (Mark("192.168.1.176", 7, TCP, frozenset({443, 80})), True),
        (Mark("192.168.1.176", 7, TCP, frozenset({443})), False),
        (Mark("192.168.1.176", 7, ports=frozenset({80})), True),
        (Mark("2001:db8::/64", 7), False),
    ],
)
def test_what_a_rule_marks(mark: Mark, matches: bool) -> None:
    assert mark.matches(address(VIP), TCP, 80) is matches


def test_the_last_rule_that_matches_counts() -> None:
    marks = [Mark("0.0.0.0/0", 7), Mark(VIP, 8, TCP), Mark("10.0.0.0/8", 9)]
    site = Site(marks=marks)
    for number, server in ((7, "192.168.1.17"), (8, "192.168.1.18"), (9, "192.168.1.19")):
        site.serve(ServiceKey.mark(number), server)

    def chosen(packet: bytes) -> str:
        (sent,) = site.arrive(packet)
        found: str = inet.IP(sent).dst
        return found

    assert chosen(packets.tcp(CLIENT, 1, VIP, 80)) == "192.168.1.18"
    assert chosen(packets.udp(CLIENT, 1, VIP, 80)) == "192.168.1.17"
    assert chosen(packets.tcp(CLIENT, 1, OTHER_VIP, 80)) == "192.168.1.17"
    site.host.marks.clear()
    assert [inet.IP(p)[inet.TCP].flags for p in site.arrive(packets.tcp(CLIENT, 2, VIP, 80))] == [
        "RA"
    ]


# --- what the director says is done ---


def test_a_request_goes_through_the_tunnel_to_the_servers_next_hop() -> None:
    site = Site()
    site.serve(WEB, SERVER)
    syn = packets.tcp(CLIENT, 1024, VIP, 80)
    site.host.input(syn)
    ((sent, next_hop),) = site.emitted()
    assert next_hop == address(SERVER)
    outer = inet.IP(sent)
    assert (outer.src, outer.dst, outer.proto, outer.ttl) == (DIP, SERVER, 4, 63)
    assert sent[20:] == stack.decremented(syn)


def test_a_direct_packet_goes_to_the_servers_next_hop_as_it_is() -> None:
    site = Site()
    site.serve(WEB, SERVER, method="droute")
    syn = packets.tcp(CLIENT, 1024, VIP, 80)
    site.host.input(syn)
    ((sent, next_hop),) = site.emitted()
    assert (sent, next_hop) == (stack.decremented(syn), address(SERVER))


def test_a_refusal_goes_to_the_client() -> None:
    site = Site()
    site.serve(WEB)
    syn = packets.tcp(CLIENT, 1024, VIP, 80)
    site.host.input(syn)
    assert site.emitted() == [(refuse(syn, Refusal.PORT_UNREACHABLE).packet, address(GATEWAY))]


def test_what_is_dropped_goes_nowhere() -> None:
    site = Site()
    site.serve(WEB, SERVER)
    site.director.tune({"drop_packet": 3, "am_droprate": 1})
    assert site.arrive(packets.tcp(CLIENT, 1024, VIP, 80)) == []


def test_what_is_nobodys_is_the_hosts_own() -> None:
    site = Site(local=Services({25: b"hello"}))
    site.serve(WEB, SERVER)
    for port, flags in ((25, "SA"), (26, "RA")):
        (answer,) = site.arrive(packets.tcp(CLIENT, 1024, VIP, port))
        found = inet.IP(answer)
        assert (found.src, str(found[inet.TCP].flags)) == (VIP, flags)
    (pong,) = site.arrive(bytes(inet.IP(src=CLIENT, dst=VIP) / inet.ICMP()))
    assert inet.IP(pong)[inet.ICMP].type == 0


def test_a_local_server_answers_and_its_answers_count() -> None:
    site = Site(local=Services({80: b"hello"}))
    site.serve(WEB, DIP)
    (answer,) = site.arrive(packets.tcp(CLIENT, 1024, VIP, 80))
    assert (inet.IP(answer).src, str(inet.IP(answer)[inet.TCP].flags)) == (VIP, "SA")
    assert site.connection.two_way
    counters = site.director.services.counters
    assert (counters.inpkts, counters.outpkts, counters.outbytes) == (1, 1, 40)


def test_a_local_server_by_address_translation_gets_the_rewritten_packet() -> None:
    site = Site(local=Services({8080: b"hello"}))
    site.serve(WEB, DIP, method="masq", port=8080)
    (answer,) = site.arrive(packets.tcp(CLIENT, 1024, VIP, 80))
    found = inet.IP(answer)
    assert (found.src, found[inet.TCP].sport, str(found[inet.TCP].flags)) == (VIP, 80, "SA")
    assert stack.transport_intact(answer, _parsed(answer))


def _parsed(packet: bytes) -> Any:
    from lvskit.core.packet import parse

    return parse(packet)


# --- answers that cross the director ---


def masquerading(**host: Any) -> Site:
    site = Site(**host)
    site.serve(WEB, SERVER, method="masq", port=8080)
    site.serve(DNS, SERVER, method="masq", port=5353)
    site.arrive(packets.tcp(CLIENT, 1024, VIP, 80))
    site.arrive(packets.udp(CLIENT, 9, VIP, 53))
    return site


def test_an_answer_comes_back_from_the_virtual_address() -> None:
    site = masquerading()
    site.host.input(packets.tcp(SERVER, 8080, CLIENT, 1024, "SA", ttl=64))
    ((sent, next_hop),) = site.emitted()
    assert next_hop == address(GATEWAY)
    assert sent == packets.tcp(VIP, 80, CLIENT, 1024, "SA", ttl=63)


def test_what_is_no_answer_is_sent_on_as_it_is() -> None:
    site = masquerading()
    stray = packets.tcp(SERVER, 8081, CLIENT, 1024, "SA")
    assert site.arrive(stray) == [stack.decremented(stray)]
    assert site.arrive(packets.tcp(SERVER, 8080, CLIENT, 1024, "SA", ttl=1)) == []


def test_an_answer_that_is_dropped_goes_nowhere() -> None:
    """An ICMP error of the server with a wrong checksum."""
    site = masquerading()
    error = bytearray(
        packets.icmp_error(SERVER, CLIENT, 3, 3, packets.udp(CLIENT, 9, SERVER, 5353))
    )
    assert len(site.arrive(bytes(error))) == 1
    error[-1] ^= 1
    assert site.arrive(bytes(error)) == []


def pieces(packet: bytes, size: int) -> list[bytes]:
    """Return a packet in fragments with so many bytes of payload."""
    ends = packet[12:16], packet[16:20], packet[9]
    return [
        packets.ip(
            *ends, packet[20 + at : 20 + at + size], df=False,
            more=20 + at + size < len(packet), offset=at // 8,
        )
        for at in range(0, len(packet) - 20, size)
    ]  # fmt: skip


def together(parts: Iterable[bytes]) -> bytes:
    (whole,) = inet.defragment([inet.IP(part) for part in parts])
    return bytes(whole)


def test_an_answer_in_fragments_is_put_together_and_goes_in_no_larger_ones() -> None:
    site = masquerading()
    answer = packets.udp(SERVER, 5353, CLIENT, 9, payload=bytes(500), df=False)
    first, *middle, last = pieces(answer, 200)
    for part in (last, *middle):
        assert site.arrive(part) == []
    parts = site.arrive(first)
    assert [len(part) for part in parts] == [220, 220, 128]
    assert together(parts) == packets.udp(VIP, 53, CLIENT, 9, payload=bytes(500), df=False, ttl=63)


def test_without_services_fragments_are_sent_on_as_they_are() -> None:
    site = Site()
    first, _ = pieces(packets.udp(SERVER, 5353, CLIENT, 9, payload=bytes(192), df=False), 104)
    assert site.arrive(first) == [stack.decremented(first)]


def test_what_belongs_to_no_connection_is_put_together_as_well() -> None:
    site = masquerading()
    parts = pieces(packets.udp(SERVER, 7, CLIENT, 9, payload=bytes(192), df=False), 104)
    assert site.arrive(parts[0]) == []
    assert site.arrive(parts[1]) == [stack.decremented(part) for part in parts]


# --- sizes ---


def test_a_request_in_fragments_goes_on_in_no_larger_ones() -> None:
    site = Site()
    site.serve(DNS, SERVER)
    query = packets.udp(CLIENT, 9, VIP, 53, payload=bytes(400), df=False)
    *early, last = pieces(query, 200)
    for part in early:
        assert site.arrive(part) == []
    parts = site.arrive(last)
    assert [len(part) for part in parts] == [220, 220, 48]
    assert together(parts)[20:] == stack.decremented(query)


def test_ipv6_in_fragments_goes_on_whole_through_a_tunnel_of_ipv4() -> None:
    site = Site()
    site.serve(ServiceKey.of(UDP, address(VIP6), 53), SERVER)
    query = packets.udp(CLIENT6, 9, VIP6, 53, payload=bytes(400))
    header = bytes((17, 0)), bytes((0, 0, 0, 7))
    first = header[0] + bytes((0, 1)) + header[1] + query[40:240]
    second = header[0] + bytes((0, 200)) + header[1] + query[240:]
    assert site.arrive(packets.ip(CLIENT6, VIP6, 44, first)) == []
    (sent,) = site.arrive(packets.ip(CLIENT6, VIP6, 44, second))
    outer = inet.IP(sent)
    assert (outer.dst, outer.proto, outer.len) == (SERVER, 41, 20 + 448)
    assert sent[20:] == stack.decremented(query)


def test_a_whole_ipv6_datagram_with_a_fragment_header_goes_on_without() -> None:
    site = Site()
    site.serve(ServiceKey.of(UDP, address(VIP6), 53), SERVER)
    query = packets.udp(CLIENT6, 9, VIP6, 53, payload=bytes(9))
    header = bytes((17, 0, 0, 0, 0, 0, 0, 7))
    (sent,) = site.arrive(packets.ip(CLIENT6, VIP6, 44, header + query[40:]))
    assert sent[20:] == stack.decremented(query)


def test_what_is_no_packet_once_put_together_goes_nowhere() -> None:
    site = Site()
    site.serve(WEB, SERVER)
    for part in pieces(packets.ip(CLIENT, VIP, TCP, bytes(19), df=False), 16):
        assert site.arrive(part) == []
    assert len(site.director.table) == 0


def test_an_error_about_the_tunnel_teaches_the_path_and_the_client() -> None:
    """The client learns of the MTU at its next packet that is too large: as the kernel has it."""
    site = Site()
    site.serve(WEB, SERVER)
    site.arrive(packets.tcp(CLIENT, 1024, VIP, 80))
    large = packets.tcp(CLIENT, 1024, VIP, 80, "A", payload=bytes(1400))
    (wrapped,) = site.arrive(large)
    error = packets.icmp_error(GATEWAY, DIP, 3, 4, wrapped[:200], rest=1280)
    (answer,) = site.arrive(error)
    told = inet.IP(answer)
    assert (told.src, told.dst) == (VIP, CLIENT)
    assert (told[inet.ICMP].type, told[inet.ICMP].code) == (3, 4)
    assert told[inet.ICMP].nexthopmtu == 1480
    assert site.host.paths == {address(SERVER): 1280}
    (answer,) = site.arrive(large)
    assert inet.IP(answer)[inet.ICMP].nexthopmtu == 1260
    small = packets.tcp(CLIENT, 1024, VIP, 80, "A", payload=bytes(1220))
    assert [len(sent) for sent in site.arrive(small)] == [1280]


def test_an_error_about_an_answer_teaches_the_server_and_not_the_director() -> None:
    site = Site()
    site.serve(WEB, SERVER)
    site.arrive(packets.tcp(CLIENT, 1024, VIP, 80))
    answer = packets.tcp(VIP, 80, CLIENT, 1024, "A", payload=bytes(1400))
    error = packets.icmp_error("10.9.9.9", VIP, 3, 4, answer[:200], rest=1000)
    (sent,) = site.arrive(error)
    assert (inet.IP(sent).dst, sent[20:]) == (SERVER, stack.decremented(error))
    assert site.host.paths == {}


def test_an_error_about_another_packet_of_the_host_teaches_nothing() -> None:
    """Only of tunnels the way is known to be used."""
    site = Site()
    site.serve(WEB, SERVER)
    own = packets.udp(DIP, 9, CLIENT, 9, payload=bytes(1400))
    assert site.arrive(packets.icmp_error(GATEWAY, DIP, 3, 4, own[:200], rest=1000)) == []
    assert site.host.paths == {}


def test_a_local_servers_answers_are_split_to_the_path() -> None:
    site = Site(mtu=600)
    site.host.send(packets.udp(VIP, 53, CLIENT, 9, payload=bytes(1000), df=False))
    assert [len(sent) for sent, _ in site.emitted()] == [596, 452]


# --- a whole site ---


class Cluster:
    """A director, two real servers and a client on one segment."""

    def __init__(self) -> None:
        self.network = Network()
        self.host = DirectorHost(self.network, [f"{DIP}/24", f"{VIP}/32"])
        self.services = []
        for last in (11, 12):
            services = Services({80: f"server {last}\n".encode()})
            RealServerHost(self.network, [f"192.168.1.{last}/24"], [VIP], services)
            self.services.append(services)
        self.client = ClientHost(self.network, [f"{NEAR}/24"])
        self.director = self.host.director = Director(PLUGINS, self.host.routes)
        self.director.add_service(WEB, ServiceSettings(scheduler="rr"))
        for last in (11, 12):
            self.director.add_server(WEB, address(f"192.168.1.{last}"), None, ServerSettings())


def test_sessions_through_the_tunnel() -> None:
    cluster = Cluster()
    client = cluster.client
    first, second = (client.connect(address(VIP), 80) for _ in range(2))
    assert (first.received, second.received) == (b"server 12\n", b"server 11\n")
    assert (first.local, second.local) == ((address(NEAR), 40000), (address(NEAR), 40001))
    client.say(first, b"one")
    client.say(second, b"two!")
    client.say(first, b"three")
    assert first.received == b"server 12\nonethree"
    assert second.received == b"server 11\ntwo!"
    assert [c.state_name for c in cluster.director.table] == ["ESTABLISHED"] * 2
    client.close(first)
    assert [c.state_name for c in cluster.director.table] == ["FIN_WAIT", "ESTABLISHED"]
    assert [services.sessions for services in cluster.services] == [1, 1]
    assert not first.reset
    assert first.seq == 1 + 8 + 1
    # The director saw what the client sent, and none of what the servers did.
    assert cluster.director.services.counters.outpkts == 0


def test_a_port_that_nobody_serves_resets_the_session() -> None:
    cluster = Cluster()
    session = cluster.client.connect(address(VIP), 81)
    assert session.reset
    assert session.received == b""
    direct = cluster.client.connect(address(SERVER), 80)
    assert (direct.received, direct.reset) == (b"server 11\n", False)
    assert cluster.client.connect(address(SERVER), 81).reset


def test_a_client_resets_what_it_knows_nothing_of() -> None:
    network = Network()
    client = ClientHost(network, [f"{NEAR}/24"])
    seen: list[bytes] = []
    network.stray = lambda packet, next_hop: seen.append(packet)
    session = client.connect(address(SERVER), 80)
    seen.clear()
    strays = [
        packets.tcp(SERVER, 80, NEAR, 40001, "SA"),
        packets.tcp(SERVER, 81, NEAR, 40000, "SA"),
        packets.tcp("192.168.1.12", 80, NEAR, 40000, "SA"),
    ]
    for stray in strays:
        network.send(stray, address(NEAR))
    network.run()
    assert [str(inet.IP(packet)[inet.TCP].flags) for packet in seen] == ["R"] * 3
    assert (session.ack, session.reset) == (0, False)


def test_a_client_acknowledges_what_counts_and_nothing_else() -> None:
    network = Network()
    client = ClientHost(network, [f"{NEAR}/24"])
    seen: list[bytes] = []
    network.stray = lambda packet, next_hop: seen.append(packet)
    session = client.connect(address(SERVER), 80)
    (syn,) = seen
    assert (inet.IP(syn)[inet.TCP].seq, str(inet.IP(syn)[inet.TCP].flags)) == (0, "S")
    ends, start = ((address(SERVER), 80), (address(NEAR), 40000)), 0xFD000000
    found = []
    for flags, seq, data in (
        (stack.SYN | stack.ACK, 99, b""),
        (stack.ACK, 100, b""),
        (stack.ACK | stack.PSH, 100, b"some"),
        (stack.ACK | stack.FIN, 104, b"more"),
        (stack.ACK, 109, b"late"),
    ):
        seen.clear()
        network.send(stack.tcp(*ends, flags, start + seq, 1, data), address(NEAR))
        network.run()
        segments = [inet.IP(packet)[inet.TCP] for packet in seen]
        found.append([(str(s.flags), s.seq, s.ack - start) for s in segments])
    assert found == [[("A", 1, 100)], [], [("A", 1, 104)], [("A", 2, 109)], [("R", 1, -start)]]
    assert (session.received, session.ack - start, session.seq) == (b"somemore", 109, 2)


@pytest.mark.parametrize(
    ("flags", "seq", "ack", "data", "wanted"),
    [
        ("S", 5, 0, b"", ("SA", 0, 6, b"")),
        ("A", 6, 1, b"", ("PA", 1, 6, b"hello")),
        ("A", 6, 6, b"", None),
        ("A", 6, 6, b"echo", ("PA", 6, 10, b"echo")),
        ("A", 0xFE000001, 0xFD000002, b"echo", ("PA", 0xFD000002, 0xFE000005, b"echo")),
        ("FA", 10, 10, b"", ("FA", 10, 11, b"")),
        ("FA", 10, 10, b"bye", ("FA", 10, 14, b"")),
        ("R", 10, 10, b"", None),
        ("SR", 10, 10, b"", None),
        ("A", 6, 0, b"", None),
    ],
)
def test_what_a_service_answers(
    flags: str, seq: int, ack: int, data: bytes, wanted: tuple[str, int, int, bytes] | None
) -> None:
    services = Services({80: b"hello"})
    segment = inet.TCP(sport=1024, dport=80, flags=flags, seq=seq, ack=ack, options=[("MSS", 9)])
    packet = bytes(inet.IP(src=CLIENT, dst=VIP) / segment / data)
    answer = services.answer(packet, _parsed(packet))
    if wanted is None:
        assert answer is None
    else:
        assert answer is not None
        found = inet.IP(answer)
        segment = found[inet.TCP]
        assert (found.src, found.dst, segment.sport, segment.dport) == (VIP, CLIENT, 80, 1024)
        assert (str(segment.flags), segment.seq, segment.ack, bytes(segment.payload)) == wanted
    assert services.sessions == (1 if flags == "S" else 0)


def test_a_port_without_a_service_is_closed() -> None:
    packet = packets.tcp(CLIENT, 1024, VIP, 81)
    assert Services({80: b""}).answer(packet, _parsed(packet)) == stack.reset(
        packet, _parsed(packet)
    )
