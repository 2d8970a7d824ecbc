"""The system call bpf(2) by ctypes, errors that say what to do, and what all handles share."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from enum import IntEnum
from types import TracebackType
from typing import Final, Self

from lvskit_datapath_xdp.loader.privileges import is_bpffs, why_not_permitted

NUMBERS: Final = {"x86_64": 321, "aarch64": 280}
"""The number of bpf(2) by machine: Linux arch/x86/entry/syscalls, include/uapi/asm-generic."""

_number = NUMBERS.get(platform.machine())
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong]


class Command(IntEnum):
    """What bpf(2) is asked for: enum bpf_cmd of Linux include/uapi/linux/bpf.h."""

    MAP_CREATE = 0
    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD = 13
    OBJ_GET_INFO = 15
    BTF_LOAD = 18
    MAP_FREEZE = 22
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    LINK_DETACH = 34


class BpfError(OSError):
    """The kernel refused, or an object cannot be loaded; `errno` is 0 for the latter.

    Attributes:
        log: all that the verifier wrote, where it was the one that refused.
    """

    def __init__(self, number: int, message: str, log: str = "") -> None:
        super().__init__(number, message)
        self.log = log

    def __str__(self) -> str:
        return str(self.args[1])


def refusal(number: int, doing: str, hint: str = "") -> BpfError:
    """Return the error that `doing` failed with errno `number`, with what to do where known."""
    if number == errno.EPERM or (number == errno.EACCES and not hint):  # EACCES is the verifier's
        hint = why_not_permitted("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON") or hint
    elif number == errno.ENOSYS:
        hint = "this kernel has no bpf(2): CONFIG_BPF_SYSCALL is off, or a sandbox hides it"
    elif number == errno.E2BIG and not hint:
        hint = "this kernel is too old for it; Linux 5.19 or newer is needed"
    text = f"cannot {doing}: {os.strerror(number)} ({errno.errorcode.get(number, number)})"
    return BpfError(number, f"{text}; {hint}" if hint else text)


def bpf(
    command: Command, attr: bytearray, doing: str, hints: Mapping[int, str] | None = None
) -> int:
    """Make the system call.

    Args:
        attr: union bpf_attr; the kernel writes its answers into it.
        doing: what this is for, as in "cannot …".
        hints: what to do about an error, by errno.

    Returns:
        A file descriptor for the commands that make one, else 0.

    Raises:
        BpfError: the kernel refused.
    """
    if _number is None:
        raise BpfError(0, f"no BPF on {platform.machine()}: this runs on {' and '.join(NUMBERS)}")
    while True:
        status: int = _libc.syscall(_number, command, address(attr), len(attr))
        if status >= 0:
            return status
        number = ctypes.get_errno()
        # As PEP 475 has it; the verifier says EAGAIN when a signal waits.
        if number not in (errno.EINTR, errno.EAGAIN):
            raise refusal(number, doing, (hints or {}).get(number, ""))


def address(buffer: bytearray) -> int:
    """Return where `buffer`, whose size must not change meanwhile, is in memory; 0 if empty."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if buffer else 0


def short(name: str) -> bytes:
    """Return as much of a name as the kernel keeps."""
    return name.encode()[:15]


def text(data: bytes | bytearray) -> str:
    """Return the string that ends at the first zero byte."""
    return data.partition(b"\0")[0].decode(errors="replace")


def object_info(fd: int, info: bytearray) -> bytearray:
    """Fill `info`, as much of struct bpf_{map,prog,link}_info as it has room for; return it.

    It may hold addresses of further buffers, for the kernel to fill.
    """
    attr = bytearray(struct.pack("<IIQ", fd, len(info), address(info)))
    bpf(Command.OBJ_GET_INFO, attr, "read what the kernel knows of a BPF object")
    return info


def open_pinned(path: str | os.PathLike[str]) -> int:
    """Return a file descriptor of what is pinned at `path`."""
    name = bytearray(os.fsencode(path) + b"\0")
    attr = bytearray(struct.pack("<QII", address(name), 0, 0))
    hints = {errno.EACCES: "its owner or mode does not let this process write"}
    return bpf(Command.OBJ_GET, attr, f"open what is pinned at {os.fspath(path)}", hints)


class Closing:
    """Closed at the end of a ``with`` block."""

    def close(self) -> None:
        """Let go of what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Handle(Closing):
    """Something of the kernel's, held by a file descriptor; a context manager that closes it."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def fileno(self) -> int:
        """Return the file descriptor, for select and epoll."""
        return self.fd

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Keep it beyond this process, under a name on a BPF file system; os.unlink undoes it."""
        name = bytearray(os.fsencode(path) + b"\0")
        attr = bytearray(struct.pack("<QII", address(name), self.fd, 0))
        hints = {errno.EEXIST: "something is pinned there already"}
        if not is_bpffs(path):
            hints[errno.EPERM] = hints[errno.EINVAL] = (
                "that is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf"
            )
        bpf(Command.OBJ_PIN, attr, f"pin {self.name} at {os.fspath(path)}", hints)

    def close(self) -> None:
        """Let go of it; the kernel frees what nothing else holds. May be called again."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} fd={self.fd}>"
