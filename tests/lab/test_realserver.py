"""Real servers: packets come out of the tunnel, replies go straight back, `down` undoes `up`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lvskit.hostsetup.process import Process
from lvskit.lab import VIP, VIP6, Lab

pytestmark = pytest.mark.integration

FORWARDER = """
# A director of twenty lines: every packet for a VIP goes to one real server in a tunnel. It takes
# the frames as the client's kernel made them, with checksums left to a card that there is not.
import socket, struct, sys
from lvskit.hostsetup.decapsulator import inner_packet
finish, sender, server, sender6, server6, *vips = sys.argv[1:]
pton = lambda a: socket.inet_pton(socket.AF_INET6 if ":" in a else socket.AF_INET, a)
vips = {pton(vip) for vip in vips}
listening = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
listening.bind(("eth0", 3))
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 41)
raw6.bind((sender6, 0))
largest = 0
print("ready", flush=True)
while True:
    packet, address = listening.recvfrom(65535)
    if address[2] == 4:
        continue  # PACKET_OUTGOING
    if finish == "finish":
        packet = inner_packet(packet, frozenset(vips), 0) or packet
    if packet[0] >> 4 == 4 and packet[16:20] in vips:
        head = struct.pack("!BBHHHBBH4s4s", 0x45, packet[1], 20 + len(packet), 0, 0x4000, 64, 4, 0,
                           pton(sender), pton(server))
        raw.sendto(head + packet, (server, 0))
    elif packet[0] >> 4 == 6 and packet[24:40] in vips and packet[6] != 58:
        raw6.sendto(packet, (server6, 0))
    else:
        continue
    if len(packet) > largest:
        largest = len(packet)
        print(largest, flush=True)
"""

NEIGHBOURS = """
# Who has the VIPs is no question here: the director takes every frame that comes to it.
import sys
from pyroute2 import IPRoute
mac, *vips = sys.argv[1:]
with IPRoute() as ipr:
    index = ipr.link_lookup(ifname="eth0")[0]
    # One packet, one frame: what the forwarder hands on must have been a packet on the wire.
    ipr.link("set", index=index, gso_max_segs=1)
    for vip in vips:
        ipr.neigh("replace", dst=vip, lladdr=mac, ifindex=index, state=128)  # NUD_PERMANENT
"""

CLIENT = """
import json, socket, sys
vip, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
body = b"x" * size
with socket.create_connection((vip, port), timeout=5) as sock:
    mss = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    head = "POST / HTTP/1.1\\r\\nConnection: close\\r\\nContent-Length: {}\\r\\n\\r\\n"
    sock.sendall(head.format(size).encode() + body)
    answer = b"".join(iter(lambda: sock.recv(65536), b""))
print(json.dumps([mss, answer.split(b"\\r\\n\\r\\n")[1].decode()]))
"""

DATAGRAM = """
import socket, sys
vip = sys.argv[1]
with socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(float(sys.argv[2]))
    sock.connect((vip, 53))  # an answer from another address is not received
    sock.send(b"hello")
    print(sock.recv(1000).decode())
"""


def python(lab: Lab, host: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return lab.exec(host, command, capture_output=True, text=True, timeout=30)


def talk(lab: Lab, vip: str, size: int = 0) -> tuple[int, str]:
    done = python(lab, "client", CLIENT, vip, "80", str(size))
    assert done.returncode == 0, done.stderr
    mss, answer = json.loads(done.stdout)
    return mss, answer


@pytest.fixture
def forwarder(lab: Lab, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Send both VIPs' packets to rs1, in a tunnel; prints the size of the largest yet."""
    # lvskit's decapsulator finishes what a director forgot; the kernel does not.
    way = request.getfixturevalue("way") if "way" in request.fixturenames else None
    finish = "finish" if way == "kernel" else "leave"
    program = """
from pyroute2 import IPRoute
with IPRoute() as ipr:
    print(ipr.get_links(ifname="eth0")[0].get_attr("IFLA_ADDRESS"))
"""
    mac = python(lab, "director", program).stdout.strip()
    done = python(lab, "client", NEIGHBOURS, mac, VIP, VIP6)
    assert done.returncode == 0, done.stderr
    arguments = [
        finish,
        "192.168.1.175",
        "192.168.1.11",
        "2001:db8::175",
        "2001:db8::11",
        VIP,
        VIP6,
    ]
    process = lab.spawn(
        "director",
        [sys.executable, "-c", FORWARDER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_connection_through_the_tunnel(lab, lvskit, way, forwarder, kernel_tunnels):
    done = lvskit("rs1", "realserver", "up", "--vip", VIP, "--vip", VIP6, "--via", way)
    assert done.returncode == 0, done.stderr
    # 1500 less an outer header of 20 (40) and headers of 40 (60), less 12 of timestamps.
    assert talk(lab, VIP, 2_000_000) == (1428, "rs1 received 2000000 bytes\n")
    if "no policy routing for IPv6" not in done.stdout:
        assert talk(lab, VIP6, 2_000_000) == (1388, "rs1 received 2000000 bytes\n")
    forwarder.kill()
    sizes = [int(line) for line in forwarder.stdout]
    # No packet had to be cut for the tunnel, and the largest fill it.
    assert max(sizes) == 1480
    # Nor did the director get ICMP errors, as from a kernel that has ipip and is not let use it.
    counters = python(lab, "rs1", "print(open('/proc/net/snmp').read())").stdout
    names, values = (line.split() for line in counters.splitlines() if line.startswith("Icmp:"))
    if way == "kernel" or not kernel_tunnels:
        assert values[names.index("OutDestUnreachs")] == "0"
    for vip in (VIP, VIP6):
        assert python(lab, "client", DATAGRAM, vip, "0.3").returncode != 0


@pytest.mark.usefixtures("forwarder")
def test_datagrams_are_answered_from_the_vip(lab, lvskit, way):
    lvskit("rs1", "realserver", "up", "--vip", VIP, "--vip", VIP6, "--via", way)
    for vip in (VIP, VIP6):
        assert python(lab, "client", DATAGRAM, vip, "3").stdout == "rs1 hello\n"


@pytest.mark.usefixtures("forwarder")
def test_the_tunnel_takes_only_what_it_is_for(lab, lvskit, way):
    done = lvskit(
        "rs1", "realserver", "up", "--vip", VIP, "--director", "192.168.1.99", "--via", way
    )
    assert done.returncode == 0, done.stderr
    assert python(lab, "client", DATAGRAM, VIP, "0.3").returncode != 0
    # A second `up` adds a director and a VIP.
    lvskit("rs1", "realserver", "up", "--vip", VIP6, "--director", "192.168.1.175")
    assert python(lab, "client", DATAGRAM, VIP, "3").stdout == "rs1 hello\n"
    assert python(lab, "client", DATAGRAM, VIP6, "0.3").returncode != 0
    lvskit("rs1", "realserver", "up", "--vip", VIP6, "--director", "2001:db8::175")
    assert python(lab, "client", DATAGRAM, VIP6, "3").stdout == "rs1 hello\n"


@pytest.mark.usefixtures("forwarder")
def test_a_host_that_is_no_real_server_any_more(lab, lvskit):
    lvskit("rs1", "realserver", "up", "--vip", VIP)
    lvskit("rs1", "realserver", "down")
    assert python(lab, "client", DATAGRAM, VIP, "0.3").returncode != 0


@pytest.mark.parametrize("vips", [[VIP], [VIP6], [VIP, VIP6]], ids=["4", "6", "both"])
def test_down_undoes_up(lvskit, snapshot, way, vips):
    before = snapshot("rs2")
    options = [word for vip in vips for word in ("--vip", vip)]
    done = lvskit("rs2", "realserver", "up", *options, "--via", way)
    assert done.returncode == 0, done.stderr
    assert snapshot("rs2") != before
    again = lvskit("rs2", "realserver", "up", *options)
    assert again.stdout == "nothing to do: this host serves them already\n"
    down = lvskit("rs2", "realserver", "down")
    assert down.returncode == 0, down.stderr
    assert snapshot("rs2") == before
    assert lvskit("rs2", "realserver", "down").stdout.startswith("nothing to undo")


def test_strict_reverse_path_filters_come_back(lab, lvskit, snapshot):
    program = "open('/proc/sys/net/ipv4/conf/all/rp_filter', 'w').write('{}')"
    python(lab, "rs2", program.format(1))
    before = snapshot("rs2")
    try:
        done = lvskit("rs2", "realserver", "up", "--vip", VIP)
        during = snapshot("rs2")
        assert during["sysctl /proc/sys/net/ipv4/conf/all/rp_filter"] == "0\n"
        # The filter of every other device counts as it did.
        assert during["sysctl /proc/sys/net/ipv4/conf/eth0/rp_filter"] == "1\n"
        assert "rp_filter" in done.stdout
        lvskit("rs2", "realserver", "down")
        assert snapshot("rs2") == before
    finally:
        python(lab, "rs2", program.format(0))


def test_a_dry_run_changes_nothing(lab, lvskit, snapshot):
    before = snapshot("rs2"), sorted(os.listdir(lab.directory))
    done = lvskit("rs2", "realserver", "up", "--vip", VIP, "--vip", VIP6, "--dry-run")
    assert (snapshot("rs2"), sorted(os.listdir(lab.directory))) == before
    lines = done.stdout.splitlines()
    assert all(line.startswith("would ") for line in lines)
    for command in (
        "sysctl -w net.ipv4.conf.all.arp_ignore=1",
        "sysctl -w net.ipv4.conf.all.arp_announce=2",
        "ip route replace 192.168.1.0/24 dev eth0 advmss 1440 table 1176",
        f"ip -6 rule add from {VIP6}/128 lookup 1176 priority 1176",
        f"ip addr add {VIP}/32 dev lvskit0",
    ):
        assert any(line.endswith(f": {command}") for line in lines), command
    lvskit("rs2", "realserver", "up", "--vip", VIP)
    during = snapshot("rs2")
    assert "would end the decapsulator" in lvskit("rs2", "realserver", "down", "--dry-run").stdout
    assert snapshot("rs2") == during


def decapsulator(lab: Lab) -> Process:
    for path in Path(lab.directory).glob("realserver-*.json"):
        steps: list[dict[str, Any]] = json.loads(path.read_text())["steps"]
        for step in steps:
            if step["step"] == "Decapsulator":
                return Process(**step["process"])
    raise AssertionError("there is no decapsulator")


@pytest.mark.usefixtures("forwarder")
@pytest.mark.parametrize("way", ["tun", "veth"], indirect=True)
def test_up_repairs_what_was_killed(lab, lvskit, way):
    lvskit("rs1", "realserver", "up", "--vip", VIP, "--via", way)
    killed = decapsulator(lab)
    assert killed.signal(signal.SIGKILL)
    assert killed.wait(2)
    done = lvskit("rs1", "realserver", "up", "--vip", VIP)
    assert "start lvskit's decapsulator" in done.stdout
    assert python(lab, "client", DATAGRAM, VIP, "3").stdout == "rs1 hello\n"
    again = decapsulator(lab)
    assert again != killed
    # And `down` does not mind that it is dead.
    assert again.signal(signal.SIGKILL)


def test_routes_follow_the_main_table(lab, lvskit):
    change = """
import sys
from pyroute2 import IPRoute
with IPRoute() as ipr:
    index = ipr.link_lookup(ifname="eth0")[0]
    ipr.route(sys.argv[1], dst="default", gateway="192.168.1.1", oif=index)
    ipr.route(sys.argv[1], dst="10.9.0.0/16", metrics={"mtu": 1300}, multipath=[
        {"gateway": "192.168.1.2", "oif": index}, {"gateway": "192.168.1.3", "oif": index}])
"""
    lvskit("rs3", "realserver", "up", "--vip", VIP)
    assert python(lab, "rs3", change, "add").returncode == 0
    try:
        done = lvskit("rs3", "realserver", "up", "--vip", VIP)
        assert "ip route replace default via 192.168.1.1 dev eth0 advmss 1440" in done.stdout
        assert (
            "ip route replace 10.9.0.0/16 nexthop via 192.168.1.2 dev eth0 nexthop via"
            " 192.168.1.3 dev eth0 advmss 1240" in done.stdout
        )
        assert lvskit("rs3", "realserver", "up", "--vip", VIP).stdout.startswith("nothing")
        done = lvskit("rs3", "realserver", "up", "--vip", VIP, "--tunnel-mtu", "1400")
        assert "dev eth0 advmss 1360" in done.stdout
        lvskit("rs3", "realserver", "down")
    finally:
        python(lab, "rs3", change, "del")


def test_the_kernels_own_tunnel_device_comes_first(lab, lvskit, snapshot):
    # This kernel may have none; what counts is that `up` finds a device of that name.
    make = """
import sys
from pyroute2 import IPRoute
with IPRoute() as ipr:
    if sys.argv[1] == "add":
        ipr.link("add", ifname="tunl0", kind="veth", peer={"ifname": "other"})
    else:
        ipr.link("del", index=ipr.link_lookup(ifname="tunl0")[0])
"""
    if "tunl0" in " ".join(snapshot("rs3")["links"]):
        make = ""
    python(lab, "rs3", make, "add")
    try:
        before = snapshot("rs3")
        done = lvskit("rs3", "realserver", "up", "--vip", VIP)
        assert "ip link set tunl0 up" in done.stdout
        assert f"ip addr add {VIP}/32 dev tunl0" in done.stdout
        assert "decapsulator" not in done.stdout
        lvskit("rs3", "realserver", "down")
        after = snapshot("rs3")
        # The device stays up for nobody; IPv6 settings of its own come with being up once.
        assert after["links"] == before["links"]
        assert after["addresses 2"] == before["addresses 2"]
        assert after["rules 2"] == before["rules 2"]
    finally:
        python(lab, "rs3", make, "del")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vip", "300.1.1.1"], "VIP '300.1.1.1' is no IP address"),
        (["--vip", "224.0.0.1"], "VIP 224.0.0.1 is no unicast address"),
        (["--vip", VIP, "--director", "x"], "director 'x' is no IP address"),
        (["--vip", VIP, "--tunnel-mtu", "100"], "576 to 65535"),
        (["--vip", VIP, "--vip", "192.168.1.12"], "192.168.1.12 is on eth0 already"),
    ],
)
def test_what_cannot_be_is_refused(lvskit, snapshot, arguments, message):
    before = snapshot("rs2")
    done = lvskit("rs2", "realserver", "up", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("lvskit: ")
    assert message in done.stderr
    assert snapshot("rs2") == before


def test_a_failure_half_way_leaves_nothing(lab, lvskit, snapshot):
    # The last but one device there is takes the decapsulator's name for another kind of device.
    block = """
import sys
from pyroute2 import IPRoute
with IPRoute() as ipr:
    ipr.link("add", ifname="lvskit0f", kind="bridge")
"""
    unblock = """
from pyroute2 import IPRoute
with IPRoute() as ipr:
    ipr.link("del", index=ipr.link_lookup(ifname="lvskit0f")[0])
"""
    python(lab, "rs2", block)
    try:
        before = snapshot("rs2")
        done = lvskit("rs2", "realserver", "up", "--vip", VIP, "--via", "veth")
        assert done.returncode == 1
        assert "cannot make the veth device lvskit0" in done.stderr
        assert snapshot("rs2") == before
        assert not list(lab.directory.glob("realserver-*"))
    finally:
        python(lab, "rs2", unblock)
