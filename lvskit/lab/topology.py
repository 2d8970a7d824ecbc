"""The network of the lab: who is there, under which addresses; and its making, by netlink.

    client ──┐
    director ┼── segment (a bridge)      192.168.1.0/24, 2001:db8::/64
    rs1…rs3 ─┘

Every host is a network namespace with one device, eth0; the addresses are the tutorial's.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Final

SEGMENT: Final = "segment"
VIP: Final = "192.168.1.176"
VIP6: Final = "2001:db8::176"
# Linux include/uapi/linux/sockios.h and ethtool.h
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_STXCSUM: Final = 0x17


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the lab.

    Attributes:
        name: also its host name.
        number: the last number of its addresses, IPv4 and IPv6.
        holds_vip: the VIPs are ordinary addresses of it: it is the director.
        serves: it takes the VIPs' packets out of the tunnel: it is a real server.
    """

    name: str
    number: int
    holds_vip: bool = False
    serves: bool = False

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return f"192.168.1.{self.number}"

    @property
    def address6(self) -> str:
        """Its IPv6 address."""
        return f"2001:db8::{self.number}"


HOSTS: Final = (
    Host("client", 50),
    Host("director", 175, holds_vip=True),
    Host("rs1", 11, serves=True),
    Host("rs2", 12, serves=True),
    Host("rs3", 13, serves=True),
)


def host(name: str) -> Host | None:
    """Return the host of this name, if the lab has one."""
    return next((host for host in HOSTS if host.name == name), None)


def build_segment(holders: dict[str, int], *, xdp: bool) -> None:
    """Make the bridge, and a cable from it to every host; called in the segment's namespace.

    Args:
        holders: for each host, a process in its network namespace.
        xdp: frames that the director's XDP sends into its cable come out of it.
    """
    from lvskit.hostsetup.attached import Attached
    from lvskit.hostsetup.netlink import Netlink

    quiet("all", "default")
    with Netlink() as kernel:
        kernel.add_link("br0", "bridge")
        # Without a querier a snooping bridge forgets who wants neighbour solicitations.
        kernel.set_link("br0", kind="bridge", br_mcast_snooping=0, br_forward_delay=0)
        kernel.set_link("br0", state="up")
        bridge = kernel.link("br0")
        assert bridge is not None
        for host in HOSTS:
            cable = {"ifname": "eth0", "net_ns_pid": holders[host.name]}
            kernel.add_link(host.name, "veth", peer=cable)
            kernel.set_link(host.name, master=bridge.index, state="up")
            if xdp and host.holds_vip:
                # veth hands them on only to an end that has a program too (veth_xdp_flush); one
                # that has nothing to take out of a tunnel passes everything.
                Attached(way="xdp", interface=host.name, place=SEGMENT).apply(kernel)


def build_host(host: Host, *, xdp: bool) -> None:
    """Give a host its addresses; called in its namespace, after `build_segment`.

    Args:
        host: which one.
        xdp: its packets have their checksums, which XDP does not fill in for the card.
    """
    from lvskit.hostsetup.netlink import Netlink

    quiet("all", "default", "eth0")
    with Netlink() as kernel:
        for name in ("lo", "eth0"):
            kernel.set_link(name, state="up")
        link = kernel.link("eth0")
        assert link is not None
        if xdp:
            fill_checksums("eth0")
        kernel.add_address(ipaddress.IPv4Address(host.address), 24, link)
        kernel.add_address(ipaddress.IPv6Address(host.address6), 64, link)


def fill_checksums(device: str) -> None:
    """Leave no checksum of what a device sends to the card, as `ethtool -K … tx off` does."""
    value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sQ16x", device.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


def quiet(*scopes: str) -> None:
    """Make this network namespace like any other one, whatever the machine's own settings are.

    Args:
        scopes: "all", "default" (for devices to come) and the devices that are there.
    """
    from lvskit.hostsetup.changes import write_sysctl

    for scope in scopes:
        # New namespaces take over the machine's IPv4 settings (devconf_inherit_init_net).
        for name, value in {
            "rp_filter": "0",
            "arp_ignore": "0",
            "arp_announce": "0",
            "forwarding": "0",
        }.items():
            write_sysctl(f"net/ipv4/conf/{scope}/{name}", value)
        # Duplicate address detection would make every start a second longer.
        write_sysctl(f"net/ipv6/conf/{scope}/accept_dad", "0")
        write_sysctl(f"net/ipv6/conf/{scope}/accept_ra", "0")
        write_sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", "0")
