"""`lvskit settings` and `lvskit set`, and `lvsadm --set NAME=VALUE`, on a running daemon."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lvskit.cli.main import main
from lvskit.config.toml import loads
from lvskit.control.client import connect
from lvskit.settings import NAMES

CHECKOUT = Path(__file__).parents[2]
WEB = "192.168.1.176:80"


def call(method: str, **params: Any) -> Any:
    with connect() as client:
        return client.call(method, params)


def lvsadm(line: str, stdin: str = "") -> tuple[int, str, str]:
    command = [sys.executable, "-m", "lvskit.cli.lvsadm", *line.split()]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def shown(capsys: pytest.CaptureFixture[str], line: str) -> list[list[str]]:
    """Return the rows of a listing, without its heading and the meanings."""
    capsys.readouterr()
    assert main(line.split()) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "VALUE", "FROM", "MEANING"]
    return [row.split()[:3] for row in rows]


def test_set_and_list(daemon: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row[0] for row in shown(capsys, "settings")] == list(NAMES)
    assert main(["set", "sloppy_tcp=1", "timeout_udp=60"]) == 0
    assert capsys.readouterr().out == ""
    call("add_service", service={"tcp": WEB})
    assert main(f"set -t {WEB} timeout_udp=5 drop_entry=3".split()) == 0
    names = "settings sloppy_tcp timeout_udp drop_entry drop_packet"
    assert shown(capsys, names) == [
        ["drop_entry", "0", "kernel"],
        ["drop_packet", "0", "kernel"],
        ["sloppy_tcp", "1", "director"],
        ["timeout_udp", "60", "director"],
    ]
    assert shown(capsys, f"{names} -t {WEB}") == [
        ["drop_entry", "3", "service"],
        ["drop_packet", "0", "kernel"],
        ["sloppy_tcp", "1", "director"],
        ["timeout_udp", "5", "service"],
    ]
    assert main(f"set --tcp-service {WEB} timeout_udp=-".split()) == 0
    assert shown(capsys, f"settings timeout_udp -t {WEB}") == [["timeout_udp", "60", "director"]]
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert f"tcp {WEB}, wlc, drop_entry=3; at work: drop_entry\n" in said
    assert main(["settings", "--json", "-t", WEB]) == 0
    assert json.loads(capsys.readouterr().out) == call("settings", service={"tcp": WEB})


@pytest.mark.parametrize(
    ("option", "service"),
    [
        (f"-u {WEB}", {"udp": WEB}),
        (f"--sctp-service {WEB}", {"sctp": WEB}),
        ("-t [2001:db8::1]:http", {"tcp": "[2001:db8::1]:80"}),
        ("-f 7", {"fwmark": 7}),
        ("-f 7 -6", {"fwmark": 7, "ipv6": True}),
    ],
)
def test_services_of_every_kind(
    daemon: str, capsys: pytest.CaptureFixture[str], option: str, service: dict[str, Any]
) -> None:
    call("add_service", service=service)
    assert main(f"set {option} timeout_sctp_init=7 timeout_udp=9".split()) == 0
    assert shown(capsys, f"settings {option} timeout_udp") == [["timeout_udp", "9", "service"]]
    assert lvsadm(f"--set {option} timeout_sctp_init=-") == (0, "", "")
    assert call("config")["service"] == [{**service, "settings": {"timeout_udp": 9}}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("set slopy=1", "unknown setting 'slopy'; allowed: am_droprate, "),
        ("set drop_entry", "'drop_entry' changes no setting; allowed: NAME=VALUE, NAME=-"),
        ("set drop_entry=7", "setting drop_entry = 7; allowed: 0 to 3"),
        ("set drop_entry=on", "setting drop_entry = 'on'; allowed: 0 to 3, or - to take it back"),
        ("set -t 10.0.0.1:1 drop_entry=1", "no virtual service TCP 10.0.0.1:1"),
        ("set -t 10.0.0.1 drop_entry=1", "'10.0.0.1' names no port; write host:port"),
        ("set -6 drop_entry=1", "-6 belongs to -f; an address says it by itself"),
        ("settings slopy", "unknown setting 'slopy'; allowed: am_droprate, "),
        ("settings -f 7", "no virtual service FWM 7"),
    ],
)
def test_faults(daemon: str, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    assert main(line.split()) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"lvskit: {message}")


def test_lvsadm(daemon: str) -> None:
    assert lvsadm(f"-A -t {WEB}") == (0, "", "")
    assert lvsadm("--set sloppy_tcp=1 timeout_finwait=30") == (0, "", "")
    assert lvsadm(f"--set -t {WEB} drop_entry=3 timeout_udp=5") == (0, "", "")
    assert lvsadm("-L --timeout")[1] == "Timeout (tcp tcpfin udp): 900 30 300\n"
    rules = f"-A -t {WEB} -s wlc\n--set -t {WEB} drop_entry=3 timeout_udp=5\n"
    assert lvsadm("-Sn")[1] == rules
    saved = lvsadm("-S --lossless")[1]
    assert saved == f"--set 0 30 0\n--set sloppy_tcp=1\n{rules}"
    before = call("config")
    assert lvsadm(f"-E -t {WEB} -s rr") == (0, "", "")
    assert call("config")["service"][0]["settings"] == {"drop_entry": 3, "timeout_udp": 5}
    assert lvsadm("-C") == (0, "", "")
    assert lvsadm("--set sloppy_tcp=- timeout_finwait=-") == (0, "", "")
    assert lvsadm("-R", saved) == (0, "", "")
    assert call("config") == before


def test_lvsadm_refuses(daemon: str) -> None:
    assert lvsadm("--set -t 10.0.0.1:1 sloppy_tcp=1") == (255, "", "No such service\n")
    status, out, err = lvsadm("--set drop_entry=7 sloppy_tcp=1")
    assert (status, out, err) == (2, "", "setting drop_entry = 7; allowed: 0 to 3\n")
    assert lvsadm("--set 1 2")[2] == "--set option requires 3 timeout values\n"
    assert lvsadm("--set -t 10.0.0.1:1 1 2 3")[0] == 2
    assert "settings" not in call("config")


def test_what_was_set_outlives_a_restart(
    daemon: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lvskit save` into the daemon's file is all that it takes."""
    call("add_service", service={"tcp": WEB})
    assert main(["set", "timeout_established=60", "drop_packet=1"]) == 0
    assert main(f"set -t {WEB} sloppy_tcp=1".split()) == 0
    assert main(["save"]) == 0
    saved = capsys.readouterr().out
    assert saved == (
        "[timeouts]\ntcp = 60\n\n[settings]\ndrop_packet = 1\n\n"
        f'[[service]]\ntcp = "{WEB}"\nsettings = {{ sloppy_tcp = 1 }}\n'
    )
    before = call("config")
    (tmp_path / "lvskit.toml").write_text(saved)
    assert main(["set", "drop_packet=-", "timeout_established=-", "secure_tcp=3"]) == 0
    assert main(["apply", str(tmp_path / "lvskit.toml")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "set drop_packet = 1",
        "took back secure_tcp",
        "set timeout_established = 60",
    ]
    assert call("config") == before


@pytest.mark.parametrize("command", ["settings", "set"])
def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert len(re.findall(rf"^  lvskit {command}\b", said, re.M)) >= 4


def test_the_page_on_floods(daemon: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its file is one, and its commands do what they say."""
    page = (CHECKOUT / "docs" / "how-to" / "withstand-a-syn-flood.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    assert loads(text).settings["timeout_synrecv"] == 5
    call("add_service", service={"tcp": WEB})
    commands = re.findall(r"^\$ lvskit (set .*)$", page, re.M)
    assert len(commands) >= 4
    for command in commands:
        assert main(command.split()) == 0, command
    assert call("status")["settings"] == {
        "amemthresh": 16384, "drop_entry": 1, "timeout_synrecv": 5, "timeout_synack": 5,
    }  # fmt: skip
    assert call("config")["service"][0]["settings"] == {"drop_packet": 1, "timeout_synrecv": 5}
