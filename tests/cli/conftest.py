"""A real daemon, for commands that need one."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def answers(path: str) -> bool:
    """Whether somebody listens at the socket `path`."""
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(path) == 0


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A daemon on the memory datapath, which $LVSKIT_SOCKET names."""
    path = str(tmp_path / "lvs.sock")
    monkeypatch.setenv("LVSKIT_SOCKET", path)
    command = [sys.executable, "-m", "lvskit", "run", "--datapath", "memory"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not answers(path):  # the file is there a moment before anybody listens
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield path
    process.terminate()
    process.wait(30)
