"""The program's services: those of the director that it can serve as the director would."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

from lvskit import TCP, UDP, ServiceKey
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.ids import Ids
from lvskit_datapath_xdp.layout import ServiceFlag
from lvskit_datapath_xdp.loader import Map

_LOCAL: Final = "local"
_NOBODY: Final = layout.SERVICE.pack(0, ServiceFlag(0))


class Services:
    """Which service has which id.

    Args:
        map_: ``services``.
        is_here: whether an address is the host's own.
        in_slots: returns the ids that slots have in their keys: those cannot be given away.

    Attributes:
        ids: of the services that the program serves; by_id: the director's services.
    """

    def __init__(
        self,
        map_: Map,
        is_here: Callable[[bytes], bool],
        in_slots: Callable[[], Collection[int]] = set,
    ) -> None:
        self._map = map_
        self._is_here = is_here
        self.ids: dict[ServiceKey, int] = {}
        self.by_id: dict[int, Any] = {}
        self._written: dict[ServiceKey, bytes] = {}
        self._known = Ids(map_.spec.max_entries, in_slots)

    def adopt(self) -> None:
        """Take the services that the program has from before; `update` follows."""
        for packed, value in self._map.items():
            address, port, protocol, version = layout.SERVICE_KEY.unpack(packed)
            own = address[: 4 if version == 4 else 16]
            key = ServiceKey(protocol, own, int.from_bytes(port, "big"), 0, version)
            number = layout.SERVICE.unpack(value)[0]
            if number:
                self.knows(key, number)
            self._written[key] = value

    def knows(self, key: ServiceKey, number: int) -> bool:
        """Note an id that slots have for a service; False where it has another one."""
        return self._known.take(key, number)

    def opens(self, service: Any) -> bool:
        """Whether a service's connections are opened the portable way, and known here then."""
        value = self._written.get(service.key, bytes(layout.SERVICE.size))
        return bool(layout.SERVICE.unpack(value)[1] & ServiceFlag.MARKS)

    def update(self, services: Iterable[Any]) -> None:
        """Write what has changed; first what is no longer served."""
        there = {service.key: service for service in services}
        marked = {key.version for key in there if key.fwmark}
        wanted, ids = {}, {}
        for key, service in there.items():
            # What is merely routed through this host never meets its services: ip_vs_core.c,
            # ip_vs_ops, the hook is LOCAL_IN.
            mine = serves(service) and self._is_here(key.address)
            number = self._known.give(key, there.keys()) if mine else None
            if number is not None:
                wanted[key], ids[key] = service, number
        self.ids = ids
        self.by_id = {ids[key]: service for key, service in wanted.items()}
        values = dict.fromkeys(map(_own, self._addresses(there.values())), _NOBODY)
        for key, service in wanted.items():
            flags = ServiceFlag(0)
            if service.rules.settings.sloppy_tcp:
                flags |= ServiceFlag.SLOPPY_TCP
            if key.version in marked:
                flags |= ServiceFlag.MARKS
            values[key] = layout.SERVICE.pack(ids[key], flags)
        for key in self._written.keys() - values.keys():
            self._map.delete(_packed(key))
            del self._written[key]
        for key, value in values.items():
            if self._written.get(key) != value:
                self._map.update(_packed(key), value)
                self._written[key] = value

    def _addresses(self, services: Iterable[Any]) -> Iterator[bytes]:
        """Yield the host's own addresses, as far as the director has to do with them."""
        for service in services:
            if service.key.address and self._is_here(service.key.address):
                yield service.key.address
            yield from (server.route.source for server in service.servers if server.route)


def serves(service: Any) -> bool:
    """Whether the program can find a service's packets, and do with them as the director would.

    Not those of a service with a server that is the director itself: a packet that the program has
    handed over cannot be given back to the host.
    """
    key, settings = service.key, service.rules.settings
    return (
        key.protocol in (TCP, UDP)
        and key.port > 0
        and not service.settings.one_packet
        and not settings.secure_tcp
        and not any(_is_local(server) for server in service.servers)
    )


def _is_local(server: Any) -> bool:
    route = server.route
    return server.settings.method == _LOCAL or (route is not None and route.local)


def _own(address: bytes) -> ServiceKey:
    """Return what an address of the host's own is entered as."""
    return ServiceKey(0, address, 0, 0, 4 if len(address) == 4 else 6)


def _packed(key: ServiceKey) -> bytes:
    port = key.port.to_bytes(2, "big")
    return layout.SERVICE_KEY.pack(key.address, port, key.protocol, key.version)
