"""Who each server id stands for, and what it had counted: written down for the next daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from lvskit import Counters, ServiceKey
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import NameFlag
from lvskit_datapath_xdp.loader import Map

_WRAP: Final = 1 << 64


class Name(NamedTuple):
    """Which server of which service.

    Attributes:
        service: the service's key.
        address: packed; port: the server's own.
    """

    service: ServiceKey
    address: bytes
    port: int

    @classmethod
    def of(cls, server: Any) -> Name:
        """Return the name of one of the director's servers."""
        return cls(server.service.key, server.address, server.port)

    def fields(self, flags: int) -> tuple[Any, ...]:
        """Return the first fields of `layout.NAME` and `layout.TEMPLATE`."""
        protocol, address, port, mark, version = self.service
        own = len(self.address), flags, self.port, self.address
        return protocol, version, port, mark, address, *own

    @classmethod
    def read(cls, fields: tuple[Any, ...]) -> Name:
        """Return the name that such fields say."""
        protocol, version, port, mark, address, size, _, own_port, own = fields[:9]
        address = b"" if mark else address[: 4 if version == 4 else 16]
        return cls(ServiceKey(protocol, address, port, mark, version), own[:size], own_port)


class Noted(NamedTuple):
    """What is written down of a server.

    Attributes:
        name: which it is.
        upper, overloaded: the upper threshold, and whether it had been reached.
        counts: conns, inpkts, outpkts, inbytes and outbytes, without those of the program.
    """

    name: Name
    upper: int
    overloaded: bool
    counts: tuple[int, ...]


class Names:
    """What is written down, by server id.

    Args:
        map_: ``names``.
    """

    def __init__(self, map_: Map) -> None:
        self._memory = map_.mmap().cast("B")
        self._stride = map_.stride

    def write(self, number: int, server: Any, packets: int, octets: int) -> None:
        """Write a server down, of whose counts the program has `packets` and `octets`."""
        flags = NameFlag.OVERLOADED if server.overloaded else 0
        counts = server.counters - server.estimator.zeroed
        own = (
            counts.conns, counts.inpkts - packets, counts.outpkts,
            counts.inbytes - octets, counts.outbytes,
        )  # fmt: skip
        fields = Name.of(server).fields(flags)
        layout.NAME.pack_into(
            self._memory, number * self._stride,
            *fields, server.settings.upper, *(count % _WRAP for count in own),
        )  # fmt: skip

    def clear(self, number: int) -> None:
        """Write down that an id is free."""
        start = number * self._stride
        self._memory[start : start + layout.NAME.size] = bytes(layout.NAME.size)

    def __iter__(self) -> Iterator[tuple[int, Noted]]:
        """Yield the ids that stand for a server, and what is written down of it."""
        for number in range(len(self._memory) // self._stride):
            fields = layout.NAME.unpack_from(self._memory, number * self._stride)
            if fields[5]:
                overloaded = bool(fields[6] & NameFlag.OVERLOADED)
                yield number, Noted(Name.read(fields), fields[9], overloaded, fields[10:])

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.release()


def count_on(server: Any, noted: Noted, packets: int, octets: int) -> None:
    """Have a server's listing go on from what was written down and what the program has."""
    conns, inpkts, outpkts, inbytes, outbytes = noted.counts
    server.counters = Counters(
        conns, (inpkts + packets) % _WRAP, outpkts, (inbytes + octets) % _WRAP, outbytes
    )
    start_rates(server)


def start_rates(counted: Any) -> None:
    """Have the rates of a server, service or director begin with its present counts."""
    kind = type(counted.estimator)
    counted.estimator = kind(counted.counters)
