"""The lab itself: what is in it, that it ends, and what a crash leaves."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import lvskit
from lvskit.errors import ConfigError
from lvskit.hostsetup.process import Process, start_time
from lvskit.hostsetup.state import runtime_directory
from lvskit.lab import HOSTS, Lab
from lvskit.lab.state import LabState

pytestmark = pytest.mark.integration

ASK = """
import socket, sys
host, port = sys.argv[1:]
with socket.create_connection((host, int(port)), timeout=5) as sock:
    if port == "80":
        sock.send(b"GET / HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n")
        print(b"".join(iter(lambda: sock.recv(1000), b"")).decode().splitlines()[-1])
    if port == "22":
        print(sock.recv(1000).decode().strip())
    if port == "23":
        sock.send(b"\\xff\\xfd\\x03hello\\r\\nlogout\\r\\n")
        print(b"".join(iter(lambda: sock.recv(1000), b"")).decode().replace("\\r\\n", "|"))
"""


def ask(lab: Lab, address: str, port: int) -> str:
    command = [sys.executable, "-c", ASK, address, str(port)]
    done = lab.exec("client", command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def marked(mark: str) -> set[int]:
    """Return the processes that bear the mark of a lab."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if f"LVSKIT_LAB={mark}".encode() in Path(f"/proc/{name}/environ").read_bytes():
                found.add(int(name))
        except OSError:
            pass
    return {pid for pid in found if start_time(pid)}


def mark_of(lab: Lab) -> str:
    return lab.environment("client")["LVSKIT_LAB"]


def test_every_host_serves_under_its_name(lab):
    for host in HOSTS:
        done = lab.exec(host.name, ["hostname"], capture_output=True, text=True)
        assert done.stdout == f"{host.name}\n"
        if host.serves or host.holds_vip:
            for address in (host.address, host.address6):
                assert ask(lab, address, 80) == host.name
                assert ask(lab, address, 22) == f"SSH-2.0-lvskit {host.name}"
                assert (
                    ask(lab, address, 23)
                    == f"Welcome to {host.name}.|{host.name} login: {host.name}: hello|"
                )


def test_bytes_and_posts(lab):
    program = """
import http.client
connection = http.client.HTTPConnection("192.168.1.11", timeout=5)
for size in (0, 1, 1_000_000):
    connection.request("GET", f"/bytes/{size}")
    assert len(connection.getresponse().read()) == size
    connection.request("POST", "/", b"x" * size)
    assert connection.getresponse().read() == f"rs1 received {size} bytes\\n".encode()
connection.request("HEAD", "/bytes/77")
answer = connection.getresponse()
assert answer.headers["Content-Length"] == "77" and answer.headers["X-Served-By"] == "rs1"
"""
    assert lab.exec("client", [sys.executable, "-c", program]).returncode == 0


def test_commands_have_their_own_status_and_environment(lab):
    assert lab.exec("rs1", ["sh", "-c", "exit 7"]).returncode == 7
    path = {"PATH": os.defpath}
    done = lab.exec("rs1", ["no-such-command"], env=path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        127,
        "lvskit lab: no-such-command: No such file or directory\n",
    )
    done = lab.exec("rs1", ["cat"], input=b"through and through", capture_output=True)
    assert done.stdout == b"through and through"
    show = ["sh", "-c", "echo $LVSKIT_SOCKET"]
    on_director = lab.exec("director", show, capture_output=True, text=True).stdout
    assert on_director.strip() == str(lab.directory / "lvskit.sock")
    assert lab.exec("rs1", show, capture_output=True, text=True).stdout == "\n"
    # `lvsadm` is found without the virtual environment being activated.
    assert lab.exec("director", ["sh", "-c", "command -v lvskit"]).returncode == 0
    with pytest.raises(ConfigError, match="no host 'rs9' in the lab; there are: client, director"):
        lab.exec("rs9", ["true"])


def test_only_one_of_a_name(lab):
    with pytest.raises(ConfigError, match="is up already"):
        Lab.up(lab.name)
    assert Lab.find(lab.name) is not None
    assert Lab.find("nobody-has-this") is None
    assert Lab.clear("nobody-has-this") is False
    with pytest.raises(ConfigError, match="letters, digits and hyphens"):
        Lab.find("../etc")


def test_a_lab_in_a_lab_is_refused(lab):
    command = [sys.executable, "-m", "lvskit", "lab", "up"]
    done = lab.exec("client", command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "this is a host of a lab: leave it first" in done.stderr


NAME = f"crash-{os.getpid()}"
BARE = {"vips": False, "servers": False, "realservers": False, "start_director": False}


def test_down_ends_everything():
    lab = Lab.up(NAME, vips=True, servers=False, realservers=True, start_director=False)
    mark = mark_of(lab)
    stubborn = lab.spawn("client", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    # With an environment of its own it is known by its network only.
    disguised = lab.spawn("rs1", ["env", "-i", shutil.which("sleep") or "sleep", "100"])
    time.sleep(0.3)
    assert len(marked(mark)) >= 10
    lab.down()
    assert marked(mark) == set()
    assert stubborn.wait(1) == -signal.SIGKILL
    assert disguised.wait(1) == -signal.SIGTERM
    assert not lab.directory.exists()
    assert Lab.find(NAME) is None


@pytest.mark.parametrize("lost", ["holder", "host"])
def test_the_next_one_removes_what_a_crash_left(lost):
    lab = Lab.up(NAME, vips=False, servers=True, realservers=False, start_director=False)
    mark = mark_of(lab)
    state = LabState.load(lab.directory / "state.json")
    assert state is not None
    victim = state.holder if lost == "holder" else state.hosts["rs1"]
    assert victim is not None
    assert victim.signal(signal.SIGKILL)
    assert victim.wait(2)
    assert Lab.find(NAME) is None
    assert marked(mark), "the servers are left"
    told: list[str] = []
    with Lab.up(NAME, **BARE, tell=told.append) as again:
        assert marked(mark) == set()
        assert told[0].startswith("removed what was left")
        assert again.exec("rs1", ["true"]).returncode == 0
    assert not lab.directory.exists()


def test_the_next_one_ends_a_lab_whose_owner_was_killed():
    code = (
        "import sys, time; from lvskit.lab import Lab\n"
        "Lab.up(sys.argv[1], owned=True, servers=False, start_director=False)\n"
        "print('up', flush=True); time.sleep(60)"
    )
    name = f"owned-{os.getpid()}"
    command = [sys.executable, "-c", code, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "up\n"
        state = LabState.load(runtime_directory() / f"lab-{name}" / "state.json")
        owner.kill()
    assert state.running
    with Lab.up(f"next-{os.getpid()}", servers=False, start_director=False):
        assert not state.running
        assert not any(process.running for process in state.hosts.values())
        assert Lab.find(name) is None


def test_an_innocent_process_of_the_same_number_lives_on():
    with subprocess.Popen(["sleep", "100"]) as innocent:
        other = Process(innocent.pid, "another boot/4711")
        LabState(
            mark="0" * 32, mode="root", holder=other, hosts={"rs1": other}, daemons={"x": other}
        ).end()
        assert not other.running
        assert not other.end()
        assert innocent.poll() is None
        assert Process.of(innocent.pid).running
        innocent.kill()


def test_ctrl_c_leaves_nothing():
    command = [sys.executable, "-m", "lvskit", "lab", "--name", NAME, "up"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        state_file = runtime_directory() / f"lab-{NAME}" / "state.json"
        while True:
            state = LabState.load(state_file)
            if state is not None and state.holder is not None:
                break
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert marked(state.mark) == set()
    assert not state_file.parent.exists()


def test_the_commands(monkeypatch):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lvskit", "lab", "--name", NAME, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (run("status").returncode, run("status").stdout) == (3, "the lab is down\n")
    done = run("exec", "rs1", "--", "true")
    assert (done.returncode, done.stderr) == (
        1,
        f"lvskit: the lab '{NAME}' is not up; start it with `lvskit lab up`\n",
    )
    try:
        done = run("up", "--no-director")
        assert done.returncode == 0, done.stderr
        assert "the VIPs are 192.168.1.176 and 2001:db8::176" in done.stdout
        assert "rs3        192.168.1.13    2001:db8::13" in run("status").stdout
        assert run("exec", "rs2", "--", "sh", "-c", "hostname; exit 5").returncode == 5
        assert run("exec", "rs2", "--", "sh", "-c", "hostname; exit 5").stdout == "rs2\n"
        assert "no command given" in run("exec", "rs2").stderr
        # Real servers have the VIPs; the director has them to be found by.
        for host in ("rs1", "director"):
            done = run("exec", host, "--", "cat", "/proc/net/if_inet6")
            assert "20010db8000000000000000000000176" in done.stdout
    finally:
        assert run("down").stdout == "the lab is down\n"
    assert run("down").stdout == "there was no lab\n"


def test_a_director_that_does_not_start():
    command = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lvskit.lab.cluster.director_command", lambda *_: command)
        with pytest.raises(lvskit.LvskitError, match=r"the director ended at once.*\n.*no such"):
            Lab.up(NAME, vips=False, servers=False, realservers=False)
    assert not (runtime_directory() / f"lab-{NAME}").exists()


IN_USER_NAMESPACE = """
import os, sys
from lvskit.lab import Lab, possible
from lvskit.lab.namespaces import NEWNET, become_root_of_new_user_namespace, unshare
os.environ["LVSKIT_RUNTIME_DIR"] = sys.argv[1]
if sys.argv[2] == "nested":
    become_root_of_new_user_namespace()
    unshare(NEWNET)
with Lab.up("lab", start_director=False) as lab:
    print(lab.mode, flush=True)
    for host in lab.hosts:
        assert lab.exec(host, ["hostname"]).returncode == 0
    ask = "import socket; print(socket.create_connection(('192.168.1.176', 22)).recv(99).decode())"
    lab.exec("client", [sys.executable, "-c", ask])
"""
EXPECTED = ["client", "director", "rs1", "rs2", "rs3", "SSH-2.0-lvskit director"]


def test_within_a_user_namespace(tmp_path):
    command = [sys.executable, "-c", IN_USER_NAMESPACE, str(tmp_path), "nested"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[1:-2] == EXPECTED


def test_for_an_ordinary_user():
    nobody = pwd.getpwnam("nobody")
    path = [str(Path(lvskit.__file__).parents[1]), *filter(None, sys.path)]
    environment = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(path)}
    options = {
        "user": nobody.pw_uid,
        "group": nobody.pw_gid,
        "extra_groups": [],
        "env": environment,
        "cwd": "/",
        "capture_output": True,
        "text": True,
        "timeout": 60,
    }
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter in (sys.executable, f"/usr/bin/{version}"):
        try:
            tried = subprocess.run([interpreter, "-c", "import lvskit.lab"], **options)
        except (OSError, subprocess.SubprocessError):
            # Not to be reached by him; or there is no other user than this one.
            continue
        if tried.returncode == 0:
            break
    else:
        pytest.skip("no ordinary user here, or no Python of this version that he may run")
    # Not pytest's own directory, which is for one user only.
    directory = Path(tempfile.mkdtemp(prefix="lvskit-"))
    try:
        shutil.chown(directory, nobody.pw_uid, nobody.pw_gid)
        command = [interpreter, "-c", IN_USER_NAMESPACE, str(directory), "plain"]
        done = subprocess.run(command, **options)
    finally:
        shutil.rmtree(directory)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-2] == ["user", *EXPECTED]


def test_where_there_can_be_none():
    program = """
from pathlib import Path
from lvskit.lab import possible
from lvskit.lab.namespaces import become_root_of_new_user_namespace
become_root_of_new_user_namespace()
Path("/proc/sys/user/max_user_namespaces").write_text("0")
Path("/proc/sys/user/max_net_namespaces").write_text("0")
print(possible())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(
        "no lab here: cannot make network namespaces (No space left on device); as an ordinary"
        " user: cannot make a user namespace (No space left on device); run it as root, or let"
    ), done.stderr
