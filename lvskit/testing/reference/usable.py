"""What all schedulers ask of a server first."""

from __future__ import annotations

from typing import Any


def usable(server: Any) -> bool:
    """Whether a scheduler may choose `server` at all."""
    return server.weight > 0 and not server.overloaded
