"""`lvskit lab`: a cluster of a client, a director and three real servers on this machine."""

from __future__ import annotations

import argparse
import os
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add `lab` to the parser of `lvskit`.

    Args:
        subparsers: what `ArgumentParser.add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "lab", help="a cluster in network namespaces, to try things out", description=__doc__
    )
    parser.add_argument("--name", default="lab", help="of the lab (default: lab)")
    verbs = parser.add_subparsers(required=True, metavar="up|exec|status|down")
    up = verbs.add_parser("up", help="start it")
    up.add_argument("--no-director", action="store_true", help="do not start the director's daemon")
    up.add_argument(
        "--datapath",
        choices=["live", "xdp"],
        default="live",
        help="the director's; with xdp (root's alone) the real servers take packets out of the"
        " tunnel by XDP too (default: live)",
    )
    up.set_defaults(func=_up)
    run = verbs.add_parser(
        "exec",
        help="run a command on one of its hosts",
        usage="%(prog)s HOST -- COMMAND…",
        description="Runs COMMAND on a host of the lab: client, director, rs1, rs2, rs3. Its exit"
        " status is the command's.",
    )
    run.add_argument("host", metavar="HOST")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    run.set_defaults(func=_exec)
    status = verbs.add_parser("status", help="say whether it runs, and who is where")
    status.set_defaults(func=_status)
    down = verbs.add_parser("down", help="end it, or remove what a crashed one left")
    down.set_defaults(func=_down)


def _up(args: argparse.Namespace) -> int:
    from lvskit.lab import VIP, VIP6, Lab

    director = not args.no_director
    lab = Lab.up(args.name, start_director=director, datapath=args.datapath, tell=print)
    print(f"the lab is up; the VIPs are {VIP} and {VIP6}; `lvskit lab exec client -- COMMAND`")
    if lab.mode == "user":
        print("(all of it within a user namespace: it can do no harm to this machine)")
    return 0


def _exec(args: argparse.Namespace) -> int:
    from lvskit.errors import ConfigError

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise ConfigError(f"no command given; for instance: lvskit lab exec {args.host} -- ip addr")
    lab = _running(args.name)
    argv, environment = lab.argv(args.host, command), lab.environment(args.host)
    # This process becomes the command: terminal, signals and exit status are its own.
    os.execve(argv[0], argv, environment)


def _status(args: argparse.Namespace) -> int:
    from lvskit.lab import HOSTS, Lab

    lab = Lab.find(args.name)
    if lab is None:
        print("the lab is down")
        return 3  # as service(8): not running
    print(f"the lab is up ({lab.mode}); files in {lab.directory}")
    for host in HOSTS:
        print(f"{host.name:10} {host.address:15} {host.address6}")
    for name, running in lab.daemons.items():
        print(f"{name}: {'runs' if running else 'ended'}")
    return 0


def _down(args: argparse.Namespace) -> int:
    from lvskit.lab import Lab

    print("the lab is down" if Lab.clear(args.name) else "there was no lab")
    return 0


def _running(name: str) -> Any:
    from lvskit.errors import ConfigError
    from lvskit.lab import Lab

    lab = Lab.find(name)
    if lab is None:
        raise ConfigError(f"the lab {name!r} is not up; start it with `lvskit lab up`")
    return lab
