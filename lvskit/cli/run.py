"""`lvskit run`: the daemon."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING, Any

from lvskit.control.paths import SOCKET_VARIABLE

if TYPE_CHECKING:
    from lvskit.config.model import Config
    from lvskit.plugins import Plugins

_EPILOG = f"""\
examples:
  lvskit run                              no services yet: add them with lvsadm
  lvskit run /etc/lvskit.toml             those of the file; SIGHUP applies it again
  lvskit run --datapath memory --socket /tmp/lvs.sock
                                          no privileges, no packets: to try commands, with
                                          {SOCKET_VARIABLE}=/tmp/lvs.sock lvsadm ...

signals:
  SIGHUP   read FILE again and apply what has changed; a faulty file changes nothing
  SIGTERM, SIGINT   leave: connections are kept in the state file for the next start
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parsers of `lvskit`."""
    parser = subparsers.add_parser(
        "run",
        help="run the daemon: the director, its datapath and its control socket",
        description="Run the director in the foreground until SIGTERM or SIGINT.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE.toml", nargs="?", help="its configuration")
    parser.add_argument(
        "--datapath", metavar="NAME", help="live (default), memory, or one of a plugin"
    )
    parser.add_argument(
        "--interface", metavar="IF", help="for the datapath xdp: where clients' packets come in"
    )
    parser.add_argument("--socket", metavar="PATH", help="where it takes commands")
    parser.add_argument(
        "--size", type=int, metavar="N", help="the most connections it keeps (default: 65536)"
    )
    parser.add_argument(
        "--bypass",
        action="store_true",
        help="while the daemon is down, let the services' packets pass to this host's own "
        "sockets; otherwise they are dropped, so that connections survive a restart",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="for the datapath xdp: leave its program at work in the end, so that known "
        "connections go on until the next start",
    )
    parser.add_argument("--state", metavar="FILE", help="where it keeps connections; '' = nowhere")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon; 0 when it was asked to stop."""
    import asyncio

    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="lvskit: %(levelname)s: %(message)s",
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    asyncio.run(_serve(arguments))
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    import asyncio
    import signal

    from lvskit.control import collector, privileges
    from lvskit.control.daemon import DirectorServer
    from lvskit.errors import LvskitError
    from lvskit.plugins import load_plugins

    path = os.path.abspath(arguments.file) if arguments.file else None
    plugins = load_plugins()

    def load() -> Config:
        return _configuration(path, arguments, plugins)

    server = DirectorServer(load(), load=load if path else None, plugins=plugins, notify=True)

    def hang_up() -> None:
        try:
            server.reload()
        except LvskitError as err:
            logging.getLogger(__name__).error("nothing changed: %s", err)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    async with server:
        if server.capabilities is not None:
            privileges.keep_only(server.capabilities)
        collector.settle()
        await server.serve()


def _configuration(path: str | None, arguments: argparse.Namespace, plugins: Plugins) -> Config:
    """Return the configuration of the file, with what the command line says instead."""
    import msgspec

    from lvskit.config import toml
    from lvskit.config.model import Config

    config = Config() if path is None else toml.read(path, plugins)
    director = config.director
    changes = {name: getattr(arguments, name) for name in ("datapath", "socket", "size", "state")}
    options = dict(director.datapath_options)
    for name in ("bypass", "keep"):
        if getattr(arguments, name):
            options[name] = True
    if arguments.interface is not None:
        options["interface"] = arguments.interface
    changes["datapath_options"] = options
    said = {name: value for name, value in changes.items() if value is not None}
    return msgspec.structs.replace(config, director=msgspec.structs.replace(director, **said))
