"""What is said where something is missing; and that capabilities are enough."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lvskit_datapath_xdp.loader import BpfError, BpfObject, problems
from lvskit_datapath_xdp.loader.privileges import (
    CAPABILITIES,
    in_user_namespace,
    is_bpffs,
    missing_capabilities,
)

OBJECT = Path(__file__).parent / "objects" / "maps.zig.o"
NET_ADMIN, NET_RAW, PERFMON, BPF = CAPABILITIES.values()

# capset(2) with all capabilities but those of the arguments dropped, after everything is imported.
PRELUDE = """
import ctypes, struct, sys
from lvskit_datapath_xdp.loader import BpfError, BpfObject, problems
path, interface, directory, *kept = sys.argv[1:]
bits = sum(1 << int(bit) for bit in kept)
header = struct.pack("<Ii", 0x20080522, 0)
low, high = bits & 0xFFFFFFFF, bits >> 32
assert ctypes.CDLL(None).capset(header, struct.pack("<6I", low, low, 0, high, high, 0)) == 0
"""


def run(body: str, *kept: int, interface: int = 0, directory: Path | str = "-") -> str:
    """Return what a program prints that has these capabilities only."""
    words = [str(OBJECT), str(interface), str(directory), *map(str, kept)]
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + body, *words], check=True, capture_output=True, text=True
    )
    return done.stdout


LOAD = """
try:
    BpfObject.read(path).load()
    print("loaded")
except BpfError as err:
    print(err.errno, err)
"""


def test_no_capability_is_said_by_name(bpf: None) -> None:
    said = run(LOAD)
    assert said.startswith("1 cannot make the map ")
    assert "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON missing: run as root, or give the cap" in said
    assert "AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON in the systemd unit" in said


def test_a_program_without_net_admin(bpf: None) -> None:
    said = run(LOAD, BPF, PERFMON)
    assert said.startswith("1 cannot load the program xdp_")
    assert "; CAP_NET_ADMIN missing: run as root" in said


def test_a_program_without_perfmon(bpf: None) -> None:
    said = run("path = path.replace('maps', 'address')\n" + LOAD, BPF, NET_ADMIN)
    assert said.startswith(
        "13 cannot load the program xdp_tell: Permission denied (EACCES); CAP_PE"
    )
    assert "; CAP_PERFMON missing: run as root" in said
    assert "leak" in said  # the verifier's own words
    assert run("path = path.replace('maps', 'address')\n" + LOAD, BPF, NET_ADMIN, PERFMON) == (
        "loaded\n"
    )


def test_problems_name_what_is_missing(bpf: None) -> None:
    said = run("print(problems())", BPF, NET_ADMIN)
    assert "CAP_NET_RAW, CAP_PERFMON missing" in said


@pytest.mark.integration
def test_capabilities_are_enough(veth: Any, bpffs: Path) -> None:
    body = """
with BpfObject.read(path).load() as loaded:
    with loaded.programs["xdp_count"].attach(int(interface), "native") as link:
        link.pin(directory + "/link")
        print(link.info().ifindex, problems(directory))
"""
    said = run(body, NET_ADMIN, PERFMON, BPF, NET_RAW, interface=veth.near, directory=bpffs)
    assert said == f"{veth.near} []\n"


def test_a_user_namespace_is_said(bpf: None) -> None:
    body = "if ctypes.CDLL(None).unshare(0x10000000): print('none')\n" + LOAD
    said = run(body + "print(problems())")
    if said.startswith("none"):
        pytest.skip("cannot make a user namespace")
    assert said.startswith("1 cannot make the map ")
    assert said.count("this is a user namespace, where BPF is not allowed: run in the first") == 2


def test_bpf_file_systems_are_known(bpf: None, bpffs: Path, tmp_path: Path) -> None:
    assert is_bpffs(bpffs)
    assert is_bpffs(bpffs / "not" / "yet")
    assert not is_bpffs(tmp_path)
    assert not is_bpffs(str(bpffs) + "2")
    assert problems(bpffs) == []
    (line,) = problems(tmp_path)
    assert "is not on a BPF file system" in line
    assert "mount -t bpf bpf /sys/fs/bpf" in line


def test_root_misses_nothing(bpf: None) -> None:
    assert missing_capabilities() == []
    assert not in_user_namespace()


def test_refused_objects_leave_nothing_open(bpf: None) -> None:
    gc.collect()  # what other tests have left
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(BpfError):
        BpfObject.read(OBJECT.with_name("refused.zig.o")).load()
    obj = BpfObject.read(OBJECT)
    obj.maps["slots"].value_size = 1 << 31
    with pytest.raises(BpfError, match="cannot make the map slots"):
        obj.load()
    assert set(os.listdir("/proc/self/fd")) <= before
