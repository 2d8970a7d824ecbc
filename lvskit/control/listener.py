"""The file of the control socket: claimed by one daemon, open to few, removed by its owner."""

from __future__ import annotations

import fcntl
import grp
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lvskit.errors import ConfigError

_BACKLOG: Final = 1024
_CREDENTIALS: Final = struct.Struct("=iII")  # Linux struct ucred: pid, uid, gid
_SO_PEERGROUPS: Final = 59  # Linux include/uapi/asm-generic/socket.h; not in the socket module
_MOST_GROUPS: Final = 1024  # bytes: as much as getsockopt of the standard library takes
_LOCK_TIMEOUT_S: Final = 5.0


class Listener:
    """A listening UNIX socket that no other daemon owns.

    A socket file that nobody listens on is a leftover, and is replaced. Two daemons that start at
    the same time take turns by a lock on the directory, held only while the socket is made.

    Args:
        path: where; the directory is made where only it is missing.
        group: name of the group whose members may connect besides root and the daemon's user.

    Attributes:
        path: as given.
        socket: bound and listening; connections wait until somebody accepts them.

    Raises:
        ConfigError: another daemon owns the path, or no socket can be made there.
    """

    def __init__(self, path: str, group: str | None = None) -> None:
        self.path = path
        self._gid = _group_id(group) if group is not None else None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _locked(os.path.dirname(os.path.abspath(path))):
                _make_way(path)
                self._bind()
        except OSError as err:
            self.socket.close()
            # A path that is too long is an OSError without a number.
            raise ConfigError(f"no socket at {path}: {err.strerror or err}") from err
        except ConfigError:
            self.socket.close()
            raise

    def _bind(self) -> None:
        os.fchmod(self.socket.fileno(), 0o600)  # so the file has this mode from the first moment
        self.socket.bind(self.path)
        made = os.stat(self.path)
        self._identity = (made.st_dev, made.st_ino)
        try:
            if self._gid is not None:
                os.chown(self.path, -1, self._gid)
                os.chmod(self.path, 0o660)
            self.socket.listen(_BACKLOG)
        except OSError:
            self.close()
            raise

    def refusal(self, peer: socket.socket) -> str | None:
        """Return why `peer` may not give commands, or None: it may."""
        size = _CREDENTIALS.size
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        _, uid, gid = _CREDENTIALS.unpack(raw)
        if uid in (0, os.geteuid()):
            return None
        if self._gid is not None and self._gid in (gid, *_groups(peer)):
            return None
        return (
            f"permission denied: uid {uid} is neither root nor the daemon's user"
            + (f" nor in group {self._gid}" if self._gid is not None else "")
            + "; the configuration may let a group in (director.group)"
        )

    def close(self) -> None:
        """Stop listening; remove the file if it is still this daemon's."""
        self.socket.close()
        try:
            there = os.lstat(self.path)
            if (there.st_dev, there.st_ino) == self._identity:
                os.unlink(self.path)
        except FileNotFoundError:
            pass


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {group!r} (director.group)") from None


def _groups(peer: socket.socket) -> tuple[int, ...]:
    """Return the supplementary groups of `peer`; none where there are too many to tell."""
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS)
    except OSError:
        return ()
    return struct.unpack(f"={len(raw) // 4}I", raw)


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold the lock on `directory`, which is made where only it is missing."""
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        pass
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigError(f"{directory} is locked by another process") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _make_way(path: str) -> None:
    """Remove a leftover socket at `path`; `ConfigError` where something is in use there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, and is busy
    raise ConfigError(
        f"another daemon answers at {path}: stop it first, or give this one a socket of its own "
        "(--socket)"
    )
