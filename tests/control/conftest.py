"""Real daemons, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lvskit.control.client import connect
from lvskit.errors import RpcError

WAIT_S = 30.0


@dataclass
class Daemon:
    """A running `lvskit run`."""

    process: subprocess.Popen[bytes]
    socket: str
    log_file: Path

    def call(self, method: str, params: object = None) -> Any:
        with connect(self.socket, WAIT_S) as client:
            return client.call(method, params)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition`, and fail if it does not come."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def ready(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.log
            try:
                self.call("status")
            except RpcError:
                return False
            return True

        self.until(answers)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon on the memory datapath; `lvskit run ARGUMENTS`."""
    daemons: list[Daemon] = []

    def run(
        *arguments: str | Path, ready: bool = True, socket: Path | None = None, **environ: str
    ) -> Daemon:
        path = str(socket or tmp_path / "lvskit.sock")
        log_file = tmp_path / f"log{len(daemons)}"
        command = [sys.executable, "-m", "lvskit", "run", "--socket", path, "--datapath", "memory"]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environ},
            )
        daemon = Daemon(process, path, log_file)
        daemons.append(daemon)
        if ready:
            daemon.ready()
        return daemon

    yield run
    for daemon in daemons:
        if daemon.process.poll() is None:
            daemon.process.terminate()
            try:
                daemon.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                daemon.process.wait(WAIT_S)
