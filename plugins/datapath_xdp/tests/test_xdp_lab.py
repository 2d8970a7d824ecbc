"""`lvskit lab up --datapath xdp`: XDP at both ends, and nothing of it left."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvskit import DatapathError
from lvskit.lab import VIP, VIP6, Lab, possible

pytestmark = pytest.mark.integration

# A connection for each address and turn: who answers, and whether all of a megabyte came.
CLIENT = """
import http.client, sys
for turn in range(3):
    for address in sys.argv[1:]:
        connection = http.client.HTTPConnection(address, 80, timeout=5)
        connection.request("POST", "/", bytes(1_000_000))
        print(address, connection.getresponse().read().decode().strip())
"""


@pytest.fixture
def lab(bpf: None) -> Iterator[Lab]:
    if reason := possible():
        pytest.skip(reason)
    with Lab.up(f"xdp-{os.getpid()}", datapath="xdp") as made:
        yield made


def say(lab: Lab, host: str, *command: str) -> str:
    done = lab.exec(host, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert isinstance(done.stdout, str)
    return done.stdout


def test_both_ends(lab: Lab) -> None:
    for vip, server in ((VIP, "192.168.1.{}"), (f"[{VIP6}]", "[2001:db8::{}]")):
        say(lab, "director", "lvsadm", "-A", "-t", f"{vip}:80", "-s", "rr")
        for number in (11, 12, 13):
            real = f"{server.format(number)}:80"
            say(lab, "director", "lvsadm", "-a", "-t", f"{vip}:80", "-r", real, "-i")
    answers = say(lab, "client", sys.executable, "-c", CLIENT, VIP, VIP6).splitlines()
    wanted = {f"{vip} rs{n} received 1000000 bytes" for vip in (VIP, VIP6) for n in (1, 2, 3)}
    assert set(answers) == wanted
    status = say(lab, "director", "lvskit", "status")
    assert status.count("  0 active  1 inactive") == 6
    if shutil.which("ip"):
        for host in ("director", "rs1", "rs2", "rs3"):
            assert " xdp " in say(lab, host, "ip", "link", "show", "eth0")  # in the driver


def test_hosts_share_a_file_system_of_the_labs_own(lab: Lab) -> None:
    here, mounts = os.stat("/sys/fs/bpf"), Path("/proc/self/mounts").read_text()
    pins = say(lab, "client", "find", "/sys/fs/bpf", "-name", "link").splitlines()
    assert len(pins) == 5  # three real servers, the director's cable, and the daemon's own
    assert say(lab, "client", "pwd").strip() == os.getcwd()
    say(lab, "rs1", "lvskit", "realserver", "down")
    pins = say(lab, "client", "find", "/sys/fs/bpf", "-name", "link").splitlines()
    assert len(pins) == 4
    lab.down()
    assert os.stat("/sys/fs/bpf") == here
    assert Path("/proc/self/mounts").read_text() == mounts


def test_it_is_roots_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvskit.lab.cluster._mode", lambda: ("user", ""))
    with pytest.raises(DatapathError, match="no BPF works in a user namespace"):
        Lab.up(f"xdp-{os.getpid()}", datapath="xdp")
    assert Lab.find(f"xdp-{os.getpid()}") is None
