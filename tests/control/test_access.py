"""Who may use the control socket: the kernel's word counts, as other users find out."""

from __future__ import annotations

import grp
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lvskit.control.listener import Listener
from lvskit.errors import ConfigError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
NOBODY = 65534
STRANGER = 12345


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def ask_as(uid: int, gid: int, groups: list[int], path: str) -> Any:
    """Call `status` as another user, in a child; return the answer, or the error's name."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(path)
                with suppress(BrokenPipeError, ConnectionResetError):  # refused before it asked
                    sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"status"}\n')
                answer = sock.makefile("rb").readline()
        except OSError as err:
            answer = json.dumps(type(err).__name__).encode()
        finally:
            os.write(sending, answer)
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def test_other_users_find_a_closed_door(start: Callable[..., Any], public: Path) -> None:
    daemon = start(socket=public / "lvskit.sock")
    assert ask_as(NOBODY, NOBODY, [], daemon.socket) == "PermissionError"


def test_an_open_door_is_watched(start: Callable[..., Any], public: Path) -> None:
    daemon = start(socket=public / "lvskit.sock")
    os.chmod(daemon.socket, 0o666)
    answer = ask_as(NOBODY, NOBODY, [], daemon.socket)
    assert answer["error"]["data"] == {"code": "denied"}
    assert answer["error"]["message"].startswith("permission denied: uid 65534 is neither root")
    daemon.call("status")


def test_members_of_the_group_may(start: Callable[..., Any], public: Path) -> None:
    group = grp.getgrgid(NOBODY)
    file = public / "lvskit.toml"
    file.write_text(f'[director]\ngroup = "{group.gr_name}"\n')
    daemon = start(file, socket=public / "lvskit.sock")
    found = os.stat(daemon.socket)
    assert (found.st_mode & 0o7777, found.st_gid) == (0o660, NOBODY)
    assert "result" in ask_as(STRANGER, NOBODY, [], daemon.socket)
    assert "result" in ask_as(STRANGER, STRANGER, [1, NOBODY, 2], daemon.socket)
    os.chmod(daemon.socket, 0o666)
    assert ask_as(STRANGER, STRANGER, [1, 2], daemon.socket)["error"]["data"]["code"] == "denied"


def test_an_unknown_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no group 'nonesuch'"):
        Listener(str(tmp_path / "s"), "nonesuch")
    assert not (tmp_path / "s").exists()


def test_a_locked_directory_is_waited_for_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr("lvskit.control.listener._LOCK_TIMEOUT_S", 0.05)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="is locked by another process"):
        Listener(str(tmp_path / "s"))
    os.close(handle)
    Listener(str(tmp_path / "s")).close()
