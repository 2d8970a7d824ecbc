"""The director's daemon in a lab: the command that runs it, and whether it answers yet."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Literal

LabDatapath = Literal["live", "xdp"]


def director_command(socket_path: Path, datapath: LabDatapath = "live") -> list[str]:
    """Return the command that runs the director's daemon."""
    argv = [sys.executable, "-m", "lvskit", "run", "--datapath", datapath]
    argv += ["--interface", "eth0"] if datapath == "xdp" else []
    return [*argv, "--socket", str(socket_path)]


def answers(path: Path) -> bool:
    """Say whether the daemon behind this socket takes commands."""
    request = {"jsonrpc": "2.0", "id": 1, "method": "status"}
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1.0)
            sock.connect(str(path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            return bool(sock.recv(1))
    except OSError:
        return False
