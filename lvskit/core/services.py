"""All virtual services, and the deleted servers that connections still refer to.

Source: Linux net/netfilter/ipvs/ip_vs_ctl.c, by behaviour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, Final

from lvskit.core.packet import Parsed
from lvskit.core.service import RealServer, VirtualService
from lvskit.errors import ServiceExists, ServiceNotFound
from lvskit.settings import ServiceKey
from lvskit.types import TCP, Counters

FTP: Final = 21
FTP_DATA: Final = 20
_UNPRIVILEGED: Final = 1024
TRASH_S: Final = 120.0
"""How long a deleted server is remembered after its last connection has gone."""


class ServiceTable:
    """All virtual services, and the trash: deleted servers that connections still refer to.

    Attributes:
        by_key: the services; plain: those of TCP with a port, by destination as packets have it.
        versions: of IP that some service has packets of.
        trash: the deleted servers; next_sweep: when it is looked through.
        retired: what passed through services that are gone.
    """

    def __init__(self) -> None:
        self.by_key: dict[ServiceKey, VirtualService] = {}
        self.plain: dict[bytes, VirtualService] = {}
        self.versions: set[int] = set()
        self.trash: list[RealServer] = []
        self.next_sweep = inf
        self.retired = Counters()

    def __iter__(self) -> Iterator[VirtualService]:
        return iter(list(self.by_key.values()))

    def __len__(self) -> int:
        return len(self.by_key)

    def get(self, key: ServiceKey) -> VirtualService:
        """Return the service; `ServiceNotFound` where there is none."""
        if key not in self.by_key:
            raise ServiceNotFound(f"no virtual service {key}")
        return self.by_key[key]

    def match(self, packet: Parsed, mark: int) -> VirtualService | None:
        """Return the service that claims a packet: by mark, by port, by the whole address."""
        # Bare tuples are equal to keys, and made in a quarter of the time.
        services: Mapping[Any, VirtualService] = self.by_key
        protocol, address, port, version = packet.protocol, packet.dst, packet.dport, packet.version
        if mark:
            found = services.get((0, b"", 0, mark, version))
            if found:
                return found
        found = services.get((protocol, address, port, 0, version))
        if found is None and protocol == TCP and (port == FTP_DATA or port >= _UNPRIVILEGED):
            # It may be a data connection of FTP.
            found = services.get((protocol, address, FTP, 0, version))
        return found or services.get((protocol, address, 0, 0, version))

    def add(self, service: VirtualService) -> None:
        """Enter a service; `ServiceExists` where its key is taken."""
        self.refuse_duplicate(service.key)
        self.by_key[service.key] = service
        self.versions.add(service.key.version)
        if service.protocol == TCP and service.port:
            self.plain[_destination(service)] = service

    def refuse_duplicate(self, key: ServiceKey) -> None:
        """Raise `ServiceExists` where `key` is taken."""
        if key in self.by_key:
            raise ServiceExists(f"virtual service {key} exists already")

    def remove(self, service: VirtualService) -> None:
        """Take a service out, whose servers have been detached."""
        del self.by_key[service.key]
        if service.protocol == TCP:
            self.plain.pop(_destination(service), None)
        self.versions = {key.version for key in self.by_key}
        self.retired += service.counters

    @property
    def counters(self) -> Counters:
        """Everything that passed since the start."""
        return sum((service.counters for service in self), self.retired)

    # --- the trash (ip_vs_trash_get_dest, ip_vs_dest_trash_expire) ---

    def discard(self, server: RealServer, now: float) -> None:
        """Remember a detached server: while connections refer to it, and for a while after."""
        if not self.trash:
            self.next_sweep = now + TRASH_S / 2
        self.trash.append(server)

    def discarded(self, key: ServiceKey, address: bytes, port: int) -> RealServer | None:
        """Return a remembered server of the same service, address and port, counters and all."""
        same = key, address, port
        return next((s for s in self.trash if (s.service.key, s.address, s.port) == same), None)

    def reclaim(self, server: RealServer) -> None:
        """Take `server` out of the trash, if it is there."""
        self.trash = [each for each in self.trash if each is not server]

    def sweep(self, now: float) -> None:
        """Forget servers that nothing has referred to for long enough; run every half period."""
        while now >= (at := self.next_sweep):
            kept = []
            for server in self.trash:
                if not server.referenced:
                    if server.idle_since is None:
                        server.idle_since = at
                    elif at >= server.idle_since + TRASH_S:
                        continue
                kept.append(server)
            self.trash = kept
            self.next_sweep = at + TRASH_S / 2 if kept else inf


def _destination(service: VirtualService) -> bytes:
    """Return a service's address and port as they lie in a packet."""
    return service.address + service.port.to_bytes(2, "big")
