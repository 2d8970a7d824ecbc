"""lvsadm: what it has beyond ipvsadm, and how it meets the world."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from lvskit import Director, ForwarderSpec, Route, SchedulerBase, SchedulerSpec, hookimpl
from lvskit.cli import lvsadm
from lvskit.cli.ipvsadm.listing import exact_number, short_number
from lvskit.cli.ipvsadm.order import merge_sort
from lvskit.config.names import WELL_KNOWN, Names
from lvskit.control.api import Control
from lvskit.errors import RpcError
from lvskit.plugins import Source, load_plugins

HERE = bytes([192, 168, 1, 175])


@dataclass(frozen=True)
class Options:
    seed: int = 0
    label: str = ""
    quick: bool = False


class Nothing:
    def __init__(self, server, options=None):
        self.options = options

    def transmit(self, connection, packet):
        raise NotImplementedError

    def route_changed(self, route):
        pass


class Extra:
    @hookimpl
    def lvskit_register_schedulers(self):
        return [
            SchedulerSpec(
                name="dice", summary="", factory=SchedulerBase, options=Options, flags=("quick",)
            )
        ]

    @hookimpl
    def lvskit_register_forwarders(self):
        return [
            ForwarderSpec(
                name="pigeon", summary="", factory=Nothing, options=Options, keeps_port=False
            )
        ]


class Shell:
    def __init__(self, prog: str = "lvsadm") -> None:
        plugins = load_plugins(strict=True)
        plugins.add(Extra(), Source("extra", "extra", "0"))
        director = Director(plugins, routes=lambda address: Route(HERE, 1500))
        self.control = Control(director, plugins, lambda: 0.0)
        self.prog = prog

    def run(self, line: str, stdin: str = "") -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        status = lvsadm.run(
            line.split(),
            client=lambda: self.control,
            stdin=io.StringIO(stdin),
            stdout=out,
            stderr=err,
            prog=self.prog,
            names=Names({}),
        )
        return status, out.getvalue(), err.getvalue()

    def ok(self, line: str, stdin: str = "") -> str:
        status, out, err = self.run(line, stdin)
        assert (status, err) == (0, "")
        return out


@pytest.fixture
def shell() -> Shell:
    return Shell()


# --- numbers: each of these was seen in a listing of ipvsadm 1.31 ---


@pytest.mark.parametrize(
    ("value", "short"),
    [
        (0, "        0"),
        (9999, "     9999"),
        (99999999, " 99999999"),
        (100000000, "  100000K"),
        (123456789, "  123456K"),
        (999999999, "  999999K"),
        (1000000000, "    1000M"),
        (1999999999, "    1999M"),
        (99999999999, "   99999M"),
        (100000000000, "     100G"),
        (99999999999999, "   99999G"),
        (100000000000000, "     100T"),
        (18446744073709551615, "18446744T"),
    ],
)
def test_numbers(value: int, short: str) -> None:
    assert short_number(value) == short
    assert exact_number(value) == f" {value:8}"


def test_merge_sort_halves_like_glibc() -> None:
    ring = [10, 192, 127]  # each is "less" than the next, and the last than the first
    less = {(10, 127), (127, 192), (192, 10)}

    def compare(a: int, b: int) -> int:
        return -1 if (a, b) in less else 1

    assert merge_sort(ring, compare) == [10, 127, 192]
    assert merge_sort([192, 127, 10], compare) == [192, 10, 127]


# --- lvskit's own options ---


def test_options_of_plugins(shell: Shell) -> None:
    shell.ok("-A -t 10.0.0.1:80 -s dice -b dice-quick --option seed=7 --option label=a=b")
    shell.ok("-a -t 10.0.0.1:80 -r 10.0.0.2:81 --forward pigeon --option seed=1 -w 2 -x 9 -y 3")
    shell.ok("-a -t 10.0.0.1:80 -r 10.0.0.3 --forward local")
    saved = shell.ok("-Sn")
    assert saved == (
        "-A -t 10.0.0.1:80 -s dice -b dice-quick --option seed=7 --option label=a=b\n"
        "-a -t 10.0.0.1:80 -r 10.0.0.2:81 --forward pigeon -w 2 --option seed=1\n"
        "-a -t 10.0.0.1:80 -r 10.0.0.3:80 --forward local -w 1\n"
    )
    assert "  -> 10.0.0.2:81                  Pigeon  2" in shell.ok("-Ln")
    assert "Local" in shell.ok("-Ln")
    lossless = shell.ok("-S --lossless")
    assert "-w 2 -x 9 -y 3 --option seed=1\n" in lossless
    shell.ok("-C")
    shell.ok("-R", lossless)
    assert shell.ok("-S --lossless") == lossless


@pytest.mark.parametrize(
    ("line", "status", "complaint"),
    [
        (
            "-A -t 10.0.0.1:80 -s dice --option x",
            2,
            "invalid option value `x'; allowed: name=value",
        ),
        ("-A -t 10.0.0.1:80 --option a=1 --option a=2", 2, "option `a' specified twice"),
        ("-D -t 10.0.0.1:80 --option a=1", 2, "Illegal 'option' option with the 'delete-service'"),
        ("-A -t 10.0.0.1:80 --json", 2, "Illegal 'json' option with the 'add-service' command"),
        ("-L --lossless", 2, "Illegal 'lossless' option with the 'list' command"),
        ("-a -t 1.1.1.1:1 -r 1.1.1.2 -i --forward x", 2, "multiple 'forwarding-method' options"),
        ("-A -t 10.0.0.1:80 -s dice --option nope=1", 255, "unknown option 'nope'"),
        ("-A -t 10.0.0.1:80 -s dice -b dice-slow", 255, "unknown flag 'dice-slow'"),
        ("-A -t 10.0.0.1:80 -s dice -b slow", 2, "invalid scheduler flag `slow'"),
    ],
)
def test_own_complaints(shell: Shell, line: str, status: int, complaint: str) -> None:
    got = shell.run(line)
    assert got[:2] == (status, "")
    assert complaint in got[2]


def test_unknown_method(shell: Shell) -> None:
    shell.ok("-A -t 10.0.0.1:80")
    status, _, err = shell.run("-a -t 10.0.0.1:80 -r 10.0.0.2 --forward carrier")
    assert status == 255
    assert err.startswith("lvskit: unknown forwarder 'carrier'; installed: ")
    assert "give -i" not in err


def test_json(shell: Shell) -> None:
    assert json.loads(shell.ok("-L --json"))["services"] == []
    shell.ok("-A -t 192.168.1.176:80 -s rr")
    shell.ok("-A -t 10.0.0.1:80 -p")
    shell.ok("-a -t 10.0.0.1:80 -r 10.0.0.3 -i -w 2 -x 5")
    shell.ok("-a -t 10.0.0.1:80 -r 10.0.0.2 -i")
    listed = json.loads(shell.ok("-L --json"))
    names = [service["config"]["tcp"] for service in listed["services"]]
    assert names == ["192.168.1.176:80", "10.0.0.1:80"]
    servers = [server["config"]["address"] for server in listed["services"][1]["servers"]]
    assert servers == ["10.0.0.2:80", "10.0.0.3:80"]
    told = json.loads(shell.ok("-L --json --nosort"))["services"][1]["servers"]
    assert told[0]["config"]["address"] == "10.0.0.2:80"
    one = json.loads(shell.ok("-L --json -t 10.0.0.1:80"))
    assert one["config"]["persistent"] == 360
    assert json.loads(shell.ok("-Lc --json")) == []
    assert json.loads(shell.ok("-L --daemon --json")) == []
    assert json.loads(shell.ok("-L --timeout --json")) == {"tcp": 900, "tcp_fin": 120, "udp": 300}
    saved = json.loads(shell.ok("-S --json"))
    assert saved["service"][1]["server"][0]["upper_threshold"] == 5


def test_names_of_the_program() -> None:
    lvsadm_shell = Shell("lvsadm")
    assert lvsadm_shell.ok("-v").startswith("lvsadm (lvskit ")
    text = lvsadm_shell.ok("-h")
    assert "\n  lvsadm -A|E virtual-service" in text
    assert "--lossless" in text
    complaint = "Try `lvsadm -h' or 'lvsadm --help' for more information.\n"
    assert lvsadm_shell.run("foo") == (255, "", complaint)
    assert "--lossless" not in Shell("ipvsadm").ok("--help")
    assert lvsadm_shell.ok("-R", "ipvsadm -A -t 10.0.0.1:1\nlvsadm -A -t 10.0.0.1:2\n") == ""
    assert lvsadm_shell.ok("-Sn").count("\n") == 2


def test_no_daemon() -> None:
    def refuse() -> lvsadm.Client:
        raise RpcError("no daemon at /run/x", "unreachable")

    err = io.StringIO()
    status = lvsadm.run(
        ["-R"],
        client=refuse,
        stdin=io.StringIO("-C\n-C\n"),
        stdout=io.StringIO(),
        stderr=err,
    )
    assert (status, err.getvalue()) == (2, "lvsadm: no daemon at /run/x\n")


# --- names ---


def test_names_without_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> None:
        raise OSError("not found")

    monkeypatch.setattr("socket.getservbyname", nothing)
    monkeypatch.setattr("socket.getservbyport", nothing)
    names = Names({})
    assert names.port_of("telnet", "tcp") == 23
    assert names.port_of("telnet", "udp") is None
    assert names.port_name(443, "tcp") == "https"
    assert names.port_name(9, "tcp") is None


def test_well_known_names_are_the_systems() -> None:
    names = Names({})
    for (name, protocol), port in WELL_KNOWN.items():
        assert names.port_of(name, protocol) in (port, None)


def test_system_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_address(text: str) -> tuple[str, list[str], list[str]]:
        if text == "10.0.0.1":
            return "host.example", [], [text]
        raise OSError

    asked = []

    def by_name(name: str) -> str:
        asked.append(name)
        if name == "host.example":
            return "10.0.0.1"
        raise OSError

    monkeypatch.setattr("socket.gethostbyaddr", by_address)
    monkeypatch.setattr("socket.gethostbyname", by_name)
    names = Names()
    assert names.host_name(bytes([10, 0, 0, 1])) == "host.example"
    assert names.host_name(bytes([10, 0, 0, 2])) is None
    assert names.host_address("host.example") == bytes([10, 0, 0, 1])
    assert names.host_address("nope") is None
    assert names.host_address("") is None
    assert "" not in asked


# --- the process ---


def lvsadm_process(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lvskit.cli.lvsadm", *argv]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]


def test_process() -> None:
    assert lvsadm_process("-h").stdout.startswith("lvsadm (lvskit ")
    environment = {**os.environ, "LVSKIT_SOCKET": "/nonexistent/lvskit.sock"}
    answer = lvsadm_process("-L", env=environment)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "/nonexistent/lvskit.sock" in answer.stderr


def test_imports() -> None:
    """A quick command loads nothing that takes long to load."""
    code = (
        "import sys; sys.argv = ['lvsadm', '-h']; from lvskit.cli.lvsadm import main; main();"
        "slow = {'scapy', 'pyroute2', 'asyncio', 'msgspec'} & set(sys.modules);"
        "sys.exit(str(slow) if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_reads() -> None:
    command = [sys.executable, "-m", "lvskit.cli.lvsadm", "-h"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_rules_of_any_bytes() -> None:
    """Bytes that are no text are words like others."""
    done = lvsadm_process("-R", input="-A -t 10.0.0.1:80 \udcff\n", errors="surrogateescape")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "unexpected argument \\udcff\n"


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(lvsadm, "run", interrupt)
    assert lvsadm.main() == 130


def test_called_as_ipvsadm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/sbin/ipvsadm", "-v"])
    assert lvsadm.main() == 0
    version = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n"
    assert capsys.readouterr() == (version, "")
