"""The little of netlink that this datapath speaks, over plain sockets.

Not pyroute2: its calls block on an event loop of their own, so they cannot be made inside the
daemon's, and a packet queue has no room for message objects. Sources: Linux
include/uapi/linux/netlink.h and net/netlink/af_netlink.c.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from lvskit.errors import DatapathError

ROUTE: Final = 0
NETFILTER: Final = 12

REQUEST: Final = 0x1
ACK: Final = 0x4
CREATE: Final = 0x400

ERROR: Final = 2
_MAX_ERRNO: Final = 4095
HEADER: Final = 16
_NESTED: Final = 0x8000
_TYPE: Final = 0x3FFF

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_NO_ENOBUFS: Final = 5
_RCVBUFFORCE: Final = 33
_RECEIVE: Final = 1 << 17
_TIMEOUT: Final = struct.pack("@ll", 5, 0)  # a kernel that does not answer must not hang us

_HEAD = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_PAD: Final = (b"", b"\0\0\0", b"\0\0", b"\0")


class Message(NamedTuple):
    """One netlink message.

    Attributes:
        kind: its type.
        flags: `CREATE` and the like; those of a request are added when it is sent.
        sequence: of the request that it answers.
        body: what follows the header.
    """

    kind: int
    flags: int
    sequence: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    size = 4 + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + _PAD[size & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Return an attribute that holds a string."""
    return attribute(kind, value.encode() + b"\0")


def be16(kind: int, value: int) -> bytes:
    """Return an attribute that holds 16 bits in network order."""
    return attribute(kind, value.to_bytes(2, "big"))


def be32(kind: int, value: int) -> bytes:
    """Return an attribute that holds 32 bits in network order, in two's complement."""
    return attribute(kind, (value & 0xFFFFFFFF).to_bytes(4, "big"))


def spans(data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Iterate over attributes from `start`: type, where the value starts, where it ends."""
    end = len(data)
    while start + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, start)
        if size < 4 or start + size > end:
            return
        yield kind & _TYPE, start + 4, start + size
        start += (size + 3) & ~3


def attributes(data: bytes, start: int) -> dict[int, bytes]:
    """Return the attributes from `start`, by type."""
    return {kind: data[begin:end] for kind, begin, end in spans(data, start)}


def split(datagram: bytes) -> Iterator[Message]:
    """Iterate over the messages of one datagram."""
    at = 0
    while at + HEADER <= len(datagram):
        size, kind, flags, sequence, _ = _HEAD.unpack_from(datagram, at)
        if size < HEADER or at + size > len(datagram):
            return
        yield Message(kind, flags, sequence, datagram[at + HEADER : at + size])
        at += (size + 3) & ~3


class Refused(OSError):
    """The kernel's refusal: an error number, and the place of the message that earned it."""

    def __init__(self, code: int, place: int) -> None:
        super().__init__(code, os.strerror(code))
        self.place = place


class Netlink:
    """A netlink socket: requests that wait for the kernel's word, and what else arrives.

    Args:
        protocol: `ROUTE` or `NETFILTER`.
        groups: numbers of the multicast groups to listen to.
        buffer: bytes that may wait to be read; the system's own amount where 0.

    Attributes:
        socket: the socket underneath.

    Raises:
        DatapathError: this kernel has no such netlink.
    """

    def __init__(self, protocol: int, groups: Sequence[int] = (), buffer: int = 0) -> None:
        try:
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        except OSError as err:
            raise DatapathError(
                f"no netlink socket of protocol {protocol}: {err.strerror}; the kernel needs "
                "CONFIG_NETFILTER_NETLINK (modprobe nfnetlink)"
            ) from err
        self.socket.bind((0, 0))
        # Python's own timeouts would make a read with MSG_DONTWAIT wait too.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        self._sequence = 0
        for group in groups:
            self.socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        if buffer:
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, buffer)
            except PermissionError:  # not the machine's own root: as much as net.core.rmem_max
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

    def lose_silently(self) -> None:
        """Let the kernel count what does not fit instead of failing the next read."""
        self.socket.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)

    def request(self, *messages: Message) -> list[Message]:
        """Send `messages` at once and wait until each is acknowledged, or the first is refused.

        Returns:
            Every other message that came meanwhile.

        Raises:
            Refused: what the kernel said, and of which message.
        """
        first = self._sequence + 1
        data = bytearray()
        awaited = set()
        for message in messages:
            self._sequence += 1
            flags = message.flags | REQUEST
            size = HEADER + len(message.body)
            if flags & ACK:
                awaited.add(self._sequence)
            data += _HEAD.pack(size, message.kind, flags, self._sequence, 0)
            data += message.body
        self.socket.sendto(data, (0, 0))
        others = []
        while awaited:
            for answer in split(self.socket.recv(_RECEIVE)):
                if answer.kind != ERROR or answer.sequence < first:
                    others.append(answer)
                    continue
                code = -int.from_bytes(answer.body[:4], sys.byteorder, signed=True) & _MAX_ERRNO
                if code:
                    self._discard()
                    raise Refused(code, answer.sequence - first)
                awaited.discard(answer.sequence)
        return others

    def _discard(self) -> None:
        """Throw away the other refusals of the same batch."""
        while self.drain():
            pass

    def drain(self) -> list[Message]:
        """Return what has arrived, without waiting; at most one datagram.

        Raises:
            OSError: ENOBUFS, once, where something did not fit the buffer and is lost.
        """
        try:
            return list(split(self.socket.recv(_RECEIVE, socket.MSG_DONTWAIT)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
