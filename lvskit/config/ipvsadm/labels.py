"""Addresses and ports as listings and rules write them, by name or by number."""

from __future__ import annotations

import socket

from lvskit.config.names import Names
from lvskit.settings import ServiceKey
from lvskit.types import SCTP, TCP, UDP

PROTOCOLS = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}


class Labels:
    """Writes addresses; by name where there are `names`, by number otherwise."""

    def __init__(self, names: Names | None = None) -> None:
        self._names = names

    def endpoint(self, address: bytes, port: int, protocol: int) -> str:
        """Return `host:port` or `[host]:port`; a protocol of 0 (a fwmark's) names no ports."""
        host = self._host(address)
        shown = self._port(port, protocol)
        return f"[{host}]:{shown}" if len(address) == 16 else f"{host}:{shown}"

    def service(self, key: ServiceKey) -> str:
        """Return the address of a service that has one."""
        return self.endpoint(key.address, key.port, key.protocol)

    def _host(self, address: bytes) -> str:
        name = self._names.host_name(address) if self._names else None
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        return name or socket.inet_ntop(family, address)

    def _port(self, port: int, protocol: int) -> str:
        name = None
        if self._names and protocol in PROTOCOLS:
            name = self._names.port_name(port, PROTOCOLS[protocol])
        return name or str(port)


def signed(value: int) -> int:
    """Return the low 32 bits of `value` as C's int has them.

    >>> signed(4294967295)
    -1
    """
    return ((value + 2**31) & 0xFFFFFFFF) - 2**31
