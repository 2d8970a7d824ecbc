"""Linux namespaces, by the two system calls there are; and a program that enters them.

    python namespaces.py USER NET UTS MNT -- COMMAND…
    python namespaces.py USER NET UTS MNT --log FILE -- COMMAND…
    python namespaces.py --probe root|user

The first joins the namespaces that four paths name (`-` for one that is not to be joined) and
becomes the command; the second prints a process number and leaves the command running by itself;
the third says why there can be no lab, or nothing. It is run as a file, without site-packages,
which takes 15 ms, and so imports nothing of lvskit.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from typing import Final

NEWNS: Final = 0x00020000
NEWUTS: Final = 0x04000000
NEWUSER: Final = 0x10000000
NEWNET: Final = 0x40000000
KINDS: Final = {"user": NEWUSER, "net": NEWNET, "uts": NEWUTS, "mnt": NEWNS}
"""The namespaces of a host of the lab, in the order of joining: the first one permits the rest."""

_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
# Python has os.setns and os.unshare only from 3.12 on.
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(status: int, what: str) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Move this process, which must have one thread, into new namespaces."""
    _checked(_libc.unshare(flags), "unshare")


def setns(path: str, kind: int) -> None:
    """Move this process into the namespace that `path`, /proc/PID/ns/…, names."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(handle, kind), path)
    finally:
        os.close(handle)


def become_root_of_new_user_namespace() -> None:
    """Move into a user namespace of this process's own, in which it is root."""
    user, group = os.geteuid(), os.getegid()
    unshare(NEWUSER)
    # user_namespaces(7): without this, an ordinary user may not map his group.
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {user} 1"),
        ("gid_map", f"0 {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


def mount_own(kind: str, place: str) -> None:
    """Mount a file system where this process and its children alone see it.

    It goes with the last of them. What the machine mounts meanwhile is seen as well.
    """
    unshare(NEWNS)
    _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None), "/")
    _checked(_libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None), place)


def enter(paths: dict[str, str]) -> None:
    """Join namespaces, given as paths by kind; the working directory stays."""
    here = os.getcwd()
    for kind, flag in KINDS.items():
        if kind in paths:
            setns(paths[kind], flag)
    os.chdir(here)


def probe(*, user: bool) -> str:
    """Try, in this process, what a lab needs; return what is refused, or nothing."""
    what = "make a user namespace"
    try:
        if user:
            become_root_of_new_user_namespace()
        what = "make network namespaces"
        unshare(NEWNET | NEWUTS)
        # There are systems that give the namespace, but no rights in it.
        what = "bring up a device in a network namespace"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
        what = "write network settings"
        with open("/proc/sys/net/ipv4/conf/all/arp_ignore", "w") as file:
            file.write("1")
    except OSError as err:
        return f"cannot {what} ({err.strerror})"
    return ""


def detach(log: str) -> None:
    """Go on as a daemon that writes to `log`; the process that was, prints its number and ends."""
    child = os.fork()
    if child:
        print(child, flush=True)
        os._exit(0)
    os.setsid()
    for path, flags, targets in (
        ("/dev/null", os.O_RDONLY, [0]),
        (log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, [1, 2]),
    ):
        handle = os.open(path, flags, 0o600)
        for target in targets:
            os.dup2(handle, target)
        os.close(handle)


def main(arguments: list[str]) -> None:
    """Do as the module's description says; 126 and 127 as a shell has them."""
    if arguments[0] == "--probe":
        print(probe(user=arguments[1] == "user"))
        return
    paths = dict(zip(KINDS, arguments[:4], strict=True))
    split = arguments.index("--")
    options, command = arguments[4:split], arguments[split + 1 :]
    enter({kind: path for kind, path in paths.items() if path != "-"})
    if options:
        detach(options[1])
    try:
        os.execvp(command[0], command)
    except OSError as err:
        print(f"lvskit lab: {command[0]}: {err.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(err, FileNotFoundError) else 126)


if __name__ == "__main__":
    main(sys.argv[1:])
