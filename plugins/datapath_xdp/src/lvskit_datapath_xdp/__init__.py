"""The datapath `xdp`: known connections are forwarded in the kernel, by an XDP program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lvskit import Datapath, DatapathSpec, hookimpl
from lvskit_datapath_xdp.options import XdpOptions


def _make(brain: Any, options: XdpOptions) -> Datapath:
    from lvskit_datapath_xdp.datapath import XdpDatapath  # not for every command

    return XdpDatapath(brain, options)


@hookimpl
def lvskit_register_datapaths() -> Iterable[DatapathSpec]:
    """Register the datapath."""
    summary = "known connections in the kernel, by XDP; the others as live carries them"
    return [DatapathSpec(name="xdp", summary=summary, factory=_make, options=XdpOptions)]
