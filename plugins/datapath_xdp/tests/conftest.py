"""What the tests of the loader share: objects of both compilers, and a network of their own."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lvskit_datapath_xdp.loader import BpfObject, problems

sys.path.append(str(Path(__file__).parent))

from xdp_kernel import Kernel
from xdp_network import Network, Running, built

OBJECTS = Path(__file__).parent / "objects"
NEWNET = 0x40000000  # CLONE_NEWNET of Linux include/uapi/linux/sched.h
PACKET = bytes(12) + b"\x88\xb5" + bytes(50)  # Ethernet, of the type for experiments


class Veth(NamedTuple):
    """Two ends of a cable, by interface number, and the names of the two."""

    near: int
    far: int
    near_name: str = "near"
    far_name: str = "far"


@pytest.fixture(params=["clang", "zig"])
def objects(request: pytest.FixtureRequest) -> Callable[[str], BpfObject]:
    """Reads one of the objects by name, as either compiler made it."""
    return lambda name: BpfObject.read(OBJECTS / f"{name}.{request.param}.o")


@pytest.fixture(scope="session")
def bpf() -> None:
    """Skips where the kernel lets no BPF program in."""
    if os.geteuid() != 0:
        pytest.skip("BPF programs need root")
    if lacking := problems("/"):
        lacking = [line for line in lacking if "BPF file system" not in line]
        if lacking:
            pytest.skip("; ".join(lacking))


@pytest.fixture
def load(bpf: None, objects: Callable[[str], BpfObject]) -> Callable[[str], BpfObject]:
    """Reads one of the objects by name, where it can be loaded."""
    return objects


@pytest.fixture
def bpffs(bpf: None, tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of the test's own."""
    place = tmp_path / "bpf"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "bpf", "bpf", place], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a BPF file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def veth(bpf: None) -> Iterator[Veth]:
    """A pair of interfaces in a network namespace in which this thread is until the test ends."""
    if not shutil.which("ip"):
        pytest.skip("needs the command `ip` (iproute2)")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(NEWNET):
            pytest.skip("cannot make a network namespace")
        try:
            for command in (
                "link add name near type veth peer name far",
                "link set dev near up",
                "link set dev far up",
            ):
                subprocess.run(["ip", *command.split()], check=True)
            yield Veth(socket.if_nametoindex("near"), socket.if_nametoindex("far"))
        finally:
            assert libc.setns(before, NEWNET) == 0
    finally:
        os.close(before)


@pytest.fixture(scope="module")
def loaded_kernel(bpf: None) -> Iterator[Kernel]:
    """The plugin's program, loaded once for a module's tests."""
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(loaded_kernel: Kernel) -> Kernel:
    """The plugin's program with empty tables."""
    loaded_kernel.clear()
    return loaded_kernel


@pytest.fixture
def network(bpf: None, tmp_path: Path) -> Iterator[Network]:
    """Client, director and two real servers, each a network namespace."""
    with built(Network, tmp_path) as made:
        yield made


@pytest.fixture
def direct(network: Network) -> Iterator[Callable[..., Running]]:
    """Starts directors with the datapath xdp, and stops them in the end."""
    started: list[Running] = []

    def start(**options: Any) -> Running:
        started.append(Running(network, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()
