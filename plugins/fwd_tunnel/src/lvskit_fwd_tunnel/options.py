"""What a tunnel can be told: its kind, and for GUE and GRE what they take besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Options:
    """The kind of a tunnel, as ipvsadm's ``--tun-…`` say it.

    Attributes:
        type: `ipip`, `gue` or `gre` (``--tun-type``).
        port: for GUE, the server's UDP port, 1 to 65535 (``--tun-port``).
        checksum: for GUE `nocsum`, `csum` or `remcsum`, for GRE one of the first two
            (``--tun-nocsum``, ``--tun-csum``, ``--tun-remcsum``).
    """

    type: Literal["ipip", "gue", "gre"] = "ipip"
    port: int = 0
    checksum: Literal["nocsum", "csum", "remcsum"] = "nocsum"

    def __post_init__(self) -> None:
        if self.type == "gue" and not 1 <= self.port <= 65535:
            raise ValueError(f"port {self.port} of a gue tunnel; allowed: 1 to 65535")
        if self.type != "gue" and self.port:
            raise ValueError(f"port {self.port} of a tunnel of type {self.type}; only gue has one")
        allowed = {"ipip": ["nocsum"], "gre": ["nocsum", "csum"]}.get(self.type)
        if allowed and self.checksum not in allowed:
            raise ValueError(
                f"checksum {self.checksum!r} of a tunnel of type {self.type}; "
                f"allowed: {', '.join(allowed)}"
            )
