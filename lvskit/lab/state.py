"""What is known of a lab that runs, or that crashed; and how to end all of it, and no more.

A lab's processes bear its random mark in their environment. Namespaces live as long as a process
in them, so ending the processes removes everything.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from lvskit.errors import ConfigError
from lvskit.hostsetup.process import Process
from lvskit.hostsetup.state import write_private
from lvskit.lab.director import LabDatapath

MARK: Final = "LVSKIT_LAB"
"""The environment variable that holds the mark."""

_PATIENCE_S: Final = 2.0


class LabState(msgspec.Struct, kw_only=True):
    """One lab.

    Attributes:
        mark: random text in the environment of all its processes.
        mode: "root": namespaces of the machine's root; "user": within a user namespace.
        holder: the process that keeps the namespaces; None until it is started.
        hosts: for each host, the process that is first in its namespaces.
        daemons: what runs in them: name and process.
        owner: the process that the lab ends with; None if it stays until it is ended.
        datapath: the director's; with "xdp", the hosts share a BPF file system of the lab's own.
    """

    mark: str
    mode: Literal["root", "user"]
    holder: Process | None = None
    hosts: dict[str, Process] = {}
    daemons: dict[str, Process] = {}
    owner: Process | None = None
    datapath: LabDatapath = "live"

    @classmethod
    def load(cls, path: Path) -> LabState | None:
        """Return what the file says; None if there is none.

        Raises:
            ConfigError: the file is damaged.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as err:
            raise ConfigError(
                f"{path} is damaged ({err}); remove it, and end by hand what is left of the lab:"
                " processes with LVSKIT_LAB in their environment"
            ) from err

    def save(self, path: Path) -> None:
        """Write the file."""
        write_private(path, msgspec.json.encode(self))

    @property
    def abandoned(self) -> bool:
        """Its owner has ended without ending it."""
        return self.owner is not None and not self.owner.running

    @property
    def running(self) -> bool:
        """Its holder and all its hosts are there."""
        first = [self.holder, *self.hosts.values()]
        return bool(self.hosts) and all(process and process.running for process in first)

    def end(self) -> None:
        """End all its processes, asked first and then made to, the keepers last."""
        deadline = time.monotonic() + _PATIENCE_S
        asked: set[Process] = set()
        while guests := self._guests():
            for guest in guests:
                if time.monotonic() > deadline:
                    guest.signal(signal.SIGKILL)
                elif guest not in asked:
                    guest.signal(signal.SIGTERM)
                    asked.add(guest)
            time.sleep(0.02)
        keepers = [*self.hosts.values(), *([self.holder] if self.holder else [])]
        for keeper in keepers:
            # These sleep for ever and have nothing to put away.
            keeper.signal(signal.SIGKILL)
        for keeper in keepers:
            keeper.wait(_PATIENCE_S)

    def _guests(self) -> list[Process]:
        keepers = {process.pid for process in self.hosts.values() if process.running}
        if self.holder is not None and self.holder.running:
            keepers.add(self.holder.pid)
        # While a keeper is there, its network namespace is the lab's, and so is who else is in it,
        # even with an environment of its own making.
        networks = {_network(pid) for pid in keepers - {self.holder and self.holder.pid}} - {None}
        found = []
        for pid in _processes():
            if pid in keepers or pid == os.getpid():
                continue
            # Taken before it is looked at: should the number be given again, it is not this one.
            process = Process.of(pid)
            if _marked(pid, self.mark) or _network(pid) in networks:
                found.append(process)
        return [process for process in found if process.running]


def end_abandoned(parent: Path) -> list[Path]:
    """End the labs below `parent` whose owner could not; return their directories."""
    ended = []
    for path in parent.glob("lab-*/state.json"):
        state = LabState.load(path)
        if state is not None and state.abandoned:
            state.end()
            ended.append(path.parent)
    return ended


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _network(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None


def _marked(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
