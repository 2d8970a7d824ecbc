"""sd_notify against a real datagram socket."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lvskit.control.systemd import Notifier


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """What stands in for systemd, and the value of $NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@lvskit-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(20)
        yield sock, name


def test_assignments_arrive_together(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("all is well")
    assert sock.recv(1000) == b"READY=1\nSTATUS=all is well"
    notifier.reloading()
    assert sock.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_nothing_is_sent_outside_of_systemd() -> None:
    Notifier({}).ready("all is well")


def test_a_manager_that_is_gone_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).stopping()
    assert "cannot notify systemd" in caplog.text


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_half_the_watchdogs_time(environ: dict[str, str], interval: float | None) -> None:
    assert Notifier(environ).watchdog_s == interval


def test_the_life_of_a_service(
    manager: tuple[socket.socket, str], start: Any, tmp_path: Path
) -> None:
    sock, name = manager
    file = tmp_path / "lvskit.toml"
    file.write_text('[[service]]\ntcp = "192.168.1.176:23"\n')
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}
    run: Callable[..., Any] = start
    daemon = run(file, ready=False, **environ)

    def until(*wanted: str) -> list[str]:
        """Receive until a datagram has `wanted`; return the datagrams before it."""
        before = []
        while True:
            text = sock.recv(1000).decode()
            if all(line in text for line in wanted):
                return before
            before.append(text)

    assert "READY=1" not in "".join(until("READY=1", "STATUS=1 virtual services, 0 connections"))
    until("WATCHDOG=1")
    until("WATCHDOG=1")
    daemon.call("add_service", {"service": {"tcp": "192.168.1.176:80"}})
    until("STATUS=2 virtual services")
    daemon.process.send_signal(signal.SIGHUP)
    until("RELOADING=1")
    until("READY=1", "STATUS=1 virtual services")
    daemon.process.terminate()
    until("STOPPING=1")
    assert daemon.process.wait(30) == 0
