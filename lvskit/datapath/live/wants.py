"""Which packets the director wants from the kernel: those of its services, and some for longer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lvskit.core.director import Director
from lvskit.core.service import RealServer
from lvskit.datapath.live.rules import Watch
from lvskit.datapath.live.sets import Claims, Endpoint
from lvskit.settings import ServiceKey

_LOCAL: Final = "local"  # the forwarding method that delivers to this host's own sockets


class Wants:
    """What a director wants, as its services, servers and connections come and go.

    A service that is gone keeps its packets while connections remain: the director drops them as
    the kernel's ip_vs does, where the local stack would answer with a reset. So does a server
    that answers through the director.

    Args:
        director: whose services they are.

    Attributes:
        services: the keys of those that there are.
    """

    def __init__(self, director: Director) -> None:
        self._director = director
        self.services: frozenset[ServiceKey] = frozenset()
        self._leaving: dict[ServiceKey, set[RealServer]] = {}
        self._answering: set[RealServer] = set()

    def change(self, keys: Iterable[ServiceKey], now: float) -> None:
        """Take note of the services that there are now."""
        before, self.services = self.services, frozenset(keys)
        gone = before - self.services
        if gone:
            for entry in self._director.connections(now):
                if entry.server.service.key in gone:
                    self._leaving.setdefault(entry.server.service.key, set()).add(entry.server)
        self._answering.update(filter(_answers_through_us, self._servers()))
        self.forget()

    def forget(self) -> bool:
        """Forget services and servers whose last connection has gone; True where any has."""
        before = len(self._leaving) + len(self._answering)
        for key, servers in list(self._leaving.items()):
            if key in self.services or not any(map(_is_referenced, servers)):
                del self._leaving[key]
        for server in list(self._answering):
            present = server.available and _answers_through_us(server)
            if not (present or server.referenced):
                self._answering.remove(server)
        return len(self._leaving) + len(self._answering) < before

    def claims(self) -> Claims:
        """Return whose packets are wanted."""
        return Claims(
            self.services | self._leaving.keys(),
            frozenset(server.address for server in self._servers()),
            frozenset(
                Endpoint(server.service.key.protocol, server.address, server.port)
                for server in self._answering
            ),
        )

    def watch(self) -> Watch:
        """Return which answers are wanted: none where servers answer their clients directly."""
        return Watch(
            copies=any(
                _is_local(server) and not _answers_through_us(server) for server in self._servers()
            ),
            answers=bool(self._answering),
            local_answers=any(map(_is_local, self._answering)),
        )

    def _servers(self) -> list[RealServer]:
        return [server for service in self._director.services for server in service.servers]


def _is_referenced(server: RealServer) -> bool:
    return server.referenced


def _is_local(server: RealServer) -> bool:
    route = server.route
    return server.settings.method == _LOCAL or (route is not None and route.local)


def _answers_through_us(server: RealServer) -> bool:
    return server.reply is not None
