"""Processes that outlive the command that started them: who they are, and how to end them.

A process number alone names nobody: it is given again. Number, boot and start time together do.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def start_time(pid: int) -> str | None:
    """Return when `pid` was started, as text that no other process of that number ever has.

    None if there is no such process, or only its exit status is left of it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the second field, the command in parentheses, may itself hold blanks.
    state, *fields = stat[stat.rindex(")") + 2 :].split()
    if state in "ZX":
        return None
    return f"{_BOOT_ID.read_text().strip()}/{fields[18]}"


class Process(msgspec.Struct, frozen=True):
    """One process, by number and start time."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has this number now."""
        return cls(pid, start_time(pid) or "ended")

    @property
    def running(self) -> bool:
        """It still runs; another process of the same number is not it."""
        return start_time(self.pid) == self.started

    def signal(self, number: int) -> bool:
        """Send a signal, to this very process or to nobody; False if it has ended."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # The handle is on one process for good, so what is checked now stays true.
            if not self.running:
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def end(self, patience_s: float = 2.0) -> bool:
        """End it: asked first, then made to; False if it had ended before."""
        if not self.signal(signal.SIGTERM):
            return False
        if not self.wait(patience_s):
            self.signal(signal.SIGKILL)
            self.wait(patience_s)
        return True

    def wait(self, patience_s: float) -> bool:
        """Wait until it has ended; False if it still runs after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while self.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True
