"""The client: quick to import, clear about what is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvskit import errors
from lvskit.control import client as module
from lvskit.control.client import connect
from lvskit.control.paths import default_socket
from lvskit.errors import LvskitError, PluginError, RpcError, UnknownPlugin


def test_it_imports_neither_asyncio_nor_msgspec() -> None:
    code = "import sys, lvskit.control.client; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert not {"asyncio", "msgspec", "pyroute2", "scapy"} & set(loaded)


def test_the_default_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVSKIT_SOCKET", "/named")
    assert default_socket() == "/named"
    monkeypatch.setenv("LVSKIT_SOCKET", "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_socket() == "/run/lvskit/lvskit.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert default_socket() == "/run/user/1/lvskit.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket() == "/run/user/1000/lvskit.sock"


def test_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(RpcError) as caught:
        connect(path)
    assert str(caught.value) == (
        f"no daemon at {path}: start one with `lvskit run`, or name its socket with LVSKIT_SOCKET"
    )
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(path)
    monkeypatch.setenv("LVSKIT_SOCKET", path)
    with pytest.raises(RpcError, match="no daemon at"):
        connect()


def test_other_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RpcError, match="no connection to the daemon at /xxx"):
        connect("/" + "x" * 200)

    class Closed(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Closed)
    with pytest.raises(RpcError, match="permission denied at /s: the daemon answers root, its own"):
        connect("/s")


class Fake:
    """A listening socket that says what it is told to, whatever it is asked."""

    def __init__(self, path: Path, *replies: bytes) -> None:
        self.path = str(path)
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(self.path)
        self._sock.listen(1)
        self._replies = replies
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> str:
        self._thread.start()
        return self.path

    def __exit__(self, *_: object) -> None:
        self._thread.join(20)
        self._sock.close()

    def _serve(self) -> None:
        peer, _ = self._sock.accept()
        with peer:
            peer.settimeout(20)
            for reply in self._replies:
                if not reply:
                    peer.recv(1 << 16)
                peer.sendall(reply)


def replied(tmp_path: Path, *replies: bytes, timeout_s: float = 20) -> Any:
    with Fake(tmp_path / "s", b"", *replies) as path, connect(path, timeout_s) as client:
        return client.call("status")


def test_an_answer_in_pieces(tmp_path: Path) -> None:
    pieces = [b'{"jsonrpc":"2.0",', b'"id":1,"resu', b'lt":[1,2]}', b"\n"]
    assert replied(tmp_path, *pieces) == [1, 2]


def test_answers_to_others_are_not_taken(tmp_path: Path) -> None:
    old = b'{"jsonrpc":"2.0","id":0,"result":"old"}\n'
    assert replied(tmp_path, old + b'{"jsonrpc":"2.0","id":1,"result":"new"}\n') == "new"


@pytest.mark.parametrize("junk", [b"220 smtp ready\n", b"[]\n", b"\xff\xfe\n"])
def test_something_else_listens(tmp_path: Path, junk: bytes) -> None:
    with pytest.raises(RpcError, match=r"is no lvskit daemon: it said b'"):
        replied(tmp_path, junk)


def test_an_answer_that_breaks_off(tmp_path: Path) -> None:
    with pytest.raises(RpcError, match="closed the connection without an answer"):
        replied(tmp_path, b'{"jsonrpc":')


def test_a_silent_daemon(tmp_path: Path) -> None:
    class Silent(Fake):
        def _serve(self) -> None:
            peer, _ = self._sock.accept()
            with peer:
                peer.settimeout(20)
                while peer.recv(1 << 16):
                    pass

    path = tmp_path / "s"
    with Silent(path), connect(str(path), 0.2) as client:
        with pytest.raises(RpcError, match=r"has not answered for 0\.2 s"):
            client.call("status")
        with pytest.raises(RpcError, match=r"has not answered for 0\.2 s"):
            client.call("apply", {"config": "x" * 50_000_000})


def test_a_refusal_before_the_question(tmp_path: Path) -> None:
    refusal = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"no",'
    refusal += b'"data":{"code":"denied"}}}\n'
    path = tmp_path / "s"
    with Fake(path, refusal), connect(str(path), 20) as client:
        client._sock.recv(1, socket.MSG_PEEK)
        for _ in range(100):  # until the daemon's end is closed
            try:
                client._sock.send(b" ")
            except OSError:
                break
        with pytest.raises(RpcError, match="no") as caught:
            client.call("status")
    assert caught.value.code == "denied"


def test_a_daemon_that_lets_nobody_in(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as other:
        sock.bind(path)
        sock.listen(0)
        other.connect(path)
        with pytest.raises(RpcError, match="it takes no more connections"):
            connect(path, 0.1)


KINDS = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, LvskitError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_itself(tmp_path: Path, kind: type[LvskitError]) -> None:
    facts = {UnknownPlugin: {"kind": "scheduler", "name": "x"}, PluginError: {"plugin": "x"}}
    code = "rpc" if kind is RpcError else kind.code
    data = {"code": code, **facts.get(kind, {})}
    error = {"code": -32000, "message": "what is wrong", "data": data}
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode() + b"\n"
    with pytest.raises(LvskitError) as caught:
        replied(tmp_path, line)
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.code) == ("what is wrong", code)
    for name, fact in facts.get(kind, {}).items():
        assert getattr(caught.value, name) == fact


@pytest.mark.parametrize("data", [None, {}, {"code": "from the future"}, {"code": "plugin"}, [1]])
def test_errors_of_other_kinds(data: object) -> None:
    err = module._error({"code": -32000, "message": "m", "data": data})
    assert type(err) is RpcError
    assert err.code == (data["code"] if isinstance(data, dict) and data else "rpc")


def test_a_real_daemon(start: Callable[..., Any]) -> None:
    daemon = start()
    with connect(daemon.socket) as client:
        with pytest.raises(UnknownPlugin) as caught:
            client.call("add_service", {"service": {"tcp": "10.0.0.1:80", "scheduler": "x"}})
        assert (caught.value.kind, caught.value.name) == ("scheduler", "x")
        with pytest.raises(RpcError, match="unknown method 'nonesuch'") as missing:
            client.call("nonesuch")
        assert missing.value.code == "method"
        with pytest.raises(errors.ConfigError, match="add_service: "):
            client.call("add_service", {"service": {"tcp": 5}})
        assert client.call("status")["services"] == []
