"""`lvskit` as a command: its own words, and those about a running daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

import lvskit
from lvskit import Director, load_plugins
from lvskit.cli import main as module
from lvskit.cli.main import main
from lvskit.cli.state import summary
from lvskit.config.toml import read
from lvskit.control.api import Control
from lvskit.control.client import connect
from lvskit.errors import LvskitError

CHECKOUT = Path(__file__).parents[2]


def call(method: str, params: object = None) -> Any:
    with connect() as client:
        return client.call(method, params)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lvskit {lvskit.__version__}\n"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert re.search(r"^  lvskit run ", capsys.readouterr().out, re.M)


def test_no_command_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "required: COMMAND" in capsys.readouterr().err


def test_no_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LVSKIT_SOCKET", str(tmp_path / "s"))
    assert main(["status"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("lvskit: no daemon at ")
    assert not said.out


@pytest.mark.parametrize(
    ("err", "status", "said"),
    [(LvskitError("it is so"), 1, "lvskit: it is so\n"), (KeyboardInterrupt(), 130, "")],
)
def test_how_commands_end(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    err: BaseException,
    status: int,
    said: str,
) -> None:
    def fail(*_: object) -> int:
        raise err

    monkeypatch.setattr("lvskit.cli.state._status", fail)
    assert module.main(["status"]) == status
    assert capsys.readouterr().err == said


def test_a_reader_that_leaves_is_no_error(daemon: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lvskit", "status"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 141


def test_status_tells_what_the_datapath_lost() -> None:
    plugins = load_plugins()
    director = Director(plugins, lambda address: None)
    lost = {"queue_full": 3, "buffer_full": 0, "not_sent": 1}
    told = Control(director, plugins, lambda: 0.0, lost=lambda: lost).call("status")
    assert told["lost"] == lost
    assert "\npackets lost: 3 queue_full, 1 not_sent\n" in summary(told)
    assert "lost" not in summary({**told, "lost": {"queue_full": 0}})


def test_status(daemon: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "no virtual services; add one: lvsadm -A" in capsys.readouterr().out
    telnet = {"tcp": "192.168.1.176:23"}
    call("add_service", {"service": {**telnet, "persistent": 360}})
    assert main(["status"]) == 0
    assert "  no real servers\n" in capsys.readouterr().out
    call("add_server", {"service": telnet, "server": {"address": "192.168.1.181"}})
    call("add_server", {"service": telnet, "server": {"address": "192.168.1.19", "weight": 0}})
    call("add_service", {"service": {"fwmark": 7, "ipv6": True, "scheduler": "rr"}})
    call("add_service", {"service": {"sctp": "192.168.1.176:2905"}})
    assert main(["status"]) == 0
    assert (
        capsys.readouterr().out
        == """\
0 of at most 65536 entries in the connection table; 0 shed, 0 refused
no defence at work; so far 0 entries dropped by drop_entry, 0 packets by drop_packet
0 connections, 0 packets and 0 bytes per second

tcp 192.168.1.176:23, wlc, persistent 360 s
  192.168.1.19:23   tunnel  weight 0  0 active  0 inactive  quiesced
  192.168.1.181:23  tunnel  weight 1  0 active  0 inactive

fwmark 7 (IPv6), rr
  no real servers

sctp 192.168.1.176:2905, wlc
  no real servers
"""
    )
    assert main(["status", "--json"]) == 0
    now = call("status")
    assert json.loads(capsys.readouterr().out) == {**now, "now": ANY}
    assert now["datapath"] == {"name": "memory", "facts": {}, "figures": {}}
    assert now["now"] > now["started"]


CONFIG = """
[timeouts]
tcp = 1800
tcp_fin = 120
udp = 300

[[service]]
tcp = "192.168.1.176:23"
scheduler = "rr"
persistent = 60

[[service.server]]
address = "192.168.1.181"
weight = 5
upper_threshold = 10

[[service]]
fwmark = 7
"""


def test_apply_and_save(daemon: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lvskit.toml"
    file.write_text(CONFIG)
    assert main(["apply", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "set timeout_established = 1800",
        "set timeout_finwait = 120",
        "set timeout_udp = 300",
        "added TCP 192.168.1.176:23",
        "added 192.168.1.181:23 of TCP 192.168.1.176:23",
        "added FWM 7",
    ]
    assert main(["apply", str(file)]) == 0
    assert capsys.readouterr().out == "nothing to change\n"
    before = call("config")
    assert main(["save"]) == 0
    file.write_text(capsys.readouterr().out)
    call("clear")
    assert main(["apply", str(file)]) == 0
    assert call("config") == before
    capsys.readouterr()
    assert main(["save", "--format", "ipvsadm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "--set 1800 120 300"
    assert lines[1].startswith("-A -t 192.168.1.176:23 -s rr -p 60")


def test_a_file_that_is_no_configuration(
    daemon: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lvskit.toml"
    file.write_text('[[service]]\ntcp = "192.168.1.176:23"\nweight = 1\n')
    assert main(["apply", str(file)]) == 1
    assert "$.service[0]" in capsys.readouterr().err
    assert main(["apply", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert call("config").get("service", []) == []


def test_the_configuration_of_the_page(tmp_path: Path) -> None:
    page = (CHECKOUT / "docs" / "how-to" / "run-the-daemon.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    file = tmp_path / "lvskit.toml"
    file.write_text(text)
    config = read(file)
    assert config.director.size == 1_000_000
    assert config.director.group == "adm"
    assert [len(service.server) for service in config.service] == [2]
    assert config.service[0].key().port == 23


def test_ctrl_c_while_a_command_waits(tmp_path: Path) -> None:
    import socket

    path = str(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        sock.settimeout(30)
        process = subprocess.Popen(
            [sys.executable, "-m", "lvskit", "status"],
            env={**os.environ, "LVSKIT_SOCKET": path},
            stderr=subprocess.PIPE,
        )
        peer, _ = sock.accept()
        with peer:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, b"")


def test_every_command_is_registered() -> None:
    words: Callable[[], str] = module.parser().format_help
    several = {"state": ("status", "save", "apply"), "settings": ("settings", "set")}
    for command in module.COMMANDS:
        for name in several.get(command, (command,)):
            assert re.search(rf"^    {name}\b", words(), re.M), name
