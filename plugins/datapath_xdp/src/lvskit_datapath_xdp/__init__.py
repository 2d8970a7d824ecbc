"""The datapath `xdp`, and the decapsulator `xdp` for real servers: programs in the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lvskit import Datapath, DatapathSpec, Decapsulator, DecapsulatorSpec, hookimpl
from lvskit_datapath_xdp.options import XdpOptions


def _make(brain: Any, options: XdpOptions) -> Datapath:
    from lvskit_datapath_xdp.datapath import XdpDatapath  # not for every command

    return XdpDatapath(brain, options)


@hookimpl
def lvskit_register_datapaths() -> Iterable[DatapathSpec]:
    """Register the datapath."""
    summary = "known connections in the kernel, by XDP; the others as live carries them"
    return [DatapathSpec(name="xdp", summary=summary, factory=_make, options=XdpOptions)]


def _decapsulator(interface: str, place: str) -> Decapsulator:
    from lvskit_datapath_xdp.decapsulator import XdpDecapsulator

    return XdpDecapsulator(interface, place)


@hookimpl
def lvskit_register_decapsulators() -> Iterable[DecapsulatorSpec]:
    """Register the decapsulator."""
    summary = "in front of the stack, by XDP; for kernels without ipip, or faster ones"
    return [DecapsulatorSpec(name="xdp", summary=summary, factory=_decapsulator)]
