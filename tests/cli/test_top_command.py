"""`lvskit top` as a command: JSON, its mistakes, and the screen on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from lvskit.cli.main import main
from lvskit.control.client import connect

COMMAND = [sys.executable, "-m", "lvskit", "top"]


def test_json_is_one_line(daemon: str, capsys: pytest.CaptureFixture[str]) -> None:
    with connect() as client:
        web = {"tcp": "192.168.1.176:80"}
        client.call("add_service", {"service": web})
        client.call("add_server", {"service": web, "server": {"address": "192.168.1.181"}})
    assert main(["top", "--json", "--interval", "0.1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    rates = dict.fromkeys(("conns", "inpkts", "outpkts", "inbytes", "outbytes"), 0)
    none = {"total": 0, "per_s": 0}
    assert told.pop("uptime_s") > told["interval_s"] > 0.05
    del told["interval_s"]
    assert told == {
        "datapath": {"name": "memory", "facts": {}, "figures": {}, "lost": {}},
        "table": {
            "size": 65536,
            "entries": 0,
            "half_open": 0,
            "shed": none,
            "refused": none,
            "dropped_entries": none,
            "dropped_packets": none,
        },
        "defences": [],
        "rates": rates,
        "services": [
            {
                "name": "tcp 192.168.1.176:80",
                "scheduler": "wlc",
                "weight": 1,
                "active": 0,
                "inactive": 0,
                "rates": rates,
                "servers": [
                    {
                        "address": "192.168.1.181:80",
                        "method": "tunnel",
                        "weight": 1,
                        "active": 0,
                        "inactive": 0,
                        "state": "",
                        "rates": rates,
                    }
                ],
            }
        ],
    }


def test_json_follows(daemon: str, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert main(["top", "--json", "--interval", "0.2", "--count", "3"]) == 0
    assert time.monotonic() - began >= 0.6
    ups = [json.loads(line)["uptime_s"] for line in capsys.readouterr().out.splitlines()]
    assert len(ups) == 3
    assert ups == sorted(ups)


def test_json_without_end(daemon: str) -> None:
    command = [*COMMAND, "--json", "--interval", "0.1", "--count", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["table"]["size"] == 65536
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, b"")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--interval", "0"], "--interval 0; allowed: 0.1 or more"),
        (["--interval", "nan", "--json"], "--interval nan; allowed: 0.1 or more"),
        (["--count", "2"], "--count belongs to --json"),
        (["--count", "-1", "--json"], "--count -1; allowed: 0 or more"),
    ],
)
def test_mistakes(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *words]) == 1
    assert capsys.readouterr().err == f"lvskit: {complaint}\n"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_no_daemon(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LVSKIT_SOCKET", f"{tmp_path}/s")
    assert main(["top", *words]) == 1
    assert capsys.readouterr().err.startswith("lvskit: no daemon at ")


def test_a_daemon_of_another_version(
    daemon: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lvskit.control.client.Client.call", lambda *_: {"version": "1.2.1"})
    assert main(["top", "--json"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("lvskit: the daemon is of another version of lvskit: ")


WITHOUT = """
import sys
sys.modules["textual"] = None
from lvskit.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_textual(daemon: str) -> None:
    """The screen says what to install; JSON does without."""
    command = [sys.executable, "-c", WITHOUT, "top"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "lvskit: the screen of `lvskit top` needs textual, which is not installed: "
        "pip install 'lvskit[top]'; `lvskit top --json` works without it\n"
    )
    command += ["--json", "--interval", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["services"] == []


def test_on_a_terminal(daemon: str) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 60
    try:
        while b"no virtual services" not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 1 << 16)
        os.write(ours, b"q")
        while process.poll() is None:  # what it still writes has to be read
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    os.read(ours, 1 << 16)
                except OSError:  # it has closed its end
                    break
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
