"""What outlives the daemon: link, program and maps, pinned on a BPF file system.

``/sys/fs/bpf/lvskit/IF/layoutN`` holds them for the interface IF; the lock on ``IF`` is the
running daemon's. In another network namespace than the first, ``lvskit`` is ``lvskit:COOKIE``,
after the number that the kernel never gives twice; a dot in a name, which a BPF file system does
not take, is a colon, which no interface's name has.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from lvskit import DatapathError
from lvskit_datapath_xdp import layout
from lvskit_datapath_xdp.attached import process
from lvskit_datapath_xdp.loader import BpfError, Link, Map, Program
from lvskit_datapath_xdp.loader.features import BPFFS
from lvskit_datapath_xdp.loader.privileges import is_bpffs
from lvskit_datapath_xdp.loader.syscall import Handle
from lvskit_datapath_xdp.options import XdpOptions

_FIRST_NAMESPACE: Final = 1  # Linux net/core/net_namespace.c: init_net has the first cookie
_SO_NETNS_COOKIE: Final = 71  # Linux include/uapi/asm-generic/socket.h
_LINK, _PROGRAM = "link", "program"
_OWN: Final = f"layout{layout.VERSION}"

_log = logging.getLogger(__name__)


def default_directory(interface: str) -> Path:
    """Return where the pins of an interface are unless told."""
    with socket.socket(socket.AF_UNIX) as any_socket:
        raw = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    cookie = int.from_bytes(raw, "little")
    above = "lvskit" if cookie == _FIRST_NAMESPACE else f"lvskit:{cookie}"
    return Path(BPFFS, above, interface.replace(".", ":"))


def claim(options: XdpOptions, ifindex: int) -> Pins | None:
    """Return the pins of an interface, claimed for this process; None where there are none.

    Without a BPF file system, or the right to write there, the daemon goes on without, and says
    so, unless it was told a place, or to keep what it has.

    Raises:
        DatapathError: another director has the interface; the pins are another user's or of
            another interface; or the place that was told is not on a BPF file system.
    """
    told = options.pins is not None or options.keep
    if options.pins == "":
        if options.keep:
            raise DatapathError("keep: nothing can be kept without pins, which are switched off")
        return None
    place = Path(options.pins) if options.pins else default_directory(options.interface)
    lacking = ""
    if not is_bpffs(place):
        lacking = f"{place} is not on a BPF file system: mount -t bpf bpf {BPFFS}"
    else:
        try:
            return Pins(place, options.interface, ifindex)
        except PermissionError as err:
            lacking = f"no pins at {place}: {err.strerror}; the daemon's user must own it"
        except OSError as err:
            lacking = f"no pins at {place}: {err.strerror or err}"
    if told:
        raise DatapathError(lacking)
    _log.warning("%s; until then, forwarding ends with this process, however it ends", lacking)
    return None


class Pins:
    """The pins of one interface, locked.

    Args:
        place: the directory.
        interface, ifindex: whose they are.

    Raises:
        DatapathError: as `claim`.
        OSError: the directory cannot be made.
    """

    def __init__(self, place: Path, interface: str, ifindex: int) -> None:
        self.place = place
        self._interface, self._ifindex = interface, ifindex
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        former = None if place.exists() else self._renamed()
        self._lock = self._locked(former or place)
        try:
            if former is not None:
                former.rename(place)
                _log.info("the interface was called %s before", former.name)
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def own(self) -> Path:
        """Where those of this layout are."""
        return self.place / _OWN

    def _renamed(self) -> Path | None:
        """Return the pins of this interface under a name that it had before."""
        for other in self.place.parent.iterdir():
            for link in _links(other):
                with link:
                    if link.info().ifindex == self._ifindex:
                        return other
        return None

    def _locked(self, place: Path) -> int:
        while True:
            place.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            there = os.fstat(handle)
            try:
                if there.st_uid != os.geteuid():
                    raise DatapathError(
                        f"the pins at {place} belong to user {there.st_uid}: run as that user, or "
                        f"remove them: rm -r {place}"
                    )
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if place.exists() and os.path.samestat(place.stat(), there):
                    return handle
            except BlockingIOError:
                os.close(handle)
                raise DatapathError(
                    f"another director has the interface {self._interface}: {_owner(there)}; "
                    "stop it first"
                ) from None
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # another daemon was ending, and has just removed it

    def _check(self) -> None:
        """Refuse the pins of another interface; forget the link of one that is no more."""
        for version in _versions(self.place):
            path = version / _LINK
            if not path.exists():
                continue
            with Link.open(path) as link:
                ifindex = link.info().ifindex
            if ifindex == 0:
                _log.warning("%s was deleted meanwhile, and the program with it", self._interface)
                path.unlink()
            elif ifindex != self._ifindex:
                try:
                    name = socket.if_indextoname(ifindex)
                except OSError:
                    name = f"number {ifindex} of another network namespace"
                raise DatapathError(
                    f"the pins at {self.place} are of the interface {name}: direct that, give "
                    f"these others a place (pins), or remove them: rm -r {self.place}"
                )

    # --- what is there ---

    def maps(self, names: Iterable[str]) -> dict[str, Map] | None:
        """Return the maps that a former daemon has left, None where they are not all there.

        What is of another layout is left alone here; see `former_link`.
        """
        wanted = set(names)
        foreign = [each.name for each in _versions(self.place) if each.name != _OWN]
        if foreign:
            _log.warning(
                "the pins at %s are of another version of this plugin (%s; this one: %s): they are "
                "not adopted, and their connections are lost",
                self.place, ", ".join(foreign), _OWN,
            )  # fmt: skip
        if not self.own.exists():
            return None
        if any(not (self.own / _file(name)).exists() for name in wanted):
            self.clear()  # the former daemon had not finished
            return None
        found: dict[str, Map] = {}
        try:
            for name in wanted:
                found[name] = Map.open(self.own / _file(name))
        except BpfError:
            for each in found.values():
                each.close()
            raise
        return found

    def link(self) -> Link | None:
        """Return the link that a former daemon has left, of whichever layout."""
        return next((link for place in _versions(self.place) for link in _links_in(place)), None)

    def runs(self, program: Program) -> bool:
        """Whether the program that is pinned consists of the same instructions."""
        path = self.own / _PROGRAM
        if not path.exists():
            return False
        with Program.open(path) as pinned:
            return pinned.info().tag == program.info().tag

    # --- what there shall be ---

    def store(self, handles: Mapping[str, Handle]) -> None:
        """Pin maps by name, those that are not there yet."""
        self.own.mkdir(mode=0o700, exist_ok=True)
        for name, handle in handles.items():
            path = self.own / _file(name)
            if not path.exists():
                handle.pin(path)

    def store_attached(self, link: Link, program: Program) -> None:
        """Pin what is attached now, and forget all of other layouts."""
        for name, handle in ((_PROGRAM, program), (_LINK, link)):
            path = self.own / name
            if name == _PROGRAM or not path.exists():
                path.unlink(missing_ok=True)
                handle.pin(path)
        for version in _versions(self.place):
            if version.name != _OWN:
                _remove(version)

    def clear(self) -> None:
        """Unpin everything."""
        for version in _versions(self.place):
            _remove(version)

    def close(self) -> None:
        """Let others have the interface."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            try:
                self.place.rmdir()
            except OSError as err:
                if err.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                    _log.warning("cannot remove %s: %s", self.place, err)
            os.close(lock)


def _file(name: str) -> str:
    return name.lstrip(".")


def _versions(place: Path) -> list[Path]:
    return sorted(each for each in place.iterdir() if each.name.startswith("layout"))


def _links(place: Path) -> list[Link]:
    """Return the links of a directory of pins, as far as this process may see them."""
    try:
        return [link for version in _versions(place) for link in _links_in(version)]
    except OSError:
        return []


def _links_in(version: Path) -> list[Link]:
    try:
        return [Link.open(version / _LINK)]
    except OSError:  # there is none
        return []


def _remove(version: Path) -> None:
    """Remove a directory of pins; the link first, so that what it runs is never half there."""
    (version / _LINK).unlink(missing_ok=True)
    for pin in version.iterdir():
        pin.unlink()
    version.rmdir()


def _owner(there: os.stat_result) -> str:
    """Return the process that has the lock on a file."""
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, *_, number, file, _, _ = line.split()
        if kind == "FLOCK" and file.rpartition(":")[2] == str(there.st_ino):
            return process(int(number))
    return "a process that is not seen from here"
