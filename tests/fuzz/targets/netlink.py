"""The kernel's messages to the live datapath: packets queued and logged, routes."""

from __future__ import annotations

import struct
from typing import Any

from fuzzkit.source import Bytes

from lvskit.datapath.live.netlink import Netlink, attributes, spans, split
from lvskit.datapath.live.nfqueue import PacketLog, PacketQueue, whole
from lvskit.datapath.live.routes import Routes
from lvskit.errors import DatapathError

_DATAGRAMS = 4
_TARGET = bytes((198, 51, 100, 1))


class _Socket:
    """Gives out datagrams, then the acknowledgement of request 1, then nothing more."""

    def __init__(self, datagrams: list[bytes], *, acknowledges: bool = False) -> None:
        self._datagrams = list(datagrams)
        if acknowledges:
            for number in (1, 2):
                self._datagrams.append(struct.pack("=IHHIIi", 36, 2, 0, number, 0, 0) + bytes(16))

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._datagrams:
            raise BlockingIOError(11, "nothing")
        return self._datagrams.pop(0)[:size]

    def sendto(self, data: bytes, address: object) -> None:
        pass


def check(data: bytes) -> None:
    source = Bytes(data)
    datagrams = [source.blob(255) for _ in range(source.number(1, _DATAGRAMS))]
    for datagram in datagrams:
        for message in split(datagram):
            assert len(message.body) <= len(datagram)
            attributes(message.body, 0)
        for _, start, end in spans(datagram, 0):
            assert 4 <= start <= end <= len(datagram)
    queue = _made(PacketQueue, number=7, refused=0, _prefix_end=0, _layouts={})
    queue._socket = _Socket(datagrams)
    for number, packet, mark, hook in queue.read(2 * _DATAGRAMS):
        assert len(number) == 4
        assert len(packet) <= 255
        assert 0 <= mark < 2**32
        assert 0 <= hook < 256
    log = _made(PacketLog, _netlink=_netlink(datagrams))
    for hook, packet in log.read():
        assert 0 <= hook < 256
        assert len(whole(packet)) <= 40 + 65535
    routes = _made(Routes, _netlink=_netlink(datagrams, acknowledges=True), _known={})
    try:
        route = routes.get(_TARGET)
    except DatapathError:  # the kernel refused, for a reason of its own
        return
    assert route is None or route.mtu > 0


def _netlink(datagrams: list[bytes], *, acknowledges: bool = False) -> Any:
    return _made(Netlink, socket=_Socket(datagrams, acknowledges=acknowledges), _sequence=0)


def _made(kind: type, **attributes_: object) -> Any:
    """Return an object without its socket, which needs the kernel's consent."""
    made = kind.__new__(kind)
    vars(made).update(attributes_)
    return made
