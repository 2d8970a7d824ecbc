"""The program's services: those of the director that it can serve as the director would."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from lvskit import TCP, UDP, ServiceKey
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.layout import RingKind, ServiceFlag
from lvskit_datapath_xdp.loader import Map

_LOCAL: Final = "local"


class Services:
    """Which service has which id.

    Args:
        map_: ``services``.

    Attributes:
        ids: of the services that the program serves; by_id: the director's services.
    """

    def __init__(self, map_: Map) -> None:
        self._map = map_
        self.ids: dict[ServiceKey, int] = {}
        self.by_id: dict[int, Any] = {}
        self._written: dict[ServiceKey, bytes] = {}
        self._known: dict[ServiceKey, int] = {}  # ids stay, for slots have them in their keys

    def update(self, services: Iterable[Any]) -> None:
        """Write what has changed; first what is no longer served."""
        wanted = {}
        for service in services:
            if serves(service):
                number = self._known.get(service.key) or len(self._known) + 1
                if number < self._map.spec.max_entries:
                    self._known[service.key] = number
                    wanted[service.key] = service
        for key in self._written.keys() - wanted.keys():
            self._map.delete(_packed(key))
            del self._written[key]
        self.ids = {key: self._known[key] for key in wanted}
        self.by_id = {self._known[key]: service for key, service in wanted.items()}
        for key, service in wanted.items():
            flags = ServiceFlag(0)
            if service.rules.settings.sloppy_tcp:
                flags |= ServiceFlag.SLOPPY_TCP
            value = layout.SERVICE.pack(self.ids[key], flags, RingKind.NONE)
            if self._written.get(key) != value:
                self._map.update(_packed(key), value)
                self._written[key] = value


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


def _packed(key: ServiceKey) -> bytes:
    port = key.port.to_bytes(2, "big")
    return layout.SERVICE_KEY.pack(key.address, port, key.protocol, key.version)
