"""`lvskit run`, as a process: its socket, its signals, its file."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvskit.control.client import connect
from lvskit.errors import ServiceExists

TELNET = {"tcp": "192.168.1.176:23"}


def services(daemon: Any) -> list[str]:
    return [s["config"]["tcp"] for s in daemon.call("status")["services"]]


def test_it_serves_and_leaves_cleanly(start: Callable[..., Any]) -> None:
    daemon = start()
    assert oct(os.stat(daemon.socket).st_mode & 0o7777) == "0o600"
    daemon.call("add_service", {"service": TELNET})
    with pytest.raises(ServiceExists, match=r"192\.168\.1\.176:23"):
        daemon.call("add_service", {"service": TELNET})
    assert daemon.end() == 0
    assert not os.path.exists(daemon.socket)
    assert "Traceback" not in daemon.log


def test_ctrl_c_is_a_clean_end_too(start: Callable[..., Any]) -> None:
    daemon = start()
    assert daemon.end(signal.SIGINT) == 0
    assert not os.path.exists(daemon.socket)


def test_a_second_daemon_leaves_the_first_alone(start: Callable[..., Any]) -> None:
    first = start()
    first.call("add_service", {"service": TELNET})
    second = start(ready=False)
    assert second.process.wait(30) == 1
    assert second.log.startswith("lvskit: another daemon answers at ")
    assert services(first) == ["192.168.1.176:23"]
    assert first.end() == 0


def test_a_leftover_socket_is_replaced(start: Callable[..., Any]) -> None:
    first = start()
    first.process.kill()
    first.process.wait(30)
    assert os.path.exists(first.socket)
    start().call("status")


def test_another_daemons_socket_is_not_removed(start: Callable[..., Any], tmp_path: Path) -> None:
    first = start()
    os.rename(first.socket, tmp_path / "moved")
    second = start()
    assert first.end() == 0
    second.call("status")


def test_a_file_in_the_sockets_place_stays(start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "lvskit.sock").write_text("precious")
    daemon = start(ready=False)
    assert daemon.process.wait(30) == 1
    assert "is no socket" in daemon.log
    assert (tmp_path / "lvskit.sock").read_text() == "precious"


def test_many_clients_at_once(start: Callable[..., Any]) -> None:
    daemon = start()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        service = {"tcp": f"192.168.1.176:{1000 + number}"}
        try:
            with connect(daemon.socket, 60) as client:
                client.call("add_service", {"service": service})
                client.call("add_server", {"service": service, "server": {"address": "10.0.0.1"}})
                assert client.call("status")["size"] == 65536
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(services(daemon)) == 200


def test_garbage_harms_nobody(start: Callable[..., Any]) -> None:
    daemon = start()
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(daemon.socket)
        idle.sendall(b'{"jsonrpc"')  # and no more
        for junk in (b"\0\xff" * 5000 + b"\n", b"\n" * 1000, b"[" * 100_000 + b"\n", b"x" * 10):
            with socket.socket(socket.AF_UNIX) as garbage:
                garbage.connect(daemon.socket)
                garbage.sendall(junk)
            assert services(daemon) == []
    assert daemon.end() == 0
    assert "Traceback" not in daemon.log


SERVICE = """
[[service]]
tcp = "192.168.1.176:{port}"
[[service.server]]
address = "192.168.1.181"
weight = {weight}
"""


def test_sighup_applies_what_has_changed(start: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "lvskit.toml"
    file.write_text(SERVICE.format(port=23, weight=1) + SERVICE.format(port=22, weight=1))
    daemon = start(file, "--size", "1000")
    assert daemon.call("status")["size"] == 1000
    daemon.call("add_service", {"service": {"tcp": "192.168.1.176:80"}})
    file.write_text(SERVICE.format(port=23, weight=5) + SERVICE.format(port=25, weight=1))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: services(daemon) == ["192.168.1.176:23", "192.168.1.176:25"])
    telnet, _ = daemon.call("status")["services"]
    assert telnet["servers"][0]["config"]["weight"] == 5
    assert "configuration: changed 192.168.1.181:23 of TCP 192.168.1.176:23" in daemon.log
    assert "changed: it counts from the next start on" not in daemon.log


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("this is no TOML", "nothing changed: "),
        (SERVICE.format(port=25, weight='"much"'), "$.service[0].server[0].weight"),
        (SERVICE.format(port=25, weight=1) + SERVICE.format(port=26, weight=-1), "weight -1"),
        (None, "No such file"),
    ],
    ids=["syntax", "type", "value", "missing"],
)
def test_a_faulty_file_changes_nothing(
    start: Callable[..., Any], tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "lvskit.toml"
    file.write_text(SERVICE.format(port=23, weight=3))
    daemon = start(file)
    before = daemon.call("config")
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: said in daemon.log)
    assert "nothing changed" in daemon.log
    assert daemon.call("config") == before
    assert daemon.end() == 0


def test_sighup_without_a_file_says_so(start: Callable[..., Any]) -> None:
    daemon = start()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: "there is no configuration file to read again" in daemon.log)
    daemon.call("status")


def test_sighup_does_not_restart_the_daemon(start: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "lvskit.toml"
    file.write_text("[director]\nsize = 1000\n")
    daemon = start(file)
    file.write_text("[director]\nsize = 2000\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: "it counts from the next start on" in daemon.log)
    assert daemon.call("status")["size"] == 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--datapath", "teleport"], "unknown datapath 'teleport'; installed: live, memory"),
        (["--size", "0"], "director.size = 0; allowed: 1 or more"),
        (["/nonexistent.toml"], "lvskit: /nonexistent.toml: No such file or directory"),
        (["--bypass"], "datapath 'memory' (director.datapath_options): unknown option 'bypass'"),
        (["--socket", "/" + "x" * 200], "no socket at /xxx"),
        (["--socket", "/nonexistent/there/s"], "no socket at /nonexistent/there/s: No such file"),
    ],
)
def test_what_cannot_start_says_why(
    start: Callable[..., Any], arguments: list[str], said: str
) -> None:
    daemon = start(*arguments, ready=False)
    assert daemon.process.wait(30) == 1
    assert said in daemon.log
    assert "Traceback" not in daemon.log
    assert not os.path.exists(daemon.socket)
