"""The process that keeps the lab's namespaces, and makes the network in them.

    python -m lvskit.lab.holder [--user] [--xdp]

It becomes a daemon and prints its number, starts one child in a new network and UTS namespace
for every host, lets another child make the network, and prints one line of JSON: the children's
numbers by host, or an error. Then it waits for ever. When it ends, its children end, and with
the last process in them the namespaces, their devices and cables go.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Final

from lvskit.errors import DatapathError, LvskitError
from lvskit.lab.namespaces import (
    NEWNET,
    NEWUTS,
    become_root_of_new_user_namespace,
    enter,
    mount_own,
    unshare,
)
from lvskit.lab.topology import HOSTS, SEGMENT, VIP, VIP6, Host, build_host, build_segment

_PR_SET_PDEATHSIG: Final = 1


def forked(name: str, work: Callable[[], object]) -> None:
    """Do `work` in a child, and wait for it.

    Raises:
        DatapathError: with the message of what failed there.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.write(write, _problem_of(work))
        os._exit(0)
    os.close(write)
    with open(read, "rb") as report:
        problem = report.read().decode(errors="replace")
    os.waitpid(child, 0)
    if problem:
        raise DatapathError(f"{name}: {problem}")


def _problem_of(work: Callable[[], object]) -> bytes:
    # In a child nothing may be raised: it would go on as its parent.
    try:
        work()
    except LvskitError as err:
        return str(err).encode()
    except BaseException:
        return traceback.format_exc().encode()[-4000:]
    return b""


def inside(pid: int, name: str, work: Callable[[], object]) -> None:
    """Do `work` in a child that has joined the network and the host name of `pid`.

    Raises:
        DatapathError: with the message of what failed there.
    """

    def joined() -> None:
        enter({kind: f"/proc/{pid}/ns/{kind}" for kind in ("net", "uts")})
        work()

    forked(name, joined)


def keep(name: str) -> int:
    """Start a child that is alone in new namespaces, under this host name; return its number."""
    read, write = os.pipe()
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        problem = _problem_of(lambda: _isolate(name))
        os.write(write, problem)
        # The keeper may have ended before this child was tied to it.
        if problem or os.getppid() != keeper:
            os._exit(1)
        _close_standard_files(write)
        while True:
            signal.pause()
    os.close(write)
    with open(read, "rb") as report:
        problem = report.read()
    if problem:
        raise DatapathError(f"{name}: {problem.decode(errors='replace')}")
    return child


def _isolate(name: str) -> None:
    unshare(NEWNET | NEWUTS)
    socket.sethostname(name)


def _close_standard_files(*more: int) -> None:
    # Whoever reads to the end of our output must not wait for as long as the lab lasts.
    for number in (sys.stdout.fileno(), *more):
        os.close(number)


def build(holders: dict[str, int], *, realservers: bool, vips: bool, xdp: bool) -> None:
    """Make the network, the director's VIPs, and set the real servers up.

    Args:
        holders: for each host, and the segment, a process in its network namespace.
        realservers, vips: whether to set those up.
        xdp: cables and real servers are such as the director's datapath `xdp` needs.
    """
    # The children that do the work share the modules that are loaded here, once.
    import pyroute2  # noqa: F401

    from lvskit.hostsetup import add_vip, up

    def make(host: Host) -> None:
        build_host(host, xdp=xdp)
        if host.holds_vip and vips:
            add_vip(VIP)
            add_vip(VIP6)
        if host.serves and realservers:
            directors = [each for each in HOSTS if each.holds_vip]
            senders = [a for each in directors for a in (each.address, each.address6)]
            up([VIP, VIP6], senders, via="xdp" if xdp else "auto")

    inside(holders[SEGMENT], SEGMENT, partial(build_segment, holders, xdp=xdp))
    for each in HOSTS:
        inside(holders[each.name], each.name, partial(make, each))


def main() -> None:
    """Become a daemon, make everything, say so, and wait."""
    parser = argparse.ArgumentParser(prog="lvskit.lab.holder")
    parser.add_argument("--user", action="store_true", help="in a user namespace of its own")
    parser.add_argument("--xdp", action="store_true", help="for the datapath xdp")
    parser.add_argument("--no-vips", action="store_true")
    parser.add_argument("--no-realservers", action="store_true")
    given = parser.parse_args()
    if os.fork():
        return
    print(os.getpid(), flush=True)
    try:
        if given.user:
            become_root_of_new_user_namespace()
        if given.xdp:
            mount_own("bpf", "/sys/fs/bpf")
        holders = {name: keep(name) for name in [SEGMENT, *(host.name for host in HOSTS)]}
        # In a child, so that what it loads does not stay in memory for as long as the lab does.
        forked(
            "lab",
            lambda: build(
                holders,
                realservers=not given.no_realservers,
                vips=not given.no_vips,
                xdp=given.xdp,
            ),
        )
    except (LvskitError, OSError) as err:
        print(json.dumps({"error": str(err)}), flush=True)
        return
    print(json.dumps({"hosts": holders}), flush=True)
    _close_standard_files()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
