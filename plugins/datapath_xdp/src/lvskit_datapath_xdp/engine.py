"""The program in the kernel, its maps and its link, from loading to detaching."""

from __future__ import annotations

import errno
import logging
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lvskit import DatapathError
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.loader import BpfError, BpfObject, Link, Mode
from lvskit_datapath_xdp.options import XdpOptions
from lvskit_datapath_xdp.timing import Clock

OBJECT: Final = Path(__file__).parent / "bpf" / "lvskit.bpf.o"
_FRAME: Final = bytes(64)

_log = logging.getLogger(__name__)


class Engine:
    """The loaded program.

    Args:
        options: the operator's.
        size: entries of the director's table.

    Attributes:
        maps: by name; see `layout`.
        seed, multiplier: of the program's hashes.
        ifindex: the interface's number.

    Raises:
        DatapathError: what is missing here, or not allowed.
    """

    def __init__(self, options: XdpOptions, size: int) -> None:
        self._options = options
        try:
            self.ifindex = socket.if_nametoindex(options.interface)
        except OSError as err:
            raise DatapathError(f"there is no interface {options.interface!r} here") from err
        self.seed, self.multiplier = secrets.randbits(64), secrets.randbits(64) | 1
        automatic = 1 << max(2 * size - 1, 8).bit_length()
        shift = layout.clock_shift()
        try:
            source = BpfObject.read(OBJECT)
            for version, slots in ((4, options.slots4), (6, options.slots6)):
                buckets = (slots or automatic) // layout.SLOTS_PER_BUCKET
                source.maps[f"connections{version}"].max_entries = buckets
                source.rodata[f"mask{version}"] = buckets - 1
            source.maps["misses"].max_entries = options.ring
            source.rodata["hash_seed"] = self.seed
            source.rodata["hash_multiplier"] = self.multiplier
            source.rodata["clock_shift"] = self._shift = shift
            self._loaded = source.load()
        except BpfError as err:
            raise DatapathError(str(err)) from err
        self.maps = self._loaded.maps
        self._link: Link | None = None
        self.mode: Mode = "generic"

    def clock(self, now: Callable[[], float]) -> Clock:
        """Return the program's clock."""
        program = self._loaded.programs["lvskit_clock"]
        origin = layout.seen_origin(program.test_run(_FRAME).verdict, now())
        return Clock(origin, (1 << self._shift) / layout.ticks_per_second())

    def attach(self) -> None:
        """Put the program on the interface.

        Raises:
            DatapathError: the kernel or the driver refuses.
        """
        program, name = self._loaded.programs["lvskit"], self._options.interface
        wanted: tuple[Mode, ...] = ("native", "generic")
        if self._options.mode != "auto":
            wanted = (self._options.mode,)
        for mode in wanted:
            try:
                self._link = program.attach(self.ifindex, mode)
            except BpfError as err:
                if err.errno not in (errno.EOPNOTSUPP, errno.EINVAL) or mode == wanted[-1]:
                    raise DatapathError(str(err)) from err
                _log.warning("%s; generic XDP, which is slower, takes its place", err)
                continue
            self.mode = mode
            break
        _log.info("%s XDP on %s", self.mode, name)

    def check(self) -> None:
        """Raise `DatapathError` where the program is no longer on its interface."""
        if self._link is not None and not self._link.info().ifindex:
            name = self._options.interface
            raise DatapathError(f"the interface {name} has gone, and the program with it")

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
        """Take the program off the interface; once or more."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def close(self) -> None:
        """Take it off, and let go of everything."""
        self.detach()
        self._loaded.close()
