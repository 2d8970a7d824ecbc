"""Drives a scheduler and its reference side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lvskit import TCP, Flow, Scheduler, ServerSettings, ServiceKey
from lvskit.core.service import RealServer, VirtualService

VIP = bytes([10, 0, 0, 1])
CLIENT = Flow(TCP, bytes([10, 2, 0, 1]), 1024, VIP, 80)
"""Whose connection `Pool.pick` asks for where it is not told."""


class Pool:
    """The servers of one service, and schedulers that are told of every change to them.

    Servers are known by number, in the order in which they were added. Their counts are set by
    hand; in a director they follow from connections.

    Args:
        factories: of a scheduler and, as a rule, of its reference.
        options: what each of them is made with, in the same order; none = None for all.
    """

    def __init__(
        self,
        *factories: Callable[[Sequence[Any], Any], Scheduler],
        options: Sequence[Any] = (),
    ) -> None:
        self._service = VirtualService(ServiceKey.of(TCP, VIP, 80))
        self._made: list[RealServer] = []
        servers = self._service.servers
        given = options or [None] * len(factories)
        self.schedulers = [
            factory(servers, each) for factory, each in zip(factories, given, strict=True)
        ]

    @property
    def service(self) -> VirtualService:
        """The service."""
        return self._service

    @property
    def servers(self) -> list[RealServer]:
        """Those in the service, newest first."""
        return self._service.servers

    def add(self, weight: int = 1) -> None:
        """Add a server."""
        number = len(self._made)
        server = RealServer(self._service, bytes([10, 1, number >> 8 & 255, number & 255]), 80)
        self._made.append(server)
        self._join(server, weight)

    def restore(self, number: int, weight: int = 1, same: bool = True) -> None:
        """Add a server again that was removed.

        Args:
            number: the server's.
            weight: what it has now.
            same: it is still remembered, with its connections; or a new one in its place.
        """
        server = self._made[number]
        if not same:
            server = self._made[number] = RealServer(self._service, server.address, server.port)
        self._join(server, weight)

    def _join(self, server: RealServer, weight: int) -> None:
        server.apply(ServerSettings(weight=weight))
        self._service.attach(server)
        for scheduler in self.schedulers:
            scheduler.server_added(server)

    def remove(self, place: int) -> None:
        """Remove the server at this place of the list."""
        server = self.servers[place]
        self._service.detach(server)
        for scheduler in self.schedulers:
            scheduler.server_removed(server)

    @property
    def removed(self) -> list[int]:
        """The numbers of the servers that were removed."""
        return [n for n, server in enumerate(self._made) if not server.available]

    def edit(self, place: int, weight: int) -> None:
        """Give the server at this place another weight."""
        server = self.servers[place]
        server.apply(ServerSettings(weight=weight))
        for scheduler in self.schedulers:
            scheduler.server_updated(server)

    def load(self, place: int, active: int, inactive: int = 0) -> None:
        """Give the server at this place that many connections."""
        server = self.servers[place]
        server.activeconns, server.inactconns = active, inactive
        for scheduler in self.schedulers:
            scheduler.load_changed(server)

    def overload(self, place: int, overloaded: bool = True) -> None:
        """Let the server at this place reach its upper threshold, or recover."""
        server = self.servers[place]
        server.overloaded = overloaded
        for scheduler in self.schedulers:
            scheduler.load_changed(server)

    def tick(self, now: float) -> None:
        """Let it be `now`, monotonic seconds."""
        for scheduler in self.schedulers:
            scheduler.tick(now)

    def pick(self, flow: Flow = CLIENT) -> int | None:
        """Ask every scheduler once; return the number of the server they agree on.

        Raises:
            AssertionError: they do not agree.
        """
        picks: list[Any] = [scheduler.schedule(flow) for scheduler in self.schedulers]
        numbers = [None if server is None else self._made.index(server) for server in picks]
        assert len(set(numbers)) == 1, f"picks {numbers} of {[s.name for s in self.servers]}"
        return numbers[0]
