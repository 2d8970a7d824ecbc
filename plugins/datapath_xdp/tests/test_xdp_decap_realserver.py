"""`lvskit realserver up --via xdp`: real traffic out of the tunnel, and nothing left afterwards."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lvskit_datapath_xdp.engine import Engine
from lvskit_datapath_xdp.options import XdpOptions
from test_xdp_bridge_tcp import ask, tcp
from xdp_decap import DecapNetwork
from xdp_network import (
    DIRECTOR,
    DIRECTOR6,
    PORT,
    SERVERS,
    SERVERS6,
    VIP,
    VIP6,
    Host,
    built,
    until,
)

pytestmark = pytest.mark.integration

# Takes what comes, and says how much it was.
SINK = """
import socket, sys
listening = socket.create_server(("::", 81), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    peer = listening.accept()[0]
    size = sum(map(len, iter(lambda: peer.recv(1 << 20), b"")))
    peer.sendall(b"%d" % size)
    peer.close()
"""
SIZE = 30_000_000


@pytest.fixture
def network(bpf: None, tmp_path: Path) -> Iterator[DecapNetwork]:
    with built(DecapNetwork, tmp_path, "--tunnel-mtu 1460") as made:  # IPv4 in IPv6 fits too
        yield made


def snapshot(host: Host) -> list[str]:
    """Return what `realserver` may change of a host."""
    return [
        host.run(command)
        for command in (
            "ip -d -o link show | sed 's/ state [A-Z]*//'",
            "ip -o address show",
            "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all",
            "sysctl -a 2>/dev/null | grep -E 'rp_filter|arp_|forwarding' | sort",
        )
    ]


def upload(network: DecapNetwork, vip: str) -> None:
    """Send much through the tunnel, and see that all of it came."""
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with network.client.entered():
        peer = socket.socket(family)
    with peer:
        peer.settimeout(20)
        peer.connect((vip, 81))
        peer.sendall(bytes(SIZE))
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(100) == b"%d" % SIZE


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize(
    ("vip", "servers"),
    [(VIP, SERVERS), (VIP6, SERVERS6), (VIP, SERVERS6), (VIP6, SERVERS)],
    ids=["4in4", "6in6", "4in6", "6in4"],
)
def test_tcp(network, direct, mode, vip, servers):
    running = direct(mode=mode)
    running.add(tcp(vip), servers)
    peers = [network.connect(vip) for _ in range(6)]
    assert {ask(peer, 300_000) for peer in peers} == {"server0", "server1"}
    for host in network.servers:
        assert " xdp " in host.run("ip link show eth0")  # in the driver
        assert "lvskit0" not in host.run("ip link show")
        host.start(sys.executable, "-c", SINK)
    sink = {**tcp(vip), "tcp": tcp(vip)["tcp"].replace(f":{PORT}", ":81")}
    running.add(sink, servers)
    until(lambda: all("*:81" in host.run("ss -Hltn") for host in network.servers))
    upload(network, vip)
    assert running.datapath._live.received == 0


def test_strict_reverse_path_filters_do_no_harm(network, direct):
    """Packets seem to have come by the interface that the way back is by."""
    for host in network.servers:
        host.run("sysctl -q net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
        network.realserver(host, f"up --vip {VIP}")
        assert host.run("sysctl -n net.ipv4.conf.all.rp_filter") == "1\n"
    running = direct(mode="native")
    running.add(tcp(), SERVERS)
    assert {ask(network.connect(), 1000) for _ in range(2)} == {"server0", "server1"}


def words(*vips: str) -> str:
    return " ".join(f"--vip {vip}" for vip in vips)


def test_up_again_adds_and_repairs(network, direct):
    host, other = network.servers
    network.realserver(other, "down")
    assert network.realserver(host, f"up {words(VIP)}").startswith("nothing to do")
    # An address that the host has had only since, and which `up` tells the program of.
    host.run("ip address add 10.1.0.21/24 dev eth0")
    running = direct(mode="native")
    running.add(tcp(), ["10.1.0.21"])
    network.realserver(host, f"up {words(VIP)}")
    peer = network.connect()
    assert ask(peer, 1000) == "server0"
    # Another VIP, without another word about the way.
    told = network.realserver(host, "up --vip 10.1.0.101")
    assert "ip addr add 10.1.0.101/32 dev lo" in told
    assert "xdp" not in told
    (pins,) = {Path(pin).parent for pin in network.mounts.pins()}
    # The program off its interface, as after a change of the driver.
    network.mounts.run(f"rm /sys/fs/bpf/{pins}/link")
    until(lambda: " xdp " not in host.run("ip link show eth0"))
    told = network.realserver(host, f"up {words(VIP)}")
    assert told == "take packets out of the tunnel where they come in by eth0 (xdp)\n"
    peer.sendall(b"10\n")
    assert len(peer.recv(10)) == 10


def test_an_interface_that_went_and_came(network):
    host = network.servers[0]
    host.run("ip link add dummy1.5 type veth peer name dummy2 && ip link set dummy1.5 up")
    told = network.realserver(host, f"up {words(VIP)} --interface dummy1.5")
    assert told == "take packets out of the tunnel where they come in by dummy1.5 (xdp)\n"
    assert len(network.mounts.pins()) == 6
    host.run("ip link del dummy1.5")
    assert "dummy1.5" in network.realserver(host, f"up {words(VIP)}", refused=True)
    host.run("ip link add dummy1.5 type veth peer name dummy2 && ip link set dummy1.5 up")
    assert network.realserver(host, f"up {words(VIP)}") == told
    host.run("ip link del dummy1.5")
    network.realserver(host, "down")
    assert len(network.mounts.pins()) == 2


def test_only_directors_that_are_named(network, direct):
    host = network.servers[0]
    network.realserver(host, "down")
    network.realserver(host, f"up --via xdp {words(VIP, VIP6)} --director {DIRECTOR6}")
    # As `lvskit vip add` has it: never the source that the director chooses by itself.
    network.director.run(f"ip -6 address change {VIP6}/128 dev eth0 preferred_lft 0")
    running = direct(mode="native")
    running.add(tcp(), SERVERS[:1])
    running.add(tcp(VIP6), SERVERS6[:1])
    assert ask(network.connect(VIP6), 1000) == "server0"
    # The stack refuses what is passed on, or nobody answers.
    with pytest.raises(OSError, match=r"timed out|not available"):
        network.connect(timeout=0.5)
    network.realserver(host, f"up {words(VIP)} --director {DIRECTOR}")
    assert ask(network.connect(), 1000) == "server0"


def test_another_program_on_the_interface_is_named(network):
    host = network.servers[0]
    network.realserver(host, "down")
    before = snapshot(host)
    with host.entered():
        engine = Engine(XdpOptions(interface="eth0"), 64)
        engine.attach()
    try:
        refused = network.realserver(host, f"up --via xdp {words(VIP)}", refused=True)
    finally:
        engine.close()
    assert "an XDP program is attached to eth0 already: number " in refused
    assert "'lvskit' (a director's datapath; a real server beside it takes --via tun)" in refused
    assert snapshot(host) == before
    assert not list((network.place / host.name).iterdir())
    assert len(network.mounts.pins()) == 2


@pytest.mark.parametrize(
    ("vip", "servers"),
    [(VIP, SERVERS), (VIP6, SERVERS6), (VIP, SERVERS6), (VIP6, SERVERS)],
    ids=["4in4", "6in6", "4in6", "6in4"],
)
def test_where_the_driver_has_no_xdp(network, direct, vip, servers):
    """Generic XDP takes its place, aloud, and gets what GRO has joined, tunnel and all."""
    host, other = network.servers
    network.realserver(other, "down")
    network.realserver(host, "down")
    host.run(f"""
        ip link add br1 type bridge mcast_snooping 0
        ip link set br1 up
        ip address flush dev eth0 scope global
        ip link set eth0 master br1
        ip address add {SERVERS[0]}/24 dev br1
        ip -6 address add {SERVERS6[0]}/64 dev br1 nodad
        ethtool -K eth0 gro on
    """)
    # veth joins only what comes from an end that joins nothing itself (veth_xmit).
    network.switch.run("ethtool -K port2 tso off")
    told = network.realserver(host, f"up {network.options} --interface br1 {words(VIP, VIP6)}")
    assert "generic XDP, which is slower, takes its place" in told
    assert " xdpgeneric " in host.run("ip link show br1")
    host.start(sys.executable, "-c", SINK)
    until(lambda: "*:81" in host.run("ss -Hltn"))
    running = direct(mode="native")
    running.add({**tcp(vip), "tcp": tcp(vip)["tcp"].replace(f":{PORT}", ":81")}, servers[:1])
    upload(network, vip)
    running.call("status")
    (packets,) = (s.counters.inpkts for each in running.director.services for s in each.servers)
    # Interface, bytes, packets …
    (received,) = (row for row in host.run("cat /proc/net/dev").splitlines() if "br1:" in row)
    assert int(received.split()[2]) < packets / 5


def test_what_cannot_be_is_refused(network):
    host, fresh = network.servers
    network.realserver(fresh, "down")
    for where, options, message in (
        (host, "--via tun", "in another way since it was set up"),
        (host, "--interface nix0", "there is no interface 'nix0' here"),
        (fresh, "--via wonder", "unknown decapsulator 'wonder'; installed: xdp"),
        (fresh, "--via tun --interface eth0", "for ways of plugins alone"),
        (fresh, "--via xdp --director 10.99.0.1", "name it by --interface"),
    ):
        before, pins = snapshot(where), network.mounts.pins()
        told = network.realserver(where, f"up {words(VIP)} {options}", refused=True)
        assert message in told
        assert snapshot(where) == before
        assert network.mounts.pins() == pins


def test_it_says_what_is_missing(network):
    host = network.servers[0]
    network.realserver(host, "down")
    up = f"up --via xdp {words(VIP)}"
    without = f"LVSKIT_DISABLE_PLUGINS=datapath_xdp {network._realserver(host)} {up}"
    assert "pip install lvskit-datapath-xdp" in host.run(f"! {without} 2>&1")
    host.run("ip link set lo down")
    told = network.realserver(host, up, refused=True)
    assert "the loopback device is down: ip link set lo up" in told
    host.run("ip link set lo up")
    network.realserver(network.servers[1], "down")
    network.mounts.run("umount /sys/fs/bpf")
    assert "mount -t bpf bpf /sys/fs/bpf" in network.realserver(host, up, refused=True)


def test_nothing_is_left(network):
    (host, other) = network.servers
    pins = network.mounts.pins()
    assert [pin.rpartition("/")[2] for pin in pins] == ["addresses", "link"] * 2
    told = network.realserver(host, "down")
    assert "take nothing out of the tunnel by eth0 any more (xdp)" in told
    assert len(network.mounts.pins()) == 2
    before = snapshot(host)
    dry = network.realserver(host, f"up --via xdp --vip {VIP} --vip {VIP6} --dry-run")
    assert snapshot(host) == before
    assert len(network.mounts.pins()) == 2
    assert network.realserver(host, f"up --via xdp --vip {VIP} --vip {VIP6}") == dry.replace(
        "would ", ""
    )
    assert snapshot(host) != before
    assert network.mounts.pins() == pins
    assert "would take nothing out" in network.realserver(host, "down --dry-run")
    assert network.mounts.pins() == pins
    network.realserver(host, "down")
    assert snapshot(host) == before
    assert not list((network.place / host.name).iterdir())
    assert network.realserver(host, "down").startswith("nothing to undo")
    network.realserver(other, "down")
    assert network.mounts.pins() == []
