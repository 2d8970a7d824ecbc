"""Programs in the kernel, and the links that attach them to interfaces."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Self

from lvskit_datapath_xdp.loader.syscall import (
    BpfError,
    Command,
    Handle,
    address,
    bpf,
    object_info,
    open_pinned,
    short,
    text,
)

Mode = Literal["native", "generic"]

# Linux include/uapi/linux/bpf.h and if_link.h
_PROG_TYPE_XDP: Final = 6
_ATTACH_XDP: Final = 37
_LINK_TYPE_XDP: Final = 6
_FRAGS: Final = 1 << 5
_LIVE_FRAMES: Final = 1 << 1
_MODE_FLAGS: Final = {"generic": 1 << 1, "native": 1 << 2}

_LOAD: Final = struct.Struct("<IIQQIIQII16sIIIIQIIQI4x")
_TEST: Final = struct.Struct("<IIIIQQIIIIQQIII4x")
_INFO: Final = struct.Struct("<II8sIIQQQIIQ16s")
_INFO_MAPS: Final = 52  # where the count of maps is, and then where to write their numbers
_LINK_INFO: Final = struct.Struct("<III4xI4x")
_FIRST_LOG: Final = 1 << 16
_LARGEST_LOG: Final = 1 << 26
_LINES_SHOWN: Final = 12
_GROWTH: Final = 512  # more than a program may put in front of a packet


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a test run gave: the verdict, packet and context afterwards, mean ns of one run.

    Live frames give no verdict (0) and no packet.
    """

    __test__ = False  # nothing for pytest

    verdict: int
    packet: bytes
    duration_ns: int
    context: bytes


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel knows: `tag` is a hash of the instructions without map numbers."""

    id: int
    name: str
    tag: bytes
    map_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """Which program is attached to which interface; `ifindex` is 0 once detached."""

    id: int
    program_id: int
    ifindex: int


@dataclass(frozen=True, slots=True)
class Debug:
    """What BTF says about a program's instructions, in the kernel's forms."""

    btf_fd: int
    functions: bytearray
    lines: bytearray


class Program(Handle):
    """An XDP program that the verifier let in."""

    @classmethod
    def load(
        cls,
        name: str,
        code: bytearray,
        license_: str,
        *,
        frags: bool = False,
        debug: Debug | None = None,
    ) -> Self:
        """Load instructions.

        Args:
            name: for tools; the kernel keeps 15 bytes.
            license_: "GPL" or "Dual MIT/GPL" where helpers are used that are for such programs.
            frags: that packets may be in several pieces.

        Raises:
            BpfError: with the last lines of the verifier's log, all of it as `log`.
        """
        terms = bytearray(license_.encode() + b"\0")
        functions, lines = (debug.functions, debug.lines) if debug else (bytearray(), bytearray())
        flags = _FRAGS if frags else 0
        described = (debug.btf_fd if debug else 0, 8, address(functions), len(functions) // 8)
        sourced = (16, address(lines), len(lines) // 16)

        def attempt(log: bytearray) -> int:
            wanted = (1 if log else 0, len(log), address(log))
            program = (_PROG_TYPE_XDP, len(code) // 8, address(code), address(terms), *wanted)
            rest = (0, flags, short(name), 0, _ATTACH_XDP, *described, *sourced)
            attr = bytearray(_LOAD.pack(*program, *rest))
            return bpf(Command.PROG_LOAD, attr, f"load the program {name}")

        try:
            return cls(attempt(bytearray()), name)
        except BpfError as err:
            raise _explained(err, attempt) from None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the program that is pinned at `path`."""
        program = cls(open_pinned(path), os.path.basename(path))
        try:
            program.name = program.info().name
        except BpfError:
            program.close()
            raise
        return program

    @classmethod
    def of(cls, number: int) -> Self:
        """Open the program of the kernel's `number`, whoever loaded it; needs CAP_SYS_ADMIN."""
        attr = bytearray(struct.pack("<III", number, 0, 0))
        program = cls(bpf(Command.PROG_GET_FD, attr, f"open the program {number}"), str(number))
        program.name = program.info().name
        return program

    def info(self) -> ProgramInfo:
        """Return what the kernel knows of it."""
        count = _INFO.unpack(object_info(self.fd, bytearray(_INFO.size)))[9]
        maps = bytearray(4 * count)
        asked = bytearray(_INFO.size)
        struct.pack_into("<IQ", asked, _INFO_MAPS, count, address(maps))
        _, number, tag, *_, name = _INFO.unpack(object_info(self.fd, asked))
        return ProgramInfo(number, text(name), tag, struct.unpack(f"<{count}I", maps))

    def attach(self, ifindex: int, mode: Mode) -> Link:
        """Attach it to an interface, by number; it stays until the link is closed, unless pinned.

        Args:
            mode: `native`, in the driver, or `generic`, in front of the stack, for any driver.

        Raises:
            BpfError: EBUSY or EEXIST, there is another program; EOPNOTSUPP or EINVAL, the driver
                has no native mode, or not for this program or the interface's MTU.
        """
        attr = struct.pack("<IIIIQ", self.fd, ifindex, _ATTACH_XDP, _MODE_FLAGS[mode], 0)
        try:
            where = socket.if_indextoname(ifindex)
        except OSError:
            where = f"interface {ifindex}"
        busy = "an XDP program is attached there already; `ip link show` names it"
        hints = {errno.EBUSY: busy, errno.EEXIST: busy, errno.ENODEV: "there is no such interface"}
        if mode == "native":
            driver = "the driver has no native XDP, or not as it is set: see dmesg, or use generic"
            hints |= dict.fromkeys((errno.EOPNOTSUPP, errno.EINVAL), driver)
        doing = f"attach {self.name} to {where} ({mode} XDP)"
        return Link(bpf(Command.LINK_CREATE, bytearray(attr), doing, hints), f"link of {self.name}")

    def test_run(
        self, packet: bytes, *, context: bytes = b"", repeat: int = 1, live: bool = False
    ) -> TestRun:
        """Run it on a packet, without an interface.

        Args:
            packet: from the Ethernet header on, at least 14 bytes.
            context: struct xdp_md, 24 bytes, where that matters; `data_end` is the packet's length.
            repeat: how many times; the packet is not restored in between.
            live: let verdicts take effect: XDP_TX and XDP_REDIRECT send, XDP_PASS delivers, on the
                interface that the context names.
        """
        held = bytearray(packet)
        out = bytearray(0 if live else len(packet) + _GROWTH)
        given = bytearray(context)
        after = bytearray(0 if live else len(context))
        flags = _LIVE_FRAMES if live else 0
        sizes = (len(held), len(out), address(held), address(out))
        contexts = (len(given), len(after), address(given), address(after))
        attr = bytearray(_TEST.pack(self.fd, 0, *sizes, repeat, 0, *contexts, flags, 0, 0))
        hints = {
            errno.EINVAL: "a packet has 14 bytes at least, and a context `data_end` its length"
        }
        bpf(Command.PROG_TEST_RUN, attr, f"run {self.name}", hints)
        done = _TEST.unpack(attr)
        return TestRun(
            verdict=done[1], packet=bytes(out[: done[3]]), duration_ns=done[7], context=bytes(after)
        )


class Link(Handle):
    """A program attached to an interface, until it is closed, unless it is pinned."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the link that is pinned at `path`."""
        return cls(open_pinned(path), os.path.basename(path))

    @classmethod
    def all(cls) -> Iterator[Self]:
        """Open all links of XDP programs, one after another, which needs CAP_SYS_ADMIN."""
        number = 0
        while True:
            attr = bytearray(struct.pack("<III", number, 0, 0))
            try:
                bpf(Command.LINK_GET_NEXT_ID, attr, "find the links that there are")
            except BpfError as err:
                if err.errno == errno.ENOENT:
                    return
                raise
            number = struct.unpack_from("<I", attr, 4)[0]
            try:
                fd = bpf(
                    Command.LINK_GET_FD_BY_ID,
                    bytearray(struct.pack("<III", number, 0, 0)),
                    f"open the link {number}",
                )
            except BpfError as err:
                if err.errno == errno.ENOENT:  # it has just gone
                    continue
                raise
            link = cls(fd, f"link {number}")
            try:
                link.info()
            except BpfError:  # of another kind
                link.close()
                continue
            yield link

    def info(self) -> LinkInfo:
        """Return what is attached where."""
        kind, number, program, ifindex = _LINK_INFO.unpack(
            object_info(self.fd, bytearray(_LINK_INFO.size))
        )
        if kind != _LINK_TYPE_XDP:
            raise BpfError(0, f"{self.name} is no link of an XDP program")
        return LinkInfo(number, program, ifindex)

    def update(self, program: Program) -> None:
        """Put another program in the place of this one; no packet is missed by both."""
        attr = bytearray(struct.pack("<IIII", self.fd, program.fd, 0, 0))
        bpf(Command.LINK_UPDATE, attr, f"replace the program of {self.name} by {program.name}")

    def detach(self) -> None:
        """Detach the program, though the link be pinned or held elsewhere."""
        bpf(Command.LINK_DETACH, bytearray(struct.pack("<I", self.fd)), f"detach {self.name}")


def _explained(refused: BpfError, attempt: Callable[[bytearray], int]) -> BpfError:
    """Return the error with what the verifier says when it is asked again, with room for it."""
    log = bytearray(_FIRST_LOG)
    while True:
        try:
            os.close(attempt(log))
        except BpfError as err:
            if err.errno == errno.ENOSPC and len(log) < _LARGEST_LOG:
                log = bytearray(8 * len(log))
                continue
        break
    told = text(log).strip()
    last = "".join(f"\n  {line}" for line in told.splitlines()[-_LINES_SHOWN:])
    said = f"{refused}; the verifier's last lines:{last}" if last else str(refused)
    return BpfError(refused.errno or 0, said, told)
