"""The decapsulator: reads tunnel packets from raw sockets, writes what is inside to a device.

A process of its own, started by `lvskit realserver up`. It accepts an inner packet only for the
VIPs of the state file, and only from its directors if it names any; SIGHUP makes it read the
file again, SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import select
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Final

from lvskit.hostsetup.state import State

_BATCH: Final = 64
_LARGEST: Final = 65535 + 60
_TCP, _UDP = 6, 17
_CE: Final = 3  # RFC 3168: congestion experienced
_ETHERTYPES: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}


def inner_packet(packet: bytes, vips: frozenset[bytes], ecn: int) -> bytes | None:
    """Return what the host shall receive for a packet that came in the tunnel, or None.

    Args:
        packet: one IPv4 or IPv6 datagram, perhaps with bytes behind its end.
        vips: the addresses it may be for, packed.
        ecn: the ECN field of the outer header.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        header, length = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
        if not 20 <= header <= length:
            return None
        packet = packet[:length]
        destination, protocol = packet[16:20], packet[9]
        fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    elif version == 6 and len(packet) >= 40:
        packet = packet[: 40 + int.from_bytes(packet[4:6], "big")]
        header, destination, protocol, fragment = 40, packet[24:40], packet[6], 0
    else:
        return None
    if destination not in vips:
        return None
    if protocol in (_TCP, _UDP) and not fragment:
        packet = _fill_checksum(packet, header, protocol)
    return _with_congestion(packet, version) if ecn == _CE else packet


def _fill_checksum(packet: bytes, header: int, protocol: int) -> bytes:
    # A card, or the kernel, that joins packets into one (GRO) leaves the sum of the pseudo header
    # in place of the checksum (net/ipv4/tcp_offload.c, tcp_gro_complete); so does a sender on
    # this machine, which leaves the rest to a card that there is not. Who reads it from a raw
    # socket has to finish it.
    place = header + (16 if protocol == _TCP else 6)
    field = packet[place : place + 2]
    if len(field) < 2 or field == b"\0\0":
        return packet
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    pseudo = int.from_bytes(addresses, "big") + protocol + len(packet) - header
    if (pseudo - int.from_bytes(field, "big")) % 65535:
        return packet
    body = packet[header:] + bytes(len(packet) & 1)
    # The field holds the pseudo header's sum, so adding up the segment adds it in; big integers
    # sum 16 bits at a time, as 65536 is 1 modulo 65535 (RFC 1071).
    checksum = 65535 - int.from_bytes(body, "big") % 65535
    return packet[:place] + checksum.to_bytes(2, "big") + packet[place + 2 :]


def _with_congestion(packet: bytes, version: int) -> bytes | None:
    # RFC 6040 section 4.2: a mark on the outer header goes to the inner, or, where the inner
    # flow does not understand it, the packet goes.
    traffic_class = int.from_bytes(packet[:2], "big") >> (0 if version == 4 else 4) & 0xFF
    if traffic_class & 3 == 0:
        return None
    if version == 6:
        word = int.from_bytes(packet[:2], "big") | _CE << 4
        return word.to_bytes(2, "big") + packet[2:]
    # RFC 1624: the header checksum falls by what the field rises.
    raised = _CE - (traffic_class & 3)
    checksum = (int.from_bytes(packet[10:12], "big") - raised) % 65535
    head = packet[:1] + bytes([traffic_class | _CE]) + packet[2:10]
    return head + checksum.to_bytes(2, "big") + packet[12:]


class Decapsulator:
    """The loop, and what it knows.

    Args:
        state: the state file.
        sockets: raw sockets, as in `lvskit.hostsetup.tunnel.OUTER`.
        exit_: descriptor of the TUN device, or of a packet socket on the feeding veth.
        mac: the hardware address of the veth's other end; None for a TUN device.
    """

    def __init__(
        self, state: Path, sockets: list[socket.socket], exit_: int, mac: bytes | None
    ) -> None:
        self._state = state
        self._sockets = {sock.fileno(): sock for sock in sockets}
        self._exit = exit_
        self._mac = mac
        self._buffer = bytearray(_LARGEST)
        self._view = memoryview(self._buffer)
        self._vips: frozenset[bytes] = frozenset()
        self._directors: frozenset[bytes] = frozenset()
        self.read_state()

    def read_state(self, *_: int | FrameType | None) -> None:
        """Read the VIPs and the directors; also a signal handler."""
        state = State.load(self._state)
        self._vips = _packed(state.vips)
        self._directors = _packed(state.directors)

    def run(self) -> None:
        """Serve until a signal ends the process."""
        poll = select.poll()
        for number in self._sockets:
            poll.register(number, select.POLLIN)
        while True:
            for number, _ in poll.poll():
                sock = self._sockets[number]
                take = self._take4 if sock.family == socket.AF_INET else self._take6
                with contextlib.suppress(BlockingIOError):
                    for _ in range(_BATCH):
                        take(sock)

    def _take4(self, sock: socket.socket) -> None:
        # Raw IPv4 sockets give the outer header too (raw(7)); one buffer for all packets, as a
        # new one of this size for each costs more than the rest.
        size = sock.recv_into(self._buffer)
        buffer = self._buffer
        start = (buffer[0] & 15) * 4
        self._pass_on(bytes(buffer[12:16]), buffer[1] & 3, bytes(self._view[start:size]))

    def _take6(self, sock: socket.socket) -> None:
        # Raw IPv6 sockets give what is inside (RFC 3542 section 3), and the traffic class aside.
        size, ancillary, _, address = sock.recvmsg_into([self._buffer], socket.CMSG_SPACE(4))
        sender = socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0])
        ecn = int.from_bytes(ancillary[0][2], sys.byteorder) & 3 if ancillary else 0
        self._pass_on(sender, ecn, bytes(self._view[:size]))

    def _pass_on(self, sender: bytes, ecn: int, packet: bytes) -> None:
        if self._directors and sender not in self._directors:
            return
        inner = inner_packet(packet, self._vips, ecn)
        if inner is None:
            return
        if self._mac is not None:
            inner = self._mac + self._mac + _ETHERTYPES[inner[0] >> 4] + inner
        try:
            os.write(self._exit, inner)
        except OSError:
            # The device may be down, or its queue full: a network may lose packets.
            pass


def _packed(addresses: list[str]) -> frozenset[bytes]:
    return frozenset(ipaddress.ip_address(address).packed for address in addresses)


def main() -> None:
    """Run the decapsulator, with the descriptors that `lvskit realserver up` hands it."""
    parser = argparse.ArgumentParser(prog="lvskit.hostsetup.decapsulator")
    parser.add_argument("state", type=Path)
    parser.add_argument("exit", type=int)
    parser.add_argument("sockets", type=int, nargs="+")
    parser.add_argument("--mac", type=lambda text: bytes.fromhex(text.replace(":", "")))
    given = parser.parse_args()
    sockets = [socket.socket(fileno=number) for number in given.sockets]
    decapsulator = Decapsulator(given.state, sockets, given.exit, given.mac)
    signal.signal(signal.SIGHUP, decapsulator.read_state)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A daemon has no parent that would have to wait for it; `up` waits for this one line.
    child = os.fork()
    if child:
        print(child)
    else:
        os.close(sys.stdout.fileno())
        decapsulator.run()


if __name__ == "__main__":
    main()
