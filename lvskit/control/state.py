"""The connection table on disk, so that a restart of the daemon breaks no connection.

The file is a sequence of frames, each four bytes of length (network order) and so many of
MessagePack: a header, the parts of a snapshot (`lvskit.control.snapshot`), and an empty frame, the
end. It is written beside its place and renamed, so it is whole or not there; there is no fsync,
because it is to outlive the process, not the power.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import stat
import struct
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, Final, Literal

import msgspec

from lvskit.control.snapshot import Part, Restorer, export
from lvskit.core.connection import Connection
from lvskit.core.director import Director

_LENGTH: Final = struct.Struct("!I")
_MOST_BYTES: Final = 64 << 20
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

_log = logging.getLogger(__name__)


class Header(msgspec.Struct, frozen=True):
    """The first frame: what this is, and when it was made.

    Attributes:
        monotonic: seconds of CLOCK_MONOTONIC, which counts from `boot`.
        wall: seconds since 1970, for after a reboot.
        boot: the kernel's name for the time since it started.
    """

    monotonic: float
    wall: float
    boot: str
    format: Literal["lvskit connections"] = "lvskit connections"
    version: Literal[1] = 1

    @classmethod
    def now(cls) -> Header:
        """Return the header of a snapshot that is made now."""
        return cls(time.monotonic(), time.time(), _boot())

    def age_s(self) -> float:
        """Return the seconds since the snapshot was made, never negative."""
        if self.boot and self.boot == _boot():
            return max(0.0, time.monotonic() - self.monotonic)
        return max(0.0, time.time() - self.wall)


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


class StateFile:
    """Keeps a director's connections in a file.

    Args:
        path: the file; one that belongs to another user is not read.
        deadline: returns when a connection really ends, by all that the datapath knows; None
            leaves it out of the file, for the datapath brings it back itself.
    """

    def __init__(
        self,
        path: str,
        deadline: Callable[[Connection], float | None] = attrgetter("deadline"),
    ) -> None:
        self.path = path
        self._deadline = deadline
        self._written: object = None

    def load(self, director: Director, now: float) -> int:
        """Bring back what the file has for the director's servers; return how many entries.

        A file that is damaged, or not ours, is reported and else left alone: connections are lost
        then, but the daemon starts.
        """
        try:
            with open(self.path, "rb", opener=_open_own) as file:
                frames = _frames(file)
                header = msgspec.msgpack.decode(next(frames, b""), type=Header)
                with no_garbage():
                    _restore(frames, Restorer(director, now - header.age_s(), now))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as err:
            _log.warning("connections of the last run not restored from %s: %s", self.path, err)
        return len(director.table)

    def save(self, director: Director, now: float) -> None:
        """Write the table, all at once."""
        for _ in self._write(director, now):
            pass

    async def keep(self, director: Director, now: float) -> None:
        """Write the table if any packet has passed since; others run between the parts."""
        figures = (len(director.table), director.services.counters)
        if figures == self._written:
            return
        with closing(self._write(director, now)) as parts:
            for _ in parts:
                await asyncio.sleep(0)
        self._written = figures

    def _write(self, director: Director, now: float) -> Generator[None, None, None]:
        """Write the table, and yield after each part."""
        beside = f"{self.path}.new"
        with suppress(FileNotFoundError):
            os.unlink(beside)
        try:
            with open(beside, "xb", opener=_create) as file:
                _put(file, msgspec.msgpack.encode(Header.now()))
                encoder = msgspec.msgpack.Encoder()
                for part in export(director, now, deadline=self._deadline):
                    _put(file, encoder.encode(part))
                    yield
                _put(file, b"")
            os.replace(beside, self.path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(beside)


def _restore(frames: Iterator[bytes], restorer: Restorer) -> None:
    decoder = msgspec.msgpack.Decoder(Part)
    try:
        for frame in frames:
            restorer.add(decoder.decode(frame))
    finally:
        restorer.finish()


@contextmanager
def no_garbage() -> Iterator[None]:
    """Let the collector rest while a million entries are made, none of them garbage: 1.6 times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _open_own(path: str, flags: int) -> int:
    """Open a regular file of this user's: what another has put there is not to be believed."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(handle)
        raise PermissionError("it is no regular file of this user's")
    return handle


def _put(file: BinaryIO, frame: bytes) -> None:
    file.write(_LENGTH.pack(len(frame)))
    file.write(frame)


def _frames(file: BinaryIO) -> Iterator[bytes]:
    """Yield the frames up to the empty one; `ValueError` where the file ends before it."""
    while True:
        head = file.read(_LENGTH.size)
        size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else -1
        if size == 0:
            return
        frame = file.read(size) if 0 < size <= _MOST_BYTES else b""
        if len(frame) != size:
            raise ValueError("the file is damaged")
        yield frame
