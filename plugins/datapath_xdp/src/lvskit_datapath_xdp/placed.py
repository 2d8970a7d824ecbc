"""What the director is told of a connection that the program has placed by itself.

It receives a packet like the one that opened it, while the scheduler answers with the server that
the program has chosen. So every rule about new connections holds for these too.
"""

from __future__ import annotations

import struct
from types import TracebackType
from typing import Any, Final

from lvskit import TCP, Flow, SchedulerBase, ServiceKey

_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_TTL: Final = 64


def opening(key: ServiceKey, address: bytes, port: bytes, flags: int) -> bytes:
    """Return a packet without content from a client to a service.

    Args:
        key: the service.
        address: the client's, of 16 bytes; IPv4 in the first 4.
        port: the client's, as packets have it.
        flags: of TCP.
    """
    ports = port + key.port.to_bytes(2, "big")
    if key.protocol == TCP:
        transport = ports + struct.pack("!IIBBHHH", 0, 0, 0x50, flags, 0, 0, 0)
    else:
        transport = ports + struct.pack("!HH", 8, 0)
    if key.version == 4:
        length = 20 + len(transport)
        head = (0x45, 0, length, 0, 0, _TTL, key.protocol, 0, address[:4], key.address)
        return _IPV4.pack(*head) + transport
    fields = (6 << 28, len(transport), key.protocol, _TTL, address, key.address)
    return _IPV6.pack(*fields) + transport


class Recorded(SchedulerBase):
    """A scheduler that stands in for a service's own and answers with one server.

    Used as a context manager.
    """

    def __init__(self, service: Any, server: Any) -> None:
        super().__init__(service.servers)
        self._service, self._server = service, server
        self._own = service.scheduler

    def schedule(self, flow: Flow) -> Any:
        """Return the server."""
        return self._server

    def __enter__(self) -> None:
        self._service.scheduler = self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._service.scheduler = self._own
