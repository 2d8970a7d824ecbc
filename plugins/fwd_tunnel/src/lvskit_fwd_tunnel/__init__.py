"""IPIP tunnel forwarding (LVS-TUN)."""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import ForwarderSpec, hookimpl
from lvskit_fwd_tunnel.ipip import Tunnel


@hookimpl
def lvskit_register_forwarders() -> Iterable[ForwarderSpec]:
    """Register the method."""
    return [
        ForwarderSpec(
            name="tunnel",
            factory=Tunnel,
            summary="IPIP tunnel: the server unpacks, and answers the client directly",
        )
    ]
