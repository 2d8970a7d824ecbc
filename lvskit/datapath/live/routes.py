"""How the host reaches an address, and word of every change.

Sources: Linux include/uapi/linux/rtnetlink.h; net/ipv4/route.c for path MTUs, which the kernel
learns from ICMP errors only for packets that some socket can have sent.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
import sys
from typing import Final

from lvskit.datapath.live.netlink import ACK, ROUTE, Message, Netlink, Refused, attribute
from lvskit.datapath.live.netlink import attributes as parse
from lvskit.errors import DatapathError
from lvskit.types import Route

_NEW_LINK, _GET_LINK = 16, 18
_NEW_ROUTE, _GET_ROUTE = 24, 26
_LOCAL: Final = 2  # RTN_LOCAL
_REFUSING: Final = frozenset({6, 7, 8})  # RTN_BLACKHOLE, UNREACHABLE, PROHIBIT
_DESTINATION, _INTERFACE, _SOURCE, _METRICS = 1, 4, 7, 8
_METRIC_MTU: Final = 2
_LINK_MTU: Final = 4
# RTNLGRP_ of links, IPv4 addresses, routes and rules, and of IPv6.
_GROUPS: Final = (1, 5, 7, 8, 9, 11, 19)
_UNREACHABLE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT}
)

# That of a loopback interface is more than IPv4 can say (include/net/ip.h, IP_MAX_MTU).
_MOST_MTU: Final = {socket.AF_INET: 0xFFFF, socket.AF_INET6: 0xFFFF + 40}

_IPPROTO_IPIP: Final = 4
_IPPROTO_GRE: Final = 47
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25
_ATTACH_FILTER: Final = 26


class Routes:
    """Routes by address: asked once, kept until they change."""

    def __init__(self) -> None:
        self._netlink = Netlink(ROUTE)
        self._monitor = Netlink(ROUTE, groups=_GROUPS)
        self._known: dict[bytes, Route | None] = {}

    def get(self, address: bytes) -> Route | None:
        """Return the way to `address`, packed, or None where there is none."""
        if address not in self._known:
            self._known[address] = self._ask(address)
        return self._known[address]

    def refresh(self) -> bool:
        """Ask for every known route again; True, and all forgotten, where one has changed."""
        if all(self._ask(address) == route for address, route in self._known.items()):
            return False
        self._known.clear()
        return True

    def fileno(self) -> int:
        """Return the descriptor that is readable when links, addresses, routes or rules change."""
        return self._monitor.socket.fileno()

    def drain(self) -> None:
        """Read what has changed; `refresh` tells whether it matters."""
        with contextlib.suppress(OSError):  # of word that is lost it is enough that there was some
            while self._monitor.drain():
                pass

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._monitor.close()

    def _ask(self, address: bytes) -> Route | None:
        """Ask the kernel as ``ip route get`` does."""
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        head = struct.pack("=BBBBBBBBI", family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0)
        answer = self._request(_GET_ROUTE, _NEW_ROUTE, head + attribute(_DESTINATION, address))
        if answer is None or len(answer) < len(head) or answer[7] in _REFUSING:
            return None
        found = parse(answer, len(head))
        interface = int.from_bytes(found.get(_INTERFACE, b""), sys.byteorder)
        metrics = parse(found.get(_METRICS, b""), 0)
        mtu = int.from_bytes(metrics.get(_METRIC_MTU, b""), sys.byteorder) or self._mtu(interface)
        if not mtu or _SOURCE not in found:
            return None
        return Route(found[_SOURCE], min(mtu, _MOST_MTU[family]), answer[7] == _LOCAL)

    def _mtu(self, interface: int) -> int:
        """Return the MTU of an interface; 0 where it is gone."""
        head = struct.pack("=BxHiII", 0, 0, interface, 0, 0)
        answer = self._request(_GET_LINK, _NEW_LINK, head)
        found = parse(answer, len(head)) if answer else {}
        return int.from_bytes(found.get(_LINK_MTU, b""), sys.byteorder)

    def _request(self, kind: int, wanted: int, body: bytes) -> bytes | None:
        """Return the body of the one answer; None where there is no such route or link."""
        try:
            for answer in self._netlink.request(Message(kind, ACK, 0, body)):
                if answer.kind == wanted:
                    return answer.body
        except Refused as refused:
            if refused.errno not in (*_UNREACHABLE, errno.ENODEV, errno.ENOENT):
                raise DatapathError(f"the routes cannot be read: {refused.strerror}") from refused
        return None


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("size", ctypes.c_ushort), ("code", ctypes.c_void_p))


class PathErrors:
    """Sockets that own the tunnels' packets in the kernel's eyes, and receive nothing.

    An ICMP error about a tunnel's packet ("fragmentation needed" above all) reaches the kernel's
    memory of path MTUs only through a socket of that protocol (net/ipv4/raw.c, raw_err); the
    error queue of the same socket tells us that it is time to ask for routes again.
    """

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self._expected: set[tuple[int, int]] = set()
        for family, protocol in (
            (socket.AF_INET, _IPPROTO_IPIP),
            (socket.AF_INET, socket.IPPROTO_IPV6),
            (socket.AF_INET, _IPPROTO_GRE),
            (socket.AF_INET6, _IPPROTO_IPIP),
            (socket.AF_INET6, socket.IPPROTO_IPV6),
        ):
            self.expect(family, protocol)

    def expect(self, family: int, protocol: int) -> socket.socket | None:
        """Have errors about packets of `protocol` reach the kernel's memory too.

        Returns:
            The socket that does it, also the last of `sockets`; None where there was one already.
        """
        if (family, protocol) in self._expected:
            return None
        self._expected.add((family, protocol))
        with contextlib.suppress(OSError):  # no IPv6 here; what is refused is only slower
            self.sockets.append(self._open(family, protocol))
            return self.sockets[-1]
        return None

    def _open(self, family: int, protocol: int) -> socket.socket:
        raw = socket.socket(family, socket.SOCK_RAW, protocol)
        code = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))  # return 0: nothing
        raw.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, bytes(_Program(1, ctypes.addressof(code)))
        )
        raw.setblocking(False)
        if family == socket.AF_INET:
            raw.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        else:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        return raw

    def drain(self) -> None:
        """Read the errors that wait; what they say, the routes say better."""
        for each in self.sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    each.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            with contextlib.suppress(OSError):
                each.recv(0)

    def close(self) -> None:
        """Close the sockets."""
        for each in self.sockets:
            each.close()
