"""What the daemon gives the datapath."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from lvskit import Director, Route, ServiceKey, Verdict
from lvskit_datapath_xdp.adoption import Restorer


class Portable(Protocol):
    """The datapath `live`, as far as it is used here.

    Attributes:
        moved: called when the routes have changed.
    """

    moved: Callable[[], None]

    def routes(self, address: bytes) -> Route | None:
        """See `lvskit.Datapath`."""

    async def run(self) -> None:
        """See `lvskit.Datapath`."""

    def attach(self, director: Director) -> None:
        """Take the director that decides."""

    def services_changed(self, keys: Sequence[ServiceKey]) -> None:
        """Take the packets of these services."""

    def losses(self) -> dict[str, int]:
        """Return packets lost on the way."""

    def figures(self) -> dict[str, int]:
        """Return packets carried."""

    def open(self) -> None:
        """Take the packets from the kernel."""

    def send(self, verdict: Verdict, packet: bytes) -> bool:
        """Carry out a verdict."""

    def close(self) -> None:
        """Undo every change made to the host."""


class Brain(Protocol):
    """What the daemon gives a datapath's factory."""

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""

    def live(self, options: Mapping[str, Any]) -> Portable:
        """Return a live datapath."""

    def restoring(self) -> AbstractContextManager[Restorer]:
        """Return what enters connections that were kept."""
