"""A plugin's decapsulator: it works on an interface, and needs neither a device nor a process.

What comes out of the tunnel seems to have come by that interface itself, whose own reverse path
filter lets it in: the way back to clients is by that interface too. The VIPs are on the loopback
device.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from lvskit.errors import DatapathError, UnknownPlugin
from lvskit.hostsetup.changes import Change, Step
from lvskit.hostsetup.netlink import IPAddress, Netlink
from lvskit.interfaces import Decapsulator
from lvskit.plugins import load_plugins

_BUNDLED: Final = {"xdp": "lvskit-datapath-xdp"}
_OWN: Final = "lvskit's own ways are auto, kernel, tun and veth"


class Attached(Step, kw_only=True):
    """A decapsulator of a plugin, on one interface.

    Attributes:
        way: the plugin's name for it.
        interface: where tunnel packets come in.
        place: a word that is this network namespace's alone.
    """

    way: str
    interface: str
    place: str

    @property
    def key(self) -> Any:
        """The interface."""
        return "attached", self.interface

    def changes(self) -> list[Change]:
        """One line."""
        text = f"take packets out of the tunnel where they come in by {self.interface} ({self.way})"
        return [Change(text=text)]

    def done(self, kernel: Netlink) -> bool:
        """It is at work."""
        return self._decapsulator().running

    def apply(self, kernel: Netlink) -> None:
        """Start it; `serve` tells it what it is to take."""
        self._decapsulator().serve([], [], [])

    def serve(self, kernel: Netlink, vips: Iterable[str], directors: Iterable[str]) -> None:
        """Tell it the VIPs and the directors, and this host's addresses as they are now."""
        served = [ipaddress.ip_address(vip) for vip in vips]
        senders = [ipaddress.ip_address(director) for director in directors]
        own = [address for address in _held(kernel) if address not in served]
        self._decapsulator().serve(*([each.packed for each in x] for x in (own, served, senders)))

    def undo(self, kernel: Netlink, *, dry_run: bool) -> list[Change]:
        """Take it off."""
        decapsulator = self._decapsulator()
        running = decapsulator.running
        if not dry_run:
            decapsulator.stop()
        text = f"take nothing out of the tunnel by {self.interface} any more ({self.way})"
        return [Change(text=text)] if running else []

    def _decapsulator(self) -> Decapsulator:
        return _factory(self.way)(self.interface, self.place)


@functools.cache
def _factory(way: str) -> Callable[[str, str], Decapsulator]:
    """Return what makes the decapsulators of that name."""
    try:
        return load_plugins().decapsulator(way).factory
    except UnknownPlugin as err:
        hint = f"to have it: pip install {_BUNDLED[way]}" if way in _BUNDLED else _OWN
        raise UnknownPlugin(f"{err}; {hint}", kind=err.kind, name=err.name) from err


def check_way(way: str) -> None:
    """Refuse a way that no plugin has.

    Raises:
        UnknownPlugin: naming what there is, and what to install.
    """
    _factory(way)


def loopback(kernel: Netlink) -> str:
    """Return the loopback device.

    Raises:
        DatapathError: it is down, so nobody would be reached at its addresses.
    """
    link = next(link for link in kernel.links() if link.loopback)
    if not link.up:
        raise DatapathError(f"the loopback device is down: ip link set {link.name} up")
    return link.name


def _held(kernel: Netlink) -> list[IPAddress]:
    found = [*kernel.held(socket.AF_INET), *kernel.held(socket.AF_INET6)]
    held = [ipaddress.ip_address(each.address) for each in found]
    return [address for address in held if not (address.is_loopback or address.is_link_local)]
