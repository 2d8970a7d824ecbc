"""Which XDP program is on an interface, and who holds it there."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from lvskit import DatapathError
from lvskit_datapath_xdp.loader import BpfError, Link, Mode, Program

# Linux include/uapi/linux/rtnetlink.h and if_link.h
_NEWLINK: Final = 16
_GETLINK: Final = 18
_REQUEST: Final = 1
_XDP, _XDP_ATTACHED, _XDP_PROG_ID = 43, 2, 4
_GENERIC: Final = 2  # XDP_ATTACHED_SKB
_HEADER: Final = struct.Struct("=IHHII")
_IFINFO: Final = struct.Struct("=BxHiII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_DIRECTOR: Final = "lvskit"
_NESTED: Final = 1 << 15


BEST: Final[tuple[Mode, ...]] = ("native", "generic")
"""In the driver, else in front of the stack."""

_log = logging.getLogger(__name__)


class Attached(NamedTuple):
    """A program on an interface: the kernel's number of it, and how it is attached."""

    program: int
    mode: Mode


def attached(ifindex: int) -> Attached | None:
    """Return the program on an interface, None where there is none, or no such interface."""
    body = _IFINFO.pack(0, 0, ifindex, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + len(body), _GETLINK, _REQUEST, 0, 0) + body)
        answer = netlink.recv(1 << 16)
    if _HEADER.unpack_from(answer)[1] != _NEWLINK:
        return None
    for kind, content in _attributes(answer[_HEADER.size + _IFINFO.size :]):
        if kind & ~_NESTED == _XDP:
            facts = {kind: int.from_bytes(value, "little") for kind, value in _attributes(content)}
            if facts.get(_XDP_ATTACHED):
                mode: Mode = "generic" if facts[_XDP_ATTACHED] == _GENERIC else "native"
                return Attached(facts.get(_XDP_PROG_ID, 0), mode)
    return None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + size]
        at += -(-size // 4) * 4


def attach(program: Program, interface: str, modes: Sequence[Mode] = BEST) -> Link:
    """Put a program on an interface, in the first of `modes` that the driver has.

    Raises:
        DatapathError: the kernel refuses, or another program is there.
    """
    ifindex = socket.if_nametoindex(interface)
    try:
        for mode in modes[:-1]:
            try:
                return program.attach(ifindex, mode)
            except BpfError as err:
                if err.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                _log.warning("%s; generic XDP, which is slower, takes its place", err)
        return program.attach(ifindex, modes[-1])
    except BpfError as err:
        if err.errno in (errno.EBUSY, errno.EEXIST):
            raise DatapathError(in_the_way(interface, ifindex)) from err
        raise DatapathError(str(err)) from err


def in_the_way(interface: str, ifindex: int) -> str:
    """Return which program keeps another one off an interface, and how to remove it."""
    found = attached(ifindex)
    if found is None:
        return f"an XDP program was attached to {interface}, and is no longer: try again"
    said = f"an XDP program is attached to {interface} already: number {found.program}"
    # The kernel tells the name, and which link it is, to CAP_SYS_ADMIN alone.
    with contextlib.suppress(BpfError), Program.of(found.program) as program:
        said += f", {program.name!r}"
        if program.name == _DIRECTOR:
            said += " (a director's datapath; a real server beside it takes --via tun)"
    held = False
    with contextlib.suppress(BpfError):
        for link in Link.all():
            with link:
                info = link.info()
            if info.program_id == found.program:
                held = True
                said += f", by link {info.id}{_holder(info.id)}; end that, or detach it:"
                said += f" bpftool link detach id {info.id}"
    if not held:
        kind = "xdpgeneric" if found.mode == "generic" else "xdpdrv"
        said += f"; remove it: ip link set dev {interface} {kind} off (where a bpf_link holds it:"
        said += " bpftool link)"
    return said


def _holder(link: int) -> str:
    """Return which process holds a link."""
    wanted = re.compile(rf"^link_id:\s+{link}$", re.MULTILINE)
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError):
            if wanted.search(info.read_text()):
                return f" of {process(int(info.parts[2]))}"
    return ", which is pinned"


def process(number: int) -> str:
    """Return a process by number and command line."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        line = os.fsdecode(b" ".join(words)).strip()
        return f"process {number} ({line})"
    return f"process {number}"
