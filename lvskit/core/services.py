"""All virtual services, and the deleted servers that connections still refer to.

Source: Linux net/netfilter/ipvs/ip_vs_ctl.c, by behaviour.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lvskit.core.service import RealServer, ServiceKey, VirtualService
from lvskit.errors import ServiceExists, ServiceNotFound
from lvskit.types import Counters

TRASH_S: Final = 120.0
"""How long a deleted server is remembered after its last connection has gone."""


class ServiceTable:
    """All virtual services, and the trash: deleted servers that connections still refer to."""

    def __init__(self) -> None:
        self._services: dict[ServiceKey, VirtualService] = {}
        self._trash: list[RealServer] = []
        self._next_sweep: float | None = None
        self.retired = Counters()  # of services that are gone

    def __iter__(self) -> Iterator[VirtualService]:
        return iter(list(self._services.values()))

    def __len__(self) -> int:
        return len(self._services)

    def get(self, key: ServiceKey) -> VirtualService:
        """Return the service; `ServiceNotFound` where there is none."""
        try:
            return self._services[key]
        except KeyError:
            raise ServiceNotFound(f"no virtual service {key}") from None

    def match(
        self, protocol: int, address: bytes, port: int, mark: int, version: int
    ) -> VirtualService | None:
        """Return the service that claims a packet: by mark, by port, by the whole address."""
        services = self._services
        if mark:
            found = services.get(ServiceKey(fwmark=mark, version=version))
            if found:
                return found
        return services.get(ServiceKey(protocol, address, port, 0, version)) or services.get(
            ServiceKey(protocol, address, 0, 0, version)
        )

    def add(self, service: VirtualService) -> None:
        """Enter a service; `ServiceExists` where its key is taken."""
        self.refuse_duplicate(service.key)
        self._services[service.key] = service

    def refuse_duplicate(self, key: ServiceKey) -> None:
        """Raise `ServiceExists` where `key` is taken."""
        if key in self._services:
            raise ServiceExists(f"virtual service {key} exists already")

    def remove(self, service: VirtualService) -> None:
        """Take a service out, whose servers have been detached."""
        del self._services[service.key]
        self.retired += service.counters

    @property
    def counters(self) -> Counters:
        """Everything that passed since the start."""
        return sum((service.counters for service in self), self.retired)

    # --- the trash (ip_vs_trash_get_dest, ip_vs_dest_trash_expire) ---

    def discard(self, server: RealServer, now: float) -> None:
        """Remember a detached server while connections refer to it."""
        if not server.referenced:
            return
        if not self._trash:
            self._next_sweep = now + TRASH_S / 2
        self._trash.append(server)

    def discarded(self, key: ServiceKey, address: bytes, port: int) -> RealServer | None:
        """Return a remembered server of the same service, address and port, counters and all."""
        for server in self._trash:
            if server.service.key == key and (server.address, server.port) == (address, port):
                return server
        return None

    def reclaim(self, server: RealServer) -> None:
        """Take `server` out of the trash, if it is there."""
        if server in self._trash:
            self._trash.remove(server)

    def sweep(self, now: float) -> None:
        """Forget servers that nothing has referred to for long enough; run every half period."""
        while self._next_sweep is not None and now >= self._next_sweep:
            at = self._next_sweep
            kept = []
            for server in self._trash:
                if server.referenced:
                    kept.append(server)
                elif server.idle_since is None:
                    server.idle_since = at
                    kept.append(server)
                elif at < server.idle_since + TRASH_S:
                    kept.append(server)
            self._trash = kept
            self._next_sweep = at + TRASH_S / 2 if kept else None
