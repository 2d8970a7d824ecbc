"""The live datapath end to end: real TCP and UDP through a director in network namespaces."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live_network import (
    CLIENT,
    DIRECTOR,
    DIRECTOR6,
    PORT,
    SERVER,
    SERVER6,
    VIP,
    VIP6,
    key,
    packed,
    tunnelled,
    unanswered,
    upload,
)

from lvskit import Director
from lvskit.datapath.live import remove_rules
from lvskit.datapath.live.routes import PathErrors, Routes
from lvskit.errors import DatapathError
from lvskit.settings import ServerSettings, ServiceKey, ServiceSettings

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("vip", "server"), [(VIP, SERVER), (VIP6, SERVER6), (VIP, SERVER6)])
def test_tcp_through_a_tunnel(network, direct, vip, server):
    # The client's network card segments and sums (veth, all offloads on), so this shows too that
    # what leaves in the tunnel is cut to size and has checksums; and that the client learns of
    # the tunnel's smaller MTU from the director's ICMP error.
    network.decapsulate()
    network.serve(network.server, vip)
    running = direct(tunnelled(vip, server))
    upload(network.connect(vip))
    (connection,) = running.connections()
    assert connection.server.address == packed(server)
    assert connection.server.counters.inbytes > 300_000
    assert running.datapath.losses() == {"queue_full": 0, "buffer_full": 0, "not_sent": 0}
    figures = running.datapath.figures()
    assert figures["received"] >= connection.server.counters.inpkts
    assert figures["sent"] >= connection.server.counters.inpkts


def test_udp_larger_than_the_tunnel_is_fragmented(network, direct):
    network.decapsulate()
    receiver = network.server.socket(socket.SOCK_DGRAM)
    receiver.bind((VIP, PORT))
    sender = network.client.socket(socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: no DF

    def services(director: Director) -> None:
        director.add_service(key(protocol=17), ServiceSettings(scheduler="rr"))
        director.add_server(key(protocol=17), packed(SERVER), None, ServerSettings())

    direct(services)
    with receiver, sender:
        for size in (10, 1471, 1472, 6000):
            sender.sendto(os.urandom(size), (VIP, PORT))
            assert len(receiver.recv(65535)) == size


@pytest.mark.parametrize("family", [4, 6])
def test_fwmark(network, direct, family):
    vip, server = (VIP, SERVER) if family == 4 else (VIP6, SERVER6)
    network.decapsulate()
    network.serve(network.server, vip, 8080)
    command = "iptables" if family == 4 else "ip6tables"
    network.director.run(
        f"{command} -t mangle -A PREROUTING -p tcp --dport 8080 -j MARK --set-mark 7"
    )
    marked = ServiceKey.mark(7, family)

    def services(director: Director) -> None:
        director.add_service(marked, ServiceSettings(scheduler="rr"))
        director.add_server(marked, packed(server), 0, ServerSettings())

    direct(services)
    upload(network.connect(vip, 8080))
    with pytest.raises(ConnectionRefusedError):
        network.connect(vip, 8081)


def test_the_firewall_comes_first(network, direct):
    running = direct(tunnelled())
    network.director.run(f"iptables -A INPUT -p tcp -s {CLIENT} --dport {PORT} -j DROP")
    assert unanswered(network)
    assert running.datapath.received == 0
    assert running.connections() == []


@pytest.mark.parametrize(("vip", "own"), [(VIP, DIRECTOR), (VIP6, DIRECTOR6)])
def test_local_server_and_its_replies(network, direct, vip, own):
    network.serve(network.director, vip)
    running = direct(tunnelled(vip, own))
    with network.connect(vip) as peer:
        assert peer.recv(5) == b"hello"
        (connection,) = running.connections()
        assert connection.state_name == "ESTABLISHED"
        assert connection.two_way
    upload(network.connect(vip))
    total = running.call(lambda: running.director.services.counters)
    assert total.inbytes > 300_000
    assert total.outpkts > 4


def test_fragments_of_ipv6_are_put_together_first(network, direct):
    receiver = network.director.socket(socket.SOCK_DGRAM, socket.AF_INET6)
    receiver.bind((VIP6, PORT))
    sender = network.client.socket(socket.SOCK_DGRAM, socket.AF_INET6)
    service = key(VIP6, protocol=17)

    def services(director: Director) -> None:
        director.add_service(service, ServiceSettings(scheduler="rr"))
        director.add_server(service, packed(DIRECTOR6), None, ServerSettings())

    running = direct(services)
    with receiver, sender:
        sender.sendto(os.urandom(6000), (VIP6, PORT))
        assert len(receiver.recv(65535)) == 6000
    assert running.datapath.received == 1


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_no_server_is_answered_by_icmp(network, direct, vip):
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    service = key(vip, protocol=17)
    direct(lambda director: director.add_service(service, ServiceSettings(scheduler="rr")))
    with network.client.socket(socket.SOCK_DGRAM, family) as sender:
        sender.connect((vip, PORT))
        sender.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)


def test_what_is_said_about_the_tunnel_is_told_to_the_client(network, direct):
    network.server.run("iptables -F OUTPUT")
    direct(tunnelled())
    with pytest.raises(OSError, match="Protocol not available"):  # as if said of its own packet
        network.connect()


def test_other_ports_are_the_hosts(network, direct):
    network.serve(network.director, VIP, 22)
    direct(tunnelled())
    upload(network.connect(VIP, 22), 1000)


def test_packets_are_dropped_while_the_daemon_is_down(network, direct):
    network.decapsulate()
    network.serve(network.server)
    running = direct(tunnelled())
    peer = network.connect()
    assert peer.recv(5) == b"hello"
    running.stop()
    assert unanswered(network)
    peer.sendall(b"more")
    peer.settimeout(0.5)
    with pytest.raises(TimeoutError):  # neither an answer nor a reset
        peer.recv(1)
    peer.close()
    again = direct(tunnelled())  # adopts the table
    upload(network.connect())
    again.stop()
    with network.director.entered():
        remove_rules()
    assert not unanswered(network)
    assert network.director.run("nft list ruleset") == ""


@pytest.mark.parametrize("options", [{"on_stop": "open"}, {"bypass": True}])
def test_open_removes_everything(network, direct, options):
    running = direct(tunnelled(), **options)
    assert unanswered(network)  # the server is deaf
    running.stop()
    assert not unanswered(network)
    assert network.director.run("nft list ruleset") == ""


def test_a_stop_without_services_leaves_nothing(network, direct):
    direct(lambda director: None).stop()
    assert network.director.run("nft list ruleset") == ""


def test_services_come_and_go(network, direct):
    network.decapsulate()
    network.serve(network.server)
    running = direct(lambda director: None)
    assert not unanswered(network)
    running.call(lambda: (tunnelled()(running.director), running.told()))
    with network.connect() as peer:
        assert peer.recv(5) == b"hello"

        # With another service left, packets of the removed one's connections are dropped, not
        # reset, as long as there are some.
        def replace() -> None:
            running.director.add_service(key(port=81), ServiceSettings(scheduler="rr"))
            running.director.remove_service(key(), time.monotonic())
            running.told()

        running.call(replace)
        peer.sendall(b"more")
        peer.settimeout(0.5)
        with pytest.raises(TimeoutError):
            peer.recv(1)
    running.call(lambda: (running.director.clear(time.monotonic()), running.told()))
    assert not unanswered(network)


def test_a_flushed_ruleset_comes_back(network, direct):
    direct(tunnelled())
    assert unanswered(network)
    network.director.run("nft flush ruleset")
    time.sleep(0.3)
    assert unanswered(network)
    assert "@services4" in network.director.run("nft list ruleset")


def test_a_second_daemon_is_refused_and_spoils_nothing(network, direct):
    direct(tunnelled())
    with pytest.raises(DatapathError, match="packet queue 8080 is refused"):
        direct(lambda director: None)
    assert unanswered(network)


def test_routes_follow_the_host(network, direct):
    running = direct(tunnelled())

    def route() -> Any:
        (service,) = running.director.services
        return service.servers[0].route

    assert route().mtu == 1500
    network.director.run("ip link set eth0 mtu 1400")
    time.sleep(0.3)
    assert route().mtu == 1400
    network.director.run("ip link set eth0 down")
    time.sleep(0.3)
    assert route() is None


@pytest.mark.parametrize("protocol", [4, 17, 47])
def test_path_mtus_are_learnt_from_icmp_errors(network, protocol):
    with network.director.entered():
        routes, errors = Routes(), PathErrors()
        assert (errors.expect(socket.AF_INET, protocol) is None) == (protocol != 17)
    target = packed(SERVER)
    assert routes.get(target).mtu == 1500
    # "Fragmentation needed, 1300" about a tunnel's packet, as a router on the way says it.
    inner = bytes((0x45, 0, 5, 220, 0, 0, 0x40, 0, 63, protocol, 0, 0)) + packed(DIRECTOR) + target
    message = bytes((3, 4, 0, 0, 0, 0)) + (1300).to_bytes(2, "big") + inner + bytes(8)
    total = sum(struct.unpack(f">{len(message) // 2}H", message))
    message = message[:2] + (0xFFFF - total % 0xFFFF).to_bytes(2, "big") + message[4:]
    with network.server.entered():
        router = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with router:
        router.sendto(message, (DIRECTOR, 0))
    assert (
        select.select([], [], errors.sockets, 3)[2] or select.select(errors.sockets, [], [], 0)[0]
    )
    errors.drain()
    assert routes.refresh()
    assert routes.get(target).mtu == 1300
    assert not routes.refresh()
    routes.close()
    errors.close()


def test_without_privileges_it_says_what_is_missing():
    program = """
from lvskit.datapath.live import LiveDatapath, LiveOptions
from lvskit.errors import DatapathError
try:
    LiveDatapath(LiveOptions()).open()
except DatapathError as err:
    print(err)
"""
    done = subprocess.run(
        ["unshare", "-U", sys.executable, "-c", program], capture_output=True, text=True
    )
    if "unshare" in done.stderr:
        pytest.skip(f"user namespaces cannot be made here: {done.stderr.strip()}")
    assert "CAP_NET_RAW" in done.stdout, done.stderr


def test_the_benchmark_runs_in_a_user_namespace():
    if subprocess.run(["unshare", "-Urn", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces cannot be made here")
    bench = Path(__file__).parents[2] / "bench" / "live.py"
    command = [sys.executable, bench, "--inside", "--seconds", "0.3", "--flows", "10"]
    done = subprocess.run(["unshare", "-Urn", *command], capture_output=True, text=True)
    assert "packets/s" in done.stdout, done.stderr
