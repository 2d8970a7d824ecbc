"""A whole cluster under real programs: ssh, telnet, curl; load, drains, and a restart."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lvskit.control.client import connect
from lvskit.lab import Lab, possible

VIP, VIP6, DIP = "192.168.1.176", "2001:db8::176", "192.168.1.175"
SERVERS = {"rs1": "192.168.1.11", "rs2": "192.168.1.12", "rs3": "192.168.1.13"}
PATIENCE_S = 20.0
LVSADM = [sys.executable, "-m", "lvskit.cli.lvsadm"]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or possible() is not None,
    reason=f"needs root and network namespaces: {possible() or 'not root'}",
)
Adm = Callable[..., str]
Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Hosts with their own small servers; the daemon is each test's own."""
    with Lab.up(f"cluster-{os.getpid()}", start_director=False) as lab:
        yield lab


class Daemon:
    """A director's daemon in the lab, with a configuration file of its own."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._file = directory / "lvskit.toml"
        self._file.write_text("")
        self._log = directory / "daemon.log"
        self.process: subprocess.Popen[Any]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "lvskit", "run", str(self._file)]
        with self._log.open("a") as log:
            self.process = self._lab.spawn("director", command, stderr=log)
        until(self._answers, "the daemon answers")

    def _answers(self) -> bool:
        try:
            with connect(str(self._lab.socket)) as client:
                return bool(client.call("status"))
        except Exception:
            assert self.process.poll() is None, self._log.read_text()
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0, self._log.read_text()

    def save(self) -> None:
        """Make what there is now what the next start begins with."""
        command = [sys.executable, "-m", "lvskit", "save"]
        done = self._lab.exec("director", command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self._file.write_text(done.stdout)


@pytest.fixture
def daemon(lab: Lab, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(lab, tmp_path)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            with connect(str(lab.socket)) as client:
                client.call("clear")
            daemon.stop()


@pytest.fixture
def adm(lab: Lab, daemon: Daemon) -> Adm:
    """Runs lvsadm on the director; it must succeed."""

    def run(*arguments: str) -> str:
        done = lab.exec("director", [*LVSADM, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        output: str = done.stdout
        return output

    return run


SLOW_CURL = ("curl", "-s", "-o", "/dev/null", "-w", "%{size_download}", "--limit-rate")


def serve(adm: Adm, port: str, *, scheduler: str = "rr", extra: tuple[str, ...] = ()) -> None:
    adm("-A", "-t", f"{VIP}:{port}", "-s", scheduler, *extra)
    for address in SERVERS.values():
        adm("-a", "-t", f"{VIP}:{port}", "-r", address, "-i")


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def curl(lab: Lab, *arguments: str) -> str:
    command = ["curl", "--silent", "--show-error", "--max-time", "30", *arguments]
    done = lab.exec("client", command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output: str = done.stdout
    return output


@pytest.fixture
def spawn(lab: Lab) -> Iterator[Spawn]:
    """Starts a process on a host of the lab; it ends with the test at the latest."""
    processes: list[subprocess.Popen[str]] = []

    def start(host: str, *command: str) -> subprocess.Popen[str]:
        process = lab.spawn(host, command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


def test_ssh_persists_to_one_server_and_shows_in_the_table(
    lab: Lab, adm: Adm, spawn: Spawn, tmp_path: Path
) -> None:
    """Debian's sshd on each server, on a port of its own, and its client."""
    Path("/run/sshd").mkdir(exist_ok=True)
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)]
        subprocess.run(command, check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    for name in SERVERS:
        config = tmp_path / f"sshd-{name}"
        config.write_text(
            textwrap.dedent(f"""\
                Port 2222
                HostKey {tmp_path}/host
                AuthorizedKeysFile {tmp_path}/authorized
                PermitRootLogin yes
                StrictModes no
                UsePAM no
                PidFile none
                SetEnv ANSWERED_BY={name}
                """)
        )
        spawn(name, "/usr/sbin/sshd", "-D", "-e", "-f", str(config))
    serve(adm, "2222", scheduler="wlc", extra=("-p",))
    options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
    command = ["ssh", "-q", "-F", "none", "-i", str(tmp_path / "user"), "-p", "2222"]
    command += [word for option in options for word in ("-o", option)]

    def run(what: str) -> str:
        words = [*command, f"root@{VIP}", what]
        done = lab.exec("client", words, capture_output=True, text=True, timeout=PATIENCE_S)
        output: str = done.stdout
        return output.strip()

    until(lambda: run("echo $ANSWERED_BY") in SERVERS, "sshd answers")
    answers = {run("echo $ANSWERED_BY") for _ in range(3)}
    assert len(answers) == 1
    address = SERVERS[answers.pop()]
    listing = adm("-L", "-n", "-c")
    rows = [line.split() for line in listing.splitlines()[2:]]
    assert {row[5] for row in rows} == {f"{address}:2222"}
    assert [row[2] for row in rows if row[3] == "192.168.1.50:0"] == ["ASSURED"]
    # A large transfer both ways inside ssh, through the tunnel's smaller MTU.
    size = 20_000_000
    command.append(f"root@{VIP}")
    sent = os.urandom(size)
    done = lab.exec("client", [*command, "cat"], input=sent, capture_output=True, timeout=60)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(sent).digest()


INETD = """
import socket, subprocess, sys
listener = socket.create_server(("0.0.0.0", 2323))
while True:
    connection, _ = listener.accept()
    subprocess.Popen(["/usr/sbin/telnetd", "--exec-login", sys.argv[1]], stdin=connection,
                     stdout=connection, stderr=connection)
    connection.close()
"""


def test_telnet_reaches_a_real_telnetd(lab: Lab, adm: Adm, spawn: Spawn, tmp_path: Path) -> None:
    """Debian's telnetd on each server, and its telnet."""
    for name in SERVERS:
        login = tmp_path / name
        # It lingers: what a terminal's last process writes is lost when it ends at once.
        login.write_text(f"#!/bin/sh\necho you are on {name}\nsleep 0.5\n")
        login.chmod(0o755)
        spawn(name, sys.executable, "-c", INETD, str(login))
    serve(adm, "2323", scheduler="wlc", extra=("-p",))

    def telnet() -> str:
        command = lab.argv("client", ["telnet", VIP, "2323"])
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # Its input stays open: a telnet whose input ends hangs up before the server speaks.
        with subprocess.Popen(command, env=lab.environment("client"), **pipes) as client:
            assert client.stdout
            output = client.stdout.read()
        return next((name for name in SERVERS if f"you are on {name}" in output), output)

    until(lambda: telnet() in SERVERS, "telnetd answers")
    answers = {telnet() for _ in range(3)}
    assert len(answers) == 1, answers
    assert f"{VIP}:2323" in adm("-L", "-n", "-c")


@pytest.mark.parametrize("family", [4, 6])
def test_curl_moves_large_bodies_both_ways(lab: Lab, adm: Adm, tmp_path: Path, family: int) -> None:
    """Segments must fit the tunnel: the MSS that servers offer is what makes them fit."""
    vip = VIP if family == 4 else f"[{VIP6}]"
    adm("-A", "-t", f"{vip}:80", "-s", "rr")
    for number in (11, 12, 13):
        server = f"192.168.1.{number}" if family == 4 else f"[2001:db8::{number}]:80"
        adm("-a", "-t", f"{vip}:80", "-r", server, "-i")
    size = 50_000_000
    written = curl(lab, "--output", "/dev/null", "--write-out", "%{size_download}",
                   f"http://{vip}/bytes/{size}")  # fmt: skip
    assert int(written) == size
    body = tmp_path / "body"
    body.write_bytes(os.urandom(1_000_000) * 50)
    answer = curl(lab, "--data-binary", f"@{body}", "--header", "Expect:", f"http://{vip}/")
    assert str(size) in answer


LOAD = """
import json, socket, sys, time
vip, seconds = sys.argv[1], float(sys.argv[2])
answered, failed, until = {}, [], time.monotonic() + seconds
port = 20000  # each is used once: a reused one would meet its old entry, and its old server
while time.monotonic() < until:
    port += 1
    try:
        with socket.create_connection((vip, 80), 3, ("", port)) as s:
            s.sendall(b"GET / HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n")
            said = b""
            while more := s.recv(4096):
                said += more
        name = next(n for n in ("rs1", "rs2", "rs3", "director") if n in said.decode())
        answered[name] = answered.get(name, 0) + 1
    except OSError as err:
        failed.append(f"{err} at {seconds - until + time.monotonic():.2f} s")
print(json.dumps([answered, failed]))
"""


def test_servers_come_and_go_under_load_and_nobody_notices(
    lab: Lab, adm: Adm, spawn: Spawn
) -> None:
    serve(adm, "80", scheduler="wlc")
    adm("-d", "-t", f"{VIP}:80", "-r", SERVERS["rs3"])
    load = spawn("client", sys.executable, "-c", LOAD, VIP, "5")
    long = spawn("client", *SLOW_CURL, "1M", f"http://{VIP}/bytes/4000000")
    time.sleep(1)
    adm("-a", "-t", f"{VIP}:80", "-r", SERVERS["rs3"], "-i")
    time.sleep(1)
    for name in ("rs1", "rs2"):  # quiesce both: old connections stay, new ones go to rs3
        adm("-e", "-t", f"{VIP}:80", "-r", SERVERS[name], "-i", "-w", "0")
    downloaded, _ = long.communicate(timeout=PATIENCE_S)
    assert int(downloaded) == 4_000_000
    adm("-d", "-t", f"{VIP}:80", "-r", SERVERS["rs1"])
    output, _ = load.communicate(timeout=PATIENCE_S)
    answered, failed = json.loads(output)
    assert not failed
    assert Counter(answered).keys() == {"rs1", "rs2", "rs3"}


def test_connections_survive_a_restart_of_the_director(
    lab: Lab, daemon: Daemon, adm: Adm, spawn: Spawn
) -> None:
    """While the daemon is down packets are dropped, not refused; then they go on."""
    serve(adm, "80", extra=("-p",))
    serve(adm, "23")
    daemon.save()
    # Slow enough to be under way still when a busy machine has read the table again.
    download = spawn("client", *SLOW_CURL, "1M", f"http://{VIP}/bytes/20000000")
    time.sleep(1.5)
    before = sorted(line.split()[2:] for line in adm("-L", "-n", "-c").splitlines()[2:])
    daemon.stop()
    probe = (
        f"import socket\ns = socket.socket(); s.settimeout(1.5)\nprint(s.connect_ex(({VIP!r}, 80)))"
    )
    refused = lab.exec("client", [sys.executable, "-c", probe], capture_output=True, text=True)
    assert int(refused.stdout) not in (0, errno.ECONNREFUSED), "the director's own stack answered"
    daemon.start()
    after = sorted(line.split()[2:] for line in adm("-L", "-n", "-c").splitlines()[2:])
    assert [row for row in before if "ESTABLISHED" in row] == [
        row for row in after if "ESTABLISHED" in row
    ], after
    downloaded, _ = download.communicate(timeout=60)
    assert int(downloaded) == 20_000_000


def test_a_service_without_servers_refuses_at_once(lab: Lab, adm: Adm) -> None:
    """No server: the client hears at once, by ICMP."""
    adm("-A", "-t", f"{VIP}:80", "-s", "wlc")
    probe = f"import socket; print(socket.socket().connect_ex(({VIP!r}, 80)))"
    done = lab.exec("client", [sys.executable, "-c", probe], capture_output=True, text=True)
    assert int(done.stdout) == errno.ECONNREFUSED
