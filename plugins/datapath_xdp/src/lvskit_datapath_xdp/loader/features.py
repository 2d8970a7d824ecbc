"""What is missing on this machine for XDP, in sentences that say what to do."""

from __future__ import annotations

import errno
import mmap
import os
import platform
from typing import Final

from lvskit_datapath_xdp.loader.maps import Map
from lvskit_datapath_xdp.loader.mapspec import MapFlags, MapSpec, MapType
from lvskit_datapath_xdp.loader.privileges import (
    CAPABILITIES,
    in_user_namespace,
    is_bpffs,
    missing_capabilities,
    why_not_permitted,
)
from lvskit_datapath_xdp.loader.program import Program
from lvskit_datapath_xdp.loader.syscall import NUMBERS, BpfError

BPFFS: Final = "/sys/fs/bpf"
# r0 = XDP_DROP; exit
_DROP_ALL: Final = bytes.fromhex("b700000001000000 9500000000000000")
# Names in Linux include/uapi/linux/bpf.h, and the first version.
_MAPS: Final = (
    (
        "arrays that can be mapped (5.5)",
        MapSpec("probe", MapType.ARRAY, 4, 8, 1, MapFlags.MMAPABLE),
    ),
    ("ring buffers (5.8)", MapSpec("probe", MapType.RINGBUF, 0, 0, mmap.PAGESIZE)),
)


def problems(directory: str | os.PathLike[str] = BPFFS) -> list[str]:
    """Return what stands in the way of XDP here; nothing if it can run.

    The kernel is asked by trying: two small maps and a program are made, and are gone afterwards.

    Args:
        directory: where links and maps are to be pinned.
    """
    if platform.machine() not in NUMBERS:
        return [f"machine {platform.machine()}: this runs on {' and '.join(NUMBERS)}"]
    if missing_capabilities(*CAPABILITIES) or in_user_namespace():
        return [why_not_permitted(*CAPABILITIES)]
    found = []
    if not is_bpffs(directory):
        found.append(
            f"{os.fspath(directory)} is not on a BPF file system, so that nothing outlives this"
            f" process: mount -t bpf bpf {BPFFS}"
        )
    return found + _lacking()


def _lacking() -> list[str]:
    """Return what the kernel does not have, or why it cannot be asked."""
    found = []
    try:
        for what, spec in _MAPS:
            try:
                Map.create(spec).close()
            except BpfError as err:
                if err.errno != errno.EINVAL:
                    raise
                found.append(f"Linux {platform.release()} has no {what}: a newer one is needed")
        with Program.load("probe", bytearray(_DROP_ALL), "GPL") as program:
            try:
                program.test_run(bytes(64), live=True)
            except BpfError as err:
                if err.errno != errno.EINVAL:
                    raise
                found.append(
                    f"Linux {platform.release()} cannot send packets through a program"
                    " (BPF_F_TEST_XDP_LIVE_FRAMES, 5.18): a newer one is needed"
                )
    except BpfError as err:
        found.append(str(err))
    return found
