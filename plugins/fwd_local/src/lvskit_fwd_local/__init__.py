"""Local-socket forwarding: a real server that is the director itself.

Source: Linux net/netfilter/ipvs/ip_vs_xmit.c (a server with a local route), by behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lvskit import DELIVER, Connection, ForwarderSpec, RealServer, Route, Verdict, hookimpl


class Local:
    """Hands packets, untouched, to the director's own sockets: the VIP is its address."""

    def __init__(self, server: RealServer, options: Any = None) -> None:
        """Nothing to prepare."""

    def transmit(self, connection: Connection, packet: bytes) -> Verdict:
        """Return `DELIVER`, always."""
        return DELIVER

    def route_changed(self, route: Route) -> None:
        """Do nothing: no route is used."""


@hookimpl
def lvskit_register_forwarders() -> Iterable[ForwarderSpec]:
    """Register the method."""
    return [ForwarderSpec(name="local", factory=Local, summary="the director's own local socket")]
