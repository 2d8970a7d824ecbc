"""Address translation (LVS-NAT): packets name the real server on the way there, the VIP back."""

from __future__ import annotations

from collections.abc import Iterable

from lvskit import ForwarderSpec, hookimpl
from lvskit_fwd_masq.masq import Masq


@hookimpl
def lvskit_register_forwarders() -> Iterable[ForwarderSpec]:
    """Register the method."""
    return [
        ForwarderSpec(
            name="masq",
            factory=Masq,
            keeps_port=False,
            same_version=True,
            summary="address translation: answers come back through the director",
        )
    ]
