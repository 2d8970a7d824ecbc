"""The two ways by which the kernel hands packets to a program: the packet queue and the log.

Sources: Linux include/uapi/linux/netfilter/nfnetlink_queue.h and nfnetlink_log.h, and
net/netfilter/nfnetlink_queue.c for what follows. Without NFQA_CFG_F_GSO the kernel splits a large
segment as the network card would have and completes unfinished checksums before it copies: each
packet that arrives here fits the wire and may go into a tunnel as it is.
"""

from __future__ import annotations

import errno
import struct
import sys
from pathlib import Path
from typing import Final, NamedTuple

from lvskit.datapath.live.netlink import (
    ACK,
    ERROR,
    HEADER,
    NETFILTER,
    REQUEST,
    Message,
    Netlink,
    Refused,
    attribute,
    be32,
    spans,
)
from lvskit.errors import DatapathError

_QUEUE: Final = 3 << 8
_QUEUE_VERDICT: Final = _QUEUE | 1
_QUEUE_CONFIG: Final = _QUEUE | 2
_QUEUE_VERDICT_BATCH: Final = _QUEUE | 3
_LOG: Final = 4 << 8
_LOG_CONFIG: Final = _LOG | 1

_BIND: Final = 1
_COPY_PACKET: Final = 2
_WHOLE: Final = 0xFFFF
_FAIL_OPEN: Final = 1
_GSO: Final = 4

_GENERIC: Final = 4  # struct nfgenmsg
_ATTRIBUTES: Final = HEADER + _GENERIC
_MARK: Final = 3
_PAYLOAD: Final = 10
_PAYLOAD_TYPE: Final = struct.pack("=H", _PAYLOAD)
_LOG_HEADER: Final = 1
_LOG_PAYLOAD: Final = 9
_LOG_HOOK: Final = 2  # where nfulnl_msg_packet_hdr has it
# NFQA_PACKET_HDR, always first: 4 bytes of attribute header, then the packet's number, the
# protocol of its frame, and the hook where it waits.
_NUMBER: Final = _ATTRIBUTES + 4
_NUMBER_END: Final = _NUMBER + 4
_HOOK: Final = _NUMBER + 6
_LARGEST: Final = 66_000
_LAYOUTS: Final = 1024
_STATISTICS: Final = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")

_AT_ONCE: Final = 1 << 16  # bytes of verdicts to one call; more might not fit its buffer

ACCEPT: Final = b"\0\0\0\1"
DROP: Final = b"\0\0\0\0"


class Queued(NamedTuple):
    """A packet that waits in the kernel.

    Attributes:
        number: the kernel's for it, packed; later packets have higher ones.
        packet: one datagram.
        mark: its firewall mark.
        hook: where it waits: `nftables.INPUT` and the like.
    """

    number: bytes
    packet: bytes
    mark: int
    hook: int


class PacketQueue:
    """A queue of packets that wait in the kernel for the director's word.

    Args:
        number: of the queue.
        length: the most packets that wait; more are dropped.
        buffer: bytes of packets that may wait to be read.

    Attributes:
        refused: verdicts that the kernel did not take, since the packet was gone.

    Raises:
        DatapathError: another program reads this queue, or it is missing here or not allowed.
    """

    def __init__(self, number: int, length: int, buffer: int) -> None:
        self.number = number
        self.refused = 0
        self._netlink = Netlink(NETFILTER, buffer=buffer)
        self._netlink.lose_silently()  # counted by the kernel, see `losses`
        self._socket = self._netlink.socket
        self._prefix_end = 0
        self._layouts: dict[bytes, tuple[int, int]] = {}
        # NFQA_VERDICT_HDR: 12 bytes of type 2; then verdict and packet number.
        self._place = bytes((0, 0)) + number.to_bytes(2, "big") + struct.pack("=HH", 12, 2)
        head = struct.pack("=IHHII", 32, _QUEUE_VERDICT_BATCH, REQUEST, 0, 0)
        self._verdict = head + self._place
        try:
            self._configure(attribute(1, struct.pack(">BxH", _BIND, 0)))
            self._configure(be32(3, length))
            self._configure(be32(4, _FAIL_OPEN | _GSO) + be32(5, 0))
            # The last one, since packets flow from here on. No answer is awaited: it would arrive
            # among packets.
            self._configure(attribute(2, struct.pack(">IB", _WHOLE, _COPY_PACKET)), 0)
        except Refused as refused:
            self.close()
            raise _unusable(f"packet queue {number}", "nfnetlink_queue", refused) from refused
        self._socket.setblocking(False)

    def _configure(self, body: bytes, flags: int = ACK) -> None:
        body = bytes((0, 0)) + self.number.to_bytes(2, "big") + body
        self._netlink.request(Message(_QUEUE_CONFIG, flags, 0, body))

    def fileno(self) -> int:
        """Return the descriptor that is readable when packets wait."""
        return self._socket.fileno()

    def read(self, limit: int) -> list[tuple[bytes, bytes, int, int]]:
        """Return up to `limit` waiting packets, as `Queued` has them, without waiting."""
        found: list[tuple[bytes, bytes, int, int]] = []
        add, receive, layouts = found.append, self._socket.recv, self._layouts
        end = self._prefix_end
        try:
            for _ in range(limit):
                message = receive(_LARGEST)
                # Between the number and the payload lie the hook, interfaces, the mark and the
                # sender's hardware address: the same for most packets, so the way through is
                # remembered. Some have one attribute more at the end (a datagram put together
                # from fragments).
                known = layouts.get(message[_NUMBER_END:end])
                if known is None or message[end + 2 : end + 4] != _PAYLOAD_TYPE:
                    queued = self._dissect(message)
                    end = self._prefix_end
                    if queued is not None:
                        add(queued)
                else:
                    add((message[_NUMBER:_NUMBER_END], message[end + 4 :], *known))
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.ENOBUFS):
                raise
        return found

    def _dissect(self, message: bytes) -> Queued | None:
        """Read one message the slow way, and remember its layout."""
        kind = int.from_bytes(message[4:6], sys.byteorder)
        if kind != _QUEUE or len(message) <= _HOOK:
            if kind == ERROR:
                self.refused += 1
            return None
        mark, packet, hook = 0, b"", message[_HOOK]
        for attribute_type, start, end in spans(message, _ATTRIBUTES):
            if attribute_type == _MARK:
                mark = int.from_bytes(message[start:end][:4], "big")
            elif attribute_type == _PAYLOAD:
                packet = message[start:end]
                if end == len(message):
                    self._remember(message[_NUMBER_END : start - 4], start - 4, (mark, hook))
        return Queued(message[_NUMBER:_NUMBER_END], packet, mark, hook)

    def _remember(self, prefix: bytes, end: int, known: tuple[int, int]) -> None:
        if end != self._prefix_end or len(self._layouts) >= _LAYOUTS:
            self._layouts.clear()
            self._prefix_end = end
        self._layouts[prefix] = known

    def answer(self, runs: list[tuple[bytes, bytes, bytes]]) -> None:
        """Decide packets, in runs: `ACCEPT` or `DROP`, the number of a run's last packet, nothing.

        A run takes every packet that still waits up to that number, so runs are in order. With
        bytes in its third place it is one packet alone, which goes on as those bytes.
        """
        head, parts, size = self._verdict, [], 0
        for verdict, number, changed in runs:
            part = self._rewrite(verdict, number, changed) if changed else head + verdict + number
            parts.append(part)
            size += len(part)
            if size >= _AT_ONCE:
                self._socket.send(b"".join(parts))
                parts, size = [], 0
        if parts:
            self._socket.send(b"".join(parts))

    def _rewrite(self, verdict: bytes, number: bytes, changed: bytes) -> bytes:
        body = self._place + verdict + number + attribute(_PAYLOAD, changed)
        head = struct.pack("=IHHII", HEADER + len(body), _QUEUE_VERDICT, REQUEST, 0, 0)
        return head + body

    def losses(self) -> tuple[int, int]:
        """Return how many packets the kernel dropped: the queue was full, the buffer was full.

        Both are 0 where the kernel does not tell: to an ordinary user's own user namespace.
        """
        try:
            statistics = _STATISTICS.read_text()
        except PermissionError:
            return 0, 0
        for line in statistics.splitlines():
            fields = line.split()
            if int(fields[0]) == self.number:
                return int(fields[5]), int(fields[6])
        return 0, 0

    def close(self) -> None:
        """Let go of the queue: the kernel drops what waits in it."""
        self._netlink.close()


class PacketLog:
    """Copies of headers: of what local servers send, and of clients' fragments.

    Args:
        group: number of the log group.
        buffer: bytes that may wait to be read.

    Raises:
        DatapathError: as `PacketQueue`.
    """

    def __init__(self, group: int, buffer: int) -> None:
        self._netlink = Netlink(NETFILTER, buffer=buffer)
        self._netlink.lose_silently()
        head = bytes((0, 0)) + group.to_bytes(2, "big")
        bind = attribute(1, bytes((_BIND,)))
        copy = attribute(2, struct.pack(">IBx", _WHOLE, _COPY_PACKET))
        try:
            for body in (bind, copy):
                self._netlink.request(Message(_LOG_CONFIG, ACK, 0, head + body))
        except Refused as refused:
            self.close()
            raise _unusable(f"log group {group}", "nfnetlink_log", refused) from refused

    def fileno(self) -> int:
        """Return the descriptor that is readable when copies wait."""
        return self._netlink.socket.fileno()

    def read(self) -> list[tuple[int, bytes]]:
        """Return waiting copies, without waiting: the hook, and the beginning of the packet."""
        found, hook = [], 0
        for message in self._netlink.drain():
            for kind, start, end in spans(message.body, _GENERIC):
                if kind == _LOG_HEADER and start + _LOG_HOOK < end:
                    hook = message.body[start + _LOG_HOOK]
                elif kind == _LOG_PAYLOAD:
                    found.append((hook, message.body[start:end]))
        return found

    def close(self) -> None:
        """Let go of the group."""
        self._netlink.close()


def whole(packet: bytes) -> bytes:
    """Return `packet`, cut short by the log, at the length that its header claims: with zeros."""
    if packet[:1] >= b"\x60":
        return packet.ljust(40 + int.from_bytes(packet[4:6], "big"), b"\0")
    return packet.ljust(int.from_bytes(packet[2:4], "big"), b"\0")


def _unusable(what: str, module: str, refused: Refused) -> DatapathError:
    """Say what a refused configuration means, and what to do."""
    if refused.errno in (errno.EBUSY, errno.EPERM):
        return DatapathError(
            f"{what} is refused ({refused.strerror}): another program, or another lvskit, has it "
            f"(/proc/net/netfilter/{module}; choose another number), or CAP_NET_ADMIN is "
            "missing: run as root, or in `unshare -Urn`"
        )
    return DatapathError(
        f"{what} is refused ({refused.strerror}): the kernel needs {module} (modprobe {module})"
    )
