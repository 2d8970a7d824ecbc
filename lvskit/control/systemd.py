"""What a service tells systemd: sd_notify(3) in the standard library.

Outside of systemd (no ``$NOTIFY_SOCKET``) nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

_log = logging.getLogger(__name__)


class Notifier:
    """Sends a service's state to the socket that ``$NOTIFY_SOCKET`` names.

    Args:
        environ: where the variables are looked up; the process's by default.

    Attributes:
        watchdog_s: send `watchdog` at least this often (half of ``$WATCHDOG_USEC``); None = no
            watchdog, or one that watches another process.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # An address in the abstract namespace is written with @ for its zero byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
        watched = microseconds.isdigit() and int(microseconds) > 0
        ours = pid is None or pid == str(os.getpid())
        self.watchdog_s = int(microseconds) / 2e6 if watched and ours else None

    def send(self, *assignments: str) -> None:
        """Send ``VARIABLE=value`` assignments; a systemd that does not listen is no error."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                sock.sendto("\n".join(assignments).encode(), self._address)
            except OSError as err:
                _log.warning("cannot notify systemd at %s: %s", self._address, err)

    def ready(self, status: str) -> None:
        """The service has started, or has finished reloading."""
        self.send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self.send(f"STATUS={status}")

    def watchdog(self) -> None:
        """The service is alive."""
        self.send("WATCHDOG=1")

    def reloading(self) -> None:
        """The service reads its configuration again; `ready` ends it (Type=notify-reload)."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service is about to end."""
        self.send("STOPPING=1")
