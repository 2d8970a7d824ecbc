"""IP in IP: nothing stands between the headers. Sources: RFC 2003, RFC 2473."""

from __future__ import annotations

from typing import ClassVar

from lvskit_fwd_tunnel.outer import Tunnel


class Ipip(Tunnel):
    """IPv4 or IPv6 within IPv4 or IPv6."""

    protocols: ClassVar = {4: 4, 6: 41}
