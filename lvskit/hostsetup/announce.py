"""Tell the neighbours where an address is now: gratuitous ARP, unsolicited neighbour advertisement.

They keep the hardware address of the host that had it before, for minutes, unless told.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from lvskit.errors import DatapathError
from lvskit.hostsetup.netlink import IPAddress, Link

_BROADCAST: Final = b"\xff" * 6
_ETH_P_ARP: Final = 0x0806
_ALL_NODES: Final = "ff02::1"
_OVERRIDE: Final = 0x20000000  # RFC 4861 section 4.4: take this address instead of the cached one


def gratuitous_arp(address: IPAddress, mac: bytes) -> list[bytes]:
    """Return the Ethernet frames that announce an IPv4 address.

    A request and a reply, as RFC 5227 section 3 and RFC 2002 section 4.6 have them: there are
    hosts that heed only the one or the other.
    """
    frames = []
    for operation, target in ((1, bytes(6)), (2, mac)):
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        body += mac + address.packed + target + address.packed
        frames.append(_BROADCAST + mac + struct.pack("!H", _ETH_P_ARP) + body)
    return frames


def unsolicited_advertisement(address: IPAddress, mac: bytes) -> bytes:
    """Return the ICMPv6 message that announces an IPv6 address; the kernel adds its checksum."""
    advertisement = struct.pack("!BBHI", 136, 0, 0, _OVERRIDE) + address.packed
    return advertisement + struct.pack("!BB", 2, 1) + mac  # option 2: target link-layer address


def announce(address: IPAddress, link: Link) -> None:
    """Announce that `address` is at `link`, which holds it.

    Raises:
        DatapathError: not permitted, or the device is down.
    """
    mac = bytes.fromhex(link.mac.replace(":", ""))
    try:
        if address.version == 4:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
                sock.bind((link.name, 0))
                for frame in gratuitous_arp(address, mac):
                    sock.send(frame)
            return
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            # RFC 4861 section 7.1.2: a hop limit of 255 proves that no router passed it on.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.bind((str(address), 0, 0, link.index))
            message = unsolicited_advertisement(address, mac)
            sock.sendto(message, (_ALL_NODES, 0, 0, link.index))
    except OSError as err:
        raise DatapathError(
            f"{address} is on {link.name}, but cannot be announced there ({err.strerror}): the"
            " neighbours may take minutes to find it; is the device up?"
        ) from err
