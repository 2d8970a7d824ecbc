"""Programs on real interfaces: attached, replaced, pinned, left behind, adopted."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lvskit_datapath_xdp.loader import BpfError, BpfObject, Link, Loaded, Map, Mode, Program

PACKET = bytes.fromhex("ffffffffffff 020000000001 88b5") + bytes(50)  # for experiments
Read = Callable[[str], BpfObject]
# One to attach to, and its peer, by number; see conftest.
Veth = Any

pytestmark = pytest.mark.integration


def send(interface: str, count: int) -> None:
    """Send packets out of an interface."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        for _ in range(count):
            sock.send(PACKET)


def seen(loaded: Loaded, more: int, before: int) -> int:
    """Return how many packets the program has counted, after waiting for `more`."""
    runs = loaded.variable("runs").cast("Q")
    until = time.monotonic() + 5
    while runs[0] < before + more and time.monotonic() < until:
        time.sleep(0.01)
    return runs[0] - before


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_packets_pass_through(load: Read, veth: Veth, mode: Mode) -> None:
    with load("maps").load() as loaded:
        program = loaded.programs["xdp_count"]
        before = loaded.variable("runs").cast("Q")[0]
        with program.attach(veth.near, mode) as link:
            info = link.info()
            assert (info.ifindex, info.program_id) == (veth.near, program.info().id)
            shown = subprocess.run(
                ["ip", "link", "show", "dev", veth.near_name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            assert (" xdpgeneric " if mode == "generic" else " xdp ") in shown
            send(veth.far_name, 20)
            assert seen(loaded, 20, before) >= 20
        send(veth.far_name, 5)
        time.sleep(0.1)
        after = loaded.variable("runs").cast("Q")[0]
        send(veth.far_name, 5)
        time.sleep(0.1)
        assert loaded.variable("runs").cast("Q")[0] == after


def test_a_second_program_is_refused(load: Read, veth: Veth) -> None:
    with load("maps").load() as loaded, load("maps").load() as other:
        with loaded.programs["xdp_count"].attach(veth.near, "native"):
            with pytest.raises(BpfError, match=r"to near .native XDP.*attached there already") as e:
                other.programs["xdp_count"].attach(veth.near, "native")
            assert e.value.errno == errno.EBUSY
        other.programs["xdp_count"].attach(veth.near, "native").close()


def test_a_program_is_found_by_its_number(load: Read, bpf: None) -> None:
    with load("maps").load() as loaded:
        program = loaded.programs["xdp_count"]
        number = program.info().id
        with Program.of(number) as same:
            assert (same.name, same.info()) == ("xdp_count", program.info())
    with pytest.raises(BpfError, match=f"cannot open the program {number}: ") as caught:
        Program.of(number)
    assert caught.value.errno == errno.ENOENT


def test_an_interface_that_is_not_there(load: Read, veth: Veth) -> None:
    with (
        load("maps").load() as loaded,
        pytest.raises(BpfError, match=r"to interface 9999 .generic XDP"),
    ):
        loaded.programs["xdp_count"].attach(9999, "generic")


def test_a_program_is_replaced_in_place(load: Read, veth: Veth) -> None:
    with (
        load("maps").load() as old,
        load("maps").load() as new,
        old.programs["xdp_count"].attach(veth.near, "native") as link,
    ):
        before = new.variable("runs").cast("Q")[0]
        link.update(new.programs["xdp_count"])
        assert link.info().program_id == new.programs["xdp_count"].info().id
        send(veth.far_name, 10)
        assert seen(new, 10, before) >= 10


def test_an_interface_that_goes_away_detaches(load: Read, veth: Veth) -> None:
    with (
        load("maps").load() as loaded,
        loaded.programs["xdp_count"].attach(veth.near, "native") as link,
    ):
        subprocess.run(["ip", "link", "delete", veth.near_name], check=True)
        assert link.info().ifindex == 0


def test_live_frames_are_sent(load: Read, veth: Veth) -> None:
    with load("maps").load() as loaded:
        before = loaded.variable("runs").cast("Q")[0]
        # A veth takes frames from a program only where its peer has one too.
        with loaded.programs["xdp_count"].attach(veth.far, "native"):
            context = struct.pack("<6I", 0, len(PACKET), 0, veth.near, 0, 0)
            done = loaded.programs["xdp_tail"].test_run(
                PACKET, context=context, repeat=1000, live=True
            )
            assert (done.verdict, done.packet) == (0, b"")
            assert seen(loaded, 1000, before) >= 1000


CHILD = """
import sys
from lvskit_datapath_xdp.loader import BpfObject
loaded = BpfObject.read(sys.argv[1]).load()
link = loaded.programs["xdp_count"].attach(int(sys.argv[2]), "native")
for name in ("slots", ".data", ".bss"):
    loaded.maps[name].pin(f"{sys.argv[3]}/{name.lstrip('.')}")
loaded.programs["xdp_count"].pin(f"{sys.argv[3]}/program")
link.pin(f"{sys.argv[3]}/link")
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_is_pinned_survives_a_kill_and_is_adopted(veth: Veth, bpffs: Path) -> None:
    path = Path(__file__).parent / "objects" / "maps.zig.o"
    command = [sys.executable, "-c", CHILD, path, str(veth.near), bpffs]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    names = ("slots", ".data", ".bss")
    pins = {name: Map.open(bpffs / name.lstrip(".")) for name in names}
    with (
        BpfObject.read(path).load(pins=pins) as loaded,
        Link.open(bpffs / "link") as link,
        Program.open(bpffs / "program") as running,
    ):
        before = loaded.variable("runs").cast("Q")[0]
        assert link.info().ifindex == veth.near
        assert link.info().program_id == running.info().id
        assert running.info().tag == loaded.programs["xdp_count"].info().tag
        send(veth.far_name, 10)
        assert seen(loaded, 10, before) >= 10  # nobody but the kernel holds that program
        link.update(loaded.programs["xdp_count"])
        send(veth.far_name, 10)
        assert seen(loaded, 20, before) >= 20
        (bpffs / "link").unlink()
        link.detach()
        assert link.info().ifindex == 0
