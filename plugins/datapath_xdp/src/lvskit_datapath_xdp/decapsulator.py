"""The other end of the tunnel: a real server's packets, taken out of it by an XDP program.

Link and map are pinned, so the program works on when the command that started it has ended.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import IntFlag
from pathlib import Path
from typing import Final
from urllib.parse import quote

from lvskit import DatapathError
from lvskit_datapath_xdp.attached import attach
from lvskit_datapath_xdp.loader import BpfObject, Link, Map, problems
from lvskit_datapath_xdp.loader.features import BPFFS

OBJECT: Final = Path(__file__).parent / "bpf" / "decap.bpf.o"
PROGRAM: Final = "lvskit_decap"
_ADDRESSES: Final = "addresses"

_log = logging.getLogger(__name__)


class Role(IntFlag):
    """What an address is to this host; enum of bpf/decap.bpf.c."""

    OWN = 1
    VIP = 2
    DIRECTOR = 4
    OF_ANY_DIRECTOR = 8  # a VIP whose packets may come from anywhere


def roles(
    own: Iterable[bytes], vips: Iterable[bytes], directors: Sequence[bytes]
) -> dict[bytes, Role]:
    """Return what the program's map shall say: roles by address, IPv4 as ::ffff:a.b.c.d.

    Args:
        own: addresses of this host that tunnels end at, packed.
        vips: those it serves.
        directors: whose packets are taken; empty: anybody's.
    """
    vip = Role.VIP if directors else Role.VIP | Role.OF_ANY_DIRECTOR
    wanted: dict[bytes, Role] = {}
    for role, addresses in ((Role.OWN, own), (vip, vips), (Role.DIRECTOR, directors)):
        for address in addresses:
            key = bytes(10) + b"\xff\xff" + address if len(address) == 4 else address
            wanted[key] = wanted.get(key, Role(0)) | role
    return wanted


class XdpDecapsulator:
    """The program on one interface; see `lvskit.Decapsulator`.

    Args:
        interface: where tunnel packets come in.
        place: what tells its pins from those of other network namespaces.
        directory: on a BPF file system.
    """

    def __init__(self, interface: str, place: str, directory: str = BPFFS) -> None:
        self._interface = interface
        self._directory = directory
        # A BPF file system allows no dots in names, which interfaces of VLANs have.
        name = quote(interface, safe="").replace(".", "%2E")
        self._pins = Path(directory, f"lvskit-{place}-{name}")
        self._link = self._pins / "link"

    @property
    def running(self) -> bool:
        """The program is on the interface."""
        with _refused():
            if not self._link.exists():
                return False
            with Link.open(self._link) as link:
                return link.info().ifindex == self._index()

    def serve(
        self, own: Sequence[bytes], vips: Sequence[bytes], directors: Sequence[bytes]
    ) -> None:
        """Take packets for these VIPs out of the tunnel, and no others, from now on.

        Raises:
            DatapathError: what is missing here, or is not allowed; nothing has been started.
        """
        wanted = roles(own, vips, directors)
        if self.running:
            with _refused(), Map.open(self._pins / _ADDRESSES) as addresses:
                _write(addresses, wanted)
        else:
            self.stop()
            self._start(wanted)

    def stop(self) -> None:
        """Take the program off, and remove what there is of it."""
        with _refused():
            if not self._pins.exists():
                return
            for pin in self._pins.iterdir():
                pin.unlink()
            self._pins.rmdir()

    def _index(self) -> int:
        try:
            return socket.if_nametoindex(self._interface)
        except OSError:
            return -1  # which no link is attached to

    def _start(self, wanted: dict[bytes, Role]) -> None:
        if self._index() < 0:
            raise DatapathError(f"there is no interface {self._interface!r} here")
        if lacking := problems(self._directory):
            raise DatapathError(f"no XDP here: {'; '.join(lacking)}")
        with _refused(), ExitStack() as undo, BpfObject.read(OBJECT).load() as loaded:
            addresses = loaded.maps[_ADDRESSES]
            _write(addresses, wanted)
            with attach(loaded.programs[PROGRAM], self._interface) as link:
                undo.callback(self.stop)
                self._pins.mkdir(mode=0o700)
                addresses.pin(self._pins / _ADDRESSES)
                link.pin(self._link)
                undo.pop_all()


@contextmanager
def _refused() -> Iterator[None]:
    """Say in lvskit's terms that the kernel refused, whether BPF or its file system."""
    try:
        yield
    except OSError as err:
        raise DatapathError(str(err)) from err


def _write(addresses: Map, wanted: dict[bytes, Role]) -> None:
    """Make the map say what is wanted: what is new first, so that nothing known is missed."""
    present = dict(addresses.items())
    for address, role in wanted.items():
        addresses.update(address, int(role))
    for address in present.keys() - wanted.keys():
        addresses.delete(address)
