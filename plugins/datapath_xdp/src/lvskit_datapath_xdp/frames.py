"""Send Ethernet frames in batches: AF_PACKET sockets and sendmmsg(2).

The arrays that sendmmsg(2) takes are made once; a frame costs a copy and two numbers.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from array import array
from itertools import accumulate
from typing import Final

from lvskit import DatapathError

_BATCH: Final = 256
ROOM: Final = 2304
"""Bytes of a frame at most: the longest packet of a record, outer and Ethernet header."""
_SOL_PACKET: Final = 263
_QDISC_BYPASS: Final = 20
_SNDBUFFORCE: Final = 32
_BUFFER: Final = 1 << 23
# struct mmsghdr, and struct iovec, of a 64-bit machine: Linux include/linux/socket.h.
_MESSAGE: Final = struct.Struct("=QI4xQQQQi4xI4x")
_PIECE: Final = struct.Struct("=QQ")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]


class FrameSender:
    """Sends frames by one interface; one may be made for each.

    Args:
        ifindex: the interface's number.

    Attributes:
        waiting: frames for the next `flush`, of `ROOM` bytes at most.
        failed: those that the interface did not take, by error number.

    Raises:
        DatapathError: not allowed.
    """

    def __init__(self, ifindex: int) -> None:
        self.waiting: list[bytes] = []
        self.failed: dict[int, int] = {}
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError as err:
            raise DatapathError("no packet socket: CAP_NET_RAW is missing; run as root") from err
        try:
            self._socket.bind((socket.if_indextoname(ifindex), 0))
            self._socket.setsockopt(_SOL_PACKET, _QDISC_BYPASS, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, _BUFFER)
        except OSError as err:
            self._socket.close()
            raise DatapathError(f"no packet socket on interface {ifindex}: {err}") from err
        self._frames = bytearray(_BATCH * ROOM)
        self._pieces = bytearray(_BATCH * _PIECE.size)
        self._messages = bytearray(_BATCH * _MESSAGE.size)
        self._start, self._first = _address(self._messages), _address(self._frames)
        pieces = _address(self._pieces)
        for at in range(_BATCH):
            piece = pieces + at * _PIECE.size
            _MESSAGE.pack_into(self._messages, at * _MESSAGE.size, 0, 0, piece, 1, 0, 0, 0, 0)
        words = memoryview(self._pieces).cast("Q")
        self._starts, self._sizes = words[::2], words[1::2]

    def flush(self) -> None:
        """Send what waits, without waiting for room: what finds none is lost, as on any wire."""
        for first in range(0, len(self.waiting), _BATCH):
            batch = self.waiting[first : first + _BATCH]
            count, frames = len(batch), b"".join(batch)
            sizes = array("Q", map(len, batch))
            self._frames[: len(frames)] = frames
            self._starts[:count] = array("Q", accumulate(sizes[:-1], initial=self._first))
            self._sizes[:count] = sizes
            self._send(count)
        self.waiting.clear()

    def _send(self, count: int) -> None:
        sent = 0
        while sent < count:
            start = self._start + sent * _MESSAGE.size
            done = _libc.sendmmsg(self._socket.fileno(), start, count - sent, socket.MSG_DONTWAIT)
            if done > 0:
                sent += done
                continue
            error = ctypes.get_errno()
            if error != errno.EINTR:
                self.failed[error] = self.failed.get(error, 0) + 1
                sent += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
