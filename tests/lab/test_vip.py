"""The director's virtual address: where it comes, and who hears of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lvskit.lab import VIP, VIP6, Lab

pytestmark = pytest.mark.integration

LISTENER = """
# Prints what is announced on the wire: kind, address, hardware address.
import socket
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(("eth0", 3))
print("ready", flush=True)
while True:
    frame = wire.recv(2000)
    if frame[12:14] == b"\\x08\\x06" and frame[28:32] == frame[38:42]:
        kind = {1: "request", 2: "reply"}[frame[21]]
        print(kind, socket.inet_ntoa(frame[28:32]), frame[22:28].hex(":"), frame[:6].hex(":"),
              flush=True)
    if frame[12:14] == b"\\x86\\xdd" and frame[20] == 58 and frame[54] == 136:
        address = socket.inet_ntop(socket.AF_INET6, frame[62:78])
        if frame[58] & 0x20 and not frame[58] & 0x40:  # override, not solicited
            source = socket.inet_ntop(socket.AF_INET6, frame[22:38])
            print("advertisement", address, frame[80:86].hex(":"), frame[21], source, flush=True)
"""

ADDRESSES = """
import json
from pyroute2 import IPRoute
with IPRoute() as ipr:
    index, = ipr.link_lookup(ifname="eth0")
    print(json.dumps([
        ipr.get_links(index)[0].get_attr("IFLA_ADDRESS"),
        [[m.get_attr("IFA_LOCAL") or m.get_attr("IFA_ADDRESS"), m["prefixlen"],
          m.get_attr("IFA_LABEL")] for m in ipr.get_addr(index=index)]]))
"""


def addresses(lab: Lab, host: str) -> tuple[str, list[list[object]]]:
    done = lab.exec(host, [sys.executable, "-c", ADDRESSES], capture_output=True, text=True)
    mac, found = json.loads(done.stdout)
    return mac, found


@pytest.fixture
def wire(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """Prints the announcements that reach the client."""
    command = [sys.executable, "-c", LISTENER]
    process = lab.spawn("client", command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_an_ipv4_vip(lab, lvskit, wire):
    done = lvskit("director", "vip", "add", VIP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"take {VIP} as an own address: ip addr add {VIP}/32 dev eth0 label eth0:0",
        f"announce it to the neighbours by gratuitous ARP: arping -U -c 1 -I eth0 {VIP}",
    ]
    mac, found = addresses(lab, "director")
    assert [VIP, 32, "eth0:0"] in found
    for kind in ("request", "reply"):
        assert wire.stdout.readline() == f"{kind} {VIP} {mac} ff:ff:ff:ff:ff:ff\n"
    # Once more only announces.
    again = lvskit("director", "vip", "add", VIP)
    assert "take" not in again.stdout
    assert wire.stdout.readline().startswith(f"request {VIP}")
    done = lvskit("director", "vip", "del", VIP)
    assert done.stdout == f"give up {VIP}: ip addr del {VIP}/32 dev eth0\n"


def test_an_ipv6_vip(lab, lvskit, wire):
    done = lvskit("director", "vip", "add", VIP6)
    assert done.returncode == 0, done.stderr
    mac, found = addresses(lab, "director")
    assert [VIP6, 128, None] in found
    assert wire.stdout.readline() == f"advertisement {VIP6} {mac} 255 {VIP6}\n"
    assert lvskit("director", "vip", "del", VIP6, "--interface", "eth0").returncode == 0


def test_the_interface_and_the_label_can_be_named(lab, lvskit):
    done = lvskit("director", "vip", "add", "10.7.7.7", "--interface", "eth0", "--label", "eth0:x")
    assert done.returncode == 0, done.stderr
    assert ["10.7.7.7", 32, "eth0:x"] in addresses(lab, "director")[1]
    assert lvskit("director", "vip", "del", "10.7.7.7").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "192.168.1.999"], "'192.168.1.999' is no IP address"),
        (["add", "192.168.1.176/24"], "without a prefix length"),
        (["add", "224.0.0.5"], "no unicast address"),
        (["add", "10.7.7.7"], "no device leads towards 10.7.7.7; name one with --interface: eth0"),
        (["add", VIP, "--interface", "eth9"], "no device 'eth9'; there are: eth0"),
        (["add", VIP, "--label", "vip"], "as in eth0:0"),
        (["add", VIP, "--label", "eth0:much-too-long"], "15 characters"),
        (["add", VIP6, "--label", "eth0:0"], "IPv6 addresses have no labels"),
        (["add", "192.168.1.175", "--interface", "lo"], "192.168.1.175 is on eth0 already"),
        (["del", VIP], f"this host does not hold {VIP}"),
        (["del", "192.168.1.175"], "the host's own address, not a VIP"),
    ],
)
def test_what_cannot_be_is_refused(lvskit, arguments, message):
    done = lvskit("director", "vip", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("lvskit: ")
    assert message in done.stderr


def test_without_rights(lab):
    # No capability is left to a process of another user, who may not even read the modules.
    program = """
import os, sys
import pyroute2, lvskit.hostsetup
from lvskit.cli.main import main, parser
parser()  # imports every command
try:
    os.setuid(65534)
except OSError:
    sys.exit(77)
sys.exit(main(["vip", "add", "192.168.1.177"]))
"""
    # Not measured: the other user may not write where coverage keeps its data.
    unmeasured = ["env", "-u", "COVERAGE_PROCESS_CONFIG", "-u", "COVERAGE_PROCESS_START"]
    command = [*unmeasured, sys.executable, "-c", program]
    done = lab.exec("director", command, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("there is no second user in this user namespace")
    assert done.returncode == 1
    assert "this needs CAP_NET_ADMIN; run it as root" in done.stderr
