"""Real programs through the datapath xdp, whose daemon is killed in the middle of their work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdp_network import until

from lvskit.control.client import connect
from lvskit.lab import VIP, VIP6, Lab, possible

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
SERVERS = {f"rs{number}": f"192.168.1.{10 + number}" for number in (1, 2, 3)}
SERVERS6 = {f"rs{number}": f"2001:db8::{10 + number}" for number in (1, 2, 3)}
Spawn = Callable[..., subprocess.Popen[Any]]


@pytest.fixture(scope="module")
def lab(bpf: None) -> Iterator[Lab]:
    """Hosts with XDP at both ends; the daemon is each test's own."""
    if reason := possible():
        pytest.skip(reason)
    with Lab.up(f"xdp-{os.getpid()}", datapath="xdp", start_director=False) as lab:
        yield lab


@pytest.fixture
def spawn(lab: Lab) -> Iterator[Spawn]:
    """Starts a process on a host of the lab; it ends with the test at the latest."""
    processes: list[subprocess.Popen[Any]] = []

    def start(host: str, *command: str, **options: Any) -> subprocess.Popen[Any]:
        process = lab.spawn(host, command, **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.terminate()
        process.wait(20)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class Director:
    """The lab's director, as often as it is started; all services have all servers."""

    def __init__(self, lab: Lab, spawn: Spawn, place: Path, mode: str, ports: list[int]) -> None:
        self._lab, self._spawn = lab, spawn
        self._file, self._log = place / "lvskit.toml", place / "daemon.log"
        text = f"""
            [director]
            datapath = "xdp"
            state = "{place}/state"
            datapath_options = {{interface = "eth0", mode = "{mode}"}}
        """
        for port in ports:
            for vip, servers in ((VIP, SERVERS), (f"[{VIP6}]", SERVERS6)):
                addresses = ", ".join(f'{{address = "{each}"}}' for each in servers.values())
                text += f"""
            [[service]]
            tcp = "{vip}:{port}"
            scheduler = "wlc"
            server = [{addresses}]
            """
        self._file.write_text(textwrap.dedent(text))
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "lvskit", "run", str(self._file)]
        with self._log.open("w") as log:
            self._process = self._spawn("director", *command, stderr=log)
        until(self._ready, 20)
        time.sleep(1)  # for the hardware addresses of servers

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        return "ready" in self._log.read_text()

    def status(self) -> dict[str, Any]:
        with connect(str(self._lab.socket)) as client:
            found: dict[str, Any] = client.call("status")
        return found

    def connections(self, port: int) -> list[dict[str, Any]]:
        with connect(str(self._lab.socket)) as client:
            return [c for c in client.call("connections") if c["virtual"].endswith(f":{port}")]

    def replace(self) -> None:
        """Kill it, leave nobody there for a second, and start another one."""
        self._process.kill()
        self._process.wait(10)
        time.sleep(1)
        self.start()
        assert "connections go on where the last run left them" in self._log.read_text()

    def counted(self, octets: int) -> None:
        """Check that so many bytes were counted, over all lives, and hardly any packet Python's."""
        status = self.status()
        assert sum(each["counters"]["inbytes"] for each in status["services"]) >= octets
        figures = status["datapath"]["figures"]
        assert figures["misses"] + figures["portable"] < figures["forwarded"] / 10


@pytest.fixture(params=["native", "generic"])
def director(
    request: pytest.FixtureRequest, lab: Lab, spawn: Spawn, tmp_path: Path
) -> Callable[..., Director]:
    """Starts the director with services on some ports."""
    return lambda *ports: Director(lab, spawn, tmp_path, request.param, list(ports))


def test_ssh(lab, director, spawn, tmp_path):
    """sshd on each server; much data both ways through a session that outlives the daemon."""
    for program in ("/usr/sbin/sshd", "ssh-keygen", "ssh"):
        if not shutil.which(program):
            pytest.skip(f"needs {program}")
    Path("/run/sshd").mkdir(exist_ok=True)
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)]
        subprocess.run(command, check=True)
    for name in SERVERS:
        config = tmp_path / f"sshd-{name}"
        config.write_text(
            textwrap.dedent(f"""\
                Port 2222
                HostKey {tmp_path}/host
                AuthorizedKeysFile {tmp_path}/user.pub
                PermitRootLogin yes
                StrictModes no
                UsePAM no
                PidFile none
                SetEnv ANSWERED_BY={name}
                """)
        )
        spawn(name, "/usr/sbin/sshd", "-D", "-e", "-f", str(config), stderr=subprocess.DEVNULL)
    running = director(2222)
    options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
    command = ["ssh", "-q", "-F", "none", "-i", str(tmp_path / "user"), "-p", "2222"]
    command += [*(word for option in options for word in ("-o", option)), f"root@{VIP}"]

    def run(what: str) -> str:
        done = lab.exec("client", [*command, what], capture_output=True, text=True, timeout=20)
        assert isinstance(done.stdout, str)
        return done.stdout.strip()

    until(lambda: run("echo $ANSWERED_BY") in SERVERS, 20)
    assert {run("echo $ANSWERED_BY") for _ in SERVERS} == SERVERS.keys()
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    session = spawn("client", *command, "echo $ANSWERED_BY; exec cat", **piped)
    name = session.stdout.readline().decode().strip()
    sent = os.urandom(1_000_000)

    def talk() -> None:
        for at in range(0, len(sent), 20_000):  # what pipes have room for
            session.stdin.write(sent[at : at + 20_000])
            session.stdin.flush()
            assert session.stdout.read(20_000) == sent[at : at + 20_000]

    talk()
    running.replace()
    talk()
    (entry,) = [c for c in running.connections(2222) if c["state"] == "ESTABLISHED"]
    assert entry["server"] == f"{SERVERS[name]}:2222"
    session.stdin.close()
    assert session.wait(20) == 0
    assert run("echo $ANSWERED_BY") in SERVERS


INETD = """
import socket, subprocess, sys
listener = socket.create_server(("0.0.0.0", 2323))
while True:
    connection, _ = listener.accept()
    subprocess.Popen(["/usr/sbin/telnetd", "--exec-login", sys.argv[1]], stdin=connection,
                     stdout=connection, stderr=connection)
    connection.close()
"""
LOGIN = """#!/bin/sh
stty -echo
echo you are on {name}
while read -r line; do echo {name} heard "$line"; done
"""


def test_telnet(lab, director, spawn, tmp_path):
    """telnetd on each server; a session in which somebody types while the daemon is killed."""
    for program in ("/usr/sbin/telnetd", "telnet"):
        if not shutil.which(program):
            pytest.skip(f"needs {program}")
    for name in SERVERS:
        login = tmp_path / name
        login.write_text(LOGIN.format(name=name))
        login.chmod(0o755)
        spawn(name, sys.executable, "-c", INETD, str(login))
        until(lambda name=name: listens(lab, name, 2323), 10)
    running = director(2323)
    piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def hear(session: subprocess.Popen[str], what: str) -> str:
        heard = ""
        while what not in heard:
            heard = session.stdout.readline()
            assert heard, "the session has ended"
        return heard

    def begin() -> tuple[subprocess.Popen[str], str]:
        session = spawn("client", "telnet", VIP, "2323", **piped)
        return session, hear(session, "you are on").split()[-1]

    def talk(session: subprocess.Popen[str], name: str, word: str) -> None:
        session.stdin.write(f"{word}\n")
        session.stdin.flush()
        assert hear(session, word).strip().endswith(f"{name} heard {word}")

    sessions = [begin() for _ in range(3)]
    assert {name for _, name in sessions} == SERVERS.keys()
    for session, name in sessions:
        talk(session, name, "before")
    running.replace()
    for session, name in [*sessions, begin()]:
        for number in range(20):
            talk(session, name, f"after{number}")
    states = [each["state"] for each in running.connections(2323)]
    assert states == ["ESTABLISHED"] * 4


def listens(lab: Lab, host: str, port: int) -> bool:
    done = lab.exec(host, ["ss", "-Hltn"], capture_output=True, text=True)
    return f":{port} " in done.stdout


def test_curl(lab, director, spawn, tmp_path):
    """A gigabyte each way, and less by IPv6 beside it; the daemon is killed in the middle."""
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    running = director(80)
    moving = []
    for vip, size in ((VIP, 1_000_000_000), (f"[{VIP6}]", 100_000_000)):
        body = tmp_path / f"{size}"
        with body.open("wb") as file:
            file.truncate(size)
        # Slow enough to be under way still when the next daemon is there.
        command = ["curl", "-sS", "--max-time", "200", "--limit-rate", f"{size // 8}"]
        url = f"http://{vip}"
        down = ["-o", "/dev/null", "-w", "%{size_download}", f"{url}/bytes/{size}"]
        up = ["-X", "POST", "--upload-file", str(body), f"{url}/"]
        for words, wanted in ((down, f"{size}"), (up, f"received {size} bytes")):
            pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
            moving.append((spawn("client", *command, *words, **pipe), wanted))
    until(lambda: [c["state"] for c in running.connections(80)] == ["ESTABLISHED"] * 4)
    running.replace()
    assert all(curl.poll() is None for curl, _ in moving), "it was over before"
    for curl, wanted in moving:
        output, _ = curl.communicate()
        assert curl.returncode == 0
        assert wanted in output
    running.counted(1_100_000_000)
