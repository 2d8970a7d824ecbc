"""Tunnel forwarding (LVS-TUN): IP in IP, GUE or GRE."""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import ForwarderSpec, RealServer, hookimpl
from lvskit_fwd_tunnel.gre import Gre, SummedGre
from lvskit_fwd_tunnel.gue import Gue
from lvskit_fwd_tunnel.ipip import Ipip
from lvskit_fwd_tunnel.options import Options
from lvskit_fwd_tunnel.outer import Tunnel


def make(server: RealServer, options: Options) -> Tunnel:
    """Return the tunnel to `server` of the kind that `options` name."""
    if options.type == "gue":
        return Gue(server, options)
    if options.type == "gre":
        return (SummedGre if options.checksum == "csum" else Gre)(server)
    return Ipip(server)


@hookimpl
def lvskit_register_forwarders() -> Iterable[ForwarderSpec]:
    """Register the method."""
    return [
        ForwarderSpec(
            name="tunnel",
            factory=make,
            options=Options,
            summary="IPIP, GUE or GRE tunnel: the server unpacks, and answers the client directly",
        )
    ]
