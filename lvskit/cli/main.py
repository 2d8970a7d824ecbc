"""`lvskit`: the daemon, what surrounds it, and the ways to try it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from lvskit import __version__
from lvskit.control.paths import SOCKET_VARIABLE, default_socket
from lvskit.errors import LvskitError

COMMANDS: Final = (
    "run", "state", "top", "settings", "config", "plugins", "vip", "realserver", "lab", "demo",
)  # fmt: skip
"""Modules of `lvskit.cli`, each with an `add_parser`, in the order that the help has them."""

_EPILOG = f"""\
a first look:
  lvskit demo                          watch a whole cluster carry connections
  lvskit run --datapath memory         a daemon to try commands on, without privileges

a director:
  lvskit vip add 192.168.1.176         take the virtual address
  lvskit run lvskit.toml               carry its packets, as the file says
  lvsadm -A -t 192.168.1.176:telnet -s wlc -p
  lvsadm -a -t 192.168.1.176:telnet -r 192.168.1.181 -i
  lvskit status                        what there is, and what passes
  lvskit top                           watch it
  lvskit set drop_entry=1              withstand a SYN flood; `lvskit settings` lists the rest
  lvskit save > lvskit.toml            keep it
  lvskit config check lvskit.toml      what is wrong with a file

a real server:
  lvskit realserver up --vip 192.168.1.176

Every command finds the daemon at {{socket}};
{SOCKET_VARIABLE} names another socket.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    main_parser = argparse.ArgumentParser(
        prog="lvskit",
        description="A pluggable Linux Virtual Server director.",
        epilog=_EPILOG.format(socket=default_socket()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument("--version", action="version", version=f"lvskit {__version__}")
    subparsers = main_parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command"
    )
    for name in COMMANDS:
        importlib.import_module(f"lvskit.cli.{name}").add_parser(subparsers)
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lvskit ARGUMENTS` and return its exit status."""
    given = parser().parse_args(arguments)
    try:
        status: int = given.func(given) or 0
        sys.stdout.flush()
    except LvskitError as err:
        print(f"lvskit: {err}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of the output has gone, `lvskit status | head`; nor may the exit flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    return status
