"""What this process may do: capabilities, its user namespace, a BPF file system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CAPABILITIES: Final = {
    "CAP_NET_ADMIN": 12,  # attach to an interface
    "CAP_NET_RAW": 13,  # send the packets that wait for a decision
    "CAP_PERFMON": 38,  # programs that use addresses as the compilers do
    "CAP_BPF": 39,  # make maps, load programs
}
"""What XDP needs instead of root, with the bit of each. Linux include/uapi/linux/capability.h."""

_SYS_ADMIN: Final = 21  # stands for CAP_BPF and CAP_PERFMON too, as before Linux 5.8
_WHOLE_SYSTEM: Final = ["0", "0", "4294967295"]


def missing_capabilities(*wanted: str) -> list[str]:
    """Return which of `wanted` (of all in `CAPABILITIES`, unless told) are not in effect here."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    by_admin = {"CAP_BPF", "CAP_PERFMON"} if effective >> _SYS_ADMIN & 1 else set()
    return [
        name
        for name in wanted or CAPABILITIES
        if name not in by_admin and not effective >> CAPABILITIES[name] & 1
    ]


def in_user_namespace() -> bool:
    """Whether this process is in a user namespace other than the first, where no BPF is allowed."""
    return Path("/proc/self/uid_map").read_text().split() != _WHOLE_SYSTEM


def is_bpffs(path: str | os.PathLike[str]) -> bool:
    """Whether `path`, which need not exist, is on a BPF file system."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, what, *_ = line.split()
        where = where.replace("\\040", " ")
        # The last of several mounts on one place is the one that is seen.
        if len(where) >= len(best) and f"{real}/".startswith(f"{where.rstrip('/')}/"):
            best, kind = where, what
    return kind == "bpf"


def why_not_permitted(*wanted: str) -> str:
    """Return why the kernel says EPERM, and what to do; nothing where that is not known."""
    if in_user_namespace():
        return "this is a user namespace, where BPF is not allowed: run in the first one"
    if missing := missing_capabilities(*wanted):
        return (
            f"{', '.join(missing)} missing: run as root, or give the capabilities, e.g. with "
            f"AmbientCapabilities={' '.join(missing)} in the systemd unit"
        )
    return ""
