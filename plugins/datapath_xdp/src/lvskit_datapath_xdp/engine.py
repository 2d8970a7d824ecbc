"""The program in the kernel, its maps and its link, from loading or adopting to detaching."""

from __future__ import annotations

import fcntl
import logging
import secrets
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lvskit import DatapathError
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.attached import BEST, attach, attached
from lvskit_datapath_xdp.clock import Clock, clock_shift, seen_origin, ticks_per_second
from lvskit_datapath_xdp.loader import (
    BpfError,
    BpfObject,
    Link,
    Loaded,
    Map,
    MapFlags,
    MapSpec,
    MapType,
    Mode,
)
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.pins import claim
from lvskit_datapath_xdp.templates import specification

OBJECT: Final = Path(__file__).parent / "bpf" / "lvskit.bpf.o"
_CONSTANTS: Final = ".rodata"
_FRAME: Final = bytes(64)

_SIOCGIFHWADDR: Final = 0x8927  # Linux include/uapi/linux/sockios.h

_log = logging.getLogger(__name__)


class Engine:
    """The loaded program, with the maps that a former daemon has left, where it has.

    Args:
        options: the operator's.
        size: entries of the director's table.

    Attributes:
        maps: by name; see `layout`.
        notes: maps that user space alone uses, ``names`` and ``templates``; none without pins.
        adopted: the maps are a former daemon's.
        seed, multiplier: of the program's hashes.
        ifindex: the interface's number.
        mode: of XDP.

    Raises:
        DatapathError: what is missing here, or not allowed.
    """

    def __init__(self, options: XdpOptions, size: int) -> None:
        self._options = options
        try:
            self.ifindex = socket.if_nametoindex(options.interface)
        except OSError as err:
            raise DatapathError(f"there is no interface {options.interface!r} here") from err
        self._link: Link | None = None
        self.mode: Mode = "generic"
        self._address = b""
        self.adopted = False
        self.notes: dict[str, Map] = {}
        try:
            self._pins = claim(options, self.ifindex)
            try:
                self._load(BpfObject.read(OBJECT), size)
            except BaseException:
                self._release()
                raise
        except BpfError as err:
            raise DatapathError(str(err)) from err
        there = attached(self.ifindex)
        if self.adopted and there is not None:
            self.mode = there.mode
        self.follow_address()

    def _load(self, source: BpfObject, size: int) -> None:
        notes = {
            "names": MapSpec(
                "names", MapType.ARRAY, 4, layout.NAME.size,
                source.maps["servers"].max_entries, MapFlags.MMAPABLE,
            ),
            "templates": specification(size),
        }  # fmt: skip
        left = self._pins.maps([*source.maps, _CONSTANTS, *notes]) if self._pins else None
        if left is not None:
            self.notes = {name: left.pop(name) for name in notes}
            self._loaded = self._adopt(source, left)
            self.adopted = True
        else:
            self._loaded = self._make(source, size)
            if self._pins is not None:
                self.notes = {name: Map.create(spec) for name, spec in notes.items()}
        self.maps = self._loaded.maps
        number = int.from_bytes
        self.seed = number(source.rodata["hash_seed"], "little")
        self.multiplier = number(source.rodata["hash_multiplier"], "little")
        self._shift = number(source.rodata["clock_shift"], "little")

    def _make(self, source: BpfObject, size: int) -> Loaded:
        """Load the program with new maps."""
        automatic = 1 << max(2 * size - 1, 8).bit_length()
        for version, slots in ((4, self._options.slots4), (6, self._options.slots6)):
            buckets = (slots or automatic) // layout.SLOTS_PER_BUCKET
            source.maps[f"connections{version}"].max_entries = buckets
            source.rodata[f"mask{version}"] = buckets - 1
        source.maps["misses"].max_entries = self._options.ring
        source.rodata["hash_seed"] = secrets.randbits(64)
        source.rodata["hash_multiplier"] = secrets.randbits(64) | 1
        source.rodata["clock_shift"] = clock_shift()
        return source.load()

    def _adopt(self, source: BpfObject, left: dict[str, Map]) -> Loaded:
        """Load the program with the maps that there are; their sizes and constants hold."""
        source.rodata.content[:] = left[_CONSTANTS].lookup(0) or b""
        for name, spec in source.maps.items():
            spec.max_entries = left[name].spec.max_entries
        wanted = {"slots4": self._options.slots4, "slots6": self._options.slots6}
        for name, slots in wanted.items():
            has = source.maps[f"connections{name[-1]}"].max_entries * layout.SLOTS_PER_BUCKET
            if slots not in (0, has):
                _log.warning("%s stays %d, as the program that is adopted has it", name, has)
        return source.load(pins=left)

    @property
    def pinned(self) -> bool:
        """Whether the program and its maps outlive this process."""
        return self._pins is not None and self._link is not None

    def clock(self, now: Callable[[], float]) -> Clock:
        """Return the program's clock."""
        program = self._loaded.programs["lvskit_clock"]
        origin = seen_origin(program.test_run(_FRAME).verdict, now())
        return Clock(origin, (1 << self._shift) / ticks_per_second())

    def attach(self) -> None:
        """Put the program on the interface, or in the place of a former daemon's.

        Raises:
            DatapathError: the kernel or the driver refuses, or another program is there.
        """
        program, pins = self._loaded.programs["lvskit"], self._pins
        try:
            if pins is not None:
                pins.store(self.maps | self.notes)
            link = pins.link() if pins is not None else None
            if link is None:
                mode = self._options.mode
                self._link = attach(
                    program, self._options.interface, BEST if mode == "auto" else (mode,)
                )
            else:
                self._link = link
                if pins is None or not pins.runs(program):
                    link.update(program)
                    _log.info(
                        "the program on %s was replaced in its place", self._options.interface
                    )
            if pins is not None:
                pins.store_attached(self._link, program)
        except (BpfError, OSError, DatapathError) as err:
            if pins is not None and not self.adopted:
                pins.clear()
            raise DatapathError(str(err)) from err
        there = attached(self.ifindex)
        self.mode = there.mode if there is not None else self.mode
        if self._options.mode not in ("auto", self.mode):
            _log.warning("mode stays %s, as the program that is adopted has it", self.mode)
        _log.info("%s XDP on %s", self.mode, self._options.interface)

    @property
    def gone(self) -> bool:
        """Whether the program is no longer on its interface."""
        return self._link is not None and not self._link.info().ifindex

    def check(self) -> None:
        """Raise `DatapathError` where the program is no longer on its interface."""
        if self.gone:
            name = self._options.interface
            raise DatapathError(f"the interface {name} has gone, and the program with it")

    def follow_address(self) -> None:
        """Tell the program the interface's hardware address: what goes to others is theirs."""
        address = _hardware_address(self._options.interface)
        if address and address != self._address:
            self._address = address
            self._loaded.variable("here")[:] = address[:4]
            self._loaded.variable("here_end")[:] = address[4:]

    def leaves_by(self, ifindex: int) -> bool:
        """Whether the program can send by an interface.

        In generic mode by any; natively the driver of the other one would have to take part.
        """
        return ifindex == self.ifindex or self.mode == "generic"

    def reason(self, reason: layout.Reason) -> int:
        """Return how many packets the program has counted under `reason`."""
        values = self.maps["reasons"].lookup(0) or b""
        size = len(values) // max(len(values) // (8 * len(layout.Reason)), 1)
        starts = range(8 * reason, len(values), size)
        return sum(int.from_bytes(values[at : at + 8], "little") for at in starts)

    def detach(self) -> None:
        """Take the program off the interface, and unpin it; once or more."""
        link, self._link = self._link, None
        if link is not None:
            if self._pins is not None:
                link.detach()
                self._pins.clear()
            link.close()

    def close(self) -> None:
        """Let go of everything: what is attached and pinned stays."""
        if self._link is not None:
            self._link.close()
        self._loaded.close()
        self._release()

    def _release(self) -> None:
        for note in self.notes.values():
            note.close()
        if self._pins is not None:
            self._pins.close()


def _hardware_address(interface: str) -> bytes:
    """Return an interface's hardware address; nothing where it has gone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16s24x", interface.encode())
        try:
            return fcntl.ioctl(any_socket, _SIOCGIFHWADDR, request)[18:24]
        except OSError:
            return b""
