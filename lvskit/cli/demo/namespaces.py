"""The demo's cluster in network namespaces: real TCP, real packets, the live datapath."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import IO

from lvskit.cli import lvsadm
from lvskit.cli.demo.stage import CLIENTS
from lvskit.control.client import connect
from lvskit.errors import DatapathError
from lvskit.lab import Lab


class LabStage:
    """A lab of its own, which ends with the demo."""

    description = "network namespaces on this machine, real servers and real TCP"

    def __init__(self) -> None:
        self._helpers: list[subprocess.Popen[str]] = []
        self._lab = Lab.up(f"demo-{os.getpid()}", owned=True)
        try:
            self._client = self._helper("client", "lvskit.cli.demo.client", *CLIENTS)
            self._capture = self._helper("director", "lvskit.cli.demo.capture")
        except BaseException:
            self.close()
            raise

    def _helper(self, host: str, module: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a helper on a host and wait until it says that it is ready."""
        process = self._lab.spawn(
            host,
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._helpers.append(process)
        if _ask(process, "ready?") != "ready":
            raise DatapathError(f"the demo's helper {module} did not start on {host}")
        return process

    def lvsadm(self, *arguments: str) -> str:
        """Run lvsadm against the lab's daemon."""
        output = io.StringIO()
        with connect(str(self._lab.socket)) as client:
            lvsadm.run(
                arguments,
                client=lambda: client,
                stdin=io.StringIO(),
                stdout=output,
                stderr=output,
                names=lvsadm.Names(hosts={}),
            )
        return output.getvalue()

    def session(self, client: str, port: int) -> str:
        """Have the client's host open a session."""
        return _ask(self._client, json.dumps([client, port]))

    def tunnelled(self) -> bytes | None:
        """Return the last tunnelled packet that left the director."""
        answer = _ask(self._capture, "last?")
        return bytes.fromhex(answer) if answer else None

    def close(self) -> None:
        """End the helpers and the lab."""
        for process in self._helpers:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()  # its input ends, and so does it
            process.wait()
        self._lab.down()


def _ask(process: subprocess.Popen[str], question: str) -> str:
    stdin, stdout = _pipes(process)
    try:
        print(question, file=stdin, flush=True)
    except BrokenPipeError:
        return ""
    return stdout.readline().rstrip("\n")


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise TypeError("the helper was started without pipes")
    return process.stdin, process.stdout
