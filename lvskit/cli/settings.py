"""`lvskit settings` and `lvskit set`: what holds for a running director, and for one service."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lvskit.config.settings import assignments
from lvskit.control.client import connect
from lvskit.errors import ConfigError

_WHAT = """\
The names are those of the kernel's sysctls (net.ipv4.vs), and timeout_STATE. Here each holds for
the director, or for one virtual service alone: a service has its own value (from: service), else
the director's (director), else the kernel's default (kernel).
"""
_SETTINGS_EPILOG = """\
examples:
  lvskit settings                                    all that hold for the director
  lvskit settings -t 192.168.1.176:80                what holds for that service
  lvskit settings drop_entry drop_packet secure_tcp  these three
  lvskit settings --json                             for programs
"""
_SET_EPILOG = """\
examples:
  lvskit set sloppy_tcp=1                            for all services without a value of their own
  lvskit set -t 192.168.1.176:80 drop_entry=3 timeout_established=60
                                                     for one service
  lvskit set -t 192.168.1.176:80 drop_entry=-        take it back: the director's holds again
  lvskit set sloppy_tcp=-                            take it back: the kernel's default holds again

All of the changes are made, or none. They are in what `lvskit save` prints, and a restart or SIGHUP
takes what the daemon's file says. `lvskit settings` lists names and meanings.
"""


def add_parser(subparsers: Any) -> None:
    """Add the commands to the parsers of `lvskit`."""
    show = subparsers.add_parser(
        "settings",
        help="list the settings of a running daemon: value, where from, meaning",
        description=f"List settings: name, value, where it is from, meaning.\n\n{_WHAT}",
        epilog=_SETTINGS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("names", metavar="NAME", nargs="*", help="list these only")
    _add_service(show)
    show.add_argument("--json", action="store_true", help="for programs")
    show.set_defaults(func=_show)
    change = subparsers.add_parser(
        "set",
        help="change settings of a running daemon, or of one of its services",
        description=f"Change settings.\n\n{_WHAT}",
        epilog=_SET_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    change.add_argument(
        "changes", metavar="NAME=VALUE", nargs="+", help="a whole number; - takes the value back"
    )
    _add_service(change)
    change.set_defaults(func=_set)


def _add_service(parser: argparse.ArgumentParser) -> None:
    """Add ipvsadm's options that name a service, to `parser`; without one, all are meant."""
    named = parser.add_mutually_exclusive_group()
    for letter, protocol in (("-t", "tcp"), ("-u", "udp"), ("", "sctp")):
        option = f"--{protocol}-service"
        named.add_argument(
            *filter(None, (letter, option)),
            dest=protocol,
            metavar="HOST:PORT",
            help=f"of this {protocol.upper()} service",
        )
    named.add_argument(
        "-f",
        "--fwmark-service",
        dest="fwmark",
        type=int,
        metavar="MARK",
        help="of the service of this firewall mark",
    )
    parser.add_argument("-6", "--ipv6", action="store_true", help="with -f: of its IPv6 packets")


def _named(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters that name the service, where the command line does."""
    service = {
        name: getattr(arguments, name)
        for name in ("tcp", "udp", "sctp", "fwmark")
        if getattr(arguments, name) is not None
    }
    if arguments.ipv6:
        if "fwmark" not in service:
            raise ConfigError("-6 belongs to -f; an address says it by itself")
        service["ipv6"] = True
    return {"service": service} if service else {}


def _show(arguments: argparse.Namespace) -> int:
    with connect() as client:
        rows = client.call("settings", _named(arguments))
    known = [row["name"] for row in rows]
    for name in arguments.names:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}; allowed: {', '.join(known)}")
    rows = [row for row in rows if not arguments.names or row["name"] in arguments.names]
    print(json.dumps(rows, indent=2) if arguments.json else table(rows))
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """Return settings, as the daemon tells them, in columns under a heading."""
    lines = [("NAME", "VALUE", "FROM", "MEANING")]
    lines += [(row["name"], str(row["value"]), row["origin"], row["meaning"]) for row in rows]
    names, values, origins, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        f"{name:<{names}}  {value:>{values}}  {origin:<{origins}}  {meaning}"
        for name, value, origin, meaning in lines
    )


def _set(arguments: argparse.Namespace) -> int:
    changes = assignments(arguments.changes)
    with connect() as client:
        client.call("set_settings", {"settings": changes, **_named(arguments)})
    return 0
