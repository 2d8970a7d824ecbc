"""Direct routing, address translation and fragments on the live datapath, with real packets.

The forwarding methods here are the least that can do it: what is tested is the datapath.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
from live_network import (
    CLIENT,
    CLIENT6,
    DIRECTOR,
    DIRECTOR6,
    PORT,
    SERVER,
    SERVER6,
    VIP,
    VIP6,
    Host,
    Network,
    key,
    packed,
    tunnelled,
    upload,
)

from lvskit import Director, ForwarderSpec, hookimpl, load_plugins
from lvskit.checksums import checksum
from lvskit.plugins import Plugins, Source
from lvskit.settings import ServerSettings, ServiceSettings
from lvskit.types import ICMP, ICMPV6, NOT_OURS, TCP, Deliver, Route, Transmit, Verdict

pytestmark = pytest.mark.integration
SERVICE_PORT = 8080  # the real server's own


class ByAnotherWay:
    """Direct routing: the packet as it is, by the way to the server."""

    def __init__(self, server, options) -> None:
        self._server = server

    def route_changed(self, route: Route) -> None:
        self._route = route

    def transmit(self, connection, packet: bytes) -> Verdict:
        return Transmit(packet, self._route, self._server.address)


class Translating:
    """Address translation, both ways; ICMP errors are noted and left as they are."""

    def __init__(self, server, options) -> None:
        self._server = server
        self.errors: list[bytes] = []

    def route_changed(self, route: Route) -> None:
        self._route = route

    def transmit(self, connection, packet: bytes) -> Verdict:
        made = translated(packet, connection.server.address, connection.dport, target=True)
        return Deliver(made) if self._route.local else Transmit(made, self._route)

    def reply(self, connection, packet: bytes) -> Verdict:
        if packet[9 if packet[0] < 0x60 else 6] in (ICMP, ICMPV6):
            self.errors.append(packet)
            return NOT_OURS
        flow = connection.flow
        return Transmit(translated(packet, flow.vaddr, flow.vport, target=False), self._route)


def translated(packet: bytes, address: bytes, port: int, *, target: bool) -> bytes:
    """Return a TCP or UDP packet with another address and port, and right checksums."""
    raw, size = bytearray(packet), len(address)
    at, first = (20, 12) if size == 4 else (40, 8)
    where = first + size * target
    raw[where : where + size] = address
    raw[at + 2 * target : at + 2 * target + 2] = port.to_bytes(2, "big")
    protocol = raw[9] if size == 4 else raw[6]
    check = at + (16 if protocol == TCP else 6)
    raw[check : check + 2] = b"\0\0"
    pseudo = bytes(raw[first : first + 2 * size]) + (len(raw) - at).to_bytes(4, "big")
    total = checksum(pseudo + bytes((0, 0, 0, protocol)) + raw[at:])
    raw[check : check + 2] = total.to_bytes(2, "big")
    if size == 4:
        raw[10:12] = b"\0\0"
        raw[10:12] = checksum(bytes(raw[:20])).to_bytes(2, "big")
    return bytes(raw)


class Methods:
    """A plugin with the two."""

    @hookimpl
    def lvskit_register_forwarders(self) -> Iterable[ForwarderSpec]:
        return [
            ForwarderSpec(name="elsewhere", summary="", factory=ByAnotherWay),
            ForwarderSpec(name="translating", summary="", factory=Translating, keeps_port=False),
        ]


def plugins() -> Plugins:
    found = load_plugins()
    found.add(Methods(), Source("test", "methods", "1"))
    return found


def translating(
    address: str = VIP, server: str = SERVER, protocol: int = 6
) -> Callable[[Director], None]:
    """Return what adds a service and its one server, whose packets are rewritten."""
    settings = ServerSettings(method="translating")

    def add(director: Director) -> None:
        service = key(address, protocol=protocol)
        director.add_service(service, ServiceSettings(scheduler="rr"))
        director.add_server(service, packed(server), SERVICE_PORT, settings)

    return add


def route_answers_through_director(network: Network) -> None:
    network.director.run("""
        sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0
    """)
    # IPv6 routers cannot be told not to send redirects.
    network.server.run(f"""
        sysctl -qw net.ipv6.conf.all.accept_redirects=0 net.ipv6.conf.eth0.accept_redirects=0
        ip route add {CLIENT}/32 via {DIRECTOR}
        ip -6 route add {CLIENT6}/128 via {DIRECTOR6}
    """)


def listen(network: Network, host: Host, work: Callable[[socket.socket], None]) -> None:
    """Do `work` with the first connection to the service port of a host."""
    listener = host.socket(socket.SOCK_STREAM)
    listener.bind(("", SERVICE_PORT))
    listener.listen()

    def serve() -> None:
        with listener, contextlib.suppress(OSError):
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(10)
                work(peer)

    thread = threading.Thread(target=serve)
    thread.start()
    network.closers.append(thread.join)


@contextlib.contextmanager
def tapped(host: Host) -> Iterator[Callable[[], list[bytes]]]:
    """Yield what returns the IPv4 packets that have come to a host so far."""
    with host.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        tap.bind(("eth0", 0x0800))
    tap.settimeout(0.3)

    def read() -> list[bytes]:
        found = []
        with contextlib.suppress(TimeoutError):
            while True:
                packet, (_, _, direction, *_) = tap.recvfrom(65535)
                if direction != 4:  # PACKET_OUTGOING
                    found.append(packet)
        return found

    with tap:
        yield read


# --- direct routing ---


@pytest.mark.parametrize(("vip", "server"), [(VIP, SERVER), (VIP6, SERVER6)])
def test_direct_routing_leaves_the_packet_as_it_is(network, direct, vip, server):
    network.serve(network.server, vip)
    running = direct(tunnelled(vip, server, method="elsewhere"), plugins())
    upload(network.connect(vip))
    (connection,) = running.connections()
    assert connection.server.counters.inbytes > 300_000
    assert running.datapath.losses() == {"queue_full": 0, "buffer_full": 0, "not_sent": 0}


# --- address translation ---


@pytest.mark.parametrize(
    ("vip", "server", "any_address"), [(VIP, SERVER, "0.0.0.0"), (VIP6, SERVER6, "::")]
)
def test_translation_both_ways(network, direct, vip, server, any_address):
    # Segmented and summed by the hosts' network cards, as far as they know: rewritten packets are
    # cut to size and have checksums.
    route_answers_through_director(network)
    network.serve(network.server, any_address, SERVICE_PORT)
    running = direct(translating(vip, server), plugins())
    upload(network.connect(vip))
    (connection,) = running.connections()
    assert connection.two_way
    assert connection.server.counters.outpkts > 4


def test_large_answers_are_cut_and_rewritten(network, direct):
    route_answers_through_director(network)
    data = os.urandom(1_000_000)
    listen(network, network.server, lambda peer: peer.sendall(data))
    direct(translating(), plugins())
    received = b""
    with network.connect() as peer:
        while part := peer.recv(65536):
            received += part
    assert received == data


@pytest.mark.parametrize(("vip", "own"), [(VIP, DIRECTOR), (VIP6, DIRECTOR6), (VIP, VIP)])
def test_translation_to_a_local_server(network, direct, vip, own):
    # It is handed the changed packet, and its answers are rewritten on their way out.
    network.serve(network.director, own, SERVICE_PORT)
    running = direct(translating(vip, own), plugins())
    upload(network.connect(vip))
    (connection,) = running.connections()
    assert connection.two_way
    assert connection.server.counters.inbytes > 300_000
    assert connection.server.counters.outpkts > 4


def test_errors_about_translated_packets_are_shown_to_the_director(network, direct):
    route_answers_through_director(network)
    running = direct(translating(protocol=17), plugins())
    with network.client.socket(socket.SOCK_DGRAM) as sender:
        sender.sendto(b"anybody?", (VIP, PORT))  # nobody
        time.sleep(0.3)
    (connection,) = running.connections()
    (error,) = connection.server.forwarders["translating"].errors
    assert error[12:16] == packed(SERVER)
    assert error[20:22] == b"\3\3"


def test_other_traffic_of_the_server_crosses_untouched(network, direct):
    route_answers_through_director(network)
    running = direct(translating(), plugins())
    network.serve(network.client, CLIENT, 7000)
    with network.server.socket(socket.SOCK_STREAM) as peer:
        peer.bind((SERVER, 9000))
        peer.connect((CLIENT, 7000))
        assert peer.recv(5) == b"hello"
    assert running.datapath.received == 0


def test_answers_are_held_back_while_the_daemon_is_down(network, direct):
    route_answers_through_director(network)
    asked = threading.Event()

    def work(peer: socket.socket) -> None:
        assert asked.wait(5)
        peer.sendall(b"answer")
        time.sleep(0.5)

    listen(network, network.server, work)
    running = direct(translating(), plugins())
    with network.connect() as peer:
        running.stop()
        asked.set()
        peer.settimeout(0.4)
        with pytest.raises(TimeoutError):  # from its own address it would earn a reset
            peer.recv(1)


def test_the_forward_hook_is_for_answers_alone(network, direct):
    running = direct(tunnelled(), plugins())
    assert "hook forward" not in network.director.run("nft list ruleset")

    def translate_instead() -> None:
        director = running.director
        director.remove_service(key(), time.monotonic())
        director.add_service(key(port=81), ServiceSettings(scheduler="rr"))
        settings = ServerSettings(method="translating")
        director.add_server(key(port=81), packed(SERVER), SERVICE_PORT, settings)
        running.told()

    running.call(translate_instead)
    assert "hook forward" in network.director.run("nft list ruleset")
    assert f"{SERVER} . tcp . {SERVICE_PORT}" in network.director.run(
        "nft list set inet lvskit answers4"
    )
    running.call(
        lambda: (
            running.director.remove_server(
                key(port=81), packed(SERVER), SERVICE_PORT, time.monotonic()
            ),
            running.told(),
        )
    )
    assert "elements" not in network.director.run("nft list set inet lvskit answers4")


def test_a_removed_server_keeps_answering_its_connections(network, direct):
    route_answers_through_director(network)
    asked = threading.Event()

    def work(peer: socket.socket) -> None:
        peer.sendall(b"hello")
        assert asked.wait(5)
        peer.sendall(b"answer")

    listen(network, network.server, work)
    running = direct(translating(), plugins())
    with network.connect() as peer:
        assert peer.recv(5) == b"hello"

        def remove() -> None:
            running.director.remove_server(key(), packed(SERVER), SERVICE_PORT, time.monotonic())
            running.told()

        running.call(remove)
        asked.set()
        assert peer.recv(6) == b"answer"


# --- fragments ---


def test_what_came_in_fragments_leaves_in_none_larger(network, direct):
    network.client.run(f"ip route add {VIP}/32 dev eth0 mtu lock 600")
    service = key(protocol=17)

    def services(director: Director) -> None:
        director.add_service(service, ServiceSettings(scheduler="rr"))
        director.add_server(service, packed(SERVER), None, ServerSettings())

    direct(services)
    data = os.urandom(1300)
    with tapped(network.server) as read, network.client.socket(socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: no DF
        sender.sendto(b"first", (VIP, PORT))
        sender.sendto(data, (VIP, PORT))
        sender.sendto(b"last", (VIP, PORT))
        tunnelled_packets = [packet for packet in read() if packet[9] == 4]
    first, *parts, last = tunnelled_packets
    assert len(first) == 20 + 28 + 5
    assert len(last) == 20 + 28 + 4
    assert [len(part) for part in parts] == [596, 596, 196]  # 600 at most, and multiples of 8
    assert b"".join(part[20:] for part in parts)[28:] == data


def test_direct_routing_of_what_came_in_fragments(network, direct):
    network.client.run(f"ip route add {VIP}/32 dev eth0 mtu lock 600")
    receiver = network.server.socket(socket.SOCK_DGRAM)
    receiver.bind((VIP, PORT))
    service = key(protocol=17)

    def services(director: Director) -> None:
        director.add_service(service, ServiceSettings(scheduler="rr"))
        director.add_server(service, packed(SERVER), None, ServerSettings(method="elsewhere"))

    direct(services, plugins())
    with (
        receiver,
        tapped(network.server) as read,
        network.client.socket(socket.SOCK_DGRAM) as sender,
    ):
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)
        data = os.urandom(3000)
        sender.sendto(data, (VIP, PORT))
        assert receiver.recv(65535) == data
        assert max(map(len, read())) <= 600
