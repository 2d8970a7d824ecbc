"""Send complete IP datagrams by raw sockets.

A raw socket passes the output hooks and the routing of the host, as ip_vs does; it routes by the
address that it is told, whatever the header names, which is what direct routing needs. One sendto
for each packet: sendmmsg through ctypes was measured, and filling its arrays costs what the calls
save. The kernel side (net/ipv4/raw.c, raw_send_hdrinc) recomputes the header checksum and leaves
the rest, except that it replaces an identification of 0 where DF is not set.
"""

from __future__ import annotations

import errno
import os
import socket
from itertools import count
from typing import Final

from lvskit.datapath.fragments import split
from lvskit.errors import DatapathError

_BUFFER: Final = 1 << 23
_IPPROTO_RAW: Final = 255
_SNDBUFFORCE: Final = 32
_KNOWN: Final = 4096
_DF: Final = 0x40

_Address = tuple[str, int]


class Sender:
    """Sends datagrams, header and all, each to the destination in its header or by another way.

    Attributes:
        failed: datagrams that the host did not take, by error number.

    Raises:
        DatapathError: raw sockets are not allowed here.
    """

    def __init__(self) -> None:
        self.failed: dict[int, int] = {}
        self._sockets = [_raw_socket(socket.AF_INET)]
        try:
            self._sockets.append(_raw_socket(socket.AF_INET6))
        except OSError as err:
            if err.errno != errno.EAFNOSUPPORT:  # a host without IPv6 has no use for it
                raise
        self._v4, self._v6 = self._sockets[0].sendto, self._sockets[-1].sendto
        self._addresses: dict[bytes, _Address] = {}
        self._identifications = count(int.from_bytes(os.urandom(4), "big"))

    def send(self, packets: list[bytes]) -> None:
        """Send `packets`, none larger than the MTU of its path, without waiting."""
        v4, known = self._v4, self._addresses
        for packet in packets:
            try:
                if packet[0] < 0x60:
                    v4(packet, known.get(packet[16:20]) or self._address(packet[16:20]))
                else:
                    self._v6(packet, known.get(packet[24:40]) or self._address(packet[24:40]))
            except OSError as err:
                # A full device, a filter at the output, no route: lost, as on any wire.
                self._count(err.errno or 0)

    def send_to(self, packet: bytes, via: bytes, mtu: int, came: bytes = b"") -> None:
        """Send one packet by the way to another address, or in fragments.

        Args:
            packet: one datagram.
            via: packed address whose next hop gets it; empty = its own destination.
            mtu: of that way, bytes.
            came: what it was when it came; see `lvskit.datapath.fragments.split`.
        """
        four = packet[0] < 0x60
        if four and packet[4:6] == b"\0\0" and not packet[6] & _DF:
            # The kernel would give each part an identification of its own.
            own = next(self._identifications) & 0xFFFF | 1
            packet = packet[:4] + own.to_bytes(2, "big") + packet[6:]
        parts = split(packet, came, mtu, self._identifications)
        if not parts:
            self._count(errno.EMSGSIZE)
        way = via or (packet[16:20] if four else packet[24:40])
        target = self._addresses.get(way) or self._address(way)
        for part in parts:
            try:
                (self._v4 if four else self._v6)(part, target)
            except OSError as err:
                self._count(err.errno or 0)

    def _count(self, error: int) -> None:
        self.failed[error] = self.failed.get(error, 0) + 1

    def _address(self, packed: bytes) -> _Address:
        """Return an address as sockets take it, and keep it."""
        if len(self._addresses) >= _KNOWN:
            self._addresses.clear()
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        address = self._addresses[packed] = (socket.inet_ntop(family, packed), 0)
        return address

    def close(self) -> None:
        """Close the sockets."""
        for each in self._sockets:
            each.close()


def _raw_socket(family: int) -> socket.socket:
    try:
        raw = socket.socket(family, socket.SOCK_RAW, _IPPROTO_RAW)
    except PermissionError as err:
        raise DatapathError(
            "no raw socket: CAP_NET_RAW is missing; run as root, or in `unshare -Urn`"
        ) from err
    raw.setblocking(False)
    try:
        raw.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, _BUFFER)
    except PermissionError:  # not the machine's own root: as much as net.core.wmem_max
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return raw
